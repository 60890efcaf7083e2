"""Terms of one reward: it stays above a margin."""

from torch import Tensor

from ..losses import anchor_loss
from ..names import CHOSEN, CHOSEN_2, COUNTERPART, BranchName
from ..ratios import LogRatios
from .term import Term

_COUNTERPART = BranchName("rejected_image", COUNTERPART)


def anchor(ratios: LogRatios, beta: float, *, margin: float = 0.0) -> Tensor:
    """The chosen answer's reward stays above the margin."""
    return anchor_loss(ratios.chosen, beta, margin)


def counterpart_anchor(ratios: LogRatios, beta: float, *, margin: float = 0.0) -> Tensor:
    """The same of the other image's answer, under that image."""
    return anchor_loss(ratios.counterpart, beta, margin)


def second_anchor(ratios: LogRatios, beta: float, *, margin: float = 0.0) -> Tensor:
    """The same of a second chosen answer."""
    return anchor_loss(ratios[CHOSEN_2], beta, margin)


def lowered(ratios: LogRatios, beta: float) -> Tensor:
    """The second chosen answer's reward below zero, as OPA-DPO's released code has it: for reproduction."""
    return anchor_loss(-ratios[CHOSEN_2], beta)


ANCHOR_TERMS = (
    Term("anchor", (CHOSEN,), anchor, "-log sigma(b r(y_w|m) - margin)", source="mDPO, arXiv 2406.11839"),
    Term(
        "counterpart_anchor",
        (_COUNTERPART,),
        counterpart_anchor,
        "-log sigma(b r(y'|m') - margin)",
        source="SymMPO, arXiv 2506.11712",
    ),
    Term(
        "second_anchor",
        (CHOSEN_2,),
        second_anchor,
        "-log sigma(b r(y_w2|m) - margin)",
        source="OPA-DPO, arXiv 2501.09695",
    ),
    Term(
        "second_anchor_lowered",
        (CHOSEN_2,),
        lowered,
        "-log sigma(-b r(y_w2|m))",
        source="the released code of OPA-DPO, arXiv 2501.09695",
    ),
)
