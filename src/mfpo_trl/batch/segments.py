"""Which tokens of an answer belong to a corrected segment."""

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor

from .layouts import Branch

SHORTEST_MATCH = 3
"""Tokens that two answers must have in common in a row to count as kept (RLHF-V's released code)."""


def changed_tokens(completions: Mapping[str, Sequence[int]]) -> dict[str, list[bool]]:
    """Which tokens of each answer belong to a corrected segment: those of the rejected answer that the chosen one has not, and those of
    every other answer that the rejected one has not, matched in runs of at least `SHORTEST_MATCH`.

    Args:
        completions: ids of the answers by their columns, `chosen` and `rejected` among them.

    Source: RLHF-V (arXiv 2312.00849), dense direct preference optimization.
    """
    found = {}
    for name, ids in completions.items():
        matcher = SequenceMatcher(
            None, ids, completions["chosen" if name == "rejected" else "rejected"], autojunk=False
        )
        flags = [True] * len(ids)
        for start, _, size in matcher.get_matching_blocks():
            if size >= SHORTEST_MATCH:
                flags[start : start + size] = [False] * size
        found[name] = flags
    return found


def changed_table(laid: Sequence[Branch], table: Tensor) -> Tensor:
    """`Branch.changed` of all branches, (N, C) bool, without the ends that `max_length` cuts."""
    length = table[:, 2].tolist()
    changed = torch.zeros(len(laid), max(length), dtype=torch.bool)
    for number, (branch, kept) in enumerate(zip(laid, length, strict=True)):
        changed[number, :kept] = torch.tensor(branch.changed[:kept], dtype=torch.bool)
    return changed
