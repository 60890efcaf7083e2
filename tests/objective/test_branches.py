"""Cutting branches out of rows, against plain Python slices."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfpo_trl.objective import PRESETS, columns_of, terms_of
from mfpo_trl.objective.branches import (
    COLUMN,
    check_batch,
    check_scored,
    from_preference_batch,
    gather_branches,
    has_branch,
    label_positions,
    of_pairs,
)
from mfpo_trl.objective.terms import branches_read


@st.composite
def laid_out(draw):
    """Rows of label positions, and branches anywhere inside of them."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    branches = []
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, width - 1))
        branches.append([draw(st.integers(0, rows - 1)), start, draw(st.integers(0, width - start))])
    return rows, width, branches


@given(laid_out())
@settings(max_examples=200, deadline=None)
def test_gather_equals_slices(shape):
    rows, width, branches = shape
    values = torch.arange(1.0, rows * width + 1).reshape(rows, width)
    found = gather_branches(values, torch.tensor(branches))
    assert found.size(1) == max(1, max(length for _, _, length in branches))
    for branch, (row, start, length) in zip(found, branches, strict=True):
        assert branch[:length].tolist() == values[row, start : start + length].tolist()
        assert not branch[length:].any()


def test_gather_is_differentiable_and_counts_shared_positions():
    """Two branches over the same positions of one row: each position gets the gradient of both."""
    values = torch.zeros(1, 4, requires_grad=True)
    gather_branches(values, torch.tensor([[0, 1, 2], [0, 1, 3]])).sum().backward()
    assert values.grad.tolist() == [[0, 2, 2, 1]]


def test_pairs_select_branches():
    pairs = torch.tensor([[0, 2, -1], [1, 3, 4]])
    per_branch = torch.tensor([10.0, 11, 12, 13, 14])
    assert of_pairs(per_branch, pairs, "rejected").tolist() == [12, 13]
    assert has_branch(pairs, "corrupted").tolist() == [False, True]
    assert of_pairs(per_branch, pairs, "corrupted")[1] == 14


def test_preference_batch_gets_its_tables():
    """Two rows, one pair: completions of 2 and 3 tokens behind a prompt of 2; labels stand one position earlier."""
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 0], [5, 6, 9, 10, 11]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
        "completion_mask": torch.tensor([[0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]),
    }
    found = from_preference_batch(batch)
    assert found["pairs"].tolist() == [[0, 1, -1]]
    assert found["branches"].tolist() == [[0, 1, 2], [1, 1, 3]]
    assert found["labels"].tolist() == [[-100, -100, 7, 8, -100], [-100, -100, 9, 10, 11]]
    assert label_positions(found).tolist() == [[False, True, True, False], [False, True, True, True]]


def test_preference_batch_keeps_gaps_in_a_completion():
    """A custom collator may leave a tool's answer unscored in the middle."""
    batch = {"input_ids": torch.arange(1, 11).reshape(2, 5), "completion_mask": torch.tensor([[0, 1, 0, 1, 0]] * 2)}
    found = from_preference_batch(batch)
    scored = gather_branches(label_positions(found), found["branches"])
    assert found["branches"].tolist() == [[0, 0, 3], [1, 0, 3]]
    assert scored.tolist() == [[True, False, True]] * 2


@pytest.mark.parametrize("name", PRESETS)
def test_what_an_objective_reads_is_asked_of_a_collator_and_of_every_batch(name):
    """Branch by branch: a collator without it; a batch of which one sample, or none, has it; tables of numbers and tokens."""
    terms = terms_of(name, None, {})
    read = branches_read(terms)
    columns, numbers = columns_of(read), [own for term in terms for own in term.term.columns]
    collator = SimpleNamespace(branches=read, columns=numbers, changed=True)
    pairs = torch.arange(2 * len(columns)).reshape(2, -1)
    batch = {"pairs": pairs, "pixel_values": torch.zeros(1), "changed": torch.zeros(1)}
    batch |= {COLUMN.format(own): torch.zeros(2) for own in numbers}
    check_scored(collator, terms)
    check_batch(batch, terms, columns)
    for branch in read:
        with pytest.raises(ValueError, match=f"read '{branch}' too"):
            check_scored(
                SimpleNamespace(**vars(collator) | {"branches": [own for own in read if own != branch]}), terms
            )
        for samples in ([1], [0, 1]):
            lacking = pairs.clone()
            lacking[samples, columns.index(branch)] = -1
            if branch.image != "image" and len(samples) == 1:
                # It may be a sample without an image.
                check_batch(batch | {"pairs": lacking}, terms, columns)
                continue
            with pytest.raises(ValueError, match=f"no '{branch}' branch for {len(samples)} of its 2 samples"):
                check_batch(batch | {"pairs": lacking}, terms, columns)
    for own in numbers:
        with pytest.raises(ValueError, match=f"columns=.*{own}"):
            check_scored(SimpleNamespace(**vars(collator) | {"columns": []}), terms)
        with pytest.raises(ValueError, match=f"the batch has no '{COLUMN.format(own)}'"):
            check_batch({key: value for key, value in batch.items() if key != COLUMN.format(own)}, terms, columns)
    if any(own.term.changed for own in terms):
        with pytest.raises(ValueError, match="changed=True"):
            check_scored(SimpleNamespace(**vars(collator) | {"changed": False}), terms)
        with pytest.raises(ValueError, match="the batch has no 'changed'"):
            check_batch({key: value for key, value in batch.items() if key != "changed"}, terms, columns)
