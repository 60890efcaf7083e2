"""BibTeX of what cards cite."""

from collections.abc import Iterable

from ..objective import PAPERS, papers_in

DPO, MFPO = PAPERS["2305.18290"], PAPERS["2410.15334"]
MFPO_CITATION = MFPO.bibtex

TRL_CITATION = """\
@software{vonwerra2020trl,
    title   = {{TRL: Transformers Reinforcement Learning}},
    author  = {von Werra, Leandro and Belkada, Younes and Tunstall, Lewis and Beeching, Edward and Thrush, Tristan and \
Lambert, Nathan and Huang, Shengyi and Rasul, Kashif and Gallou\u00e9dec, Quentin},
    license = {Apache-2.0},
    url     = {https://github.com/huggingface/trl},
    year    = 2020
}"""


def citations(sources: Iterable[str]) -> str:
    """A section's text: MFPO, whose trainer it was, the papers whose numbers on arXiv `sources` name, DPO and TRL, each once."""
    papers = dict.fromkeys([MFPO, *(own for source in sources for own in papers_in(source) if own != DPO), DPO])
    cited = {**{paper.name: paper.bibtex for paper in papers}, "TRL": TRL_CITATION}
    return "\n\n".join(f"{name}:\n\n```bibtex\n{bibtex}\n```" for name, bibtex in cited.items())
