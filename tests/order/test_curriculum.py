"""The order of a curriculum: every row as often as asked, no step that mixes two stages."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfpo_trl.order.curriculum import by_length, make_plan, stages

DIFFICULTY = np.array([3.0, 1.0, 2.0, 6.0, 5.0, 4.0, 9.0])
NAMES = [
    "14f8fb8d9b9cc60406e8cff5",
    "f3ffc96994ab11724433b108",
    "ce469b05511d81797a031b09",
    "44b81ef928eac64fe7f398d5",
    "f622d7e734715959ec0f2649",
]
"""Of the plans of `test_a_plan_keeps_its_name`."""


def test_a_plan_by_hand():
    """Seven rows in three stages of 3, 2 and 2, two rows a step, sorted: the first stage needs one row twice."""
    plan = make_plan(stages(DIFFICULTY, 3), DIFFICULTY, "sorted", [1], 2)
    assert [stage.rows.tolist() for stage in plan.stages] == [[0, 1, 2], [4, 5], [3, 6]]
    assert [stage.added for stage in plan.stages] == [1, 0, 0] and plan.ends == [2, 3, 4]
    assert sorted(plan.order[:4])[:2] != [0, 0] and DIFFICULTY[plan.order[:4]].tolist() == sorted(
        DIFFICULTY[plan.order[:4]]
    )
    assert plan.order[4:] == [5, 4, 3, 6]
    assert plan.step_difficulty[2:].tolist() == [4.5, 7.5] and [plan.stage_of(step) for step in range(4)] == [
        0,
        0,
        1,
        2,
    ]
    assert plan.stages[2].difficulty == (6.0, 9.0)
    less = make_plan(stages(DIFFICULTY, 3), DIFFICULTY, "sorted", [1], 2, drop_last=True)
    assert less.order == [1, 2, 5, 4, 3, 6] and [stage.added for stage in less.stages] == [-1, 0, 0]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=60),
    st.sampled_from(["staged", "sorted", "anti"]),
    st.integers(1, 5),
    st.lists(st.integers(1, 3), min_size=1, max_size=5),
    st.integers(1, 9),
    st.integers(0, 3),
)
def test_every_row_is_seen_as_often_as_asked(values, order, count, epochs, step_rows, seed):
    difficulties = np.array(values, dtype=float)
    stage_of = stages(difficulties, count)
    epochs = epochs[:1] if len(epochs) != len(set(stage_of.tolist())) else epochs
    plan = make_plan(stage_of, difficulties, order, epochs, step_rows, seed=seed)
    again = make_plan(stage_of, difficulties, order, epochs, step_rows, seed=seed)
    assert plan.order == again.order and plan.ends[-1] * step_rows == len(plan.order)
    numbers = [int(stage_of[stage.rows[0]]) for stage in plan.stages]
    assert numbers == sorted(set(stage_of.tolist()), reverse=order == "anti")
    start = 0
    for position, (stage, end) in enumerate(zip(plan.stages, plan.ends, strict=True)):
        seen = Counter(plan.order[start * step_rows : end * step_rows])
        passes = epochs[position % len(epochs)]
        assert set(seen) == set(np.flatnonzero(stage_of == numbers[position]).tolist())
        assert all(times >= passes for times in seen.values()) and 0 <= stage.added < step_rows
        assert sum(seen.values()) == passes * len(seen) + stage.added
        # The rows that are repeated are spread: none is added twice before each was added once.
        assert max(seen.values()) - passes <= -(-stage.added // len(seen))
        start = end
    trimmed = [
        len(stage.rows) * epochs[position % len(epochs)] // step_rows for position, stage in enumerate(plan.stages)
    ]
    if all(trimmed):
        less = make_plan(stage_of, difficulties, order, epochs, step_rows, True, seed)
        assert np.diff([0, *less.ends]).tolist() == trimmed
        assert max(Counter(less.order).values()) <= max(epochs)
    else:
        with pytest.raises(ValueError, match="dataloader_drop_last=True"):
            make_plan(stage_of, difficulties, order, epochs, step_rows, True, seed)


def test_fractions_of_an_epoch_are_seen_once_more_by_some():
    plan = make_plan(np.zeros(8, dtype=int), np.arange(8.0), "staged", [1.5], 4)
    assert sorted(Counter(plan.order).values()) == [1] * 4 + [2] * 4 and plan.stages[0].added == 0


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=40),
    st.sampled_from(["staged", "sorted", "anti"]),
    st.integers(1, 3),
    st.lists(st.floats(0.05, 3.5), min_size=3, max_size=3),
    st.integers(1, 9),
    st.booleans(),
    st.integers(0, 3),
)
def test_no_row_is_ahead_of_another_by_two(values, order, count, epochs, step_rows, drop_last, seed):
    """Whatever part of a pass is asked for and whatever fills or leaves out the last step: rows of a stage that were seen
    less often come first."""
    difficulties = np.array(values, dtype=float)
    stage_of = stages(difficulties, count)
    epochs = epochs[: len(set(stage_of.tolist()))]
    try:
        plan = make_plan(stage_of, difficulties, order, epochs, step_rows, drop_last, seed)
    except ValueError as error:
        assert "none is left of it" in str(error)
        return
    for stage in plan.stages:
        assert len(stage.sequence) % step_rows == 0
        seen = Counter(stage.sequence.tolist())
        times = [seen[row] for row in stage.rows.tolist()]
        assert sum(times) == len(stage.sequence) and max(times) - min(times) <= 1
        asked = int(stage.epochs) * len(stage.rows) + round(stage.epochs % 1 * len(stage.rows))
        assert len(stage.sequence) == asked + stage.added


def test_what_fills_a_fraction_by_hand():
    """Of eight rows half are asked for, and a step takes five: the fifth is one of the other four."""
    for seed in range(20):
        plan = make_plan(np.zeros(8, dtype=int), np.arange(8.0), "staged", [0.5], 5, seed=seed)
        assert len(set(plan.order)) == 5 and plan.stages[0].added == 1


def test_a_plan_keeps_its_name():
    """A checkpoint is resumed by the digest of its plan: with whole epochs, and with a fraction that fills its steps."""
    found = [
        make_plan(stages(DIFFICULTY, 3), DIFFICULTY, order, epochs, 2, drop_last, 7).digest
        for order, epochs, drop_last in (
            ("staged", [1], False),
            ("staged", [2, 1, 3], False),
            ("sorted", [2], True),
            ("anti", [2, 2, 4 / 3], False),
            ("staged", [4 / 3, 1.5, 2.5], True),
        )
    ]
    assert found == NAMES


def test_orders_depend_on_the_seed_and_the_stage():
    flat = np.zeros(50), np.zeros(50, dtype=int)
    orders = [make_plan(flat[1], flat[0], "staged", [2], 5, seed=seed).order for seed in (0, 1)]
    assert orders[0] != orders[1] and orders[0][:50] != orders[0][50:]


def test_one_number_of_epochs_a_stage():
    with pytest.raises(ValueError, match="has 2 numbers and the data 3 stages"):
        make_plan(stages(DIFFICULTY, 3), DIFFICULTY, "staged", [1, 2], 2)


def test_rows_of_similar_length_come_together():
    """Of every 50 batches of two rows the longest come first; behind them the next 50 begin."""
    rows, lengths = list(range(150)), np.arange(150) * 7 % 150
    found = by_length(rows, lengths, 2)
    assert [lengths[row] for row in found[:100]] == sorted(lengths[:100], reverse=True)
    assert sorted(found[100:]) == rows[100:]
