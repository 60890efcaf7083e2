"""The papers of objectives and terms: what a card cites. Authors as the paper's own page or repository names them."""

import re
from typing import NamedTuple

ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


class Paper(NamedTuple):
    """A paper.

    Args:
        name: what its method is called.
        key: of its BibTeX.
        title, authors, year: `authors` as BibTeX has them; empty where they are not known here.
        arxiv: its number there.
        booktitle: of the proceedings, where it is in any.
    """

    name: str
    key: str
    title: str
    authors: str
    year: int
    arxiv: str
    booktitle: str = ""

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"

    @property
    def bibtex(self) -> str:
        """Its entry; fields that are not known are left out."""
        known = {
            "title": f"{{{self.title}}}" if self.title else "",
            "author": self.authors,
            "booktitle": self.booktitle,
            "year": str(self.year) if self.year else "",
            "eprint": self.arxiv,
            "archiveprefix": "arXiv",
            "url": self.url,
        }
        fields = [f"    {name:13} = {{{value}}}" for name, value in known.items() if value]
        return "\n".join([f"@{'inproceedings' if self.booktitle else 'misc'}{{{self.key},", ",\n".join(fields), "}"])


_PAPERS = (
    Paper(
        "DPO",
        "rafailov2023direct",
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        "Rafael Rafailov and Archit Sharma and Eric Mitchell and Christopher D. Manning and Stefano Ermon and Chelsea Finn",
        2023,
        "2305.18290",
        "Advances in Neural Information Processing Systems 36",
    ),
    Paper(
        "mDPO",
        "wang2024mdpo",
        "mDPO: Conditional Preference Optimization for Multimodal Large Language Models",
        "Fei Wang and Wenxuan Zhou and James Y. Huang and Nan Xu and Sheng Zhang and Hoifung Poon and Muhao Chen",
        2024,
        "2406.11839",
        "Proceedings of the 2024 Conference on Empirical Methods in Natural Language Processing",
    ),
    Paper(
        "MFPO",
        "jiang2025modality",
        "Modality-Fair Preference Optimization for Trustworthy MLLM Alignment",
        "Songtao Jiang and Yan Zhang and Ruizhe Chen and Tianxiang Hu and Yeying Jin and Qinglin He and Yang Feng and Jian Wu "
        "and Zuozhu Liu",
        2025,
        "2410.15334",
        "Proceedings of the Thirty-Fourth International Joint Conference on Artificial Intelligence, IJCAI 2025",
    ),
    Paper(
        "rDPO",
        "xing2025realign",
        "Re-Align: Aligning Vision Language Models via Retrieval-Augmented Direct Preference Optimization",
        "Shuo Xing and Yuping Wang and Peiran Li and Ruizheng Bai and Yueqi Wang and Chengxuan Qian and Huaxiu Yao and "
        "Zhengzhong Tu",
        2025,
        "2502.13146",
    ),
    Paper(
        "CHiP",
        "fu2025chip",
        "CHiP: Cross-modal Hierarchical Direct Preference Optimization for Multimodal LLMs",
        "Jinlan Fu and Shenzhen Huangfu and Hao Fei and Xiaoyu Shen and Bryan Hooi and Xipeng Qiu and See-Kiong Ng",
        2025,
        "2501.16629",
    ),
    Paper(
        "AdaViP",
        "lu2025adavip",
        "AdaViP: Aligning Multi-modal LLMs via Adaptive Vision-enhanced Preference Optimization",
        "Jinda Lu and Jinghan Li and Yuan Gao and Junkang Wu and Jiancan Wu and Xiang Wang and Xiangnan He",
        2025,
        "2504.15619",
    ),
    Paper(
        "POVID",
        "zhou2024povid",
        "Aligning Modalities in Vision Large Language Models via Preference Fine-tuning",
        "Yiyang Zhou and Chenhang Cui and Rafael Rafailov and Chelsea Finn and Huaxiu Yao",
        2024,
        "2402.11411",
    ),
    Paper(
        "MMedPO",
        "zhu2024mmedpo",
        "MMedPO: Aligning Medical Vision-Language Models with Clinical-Aware Multimodal Preference Optimization",
        "Kangyu Zhu and Peng Xia and Yun Li and Hongtu Zhu and Sheng Wang and Huaxiu Yao",
        2024,
        "2412.06141",
    ),
    Paper(
        "S-VCO",
        "wu2025svco",
        "Symmetrical Visual Contrastive Optimization: Aligning Vision-Language Models with Minimal Contrastive Images",
        "Shengguang Wu and Fan-Yun Sun and Kaiyue Wen and Nick Haber",
        2025,
        "2502.13928",
    ),
    Paper(
        "SymMPO",
        "liu2025mitigating",
        "Mitigating Hallucination Through Theory-Consistent Symmetric Multimodal Preference Optimization",
        "Wenqi Liu and Xuemeng Song and Jiaxi Li and Yinwei Wei and Na Zheng and Jianhua Yin and Liqiang Nie",
        2025,
        "2506.11712",
        "The Thirty-ninth Annual Conference on Neural Information Processing Systems",
    ),
    Paper(
        "V-DPO",
        "xie2024vdpo",
        "V-DPO: Mitigating Hallucination in Large Vision Language Models via Vision-Guided Direct Preference Optimization",
        "Yuxi Xie and Guanzhen Li and Xiao Xu and Min-Yen Kan",
        2024,
        "2411.02712",
    ),
    Paper(
        "LPOI",
        "pesaranzadeh2025lpoi",
        "LPOI: Listwise Preference Optimization for Vision Language Models",
        "Fatemeh Pesaran Zadeh and Yoojin Oh and Gunhee Kim",
        2025,
        "2505.21061",
        "Proceedings of the 63rd Annual Meeting of the Association for Computational Linguistics (Volume 1: Long Papers)",
    ),
    Paper(
        "MISP-DPO",
        "li2025misp",
        "Importance Sampling for Multi-Negative Multimodal Direct Preference Optimization",
        "Xintong Li and Chuhan Wang and Junda Wu and Rohan Surana and Tong Yu and Julian McAuley and Jingbo Shang",
        2025,
        "2509.25717",
    ),
    Paper(
        "OPA-DPO",
        "yang2025opadpo",
        "Mitigating Hallucinations in Large Vision-Language Models via DPO: On-Policy Data Hold the Key",
        "Zhihe Yang and Xufang Luo and Dongqi Han and Yunjian Xu and Dongsheng Li",
        2025,
        "2501.09695",
    ),
    Paper(
        "RLHF-V",
        "yu2023rlhfv",
        "RLHF-V: Towards Trustworthy MLLMs via Behavior Alignment from Fine-grained Correctional Human Feedback",
        "Tianyu Yu and Yuan Yao and Haoye Zhang and Taiwen He and Yifeng Han and Ganqu Cui and Jinyi Hu and Zhiyuan Liu and "
        "Hai-Tao Zheng and Maosong Sun and Tat-Seng Chua",
        2023,
        "2312.00849",
    ),
    Paper(
        "TPO",
        "gu2024tpo",
        "Token Preference Optimization with Self-Calibrated Visual-Anchored Rewards for Hallucination Mitigation",
        "Jihao Gu and Yingyao Wang and Meng Cao and Pi Bu and Jun Song and Yancheng He and Shilong Li and Bo Zheng",
        2024,
        "2412.14487",
    ),
    Paper(
        "DA-DPO",
        "qiu2026dadpo",
        "DA-DPO: Cost-efficient Difficulty-aware Preference Optimization for Reducing MLLM Hallucinations",
        "Longtian Qiu and Shan Ning and Chuyu Zhang and Jiaxuan Sun and Xuming He",
        2026,
        "2601.00623",
    ),
    Paper(
        "Uni-DPO",
        "peng2025unidpo",
        "Uni-DPO: A Unified Paradigm for Dynamic Preference Optimization of LLMs",
        "Shangpin Peng and Weinong Wang and Zhuotao Tian and Senqiao Yang and Xing W and Haotian Xu and Chengquan Zhang and "
        "Takashi Isobe and Baotian Hu and Min Zhang",
        2025,
        "2506.10054",
    ),
    Paper(
        "SENTINEL",
        "peng2025sentinel",
        "Mitigating Object Hallucinations via Sentence-Level Early Intervention",
        "Shangpin Peng and Senqiao Yang and Li Jiang and Zhuotao Tian",
        2025,
        "2507.12455",
    ),
    Paper(
        "IC-VCO",
        "deng2026learning",
        "Learning from Fine-Grained Visual Discrepancies: Mitigating Multimodal Hallucinations via In-Context Visual Contrastive "
        "Optimization",
        "Haolin Deng and Xin Zou and Zhiwei Jin and Chen Chen and Haonan Lu and Xuming Hu",
        2026,
        "2605.31312",
        "Forty-third International Conference on Machine Learning",
    ),
)

PAPERS = {paper.arxiv: paper for paper in _PAPERS}
"""By their numbers on arXiv."""


def papers_in(text: str) -> list[Paper]:
    """The papers whose numbers on arXiv a text names, in their order; of one that is not in the table, the number alone is known."""
    numbers = dict.fromkeys(ARXIV.findall(text))
    return [
        PAPERS.get(own) or Paper(f"arXiv {own}", f"arxiv{own.replace('.', '')}", "", "", 0, own) for own in numbers
    ]
