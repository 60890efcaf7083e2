"""Every term by its name, and what terms with weight read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..names import BRANCHES, BranchName, columns_of
from ..ratios import LogRatios
from .anchor import ANCHOR_TERMS
from .focal import FOCAL_TERMS
from .image import IMAGE_TERMS
from .in_context import IN_CONTEXT_TERMS
from .symmetric import SYMMETRIC_TERMS
from .term import Term
from .text import TEXT_TERMS
from .tokens import TOKEN_TERMS

FAMILIES = (TEXT_TERMS, IMAGE_TERMS, ANCHOR_TERMS, SYMMETRIC_TERMS, TOKEN_TERMS, FOCAL_TERMS, IN_CONTEXT_TERMS)
TERMS = {term.name: term for family in FAMILIES for term in family}


@dataclass(frozen=True)
class Weighted:
    """A term with its place in an objective.

    Args:
        term: itself.
        weight: >= 0.
        beta: > 0; None: `image_beta` of the configuration.
        options: of its loss, where they are not the defaults.
    """

    term: Term
    weight: float
    beta: float | None = None
    options: Mapping[str, float] = field(default_factory=dict)

    def losses(self, ratios: LogRatios, beta: float) -> Tensor:
        """The term's losses, (B,), not weighted; `beta` is taken where it has none of its own."""
        assert self.term.loss is not None, "the text term is TRL's"
        return self.term.loss(ratios, beta if self.beta is None else self.beta, **self.options)


class TermError(ValueError):
    """A term that returned what is no loss of its samples."""


def branches_read(terms: Iterable[Weighted]) -> tuple[BranchName, ...]:
    """The branches that terms read, those of every batch first; no other is ever computed."""
    read = [branch for own in terms for branch in own.term.reads]
    return tuple(own for own in columns_of(read) if own in read or own not in BRANCHES)


def reading(branch: BranchName, terms: Iterable[Weighted]) -> list[str]:
    """The terms that read a branch, in words."""
    return [f"term {own.term.name!r}" for own in terms if branch in own.term.reads]


def reads_changed(terms: Iterable[Weighted]) -> bool:
    """Whether terms read sums over the tokens in which the answers differ."""
    return any(own.term.changed for own in terms)


def reads_tokens(terms: Iterable[Weighted]) -> bool:
    """Whether terms read single tokens."""
    return any(own.term.tokens or own.term.logits for own in terms)


def reads_logits(terms: Iterable[Weighted]) -> bool:
    """Whether terms read raw logits."""
    return any(own.term.logits for own in terms)


def row_columns(terms: Iterable[Weighted]) -> list[str]:
    """The columns that rows need for terms, beside those that every row may have: answers, further images, numbers."""
    found: list[str] = []
    for own in terms:
        for branch in own.term.reads:
            found += [branch.answer] if branch.answer not in ("chosen", "rejected") else []
            found += [f"rejected_{kind}_{branch.variant}" for kind in ("image", "images") if branch.variant > 1]
        found += own.term.columns
    return list(dict.fromkeys(found))


def checked_losses(term: Term, losses: Tensor, ratios: LogRatios, present: Tensor) -> Tensor:
    """What a term has returned.

    Args:
        losses: (B,), of a sample each.
        ratios: that it was given.
        present: which samples have all branches that the term reads, (B,) bool.

    Raises:
        TermError: another shape, or a loss of such a sample that is not a number.
    """
    if not isinstance(losses, Tensor) or losses.shape != present.shape:
        found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise TermError(
            f"term {term.name!r} returned {found}; expected one loss for each of the {len(present)} samples"
        )
    if (losses.isnan() & present).any():
        # A model that overflows in half precision is the gradient scaler's business.
        finite = torch.stack([ratios[branch].isfinite() for branch in term.reads]).all(dim=0)
        if (losses.isnan() & present & finite).any():
            raise TermError(
                f"term {term.name!r} returned NaN for log-ratios that are finite; look at its loss and at its columns"
            )
    return losses
