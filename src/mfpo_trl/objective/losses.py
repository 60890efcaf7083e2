"""The terms of the objective, as pure functions of per-sample log-ratios.

Notation (arXiv 2410.15334): `m` image, `m'` dispreferred image, `y_w` chosen, `y_l` rejected response and
`r(y|m) = log pi_theta(y|x,m) - log pi_ref(y|x,m)`, log-probabilities summed over the tokens of the response.
The text term is TRL's own (`DPOTrainer._compute_loss`), so only its line in the term table stands here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BRANCHES = ("chosen", "rejected", "corrupted")
"""The (image, response) pairs that can be scored: (m, y_w), (m, y_l) and (m', y_w), in the order of `pairs`' columns."""


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
    return -F.logsigmoid(beta * (chosen_logratios - corrupted_logratios))


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


@dataclass(frozen=True)
class Term:
    """One term of the objective: the branches that it reads, and its loss (None for TRL's text term).

    `loss(logratios, beta, margin)` takes a mapping from branch name to (B,) log-ratios and returns (B,) losses.
    """

    reads: tuple[str, ...]
    loss: Callable[[Mapping[str, Tensor], float, float], Tensor] | None


TERMS = {
    "text": Term(("chosen", "rejected"), None),
    "image": Term(("chosen", "corrupted"), lambda r, beta, margin: image_loss(r["chosen"], r["corrupted"], beta)),
    "anchor": Term(("chosen",), lambda r, beta, margin: anchor_loss(r["chosen"], beta, margin)),
}
"""Every term of the objective by its name; `MFPOConfig` has `<name>_loss_weight`."""


def branches_read(weights: Mapping[str, float]) -> tuple[str, ...]:
    """The branches that the terms with weight read, in the order of `BRANCHES`; no other is ever computed."""
    read = {branch for name, weight in weights.items() if weight for branch in TERMS[name].reads}
    return tuple(branch for branch in BRANCHES if branch in read)


def reading(branch: str, weights: Mapping[str, float]) -> list[str]:
    """The weights, by their names in `MFPOConfig`, of the terms that read a branch."""
    return [f"{name}_loss_weight" for name, weight in weights.items() if weight and branch in TERMS[name].reads]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` (B,) where `mask` (B,) holds, over B: every row of a data set weighs the same in a term,
    whatever the rows that it happens to share a micro-batch with."""
    return torch.where(mask, values, torch.zeros_like(values)).sum() / values.numel()
