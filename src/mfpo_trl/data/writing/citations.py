"""What the card of a built data set cites: papers, and which part of a build stands on which."""

from typing import NamedTuple

from ...objective import PAPERS as METHODS


class Paper(NamedTuple):
    """A paper: what it is called in a table, where it can be read, and its BibTeX."""

    name: str
    address: str
    bibtex: str


class Published(NamedTuple):
    """A data set on the Hub: the key of its paper, and the licence that its card named when this table was written."""

    paper: str
    licence: str | None


def _paper(name: str, key: str, title: str, authors: str, year: int, arxiv: str = "", url: str = "") -> Paper:
    address = url or f"https://arxiv.org/abs/{arxiv}"
    where = f"url    = {{{url}}}" if url else f"eprint = {{{arxiv}}},\n    archiveprefix = {{arXiv}}"
    bibtex = f"@misc{{{key},\n    title  = {{{{{title}}}}},\n    author = {{{authors}}},\n    year   = {year},\n    {where}\n}}"
    return Paper(name, address, bibtex)


def _method(arxiv: str) -> Paper:
    paper = METHODS[arxiv]
    return Paper(paper.name, paper.url, paper.bibtex)


PAPERS = {
    "mfpo": _method("2410.15334"),
    "mdpo": _method("2406.11839"),
    # Data sets
    "rlhf-v": _method("2312.00849"),
    "rlaif-v": _paper(
        "RLAIF-V",
        "yu2024rlaifv",
        "RLAIF-V: Open-Source AI Feedback Leads to Super GPT-4V Trustworthiness",
        "Tianyu Yu and Haoye Zhang and Qiming Li and Qixin Xu and Yuan Yao and Da Chen and Xiaoman Lu and Ganqu Cui and "
        "Yunkai Dang and Taiwen He and Xiaocheng Feng and Jun Song and Bo Zheng and Zhiyuan Liu and Tat-Seng Chua and "
        "Maosong Sun",
        2024,
        "2405.17220",
    ),
    "vlfeedback": _paper(
        "VLFeedback (Silkie)",
        "li2023silkie",
        "Silkie: Preference Distillation for Large Visual Language Models",
        "Lei Li and Zhihui Xie and Mukai Li and Shunian Chen and Peiyi Wang and Liang Chen and Yazheng Yang and Benyou Wang "
        "and Lingpeng Kong",
        2023,
        "2312.10665",
    ),
    "povid": _method("2402.11411"),
    "spa-vl": _paper(
        "SPA-VL",
        "zhang2024spavl",
        "SPA-VL: A Comprehensive Safety Preference Alignment Dataset for Vision Language Model",
        "Yongting Zhang and Lu Chen and Guodong Zheng and Yifeng Gao and Rui Zheng and Jinlan Fu and Zhenfei Yin and Senjie "
        "Jin and Yu Qiao and Xuanjing Huang and Feng Zhao and Tao Gui and Jing Shao",
        2024,
        "2406.12030",
    ),
    "sentinel": _paper(
        "SENTINEL",
        "peng2025sentinel",
        "Mitigating Object Hallucinations via Sentence-Level Early Intervention",
        "Shangpin Peng and Senqiao Yang and Li Jiang and Zhuotao Tian",
        2025,
        "2507.12455",
    ),
    # Key words
    "pagerank": _paper(
        "PageRank",
        "page1999pagerank",
        "The PageRank Citation Ranking: Bringing Order to the Web",
        "Lawrence Page and Sergey Brin and Rajeev Motwani and Terry Winograd",
        1999,
        url="http://ilpubs.stanford.edu:8090/422/",
    ),
    "multipartite": _paper(
        "MultipartiteRank",
        "boudin2018multipartite",
        "Unsupervised Keyphrase Extraction with Multipartite Graphs",
        "Florian Boudin",
        2018,
        "1803.08721",
    ),
    # Regions
    "grounding-dino": _paper(
        "Grounding DINO",
        "liu2023groundingdino",
        "Grounding DINO: Marrying DINO with Grounded Pre-Training for Open-Set Object Detection",
        "Shilong Liu and Zhaoyang Zeng and Tianhe Ren and Feng Li and Hao Zhang and Jie Yang and Qing Jiang and Chunyuan Li "
        "and Jianwei Yang and Hang Su and Jun Zhu and Lei Zhang",
        2023,
        "2303.05499",
    ),
    "sam": _paper(
        "SAM",
        "kirillov2023sam",
        "Segment Anything",
        "Alexander Kirillov and Eric Mintun and Nikhila Ravi and Hanzi Mao and Chloe Rolland and Laura Gustafson and Tete "
        "Xiao and Spencer Whitehead and Alexander C. Berg and Wan-Yen Lo and Piotr Doll\u00e1r and Ross Girshick",
        2023,
        "2304.02643",
    ),
    "owlv2": _paper(
        "OWLv2",
        "minderer2023owlv2",
        "Scaling Open-Vocabulary Object Detection",
        "Matthias Minderer and Alexey Gritsenko and Neil Houlsby",
        2023,
        "2306.09683",
    ),
    "clipseg": _paper(
        "CLIPSeg",
        "luddecke2021clipseg",
        "Image Segmentation Using Text and Image Prompts",
        "Timo L\u00fcddecke and Alexander S. Ecker",
        2021,
        "2112.10003",
    ),
    "sam3": _paper(
        "SAM 3",
        "carion2025sam3",
        "SAM 3: Segment Anything with Concepts",
        "Nicolas Carion and Laura Gustafson and Yuan-Ting Hu and Shoubhik Debnath and Ronghang Hu and Didac Suris and others",
        2025,
        "2511.16719",
    ),
    # Difficulty
    "semantic-entropy": _paper(
        "Semantic entropy",
        "kuhn2023semantic",
        "Semantic Uncertainty: Linguistic Invariances for Uncertainty Estimation in Natural Language Generation",
        "Lorenz Kuhn and Yarin Gal and Sebastian Farquhar",
        2023,
        "2302.09664",
    ),
}

PUBLISHED = {
    "openbmb/RLHF-V-Dataset": Published("rlhf-v", "cc-by-nc-4.0"),
    "openbmb/RLAIF-V-Dataset": Published("rlaif-v", "cc-by-nc-4.0"),
    "trl-lib/rlaif-v": Published("rlaif-v", None),
    "MMInstruction/VLFeedback": Published("vlfeedback", None),
    "YiyangAiLab/POVID_preference_data_for_VLLMs": Published("povid", "cc-by-4.0"),
    "sqrti/SPA-VL": Published("spa-vl", "cc-by-4.0"),
    "fwnlp/mDPO-preference-data": Published("mdpo", None),
    "psp-dada/SENTINEL": Published("sentinel", None),
}

CONVENTIONS = {
    "rlhf-v": "openbmb/RLHF-V-Dataset",
    "rlaif-v": "openbmb/RLAIF-V-Dataset",
    "vlfeedback": "MMInstruction/VLFeedback",
    "povid": "YiyangAiLab/POVID_preference_data_for_VLLMs",
    "spa-vl": "sqrti/SPA-VL",
    "mdpo": "fwnlp/mDPO-preference-data",
    "sentinel": "psp-dada/SENTINEL",
}
"""A publisher's convention (`sources.SOURCES`) -> the data set that has it; those of TRL, ms-swift and LLaMA-Factory are anyone's."""

GROUNDERS = {
    "grounding-dino-sam": ("grounding-dino", "sam"),
    "owlv2-sam": ("owlv2", "sam"),
    "grounding-dino": ("grounding-dino",),
    "owlv2": ("owlv2",),
    "clipseg": ("clipseg",),
    "sam3": ("sam3",),
}

KEYWORDS = {"mfpo": ("mfpo", "pagerank"), "multipartite": ("multipartite", "pagerank")}

CORRUPTIONS = {"diffusion": ("mfpo",), "crop": ("mdpo",)}

DIFFICULTIES = {"semantic-entropy": ("semantic-entropy",)}
