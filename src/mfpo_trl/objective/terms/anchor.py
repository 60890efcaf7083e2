"""Terms of one reward: it stays above a margin."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ..losses import anchor_loss
from ..names import CHOSEN, COUNTERPART, BranchName
from ..ratios import LogRatios
from .term import Term


def _of(branch: BranchName, margin: float, ratios: LogRatios, beta: float) -> Tensor:
    return anchor_loss(ratios[branch], beta, margin)


def anchored(branch: BranchName, margin: float = 0.0) -> Callable[[LogRatios, float], Tensor]:
    """The loss `-log sigma(b r - margin)` of one branch."""
    return partial(_of, branch, margin)


def anchor_term(margin: float) -> Term:
    """The anchor of the chosen answer, with a margin in units of reward."""
    formula = "-log sigma(b r(y_w|m)" + (f" - {margin:g})" if margin else ")")
    return Term("anchor", (CHOSEN,), anchored(CHOSEN, margin), formula, source="mDPO, arXiv 2406.11839")


_COUNTERPART = BranchName("rejected_image", COUNTERPART)
_SECOND = BranchName("image", "chosen_2")

ANCHOR_TERMS = (
    anchor_term(0.0),
    Term(
        "counterpart_anchor",
        (_COUNTERPART,),
        anchored(_COUNTERPART),
        "-log sigma(b r(y'|m'))",
        source="SymMPO, arXiv 2506.11712",
    ),
    Term(
        "second_anchor",
        (_SECOND,),
        anchored(_SECOND),
        "-log sigma(b r(y_w2|m))",
        source="OPA-DPO, arXiv 2501.09695",
    ),
)
