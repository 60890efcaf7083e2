"""Terms of two images, each with the answer that is true of it."""

from torch import Tensor

from ..losses import preferred
from ..names import CHOSEN, CORRUPTED, COUNTERPART, NO_IMAGE, BranchName
from ..ratios import LogRatios
from .term import Term

OWN = BranchName("rejected_image", COUNTERPART)
MISPLACED = BranchName("image", COUNTERPART)
BLIND = BranchName(NO_IMAGE, "chosen")
BLIND_COUNTERPART = BranchName(NO_IMAGE, COUNTERPART)


def answers_of_image(ratios: LogRatios, beta: float) -> Tensor:
    """Under the row's image, its answer over that of the other image."""
    return preferred(ratios.chosen, ratios.misplaced, beta)


def answers_of_counterpart(ratios: LogRatios, beta: float) -> Tensor:
    """Under the other image, its answer over that of the row's image."""
    return preferred(ratios.counterpart, ratios.corrupted, beta)


def images_of_counterpart(ratios: LogRatios, beta: float) -> Tensor:
    """The other image's answer under that image over under the row's."""
    return preferred(ratios.counterpart, ratios.misplaced, beta)


def even_margins(ratios: LogRatios, beta: float) -> Tensor:
    """The squared difference of the two margins, in nats without beta: one image is not to be preferred more than the other."""
    margin = ratios.chosen - ratios.misplaced
    return (margin - (ratios.counterpart - ratios.corrupted)) ** 2


def attended(ratios: LogRatios, beta: float) -> Tensor:
    """The answer with its image over the answer without any."""
    return preferred(ratios.chosen, ratios.blind_chosen, beta)


def repelled(ratios: LogRatios, beta: float) -> Tensor:
    """The answer without any image over the answer with the wrong one."""
    return preferred(ratios.blind_chosen, ratios.corrupted, beta)


def attended_counterpart(ratios: LogRatios, beta: float) -> Tensor:
    """The other image's answer with that image over without any."""
    return preferred(ratios.counterpart, ratios.blind_counterpart, beta)


def repelled_counterpart(ratios: LogRatios, beta: float) -> Tensor:
    """The other image's answer without any image over with the row's."""
    return preferred(ratios.blind_counterpart, ratios.misplaced, beta)


SYMMPO, SVCO = "SymMPO, arXiv 2506.11712", "S-VCO, arXiv 2502.13928"
SYMMETRIC_TERMS = (
    Term(
        "answers_of_image", (CHOSEN, MISPLACED), answers_of_image, "-log sigma(b [r(y_w|m) - r(y'|m)])", source=SYMMPO
    ),
    Term(
        "answers_of_counterpart",
        (OWN, CORRUPTED),
        answers_of_counterpart,
        "-log sigma(b [r(y'|m') - r(y_w|m')])",
        source=SYMMPO,
    ),
    Term(
        "images_of_counterpart",
        (OWN, MISPLACED),
        images_of_counterpart,
        "-log sigma(b [r(y'|m') - r(y'|m)])",
        source="here",
    ),
    Term(
        "even_margins",
        (CHOSEN, MISPLACED, OWN, CORRUPTED),
        even_margins,
        "([r(y_w|m) - r(y'|m)] - [r(y'|m') - r(y_w|m')])^2",
        source=SYMMPO,
    ),
    Term("attended", (CHOSEN, BLIND), attended, "-log sigma(b [r(y_w|m) - r(y_w|-)])", source=SVCO),
    Term("repelled", (BLIND, CORRUPTED), repelled, "-log sigma(b [r(y_w|-) - r(y_w|m')])", source=SVCO),
    Term(
        "attended_counterpart",
        (OWN, BLIND_COUNTERPART),
        attended_counterpart,
        "-log sigma(b [r(y'|m') - r(y'|-)])",
        source=SVCO,
    ),
    Term(
        "repelled_counterpart",
        (BLIND_COUNTERPART, MISPLACED),
        repelled_counterpart,
        "-log sigma(b [r(y'|-) - r(y'|m)])",
        source=SVCO,
    ),
)
