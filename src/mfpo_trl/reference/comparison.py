"""Policy and reference of one batch, side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._trl import Replay
from ..objective import (
    BRANCHES,
    CHOSEN,
    BranchName,
    ChangedTokens,
    LogRatios,
    TokenScores,
    has_branch,
    of_pairs,
)


def changed_value(branch: BranchName) -> str:
    """What the log-probability of a branch's changed tokens is called among the values of a row."""
    return f"{branch}, changed tokens"


def reference_values(trainer: Any, replay: Replay, columns: Sequence[BranchName] = BRANCHES) -> Tensor:
    """The reference's values of every sample of a batch, (B, V), as `values_of` lists them.

    Args:
        trainer: an `MFPOTrainer`; TRL chooses the reference: its model, the adapter switched off, or the frozen copy of the adapter.
        replay: of the model that is run.
        columns: of `pairs`.
    """
    text = trainer.compute_ref_log_probs(replay, replay.preference_inputs())
    there = columns[: replay.pairs.size(1)]

    def of_samples(per_branch: Tensor) -> list[Tensor]:
        return [
            of_pairs(per_branch, replay.pairs, branch, columns).masked_fill(
                ~has_branch(replay.pairs, branch, columns), 0
            )
            for branch in there
        ]

    logps = of_samples(replay.logps)
    tokens = of_pairs(replay.branches[:, 2], replay.pairs, CHOSEN).to(text[0].dtype)
    changed = [] if replay.changed is None else of_samples(replay.changed_logps)
    first = len(BRANCHES)
    return torch.stack([*logps[:first], *text, tokens, *logps[first:], *changed], dim=1)


def compared(
    policy: Replay,
    reference: Mapping[str, Tensor],
    branches: Sequence[BranchName],
    columns: Sequence[BranchName],
    numbers: Mapping[str, Tensor],
    live: Replay | None = None,
) -> LogRatios:
    """What the terms of one batch read.

    Args:
        policy: that has scored it.
        reference: values of it, (B,) each, by the names that `values_of` gives them.
        branches: that are read.
        columns: of `pairs`.
        numbers: of the rows, (B,) each, by the names of their columns.
        live: the reference's own scores, for terms that read single tokens.
    """

    def of_samples(per_branch: Tensor) -> dict[BranchName, Tensor]:
        return {branch: of_pairs(per_branch, policy.pairs, branch, columns) for branch in branches}

    changed: dict[BranchName, ChangedTokens] = {}
    if policy.changed is not None:
        ours, count = of_samples(policy.changed_logps), of_samples(policy.changed.sum(dim=1))
        changed = {own: ChangedTokens(ours[own], reference[changed_value(own)], count[own]) for own in branches}
    return LogRatios(
        of_samples(policy.logps),
        {branch: reference[str(branch)] for branch in branches},
        numbers,
        of_samples(policy.branches[:, 2]),
        changed,
        {} if live is None else _token_scores(policy, live, branches, columns),
    )


def _token_scores(
    policy: Replay, live: Replay, branches: Sequence[BranchName], columns: Sequence[BranchName]
) -> dict[BranchName, TokenScores]:
    length = policy.branches[:, 2:]
    parts: dict[str, Tensor] = {
        "policy": policy.outputs.log_probs,
        "reference": live.outputs.log_probs,
        "scored": torch.arange(policy.outputs.log_probs.size(1), device=length.device) < length,
    }
    if policy.reads_logits:
        parts |= {
            "policy_logits": policy.outputs.label_logits,
            "reference_logits": live.outputs.label_logits,
            "divergence": policy.divergence(live),
        }
    return {
        branch: TokenScores(**{name: of_pairs(part, policy.pairs, branch, columns) for name, part in parts.items()})
        for branch in branches
    }
