"""What terms are made of, as pure functions of per-sample log-ratios.

Notation (arXiv 2410.15334): `m` image, `m'` dispreferred image, `y_w` chosen, `y_l` rejected response and
`r(y|m) = log pi_theta(y|x,m) - log pi_ref(y|x,m)`, log-probabilities summed over the tokens of the response.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def preferred(better: Tensor, worse: Tensor, beta: float | Tensor) -> Tensor:
    """`-log sigma(beta * (better - worse))`: of two log-ratios, prefer one.

    Args:
        better, worse: such as `r(y_w|m)` and `r(y_l|m)`, shape (B,), in nats.
        beta: inverse temperature, > 0; one for all, or (B,).

    Returns:
        Loss of each sample, shape (B,).

    Source: DPO (arXiv 2305.18290).
    """
    return -F.logsigmoid(beta * (better - worse))


def image_loss(chosen_logratios: Tensor, corrupted_logratios: Tensor, beta: float) -> Tensor:
    """`-log sigma(beta * [r(y_w|m) - r(y_w|m')])`: prefer the answer because of the image.

    Args:
        chosen_logratios: `r(y_w|m)`, shape (B,), in nats.
        corrupted_logratios: `r(y_w|m')`, the same answer under the dispreferred image, shape (B,), in nats.
        beta: inverse temperature, > 0.

    Returns:
        Loss of each sample, shape (B,).

    Source: L_image of MFPO (arXiv 2410.15334), the conditional preference term of mDPO (arXiv 2406.11839).
    """
    return preferred(chosen_logratios, corrupted_logratios, beta)


def anchor_loss(chosen_logratios: Tensor, beta: float, margin: float = 0.0) -> Tensor:
    """`-log sigma(beta * r(y_w|m) - eta)`: keep the chosen answer's reward above the margin.

    Args:
        chosen_logratios: `r(y_w|m)`, shape (B,), in nats.
        beta: inverse temperature, > 0.
        margin: eta, in units of reward.

    Returns:
        Loss of each sample, shape (B,).

    Source: L_margin of MFPO (arXiv 2410.15334), the reward anchor (delta) of mDPO (arXiv 2406.11839).
    """
    return -F.logsigmoid(beta * chosen_logratios - margin)


def modality_balance(text_margin: float, image_margin: float) -> float:
    """The smaller of the mean text and image reward margins over the larger; 0 when one of them is not positive.

    1 means that the model prefers as much because of the image as because of the text.
    """
    smaller, larger = sorted((text_margin, image_margin))
    if math.isnan(smaller) or math.isnan(larger) or smaller <= 0:
        return 0.0
    return smaller / larger


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` (B,) where `mask` (B,) holds, over B: every row of a data set weighs the same in a term,
    whatever the rows that it happens to share a micro-batch with."""
    return torch.where(mask, values, torch.zeros_like(values)).sum() / values.numel()
