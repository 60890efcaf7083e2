"""What is scored and where it lies in a batch.

A *branch* is one (image variant, answer) pair (`mfpo_trl.objective.names`). The collator lays branches out in rows of tokens, and two tables travel
with the batch so that everything behind the forward is the same code for every layout:

- `branches`, (N, 3): row, start and length of each branch's labels. `start` counts in label positions: position `t` of a
  row is the model's prediction of the token that follows token `t`.
- `pairs`, (B, K): for each sample the index of each of its branches, -1 where there is none. The first three columns are
  (m, y_w), (m, y_l) and (m', y_w), the others those that the terms read beside them, in their order (`names.columns_of`).

Shapes: B samples, N branches, R rows, T tokens of a row, W label positions of a row, C completion tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .names import BRANCHES, BranchName, branch_of
from .terms import Weighted, branches_read, reading

COLUMN = "column/{}"
"""Under which a batch holds the numbers of a row's column that terms read, (B,)."""
TABLE_KEYS = ("pairs", "branches", "ref_rows", "cut", "changed")
IGNORED_LABEL = -100


def split_batch(batch: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Separate what the model reads from the tables: `(model inputs, branches (N, 3), pairs (B, K))`. A model reads a packed
    batch by its tables, so both are among its inputs there."""
    kept = ("branches",) if "prefixes" in batch else ()
    inputs = {
        key: value
        for key, value in batch.items()
        if (key not in TABLE_KEYS or key in kept) and not key.startswith(COLUMN.format(""))
    }
    return inputs, batch["branches"], batch["pairs"]


def label_positions(inputs: Mapping[str, Tensor]) -> Tensor:
    """Where a row has a label, (R, W) bool."""
    return shifted_labels(inputs) != IGNORED_LABEL


def shifted_labels(inputs: Mapping[str, Tensor]) -> Tensor:
    """The label of every position, (R, W): W = T for shifted labels and T - 1 for labels that the model shifts."""
    return inputs["shift_labels"] if "shift_labels" in inputs else inputs["labels"][:, 1:]


def labelled(branches: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every label of every branch: its row, its position in the row, its branch and its place in the branch, (L,) each."""
    row, start, length = branches.unbind(dim=1)
    branch = torch.arange(len(branches), device=branches.device).repeat_interleave(length)
    offset = torch.arange(len(branch), device=branches.device) - (length.cumsum(0) - length)[branch]
    return row[branch], start[branch] + offset, branch, offset


def gather_branches(values: Tensor, branches: Tensor) -> Tensor:
    """Cut every branch out of its row.

    Args:
        values: one value for each label position, shape (R, W), any dtype.
        branches: row, start and length of each branch, shape (N, 3).

    Returns:
        Shape (N, C) with C the longest branch, left-aligned, zero (False) behind a branch's end. Differentiable.
    """
    row, start, length = branches.unbind(dim=1)
    offsets = torch.arange(max(int(length.max()), 1), device=values.device)
    positions = (start[:, None] + offsets).clamp(max=values.size(1) - 1)
    inside = offsets < length[:, None]
    return values[row[:, None], positions].masked_fill(~inside, 0)


def of_pairs(
    per_branch: Tensor, pairs: Tensor, branch: str | tuple[str, str], columns: Sequence[BranchName] = BRANCHES
) -> Tensor:
    """The values (N, ...) of one branch for every sample, (B, ...). Samples without it get another branch's value:
    mask them with `has_branch`. `columns` says what the columns of `pairs` are."""
    return per_branch[pairs[:, columns.index(branch_of(branch))].clamp(min=0)]


def has_branch(pairs: Tensor, branch: str | tuple[str, str], columns: Sequence[BranchName] = BRANCHES) -> Tensor:
    """Which samples have the branch, (B,) bool."""
    return pairs[:, columns.index(branch_of(branch))] >= 0


def numbers_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The numbers of rows that terms read, (B,) each, by the names of their columns."""
    start = COLUMN.format("")
    return {name.removeprefix(start): value for name, value in batch.items() if name.startswith(start)}


def check_scored(collator: Any, terms: Sequence[Weighted]) -> None:
    """Refuse a collator that does not make what a term reads.

    Args:
        collator: a `MFPOCollator`.
        terms: of the objective.

    Raises:
        ValueError: names what is missing and the terms.
    """
    read = branches_read(terms)
    for branch in read:
        if branch not in collator.branches:
            made = tuple(map(str, collator.branches)), " and ".join(reading(branch, terms)), tuple(map(str, read))
            raise ValueError(
                f"the data_collator has branches={made[0]}, and {made[1]} read '{branch}' too; make it with "
                f"branches={made[2]}, or set those weights to 0"
            )
    for own in terms:
        missing = [name for name in own.term.columns if name not in collator.columns]
        if missing or (own.term.changed and not collator.changed):
            option = f"columns={(*collator.columns, *missing)}" if missing else "changed=True"
            raise ValueError(
                f"term {own.term.name!r} needs a data_collator with {option}; make it so, or set the weight to 0"
            )


def check_batch(batch: Mapping[str, Tensor], terms: Sequence[Weighted], columns: Sequence[BranchName]) -> None:
    """What must hold of the tables of a batch before terms read them.

    Args:
        batch: with `pairs` and `branches`.
        terms: of the objective.
        columns: of `pairs`.

    Raises:
        ValueError: a table or a sample's branch that a term reads is missing. One whose image is not the sample's own may be missing where a sample
            has no image; which samples do is not in the tables, so that it is an error where the batch has images and all samples lack it.
    """
    has_images = any(name.startswith(("pixel", "image")) for name in batch)
    for own in terms:
        tables = [*(["changed"] if own.term.changed else []), *map(COLUMN.format, own.term.columns)]
        if lacking := [name for name in tables if name not in batch]:
            raise ValueError(
                f"the batch has no {lacking[0]!r}, which term {own.term.name!r} reads; have the data_collator make it"
            )
    for branch in branches_read(terms):
        if batch["pairs"].size(1) <= columns.index(branch):
            there = torch.zeros(len(batch["pairs"]), dtype=torch.bool)
        else:
            there = has_branch(batch["pairs"], branch, columns)
        optional = branch.image != "image" and (not has_images or bool(there.any()))
        if not optional and not there.all():
            raise ValueError(
                f"the batch has no '{branch}' branch for {int((~there).sum())} of its {len(there)} samples, which "
                f"{' and '.join(reading(branch, terms))} read; have the data_collator make it, or set those weights to 0"
            )


def from_preference_batch(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tables to a batch in TRL's layout: 2B rows, first the chosen, then the rejected responses, with
    `completion_mask` (2B, T). Its cached reference log-probabilities, if any, are left in place."""
    shifted = batch["completion_mask"][:, 1:] != 0
    rows, width = shifted.shape
    positions = torch.arange(width, device=shifted.device)
    start = torch.where(shifted, positions, width - 1).min(dim=1).values
    end = torch.where(shifted, positions + 1, 0).max(dim=1).values
    index = torch.arange(rows, device=shifted.device)
    chosen, rejected = index.chunk(2)
    tables = {
        "pairs": torch.stack([chosen, rejected, torch.full_like(chosen, -1)], dim=1),
        "branches": torch.stack([index, start, (end - start).clamp(min=0)], dim=1),
    }
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED_LABEL)
    return {**tables, **{k: v for k, v in batch.items() if k != "completion_mask"}, "labels": labels}
