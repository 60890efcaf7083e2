"""How well a straight line tells two sets of feature vectors apart: area under the curve of a cross-validated linear probe (numpy)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FOLDS = 5
RIDGE = 0.1
"""Of the mean squared length of a standardised vector, which is added to the diagonal of the kernel."""


@dataclass(frozen=True)
class Area:
    """An area under the curve with its 95 % interval; `pairs` were told apart."""

    value: float
    low: float
    high: float
    pairs: int


def linear_probe(real: np.ndarray, other: np.ndarray, groups: Sequence[str], folds: int = FOLDS) -> Area | None:
    """The area under the curve with which a linear probe tells `other` from `real`, on groups that it was not fitted to.

    The probe is a ridge regression on the labels, on features that are standardised by what it is fitted to. 0.5: it cannot tell them
    apart; 1: it always can.

    Args:
        real, other: (n, D) each; row `i` of both belong together.
        groups: (n,) names; rows of one group are never on both sides.
        folds: parts, each told apart by a probe that is fitted to the others.

    Returns:
        None where there are fewer groups than folds.

    Source: Hanley and McNeil, "The meaning and use of the area under a ROC curve" (1982), for the interval.
    """
    names = sorted(set(groups))
    if len(names) < folds:
        return None
    order = np.random.default_rng(0).permutation(len(names))
    fold_of = {name: int(place) % folds for place, name in zip(order, names, strict=True)}
    fold = np.array([fold_of[name] for name in groups])
    areas, sizes = [], []
    for part in range(folds):
        held = fold == part
        scores = _fitted(real[~held], other[~held], np.concatenate([real[held], other[held]]))
        areas.append(area_under_curve(scores[: held.sum()], scores[held.sum() :]))
        sizes.append(int(held.sum()))
    value = float(np.average(areas, weights=sizes))
    # Rows of one image say much the same.
    half = 1.96 * _standard_error(value, len(names))
    return Area(value, max(0.0, value - half), min(1.0, value + half), len(real))


def area_under_curve(lower: np.ndarray, higher: np.ndarray) -> float:
    """The share of pairs of which the second has the higher score, ties counting half."""
    differences = higher[None, :] - lower[:, None]
    return float(((differences > 0) + 0.5 * (differences == 0)).mean())


def _fitted(real: np.ndarray, other: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Scores of the asked vectors, higher for those that look like `other`."""
    known = np.concatenate([real, other]).astype(np.float64)
    labels = np.repeat([-1.0, 1.0], [len(real), len(other)])
    middle, spread = known.mean(axis=0), known.std(axis=0)
    spread = np.where(spread > 1e-8 * (np.abs(middle) + 1e-12), spread, np.inf)
    known, asked = (known - middle) / spread, (asked.astype(np.float64) - middle) / spread
    # In the dual, which has as many unknowns as vectors, however many features they have.
    kernel = known @ known.T
    ridge = RIDGE * max(float(np.trace(kernel)) / len(kernel), 1e-12)
    weights = np.linalg.solve(kernel + ridge * np.eye(len(kernel)), labels)
    # Rounded, so that equal vectors are ties whatever order they are summed in.
    return np.round(asked @ (known.T @ weights), 9)


def _standard_error(area: float, n: int) -> float:
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (n - 1) * (one - area**2) + (n - 1) * (two - area**2)
    return math.sqrt(max(variance, 0.0)) / n
