"""Terms of one answer under several images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses import image_loss, preferred
from ..names import CHOSEN, CHOSEN_2, CORRUPTED, REJECTED, BranchName
from ..ratios import LogRatios
from .term import Term

LADDER = tuple(BranchName(f"rejected_image.{number}", "chosen") for number in (2, 3, 4))
SECOND = CHOSEN_2, BranchName("rejected_image", "chosen_2")


def image(ratios: LogRatios, beta: float) -> Tensor:
    """Prefer the answer because of the image."""
    return image_loss(ratios.chosen, ratios.corrupted, beta)


def image_frozen(ratios: LogRatios, beta: float) -> Tensor:
    """The same without a gradient through the dispreferred image."""
    return preferred(ratios.chosen, ratios.corrupted.detach(), beta)


def second_image(ratios: LogRatios, beta: float) -> Tensor:
    """The image term of a second chosen answer."""
    return preferred(ratios[SECOND[0]], ratios[SECOND[1]], beta)


def either(ratios: LogRatios, beta: float) -> Tensor:
    """The chosen pair over the rejected answer and over the dispreferred image in one sigmoid:
    `log(1 + e^{b(r_l - r_w)} + e^{b(r'_w - r_w)})`."""
    return _over(ratios.chosen, [ratios.rejected, ratios.corrupted], beta)


def several_images(ratios: LogRatios, beta: float) -> Tensor:
    """The row's image over several dispreferred ones in one sigmoid: `log(1 + sum_i e^{b(r'_i - r_w)})`."""
    return _over(ratios.chosen, [ratios[own] for own in (CORRUPTED, *LADDER[:2])], beta)


def _over(better: Tensor, worse: list[Tensor], beta: float) -> Tensor:
    gaps = torch.stack([beta * (own - better) for own in worse])
    # -log sigma(-log sum e^gap) = log(1 + sum e^gap)
    return F.softplus(gaps.logsumexp(dim=0))


def listwise(ratios: LogRatios, beta: float) -> Tensor:
    """Plackett-Luce: of the row's image and the dispreferred ones in their order, each over all that follow."""
    rewards = beta * torch.stack([ratios[own] for own in (CHOSEN, CORRUPTED, *LADDER)])
    tails = rewards.flip(0).logcumsumexp(dim=0).flip(0)
    return (tails - rewards)[:-1].sum(dim=0)


IMAGE_TERMS = (
    Term("image", (CHOSEN, CORRUPTED), image, "-log sigma(b [r(y_w|m) - r(y_w|m')])", source="mDPO, arXiv 2406.11839"),
    Term(
        "image_frozen",
        (CHOSEN, CORRUPTED),
        image_frozen,
        "-log sigma(b [r(y_w|m) - stopgrad r(y_w|m')])",
        source="V-DPO, arXiv 2411.02712",
    ),
    Term(
        "second_image",
        SECOND,
        second_image,
        "-log sigma(b [r(y_w2|m) - r(y_w2|m')])",
        source="OPA-DPO, arXiv 2501.09695",
    ),
    Term(
        "either",
        (CHOSEN, REJECTED, CORRUPTED),
        either,
        "log(1 + exp(b [r(y_l|m) - r(y_w|m)]) + exp(b [r(y_w|m') - r(y_w|m)]))",
        source="AdaViP, arXiv 2504.15619",
    ),
    Term(
        "several_images",
        (CHOSEN, CORRUPTED, *LADDER[:2]),
        several_images,
        "log(1 + sum_i exp(b [r(y_w|m'_i) - r(y_w|m)])), i = 1..3",
        source="MISP-DPO, arXiv 2509.25717",
    ),
    Term(
        "listwise",
        (CHOSEN, CORRUPTED, *LADDER),
        listwise,
        "-sum_k log softmax_{j >= k}(b r(y_w|m_j))_k, m_0 = m, j = 0..4",
        source="LPOI, arXiv 2505.21061",
    ),
)
