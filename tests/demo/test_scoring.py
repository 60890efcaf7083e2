import pytest

from mfpo_trl.demo.scoring import hallucinated, mentions, score_captions, wilson_interval


def test_mentions_keep_order_and_repeats_and_need_both_words():
    caption = "a red circle , a blue , a blue square , square , a red circle ."
    assert mentions(caption) == ["red circle", "blue square", "red circle"]
    assert hallucinated(caption, ["red circle"]) == ["blue square"]


def test_scores_by_hand():
    """Three captions name 2, 3 and 0 objects; of these five two are not there, both in the second caption. The pictures
    hold 2 + 2 + 1 objects, of which 2 + 1 + 0 are named. Words: 6, 9 and 1."""
    captions = ["a red circle , a blue square .", "a red circle , a red circle , a green cross .", "a ."]
    truths = [["red circle", "blue square"], ["green cross", "blue cross"], ["red cross"]]
    scores = score_captions(captions, truths)
    assert scores.n == 3
    assert scores.chair_s == pytest.approx(1 / 3)
    assert scores.chair_i == pytest.approx(2 / 5)
    assert scores.coverage == pytest.approx(3 / 5)
    assert scores.words == pytest.approx(16 / 3)
    assert scores.f1 == pytest.approx(2 * 0.6 * 0.6 / (0.6 + 0.6))
    assert (scores.chair_s_low, scores.chair_s_high) == wilson_interval(1, 3)


def test_captions_without_any_object_do_not_divide_by_zero():
    scores = score_captions(["."], [["red circle"]])
    assert (scores.chair_s, scores.chair_i, scores.coverage, scores.words, scores.f1) == (0, 0, 0, 0, 0)


def test_naming_less_does_not_raise_f1():
    """One caption names two of three objects, rightly; the other one more, and one that is absent: precision 1 and 3/4, coverage
    2/3 and 1."""
    truth = ["red circle", "blue square", "green cross"]
    less = score_captions(["a red circle , a blue square ."], [truth])
    more = score_captions(["a red circle , a blue square , a green cross , a red cross ."], [truth])
    assert (less.f1, more.f1) == pytest.approx((2 * 2 / 3 / (1 + 2 / 3), 2 * 3 / 4 / (1 + 3 / 4)))
    assert less.chair_s < more.chair_s and less.f1 < more.f1


@pytest.mark.parametrize("captions", [[], ["a red circle ."]])
def test_captions_and_pictures_must_match(captions):
    with pytest.raises(ValueError, match="give one caption a picture"):
        score_captions(captions, [["red circle"], ["red cross"]])


def test_wilson_interval_by_hand():
    """z = 2, 2 of 10: z^2 = 4. Centre (0.2 + 4/20) / (1 + 4/10) = 0.4 / 1.4 = 2/7. Half width
    2/1.4 * sqrt(0.2 * 0.8 / 10 + 4/400) = 2/1.4 * sqrt(0.016 + 0.01) = 0.2303."""
    assert wilson_interval(2, 10, z=2) == pytest.approx((2 / 7 - 0.23035, 2 / 7 + 0.23035), abs=1e-4)


@pytest.mark.parametrize("hits", [0, 7])
def test_wilson_interval_stays_between_0_and_1(hits):
    low, high = wilson_interval(hits, 7)
    assert 0 <= low <= hits / 7 <= high <= 1
    assert high - low > 0.2
