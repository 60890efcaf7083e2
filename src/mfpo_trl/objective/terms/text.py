"""Terms of two answers."""

from torch import Tensor

from ..losses import preferred
from ..names import CHOSEN, CHOSEN_2, CORRUPTED_REJECTED, REJECTED
from ..ratios import LogRatios
from .term import Term


def scaled_text(ratios: LogRatios, beta: float) -> Tensor:
    """DPO with a beta of each row's own: `beta` times the column `beta_scale`."""
    return preferred(ratios.chosen, ratios.rejected, beta * ratios.columns["beta_scale"])


def noisy_rejected(ratios: LogRatios, beta: float) -> Tensor:
    """The chosen answer under the row's image over the rejected one under the dispreferred image."""
    return preferred(ratios.chosen, ratios.corrupted_rejected, beta)


def weighted_noisy_rejected(ratios: LogRatios, beta: float) -> Tensor:
    """The same, times the column `weight`."""
    return ratios.columns["weight"] * noisy_rejected(ratios, beta)


def second_text(ratios: LogRatios, beta: float) -> Tensor:
    """DPO of a second chosen answer over the same rejected one."""
    return preferred(ratios[CHOSEN_2], ratios.rejected, beta)


TEXT_TERMS = (
    Term("text", (CHOSEN, REJECTED), None, "-log sigma(b [r(y_w|m) - r(y_l|m)])", source="DPO, arXiv 2305.18290"),
    Term(
        "scaled_text",
        (CHOSEN, REJECTED),
        scaled_text,
        "-log sigma(b a [r(y_w|m) - r(y_l|m)]), a: column beta_scale",
        ("beta_scale",),
        "DA-DPO, arXiv 2601.00623",
    ),
    Term(
        "noisy_rejected",
        (CHOSEN, CORRUPTED_REJECTED),
        noisy_rejected,
        "-log sigma(b [r(y_w|m) - r(y_l|m')])",
        source="POVID, arXiv 2402.11411",
    ),
    Term(
        "weighted_noisy_rejected",
        (CHOSEN, CORRUPTED_REJECTED),
        weighted_noisy_rejected,
        "-w log sigma(b [r(y_w|m) - r(y_l|m')]), w: column weight",
        ("weight",),
        "MMedPO, arXiv 2412.06141",
    ),
    Term(
        "second_text",
        (CHOSEN_2, REJECTED),
        second_text,
        "-log sigma(b [r(y_w2|m) - r(y_l|m)])",
        source="OPA-DPO, arXiv 2501.09695",
    ),
)
