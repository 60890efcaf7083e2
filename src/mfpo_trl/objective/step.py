"""The losses of one batch."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .branches import has_branch
from .losses import masked_mean
from .names import BranchName
from .ratios import LogRatios
from .terms import Weighted, checked_losses


def term_losses(
    terms: Iterable[Weighted],
    ratios: LogRatios,
    pairs: Tensor,
    columns: Sequence[BranchName],
    beta: float,
    text: Tensor | None,
) -> dict[str, Tensor]:
    """The loss of every term whose branches the batch has, a scalar each, not weighted.

    Args:
        terms: of the objective.
        ratios: of B samples.
        pairs: which sample has which branch, (B, K).
        columns: of `pairs`.
        beta: of terms without one of their own.
        text: the loss of TRL's text term, where it is one of them.

    Raises:
        ValueError: a term returns something else than a number for each sample.
    """
    losses = {}
    for own in terms:
        term = own.term
        if term.loss is None:
            assert text is not None
            losses[term.name] = text
        elif set(term.reads) <= set(ratios.policy):
            present = torch.stack([has_branch(pairs, branch, columns) for branch in term.reads]).all(dim=0)
            losses[term.name] = masked_mean(checked_losses(term, own.losses(ratios, beta), ratios, present), present)
    return losses
