"""What terms read: the log-probabilities of every branch, as a typed object."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .names import CHOSEN, CORRUPTED, COUNTERPART, NO_IMAGE, REJECTED, BranchName


@dataclass(frozen=True)
class ChangedTokens:
    """Of the tokens of one branch's answer that the other answer has not: chosen answers are compared with the rejected one, and
    the rejected one with the chosen one.

    Args:
        policy, reference: summed log-probabilities of these tokens, (B,), in nats.
        length: how many there are, (B,).
    """

    policy: Tensor
    reference: Tensor
    length: Tensor


@dataclass(frozen=True)
class TokenScores:
    """One branch's answer, token by token; C is the longest answer, and what stands behind an answer's end is 0.

    Args:
        policy, reference: log-probabilities, (B, C), in nats.
        scored: which places hold a token, (B, C) bool.
        policy_logits, reference_logits: the raw logit of each token, (B, C); None where no term reads logits.
        divergence: KL(reference || policy) over the vocabulary at each token, (B, C), in nats; None where no term reads logits.
    """

    policy: Tensor
    reference: Tensor
    scored: Tensor
    policy_logits: Tensor | None = None
    reference_logits: Tensor | None = None
    divergence: Tensor | None = None


@dataclass(frozen=True)
class LogRatios:
    """`r(y|m) = log pi_theta(y|x,m) - log pi_ref(y|x,m)` of the branches of B samples, in nats, summed over the answer's tokens.

    Args:
        policy: log pi_theta of every branch, (B,) each.
        reference: log pi_ref of the same, without gradients.
        columns: numbers of the rows, (B,) each, by the names of their columns.
        lengths: how many tokens of each branch's answer are scored, (B,) each.
        changed: of the tokens in which chosen and rejected answers differ; of objectives with `Term(changed=True)`.
        tokens: of single tokens; of objectives with `Term(tokens=True)`.

    A branch is an attribute, or `ratios[branch]` for one that has no name here. Samples without a branch hold another's value: what a
    term returns for them is not read.
    """

    policy: Mapping[BranchName, Tensor]
    reference: Mapping[BranchName, Tensor]
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    lengths: Mapping[BranchName, Tensor] = field(default_factory=dict)
    changed: Mapping[BranchName, ChangedTokens] = field(default_factory=dict)
    tokens: Mapping[BranchName, TokenScores] = field(default_factory=dict)

    def __getitem__(self, branch: tuple[str, str]) -> Tensor:
        own = BranchName(*branch)
        return self.policy[own] - self.reference[own]

    def weighted(self, branch: tuple[str, str], changed_weight: float) -> Tensor:
        """`r(y|m)` in which a changed token counts `changed_weight` times, (B,)."""
        own = self.changed[BranchName(*branch)]
        return self[branch] + (changed_weight - 1) * (own.policy - own.reference)

    def weighted_length(self, branch: tuple[str, str], changed_weight: float) -> Tensor:
        """How many tokens are scored where a changed one counts `changed_weight` times, (B,)."""
        own = BranchName(*branch)
        return self.lengths[own] + (changed_weight - 1) * self.changed[own].length

    @property
    def chosen(self) -> Tensor:
        """r(y_w|m)"""
        return self[CHOSEN]

    @property
    def rejected(self) -> Tensor:
        """r(y_l|m)"""
        return self[REJECTED]

    @property
    def corrupted(self) -> Tensor:
        """r(y_w|m')"""
        return self[CORRUPTED]

    @property
    def corrupted_rejected(self) -> Tensor:
        """r(y_l|m')"""
        return self["rejected_image", "rejected"]

    @property
    def counterpart(self) -> Tensor:
        """r(y'|m'): the answer that is true of the dispreferred image, under it"""
        return self["rejected_image", COUNTERPART]

    @property
    def misplaced(self) -> Tensor:
        """r(y'|m): the same answer under the row's own image"""
        return self["image", COUNTERPART]

    @property
    def blind_chosen(self) -> Tensor:
        """r(y_w|m0), without an image"""
        return self[NO_IMAGE, "chosen"]

    @property
    def blind_counterpart(self) -> Tensor:
        """r(y'|m0), without an image"""
        return self[NO_IMAGE, COUNTERPART]
