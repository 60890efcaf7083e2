"""What a term is."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, signature

from torch import Tensor

from ..names import BranchName


@dataclass(frozen=True)
class Term:
    """One term of an objective.

    Args:
        name: of its weight, of its line in the log and on the card.
        reads: the branches that have to be scored for it; a sample that lacks one of them adds nothing to the term.
        loss: `loss(ratios, beta)` takes the `LogRatios` of B samples and returns their losses, (B,); None for TRL's own text term. Its
            keyword-only parameters are the term's options, numbers with defaults.
        formula: for people.
        columns: of the rows, whose numbers it reads in `LogRatios.columns`.
        source: the paper.
        changed: whether it reads `LogRatios.changed`, sums over the tokens in which the answers differ.
        tokens: whether it reads `LogRatios.tokens`, log-probabilities of single tokens, which no cache of the reference holds.
        logits: whether it reads raw logits and the divergence there too; the logits of all scored tokens are then in memory, (tokens,
            vocabulary) in float32, of the policy and of the reference.
    """

    name: str
    reads: tuple[BranchName, ...]
    loss: Callable[..., Tensor] | None
    formula: str = ""
    columns: tuple[str, ...] = ()
    source: str = ""
    changed: bool = False
    tokens: bool = False
    logits: bool = False

    @property
    def options(self) -> dict[str, float]:
        """The options of its loss, by their names, with their defaults."""
        if self.loss is None:
            return {}
        parameters = signature(self.loss).parameters.values()
        return {own.name: own.default for own in parameters if own.kind is Parameter.KEYWORD_ONLY}
