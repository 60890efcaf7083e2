"""Terms of two images in one prompt, which says which of them is asked about, so that both answers stand behind the same context."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses import anchor_loss, preferred
from ..names import CHOSEN, CORRUPTED, COUNTERPART, BranchName
from ..ratios import LogRatios
from .symmetric import MISPLACED, OWN
from .term import Term

IMAGE, REJECTED_IMAGE = "image of both", "rejected_image of both"
ASKED = BranchName(IMAGE, "chosen")
ASKED_MISPLACED = BranchName(IMAGE, COUNTERPART)
ASKED_OWN = BranchName(REJECTED_IMAGE, COUNTERPART)
ASKED_CORRUPTED = BranchName(REJECTED_IMAGE, "chosen")


def in_context_image(ratios: LogRatios, beta: float) -> Tensor:
    """Of both images asked about the row's, its answer over that of the other image."""
    return preferred(ratios[ASKED], ratios[ASKED_MISPLACED], beta)


def in_context_counterpart(ratios: LogRatios, beta: float) -> Tensor:
    """Of both images asked about the other one, its answer over that of the row's image."""
    return preferred(ratios[ASKED_OWN], ratios[ASKED_CORRUPTED], beta)


def in_context_anchor(ratios: LogRatios, beta: float, *, margin: float = 0.0) -> Tensor:
    """Of both images asked about the row's, the reward of its answer stays above the margin."""
    return anchor_loss(ratios[ASKED], beta, margin)


def in_context_counterpart_anchor(ratios: LogRatios, beta: float, *, margin: float = 0.0) -> Tensor:
    """Of both images asked about the other one, the reward of its answer stays above the margin."""
    return anchor_loss(ratios[ASKED_OWN], beta, margin)


def distillation(ratios: LogRatios, beta: float, *, threshold: float = 0.5) -> Tensor:
    """With one image, learn how surely the answer is preferred with both: the cross-entropy `-p log q - (1 - p) log(1 - q)`, the
    mean over the two images, `q` the probability of the preference with that image alone and `p`, without a gradient, that with
    both. 0 where `p` is not above the threshold, that is wrong or unsure, or not above `q`.

    Source: VCDist of IC-VCO (arXiv 2605.31312), its released code.
    """
    pairs = (
        (ratios.chosen - ratios.misplaced, ratios[ASKED] - ratios[ASKED_MISPLACED]),
        (ratios.counterpart - ratios.corrupted, ratios[ASKED_OWN] - ratios[ASKED_CORRUPTED]),
    )
    losses = []
    for alone, both in pairs:
        student, teacher = beta * alone, (beta * both).detach()
        sure = teacher.sigmoid()
        loss = sure * F.softplus(-student) + (1 - sure) * F.softplus(student)
        active = (sure > threshold) & (student < teacher)
        losses.append(torch.where(active, loss, torch.zeros_like(loss)))
    return torch.stack(losses).mean(dim=0)


ICVCO = "IC-VCO, arXiv 2605.31312"
IN_CONTEXT_TERMS = (
    Term(
        "in_context_image",
        (ASKED, ASKED_MISPLACED),
        in_context_image,
        "-log sigma(b [r(y_w|mm', m) - r(y'|mm', m)])",
        source=ICVCO,
    ),
    Term(
        "in_context_counterpart",
        (ASKED_OWN, ASKED_CORRUPTED),
        in_context_counterpart,
        "-log sigma(b [r(y'|mm', m') - r(y_w|mm', m')])",
        source=ICVCO,
    ),
    Term("in_context_anchor", (ASKED,), in_context_anchor, "-log sigma(b r(y_w|mm', m) - margin)", source=ICVCO),
    Term(
        "in_context_counterpart_anchor",
        (ASKED_OWN,),
        in_context_counterpart_anchor,
        "-log sigma(b r(y'|mm', m') - margin)",
        source=ICVCO,
    ),
    Term(
        "distillation",
        (CHOSEN, MISPLACED, OWN, CORRUPTED, ASKED, ASKED_MISPLACED, ASKED_OWN, ASKED_CORRUPTED),
        distillation,
        "[p > q, p > threshold] (-p log q - (1 - p) log(1 - q)), q: sigma(b margin) of one image, p: of both",
        source=ICVCO,
    ),
)
