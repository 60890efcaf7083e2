"""What an answer claims of a picture, how true it is, and which answers make a pair (pure Python)."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations
from typing import Any

from ..rows import VERDICTS

PRESENT, ABSENT, UNCERTAIN = VERDICTS
ALONE = "\u3040-\u30ff\u3400-\u9fff"
"""Letters of scripts without blanks between words, each of which counts as one."""
WORD = re.compile(rf"[{ALONE}]|[^\W{ALONE}]+(?:['’-][^\W{ALONE}]+)*")


@dataclass(frozen=True)
class Claim:
    """That a picture shows something.

    Attributes:
        phrase: as the answer says it.
        verdict: present, absent or uncertain; an uncertain claim decides nothing.
        name: what it counts as, so that "dog" and "dogs" are one; the phrase in lower case by default.
        regions: (number of the image, mask (H, W) bool, score or None) where it was found, if its verifier tells.
    """

    phrase: str
    verdict: str
    name: str = ""
    regions: Sequence[tuple[int, Any, float | None]] = field(default=(), compare=False)

    @property
    def counted_as(self) -> str:
        """Its name."""
        return self.name or self.phrase.lower()


@dataclass(frozen=True)
class Answer:
    """A text and its claims."""

    text: str
    claims: Sequence[Claim]

    @cached_property
    def present(self) -> frozenset[str]:
        """Names of what is there."""
        return frozenset(own.counted_as for own in self.claims if own.verdict == PRESENT)

    @cached_property
    def absent(self) -> frozenset[str]:
        """Names of what is not."""
        return frozenset(own.counted_as for own in self.claims if own.verdict == ABSENT)

    @cached_property
    def uncertain(self) -> frozenset[str]:
        """Names of what nobody knows."""
        return frozenset(own.counted_as for own in self.claims if own.verdict == UNCERTAIN)

    @property
    def faithfulness(self) -> float | None:
        """Share of the decided claims that are true, in [0, 1]; None where nothing is decided."""
        decided = len(self.present) + len(self.absent)
        return len(self.present) / decided if decided else None

    @cached_property
    def words(self) -> list[str]:
        """In lower case, in their order."""
        return WORD.findall(self.text.lower())


@dataclass(frozen=True)
class Rule:
    """Which two answers to one prompt make a pair.

    Args:
        margin: by how many false claims the rejected answer has more, at least 1.
        length_ratio: of the longer one's words to the shorter one's, at most; at least 1.
        most: pairs of a prompt, at least 1.
        clean: the chosen answer claims nothing false, and something true.

    Raises:
        ValueError: a number out of its range.
    """

    margin: int = 1
    length_ratio: float = 2.0
    most: int = 1
    clean: bool = False

    def __post_init__(self) -> None:
        for name in ("margin", "length_ratio", "most"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")


Pair = tuple[int, int]
"""Places of the chosen and of the rejected answer."""

RULES = ("compared", "more faithful", "of near length", "kept")
"""Rules in the order in which they are asked; each counts the pairs that have passed it."""


def choose_pairs(answers: Sequence[Answer], rule: Rule) -> tuple[list[Pair], Counter[str]]:
    """The best pairs of the answers to one prompt, and how many pairs each of the `RULES` let pass.

    Chosen is the more faithful one: fewer false claims by the margin, and a higher share of true ones, so that neither a
    longer list nor a shorter one wins by its length. Of these pairs come first those with the largest
    `2 * difference of faithfulness + overlap - |log(ratio of lengths)| - unknown`: far apart in what they claim, alike in all else,
    and with little of which nobody knows on either side. An answer is in
    one pair at most, and equal texts count once.
    """
    first = {own.text: place for place, own in reversed(list(enumerate(answers)))}
    decided = sorted(place for text, place in first.items() if answers[place].faithfulness is not None)
    counts: Counter[str] = Counter(dict.fromkeys(RULES, 0))
    counts["compared"] = len(decided) * (len(decided) - 1) // 2
    fitting: list[tuple[float, Pair]] = []
    for pair in permutations(decided, 2):
        chosen, rejected = (answers[place] for place in pair)
        if not _more_faithful(chosen, rejected, rule):
            continue
        counts["more faithful"] += 1
        apart = abs(math.log(max(1, len(chosen.words)) / max(1, len(rejected.words))))
        if apart > math.log(rule.length_ratio) + 1e-9:
            continue
        counts["of near length"] += 1
        assert chosen.faithfulness is not None and rejected.faithfulness is not None
        gap = chosen.faithfulness - rejected.faithfulness
        value = 2 * gap + overlap(chosen.words, rejected.words) - apart - unknown(chosen, rejected)
        fitting.append((value, pair))
    kept: list[Pair] = []
    used: set[int] = set()
    for _, pair in sorted(fitting, key=lambda own: (-own[0], own[1])):
        if len(kept) < rule.most and used.isdisjoint(pair):
            kept.append(pair)
            used |= {*pair}
    counts["kept"] = len(kept)
    return kept, counts


def _more_faithful(chosen: Answer, rejected: Answer, rule: Rule) -> bool:
    assert chosen.faithfulness is not None and rejected.faithfulness is not None
    return (
        len(chosen.absent) + rule.margin <= len(rejected.absent)
        and chosen.faithfulness > rejected.faithfulness
        and not (rule.clean and chosen.absent)
    )


def overlap(one: Sequence[str], other: Sequence[str]) -> float:
    """Share of the words that two texts have in common, repeats counted (Jaccard), in [0, 1]."""
    a, b = Counter(one), Counter(other)
    return sum((a & b).values()) / max(1, sum((a | b).values()))


def unknown(one: Answer, other: Answer) -> float:
    """Share of the names in two answers that one of them has alone and that nobody knows, in [0, 1]."""
    names = one.present | one.absent | one.uncertain | other.present | other.absent | other.uncertain
    return len(one.uncertain ^ other.uncertain) / max(1, len(names))


def why_none(answers: Sequence[Answer], counts: Counter[str], rule: Rule) -> str:
    """Why a prompt gives no pair: the first rule that left none."""
    texts = {own.text for own in answers if own.text.strip()}
    if not texts:
        return "the model answered nothing"
    if len(texts) == 1 and len(answers) > 1 and all(own.text.strip() for own in answers):
        return f"all {len(answers)} answers are the same"
    if not any(own.claims for own in answers):
        return "the verifier found no claim in any answer"
    if all(own.faithfulness is None for own in answers):
        return "the verifier decided nothing about any answer"
    if not counts["compared"]:
        return "the verifier decided something about one answer only"
    if not counts["more faithful"]:
        clean = " and claims nothing false" if rule.clean else ""
        return f"no answer is more faithful than another by {rule.margin} false claim(s){clean}"
    return f"no answer of near length is less faithful (at most {rule.length_ratio:g} times as many words)"
