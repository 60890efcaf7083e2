"""What a term is."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..names import BranchName
from ..ratios import LogRatios


@dataclass(frozen=True)
class Term:
    """One term of an objective.

    Args:
        name: of its weight, of its line in the log and on the card.
        reads: the branches that have to be scored for it; a sample that lacks one of them adds nothing to the term.
        loss: `loss(ratios, beta)` takes the `LogRatios` of B samples and returns their losses, (B,); None for TRL's own text term.
        formula: for people.
        columns: of the rows, whose numbers it reads in `LogRatios.columns`.
        source: the paper.
    """

    name: str
    reads: tuple[BranchName, ...]
    loss: Callable[[LogRatios, float], Tensor] | None
    formula: str = ""
    columns: tuple[str, ...] = ()
    source: str = ""
