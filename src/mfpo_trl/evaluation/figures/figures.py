"""A benchmark's figures with 95 % intervals, and paired differences: functions of sums of per-item counts."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

Z = 1.959963984540054
"""Of a two-sided 95 % interval."""

RESAMPLES = 5000
SEED = 0


@dataclass(frozen=True)
class Figure:
    """What was measured: rates as fractions between 0 and 1; NaN where nothing was counted.

    Attributes:
        value: the official scorer's figure.
        low: lower end of the 95 % interval.
        high: upper end of it.
        n: items that the figure is over.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """One set of answers less another on the same items.

    Attributes:
        value: the figure of the one minus that of the other.
        low: lower end of the 95 % interval (paired bootstrap).
        high: upper end of it.
        n: items that both have.
        p: two-sided p-value of no difference.
        test: "McNemar" (exact) or "paired bootstrap".
    """

    value: float
    low: float
    high: float
    n: int
    p: float
    test: str


def share(sums: np.ndarray) -> np.ndarray:
    """(..., 2) numerators and denominators -> (...); NaN where a denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)


def harmonic(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """F1: the harmonic mean of precision and recall; 0 where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(one + other == 0, 0.0, 2 * one * other / (one + other))


@dataclass(frozen=True)
class Measure:
    """A figure, as a function of sums of what was counted on each item.

    Attributes:
        name: in tables and JSON, such as `chair_s`.
        counts: (items, k).
        of: sums (..., k) -> figures (...); the official scorer's arithmetic with its quirks.
        kind: "rate": `counts` are (hit, counted), both 0 or 1, and `of` is `share`; "ratio": a fraction of 1 in any other
            way; "difference": of two such; "mean": a raw number.
        higher_is_better: which way is better; None where neither is.
        clusters: (items,) numbers; items of one number, such as answers about one picture, are resampled together. None
            where every item stands alone.
    """

    name: str
    counts: np.ndarray
    of: Callable[[np.ndarray], np.ndarray] = share
    kind: Literal["rate", "ratio", "difference", "mean"] = "ratio"
    higher_is_better: bool | None = True
    clusters: np.ndarray | None = None

    def value(self) -> float:
        """The figure of all items; NaN where there are none."""
        return float(self.of(self.counts.sum(axis=0))) if len(self.counts) else math.nan

    def figure(self) -> Figure:
        """With Wilson's interval for a rate of items that stand alone, and otherwise of resampled items (percentile bootstrap,
        seeded)."""
        hits, n = self.counts[:, 0].sum(), len(self.counts)
        if self.kind == "rate":
            n = int(self.counts[:, 1].sum())
        if self.kind == "rate" and not self._clustered():
            return Figure(self.value(), *wilson(int(hits), n), n=n)
        low, high = self._interval(self.of(_resampled(self.counts, self.clusters)))
        if self.kind in ("rate", "ratio") and low == high and low in (0, 1):
            # Items that all agree give no spread to resample, and leave doubt all the same.
            low, high = wilson(n * int(low), n)
        if self.kind == "difference" and low == high:
            # The same doubt, on either side.
            doubt = wilson(0, n)[1]
            low, high = max(-1.0, low - doubt), min(1.0, high + doubt)
        return Figure(self.value(), low, high, n)

    def units(self) -> int:
        """How many are resampled: items, or clusters of them."""
        return len(self.counts) if self.clusters is None else len(np.unique(self.clusters))

    def _interval(self, values: np.ndarray, of_difference: bool = False) -> tuple[float, float]:
        """Of resampled figures, or differences; of one unit alone, which says nothing of its spread, all that a share can be."""
        low, high = _percentiles(values)
        if self.units() == 1 and self.kind != "mean" and not math.isnan(low):
            return (-1.0 if of_difference or self.kind == "difference" else 0.0), 1.0
        return low, high

    def taken(self, rows: Any) -> "Measure":
        """The same of these items."""
        rows = np.asarray(rows, dtype=np.intp)
        clusters = None if self.clusters is None else self.clusters[rows]
        return replace(self, counts=self.counts[rows], clusters=clusters)

    def _clustered(self) -> bool:
        return self.clusters is not None and len(np.unique(self.clusters)) < len(self.clusters)


def rate(name: str, hits: Any, counted: Any = None, **more: Any) -> Measure:
    """The share of items that are hits, of all or of those counted; both (items,) of 0 and 1."""
    hits = np.asarray(hits, dtype=np.int64)
    counted = np.ones_like(hits) if counted is None else np.asarray(counted, dtype=np.int64)
    return Measure(name, np.stack([hits, counted], axis=-1), kind="rate", **more)


def ratio(name: str, numerators: Any, denominators: Any, **more: Any) -> Measure:
    """Sum of the numerators over sum of the denominators (micro average); both (items,)."""
    return Measure(name, np.stack([np.asarray(numerators), np.asarray(denominators)], axis=-1), **more)


def mean(name: str, values: Any, **more: Any) -> Measure:
    """The mean of a number per item, (items,)."""
    values = np.asarray(values, dtype=np.float64)
    return Measure(name, np.stack([values, np.ones_like(values)], axis=-1), kind="mean", **more)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of the share `hits / n`.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    if n == 0:
        return math.nan, math.nan
    middle = (hits + Z * Z / 2) / (n + Z * Z)
    half = Z / (n + Z * Z) * math.sqrt(hits * (n - hits) / n + Z * Z / 4)
    return (0.0 if hits == 0 else middle - half), (1.0 if hits == n else middle + half)


def compare(one: Measure, other: Measure) -> Difference:
    """The difference of two measures of the same items, row by row.

    Rates of items that stand alone are tested with McNemar's exact test, all else with the paired bootstrap; intervals are of
    the latter.
    """
    assert one.name == other.name and one.counts.shape == other.counts.shape
    k, n = one.counts.shape[1], len(one.counts)
    sums = _resampled(np.concatenate([one.counts, other.counts], axis=1), one.clusters)
    differences = one.of(sums[:, :k]) - other.of(sums[:, k:])
    value, (low, high) = one.value() - other.value(), one._interval(differences, of_difference=True)
    if one.kind == "rate" and not one._clustered() and (one.counts[:, 1] == other.counts[:, 1]).all():
        wins = int((one.counts[:, 0] > other.counts[:, 0]).sum())
        losses = int((one.counts[:, 0] < other.counts[:, 0]).sum())
        return Difference(value, low, high, int(one.counts[:, 1].sum()), mcnemar(wins, losses), "McNemar")
    known = differences[~np.isnan(differences)]
    if not len(known):
        return Difference(value, low, high, n, math.nan, "paired bootstrap")
    # No smaller than resamples can tell, or the signs of as many differences as there are.
    least = max(1 / RESAMPLES, 2.0 ** (1 - min(one.units(), 64)))
    p = max(2 * float(min((known <= 0).mean(), (known >= 0).mean())), least)
    return Difference(value, low, high, n, min(1.0, p), "paired bootstrap")


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided exact p-value of McNemar's test, of the items on which only the one or only the other is a hit.

    Source: Q. McNemar, Note on the sampling error of the difference between correlated proportions (1947), in its binomial form.
    """
    n, fewer = wins + losses, min(wins, losses)
    term, tail = 1, 0
    for hits in range(fewer + 1):
        tail += term
        term = term * (n - hits) // (hits + 1)
    # Python divides whole numbers of any size.
    return min(1.0, 2 * tail / 2**n)


def _resampled(counts: np.ndarray, clusters: np.ndarray | None = None) -> np.ndarray:
    """Sums of `RESAMPLES` bootstrap samples of the items, or of their clusters, (RESAMPLES, k).

    Equal counts are drawn as one kind, so that the order of items says nothing, and many items cost little.
    """
    if not len(counts):
        return np.full((1, counts.shape[1]), np.nan)
    if clusters is not None:
        own = np.unique(clusters, return_inverse=True)[1]
        counts, items = np.zeros((own.max() + 1, counts.shape[1]), dtype=counts.dtype), counts
        np.add.at(counts, own, items)
    kinds, times = np.unique(counts, axis=0, return_counts=True)
    drawn = np.random.default_rng(SEED).multinomial(len(counts), times / len(counts), size=RESAMPLES)
    return drawn @ kinds


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
