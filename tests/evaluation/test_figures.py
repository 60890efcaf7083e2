"""Intervals and tests against other libraries, loops and arithmetic by hand; what the order of items says: nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from mfpo_trl.evaluation.figures.figures import (
    RESAMPLES,
    Measure,
    compare,
    harmonic,
    mcnemar,
    mean,
    rate,
    ratio,
    share,
    wilson,
)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 300), (40, 300), (300, 300), (1, 3), (2989, 3000)])
def test_wilson(hits, n):
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_rate():
    figure = rate("hit", [1, 0, 0, 1, 0], [1, 1, 0, 1, 1]).figure()
    # Two of the four that count; Wilson's interval of 2 of 4 by hand: (2 + 1.921) / (4 + 3.841) = 0.5 -+ 0.3503.
    assert (figure.value, figure.n) == (0.5, 4)
    assert (figure.low, figure.high) == pytest.approx((0.15, 0.85), abs=5e-4)


def test_nothing_counted():
    for measure in (rate("a", [0, 0], [0, 0]), ratio("b", [0, 0], [0, 0]), rate("c", []), ratio("d", [], [])):
        figure = measure.figure()
        assert np.isnan([figure.value, figure.low, figure.high]).all()
        assert np.isnan(compare(measure, measure).value)


def test_a_ratio_against_a_loop():
    """The percentile bootstrap, item by item."""
    rng = np.random.default_rng(1)
    counts = np.stack([rng.integers(0, 3, 60), rng.integers(3, 6, 60)], axis=-1)
    values = [counts[rng.integers(0, 60, 60)].sum(axis=0) for _ in range(4000)]
    low, high = np.quantile([hits / of for hits, of in values], (0.025, 0.975))
    figure = Measure("ratio", counts).figure()
    assert figure.value == counts[:, 0].sum() / counts[:, 1].sum()
    assert (figure.low, figure.high) == pytest.approx((low, high), abs=0.006)


def test_a_mean_against_the_normal_interval():
    values = np.random.default_rng(2).normal(50, 10, 400)
    figure = mean("words", values).figure()
    half = 1.96 * values.std() / np.sqrt(400)
    assert figure.value == pytest.approx(values.mean())
    assert (figure.low, figure.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1)


def test_items_that_all_agree_leave_doubt():
    assert (ratio("none", [0] * 10, [3] * 10).figure().low, ratio("none", [0] * 10, [3] * 10).figure().high) == wilson(
        0, 10
    )
    assert ratio("all", [3] * 10, [3] * 10).figure().low == wilson(10, 10)[0]


def test_answers_about_one_picture_are_drawn_together():
    """Eight copies of each of ten answers tell no more than the ten do."""
    hits = np.array([1, 0, 0, 1, 0, 1, 0, 0, 0, 1])
    alone = ratio("share", hits, np.ones(10, dtype=int)).figure()
    copies = rate("share", np.repeat(hits, 8), clusters=np.repeat(np.arange(10), 8)).figure()
    assert (copies.value, copies.low, copies.high, copies.n) == (alone.value, alone.low, alone.high, 80)
    assert rate("share", np.repeat(hits, 8)).figure().high < copies.high


@pytest.mark.parametrize(
    ("wins", "losses"), [(0, 0), (1, 0), (8, 2), (2, 8), (5, 5), (40, 61), (3000, 2800), (2000, 1)]
)
def test_mcnemar(wins, losses):
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(wins, losses) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_a_paired_difference_of_rates():
    one, other = rate("hit", [1] * 9 + [0] * 11), rate("hit", [1] * 2 + [0] * 18)
    found = compare(one, other)
    # Seven items on which only the one is right: 2 * (1/2)^7.
    assert (found.value, found.n, found.p, found.test) == (pytest.approx(0.35), 20, 2 / 128, "McNemar")
    assert 0.1 < found.low < 0.2 and 0.5 < found.high < 0.6


def test_a_paired_difference_is_paired():
    """Answers that differ much from item to item, and by the same little within each."""
    values = np.random.default_rng(3).normal(0, 100, 50)
    found = compare(mean("score", values + 1), mean("score", values))
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1)) and found.p == 1 / RESAMPLES
    same = compare(mean("score", values), mean("score", values))
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_rates_over_other_items_are_resampled():
    one, other = rate("precision", [1, 1, 0, 0], [1, 1, 0, 1]), rate("precision", [1, 0, 0, 0], [1, 1, 1, 1])
    assert compare(one, other).test == "paired bootstrap" and compare(one, other).value == pytest.approx(2 / 3 - 1 / 4)


def test_harmonic():
    assert harmonic(np.array([0.5, 0.0]), np.array([1.0, 0.0])).tolist() == [2 / 3, 0.0]


COUNTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=40)


@given(COUNTS, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_items_says_nothing(counts, random):
    order = list(range(len(counts)))
    random.shuffle(order)
    own, shuffled = np.array(counts), np.array(counts)[order]
    clusters = np.array([hits for hits, _ in counts])
    for one, other in (
        (Measure("a", own), Measure("a", shuffled)),
        (Measure("a", own, clusters=clusters), Measure("a", shuffled, clusters=clusters[order])),
        (rate("a", own[:, 0] > 1), rate("a", shuffled[:, 0] > 1)),
    ):
        assert repr(one.figure()) == repr(other.figure())
        twin = [Measure("b", np.roll(counted, 1, axis=1), of=share) for counted in (one.counts, other.counts)]
        twin = [Measure("a", own.counts) for own in twin]
        assert repr(compare(one, twin[0])) == repr(compare(other, twin[1]))


def test_one_item_says_nothing_of_its_spread():
    """A bootstrap of one item, or of one picture with several, draws the same again and again."""
    for clusters in (None, np.zeros(3, dtype=int)):
        n = 1 if clusters is None else 3
        ours, theirs = (ratio("r", [own] * n, [4] * n, clusters=clusters) for own in (3, 1))
        assert (ours.figure().low, ours.figure().high) == (0.0, 1.0)
        found = compare(ours, theirs)
        assert (found.value, found.low, found.high, found.p) == (0.5, -1.0, 1.0, 1.0)


@pytest.mark.parametrize(("n", "least"), [(2, 0.5), (3, 0.25), (6, 1 / 32), (40, 1 / 5000)])
def test_few_items_prove_little(n, least):
    """All differences of one sign: by chance alone that happens once in 2 ** (n - 1)."""
    assert compare(ratio("r", [3] * n, [4] * n), ratio("r", [1] * n, [4] * n)).p == least
