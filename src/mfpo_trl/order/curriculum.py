"""Easy to hard: rows -> stages -> the order in which a training sees them.

Shapes: n rows of the data set, S stages.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Arrange = Callable[[list[int]], list[int]]
"""Rows in some order -> the same rows in another."""

BUCKET = 50
"""Batches that are sorted by length together, as in transformers' group_by_length."""


def stages(difficulties: Sequence[float] | np.ndarray, count: int = 3) -> np.ndarray:
    """Cut rows into stages of equal size by the rank of their difficulty.

    Args:
        difficulties: (n,); of equal ones the first comes first.
        count: number of stages, at least 1.

    Returns:
        (n,) int64 in [0, count), 0 for the easiest. Sizes differ by at most 1, the easier stages are the larger ones.

    Raises:
        ValueError: a difficulty that is not a number, or no stage.
    """
    values = np.asarray(difficulties, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"difficulties have the shape {values.shape}; expected one number a row")
    if count < 1:
        raise ValueError(f"count={count}; expected at least 1 stage")
    missing = int(np.isnan(values).sum())
    if missing:
        raise ValueError(f"{missing} of {len(values)} difficulties are not a number (NaN); score or drop those rows")
    stage = np.empty(len(values), dtype=np.int64)
    for number, members in enumerate(np.array_split(np.argsort(values, kind="stable"), count)):
        stage[members] = number
    return stage


@dataclass(frozen=True)
class Stage:
    """One stage of a training.

    Args:
        rows: its rows, ascending.
        sequence: its rows as they are seen, some of them several times; whole optimizer steps.
        epochs: how often it sees each of them, up to `added`.
        added: rows that are seen once more to fill the last step, or, below 0, left out for want of a full one.
        difficulty: the smallest and the largest of its rows.
    """

    rows: np.ndarray
    sequence: np.ndarray
    epochs: float
    added: int
    difficulty: tuple[float, float]


@dataclass(frozen=True)
class Plan:
    """What a whole training sees, stage after stage.

    Args:
        stages: in the order of training.
        step_rows: rows of an optimizer step, over all ranks and accumulated batches.
        difficulties: (n,).
    """

    stages: tuple[Stage, ...]
    step_rows: int
    difficulties: np.ndarray

    @cached_property
    def order(self) -> list[int]:
        """The rows of all optimizer steps, one after the other."""
        return np.concatenate([stage.sequence for stage in self.stages]).tolist()

    @cached_property
    def ends(self) -> list[int]:
        """The number of optimizer steps behind which each stage ends."""
        return np.cumsum([len(stage.sequence) // self.step_rows for stage in self.stages]).tolist()

    @cached_property
    def step_difficulty(self) -> np.ndarray:
        """The mean difficulty of the rows of each optimizer step."""
        return self.difficulties[self.order].reshape(-1, self.step_rows).mean(axis=1)

    @cached_property
    def digest(self) -> str:
        """A short name of the rows of every step."""
        content = np.array([self.step_rows, *self.ends, *self.order], dtype=np.int64)
        return hashlib.blake2b(content.tobytes(), digest_size=12).hexdigest()

    def stage_of(self, step: int) -> int:
        """The stage, from 0, that the optimizer step with this number, from 0, belongs to."""
        return int(np.searchsorted(self.ends, step, side="right"))


def make_plan(
    stage_of: np.ndarray,
    difficulties: np.ndarray,
    order: str,
    epochs: Sequence[float],
    step_rows: int,
    drop_last: bool = False,
    seed: int = 0,
    arrange: Arrange = lambda rows: rows,
) -> Plan:
    """The order of a training; a pure function of its arguments, the same on every rank.

    Args:
        stage_of: the stage of each row, (n,) whole numbers, higher is harder.
        difficulties: (n,).
        order: `staged` (easy to hard, shuffled inside of a stage), `sorted` (the same, each pass over a stage sorted by
            difficulty) or `anti` (hard to easy, shuffled inside of a stage).
        epochs: passes over each stage in the order of training, fractions allowed; a single number is for all stages.
        step_rows: rows of an optimizer step. Each stage becomes a multiple of it, so that no step mixes two stages.
        drop_last: leave out what does not fill a step, instead of filling it with more rows of the stage.
        seed: of the shuffles.
        arrange: reorders the rows of a pass, for example to bring rows of similar length together.

    Raises:
        ValueError: another number of `epochs` than stages, or a stage without a single step.

    Source: MFPO (arXiv 2410.15334), easy-to-hard alignment.
    """
    numbers = np.unique(stage_of)
    if order == "anti":
        numbers = numbers[::-1]
    epochs = list(epochs) * len(numbers) if len(epochs) == 1 else list(epochs)
    if len(epochs) != len(numbers):
        raise ValueError(
            f"curriculum_epochs has {len(epochs)} numbers and the data {len(numbers)} stages; give one a stage, or a "
            "single one for all"
        )
    made = []
    for position, (number, passes) in enumerate(zip(numbers, epochs, strict=True)):
        rows = np.flatnonzero(stage_of == number)
        rng = np.random.default_rng([seed, position])
        chunks, added = _chunks(rows, passes, step_rows, drop_last, rng)
        ordered = [
            chunk[np.argsort(difficulties[chunk], kind="stable")] if order == "sorted" else rng.permutation(chunk)
            for chunk in chunks
        ]
        sequence = np.concatenate([np.array(arrange(chunk.tolist()), dtype=np.int64) for chunk in ordered])
        sequence = sequence[: len(sequence) + min(added, 0)]
        if not len(sequence):
            cure = (
                "dataloader_drop_last=True: set it to False"
                if drop_last
                else f"{passes:g} epochs: raise curriculum_epochs"
            )
            raise ValueError(
                f"stage {position + 1} has {len(rows)} rows and a step takes {step_rows}: none is left of it with {cure}, or "
                "use fewer stages"
            )
        bounds = float(difficulties[rows].min()), float(difficulties[rows].max())
        made.append(Stage(rows, sequence, passes, added, bounds))
    return Plan(tuple(made), step_rows, difficulties)


def _chunks(
    rows: np.ndarray, passes: float, step_rows: int, drop_last: bool, rng: np.random.Generator
) -> tuple[list[np.ndarray], int]:
    """The rows of each pass over a stage, the last one filled up; and how many were added, or, below 0, are too many."""
    whole, rest = int(passes), round((passes - int(passes)) * len(rows))
    chunks = [rows] * whole + ([rng.permutation(rows)[:rest]] if rest else [])
    total = sum(map(len, chunks))
    if drop_last or not total:
        return chunks or [rows[:0]], -(total % step_rows)
    missing = -total % step_rows
    again = rng.permutation(rows)
    # Those that a part of a pass has left out come first, so that no row is ahead of another by two.
    seen = np.isin(again, chunks[-1]) if rest else np.zeros(len(again), dtype=bool)
    more = np.resize(np.concatenate([again[~seen], again[seen]]), missing)
    return [*chunks[:-1], np.concatenate([chunks[-1], more])], missing


def by_length(rows: Sequence[int], lengths: np.ndarray, batch_size: int) -> list[int]:
    """Bring rows of similar length into one batch, as near as may be to where they stood.

    Args:
        rows: in any order; of every 50 batches of them the rows are sorted, the longest first.
        lengths: of all rows, (n,), in any unit.
        batch_size: rows of a batch.
    """
    size = BUCKET * batch_size
    buckets = (rows[start : start + size] for start in range(0, len(rows), size))
    return [row for bucket in buckets for row in sorted(bucket, key=lambda row: -lengths[row])]
