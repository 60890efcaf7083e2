"""Which answers make a pair: the rules by hand."""

import math
from collections import Counter

import pytest

from mfpo_trl.pairs.claims import ABSENT, PRESENT, UNCERTAIN, Answer, Claim, Rule, choose_pairs, overlap, why_none


def answer(text: str, there: str = "", not_there: str = "", unsure: str = "") -> Answer:
    verdicts = ((there, PRESENT), (not_there, ABSENT), (unsure, UNCERTAIN))
    return Answer(text, [Claim(word, verdict) for words, verdict in verdicts for word in words.split()])


def test_faithfulness_is_the_share_of_decided_claims_that_are_true():
    own = answer("a dog a cat a bird a fish", "dog cat", "bird", "fish")
    assert own.faithfulness == pytest.approx(2 / 3)
    assert answer("fish", unsure="fish").faithfulness is None and answer("hello").faithfulness is None
    # What counts as one thing counts once, whatever it is called.
    dogs = Answer("dogs, a dog", [Claim("dogs", PRESENT, "dog"), Claim("dog", PRESENT, "dog"), Claim("cat", ABSENT)])
    assert dogs.present == {"dog"} and dogs.faithfulness == 0.5


def test_far_apart_in_claims_and_alike_in_all_else():
    """Four answers by hand: values 2 * gap + overlap - |log ratio|.

    true against wrong:  2 * (1 - 1/3) + 4/8 - log(6/6) = 1.83: of 6 words each, 4 in common
    true against apart:  2 * (1 - 1/3) + 1/11 - 0       = 1.42
    short against wrong: 2 * (1 - 1/3) + 2/6 - log(3)   = 0.57
    """
    true = answer("a dog and a cat sit", "dog cat")
    wrong = answer("a dog and a bird fly", "dog", "bird wing")
    apart = answer("one dog flew off with birds", "dog", "bird wing")
    short = answer("a dog", "dog")
    pairs, counts = choose_pairs([short, apart, true, wrong], Rule(length_ratio=3, most=2))
    assert pairs == [(2, 3), (0, 1)]
    assert counts == {"compared": 6, "more faithful": 4, "of near length": 4, "kept": 2}
    pairs, counts = choose_pairs([short, apart, true, wrong], Rule(length_ratio=2, most=2))
    assert pairs == [(2, 3)] and counts["of near length"] == 2 and counts["kept"] == 1
    assert overlap(true.words, wrong.words) == pytest.approx(4 / 8)
    assert overlap(["a", "a", "b"], ["a", "b", "b"]) == pytest.approx(2 / 4)


@pytest.mark.parametrize(
    ("answers", "rule", "pairs", "why"),
    [
        ([answer("a", "x"), answer("b", "", "y")], Rule(), [(0, 1)], None),
        ([answer("a", "x", "w"), answer("b", "x", "y z")], Rule(), [(0, 1)], None),
        ([answer("a", "x", "w"), answer("b", "x", "y z")], Rule(margin=2), [], "by 2 false"),
        ([answer("a", "x", "w"), answer("b", "x", "y z")], Rule(clean=True), [], "claims nothing false"),
        # More false claims, and a higher share of true ones all the same: neither is the more faithful one.
        ([answer("a", "x", "w"), answer("b", "p q r s t u", "y z")], Rule(), [], "no answer is more faithful"),
        ([answer("a", "x"), answer("a", "x")], Rule(), [], "all 2 answers are the same"),
        ([answer("a", "x"), answer("")], Rule(), [], "about one answer only"),
        ([answer(""), answer(" ")], Rule(), [], "answered nothing"),
        ([answer("a"), answer("b")], Rule(), [], "no claim in any"),
        ([answer("a", unsure="x"), answer("b", unsure="y")], Rule(), [], "decided nothing"),
        ([answer("a", "x"), answer("b", unsure="y")], Rule(), [], "about one answer only"),
        ([answer("a", "x"), answer("b b b", "", "y")], Rule(), [], "of near length"),
        ([answer("...", "x"), answer("!", "", "y")], Rule(), [(0, 1)], None),
        ([answer("一只狗。", "x"), answer("一只猫和一只鸟和一条鱼。", "", "y")], Rule(), [], "of near length"),
    ],
)
def test_what_makes_a_pair_and_what_does_not(answers, rule, pairs, why):
    found, counts = choose_pairs(answers, rule)
    assert found == pairs
    if why is not None:
        assert why in why_none(answers, counts, rule)


def test_words():
    assert answer("It's a well-lit room, 2nd: 一只dog!").words == [
        "it's",
        "a",
        "well-lit",
        "room",
        "2nd",
        "一",
        "只",
        "dog",
    ]


def test_an_answer_is_in_one_pair_at_most_and_equal_texts_are_one():
    right, wrong = [answer(f"a {n}", "x y") for n in range(3)], [answer(f"b {n}", "x", "z") for n in range(3)]
    pairs, _ = choose_pairs([*right, *wrong, right[0], wrong[0]], Rule(most=9))
    places = Counter(place for pair in pairs for place in pair)
    assert len(pairs) == 3 and set(places.values()) == {1} and max(places) < 6


@pytest.mark.parametrize("own", [{"margin": 0}, {"length_ratio": 0.9}, {"most": 0}, {"length_ratio": math.nan}])
def test_rules_out_of_range(own):
    with pytest.raises(ValueError, match="expected at least 1"):
        Rule(**own)
