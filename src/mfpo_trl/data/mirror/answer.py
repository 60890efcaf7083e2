"""An answer with the name of one object replaced: articles and number by rule, and nothing left that the edit makes false.

The rules are for English. They would rather leave an answer out (`Left`) than change it to one that may be false.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..keywords import ADJECTIVES, DETERMINERS, PARTICIPLES, PRONOUNS, STOP, VERBS, WORD, singular

PERSONS = frozenset("it its itself he him his himself she her herself they them their themselves one ones".split())
COUNTS = frozenset(
    "two three four five six seven eight nine ten eleven twelve dozen several many few multiple numerous various both".split()
)
NEUTRAL = frozenset(
    """
    is are was were be has have had show shows showing shown feature features featuring contain contains containing include
    includes including see sees seen depict depicts depicting display displays displaying
    """.split()
)
"""Verbs before a name that say no more than that it is there."""
LOCATING = frozenset("located placed positioned situated visible seen shown present found there also".split())
PLACES = frozenset(
    """
    on in at near by next behind beside beneath under underneath above below between inside outside over against along across
    around among amid to off atop within
    """.split()
)
AN, A = (
    re.compile(r"(?:hour|honest|honou?r|heir|[aeiou])", re.I),
    re.compile(r"(?:uni[^nm]|use|user|usual|eu|one\b|once\b)", re.I),
)
"""Beginnings of words behind "an", and exceptions."""


class Left(Exception):
    """An answer that cannot be made true of the other image by replacing a name, and why."""


@dataclass(frozen=True)
class Word:
    """A word of a text in lower case, its place, and whether only blanks stand between it and the one before."""

    text: str
    start: int
    end: int
    joined: bool


def words_of(text: str) -> list[Word]:
    """The words of a text in their order."""
    found: list[Word] = []
    for match in WORD.finditer(text):
        joined = bool(found) and not text[found[-1].end : match.start()].strip(" \t")
        found.append(Word(match.group().lower().replace("’", "'"), match.start(), match.end(), joined))
    return found


def is_plural(phrase: str) -> bool:
    """Whether a phrase speaks of several things, by its last word."""
    last = phrase.lower().split()[-1]
    return singular(last) != last


def is_counted(text: str, phrase: str) -> bool:
    """Whether a text speaks of "a" or "an" such thing, so that it can follow one."""
    words = words_of(text)
    return any(
        start and words[start].joined and words[start - 1].text in ("a", "an") for start in _mentions(words, phrase)
    )


def stands_in(text: str, phrase: str) -> bool:
    """Whether a text mentions a phrase verbatim, whatever its case."""
    return bool(_mentions(words_of(text), phrase))


def mirrored(text: str, old: str, new: str) -> str:
    """The text with every mention of `old` replaced by `new`, of the same number.

    Raises:
        Left: `old` is not mentioned, or something is said of it that need not be true of `new`.
    """
    words, length = words_of(text), len(old.split())
    mentions = _mentions(words, old)
    if not mentions:
        raise Left("the answer does not name the object")
    for start in mentions:
        _check_before(words, start)
        _check_after(text, words, start + length)
    changes = [(words[start].start, words[start + length - 1].end, new) for start in mentions]
    changes += _of_head(words, old, new, mentions)
    for place in range(mentions[0] + length, len(words)):
        if words[place].text in PERSONS and not _says_nothing(words, place):
            raise Left("a pronoun may speak of the object")
    changes += [
        (words[start - 1].start, words[start - 1].end, article(new))
        for start in mentions
        if start and words[start].joined and words[start - 1].text in ("a", "an")
    ]
    for begin, end, own in sorted(changes, reverse=True):
        own = own[0].upper() + own[1:] if text[begin].isupper() else own
        text = text[:begin] + own + text[end:]
    return text


def article(phrase: str) -> str:
    """The indefinite article of a phrase."""
    return "an" if AN.match(phrase) and not A.match(phrase) else "a"


def _mentions(words: Sequence[Word], phrase: str) -> list[int]:
    """Where the phrase begins, wherever its words stand one after the other."""
    own = [word.text for word in words_of(phrase)]
    return [
        start
        for start in range(len(words) - len(own) + 1)
        if own
        and [word.text for word in words[start : start + len(own)]] == own
        and all(word.joined for word in words[start + 1 : start + len(own)])
    ]


def _check_before(words: Sequence[Word], start: int) -> None:
    before = [word.text for word in words[max(0, start - 2) : start]] if start and words[start].joined else []
    if not before:
        return
    last = before[-1]
    if last in COUNTS or last.isdigit():
        raise Left("the object is counted")
    if last in ("no", "without"):
        raise Left("the answer denies the object")
    if last in ADJECTIVES or (last.endswith(("ing", "ed")) and len(last) > 4 and last not in NEUTRAL | VERBS):
        raise Left("something is said of the object: an adjective")
    if last not in STOP | DETERMINERS | VERBS | NEUTRAL | {"and", "or"}:
        raise Left("the name is part of a longer one")
    verb = last if last not in DETERMINERS else before[0] if len(before) > 1 and words[start - 1].joined else ""
    if verb not in NEUTRAL and (verb in VERBS or (verb.endswith("ing") and verb not in STOP)):
        raise Left("something is done with the object")


def _check_after(text: str, words: Sequence[Word], end: int) -> None:
    if end >= len(words) or not words[end].joined:
        return
    word = words[end].text
    if word in ("is", "are", "was", "were"):
        further = words[end + 1].text if end + 1 < len(words) else ""
        if further not in LOCATING | PLACES:
            raise Left("something is said of the object: what it is or does")
        return
    if word == "of":
        raise Left("the name is part of a longer one")
    if word in LOCATING | PLACES | {"and", "or", "as", "while", "but"}:
        return
    if word in STOP | DETERMINERS and word not in PRONOUNS | {"with", "has", "have", "had"}:
        return
    if word in VERBS | PARTICIPLES | PRONOUNS | {"with", "has", "have", "had"} or word.endswith(("ing", "ed")):
        raise Left("something is said of the object: what it is or does")
    raise Left("the name is part of a longer one")


def _of_head(words: Sequence[Word], old: str, new: str, mentions: Sequence[int]) -> list[tuple[int, int, str]]:
    """Where the object is named by its last word alone: "the dog", after "a red dog".

    Raises:
        Left: in another number, or as an owner.
    """
    length, head = len(old.split()), old.lower().split()[-1]
    inside = {start + length - 1 for start in mentions}
    changes = []
    for place, word in enumerate(words):
        if place in inside or singular(word.text.removesuffix("'s").removesuffix("'")) != singular(head):
            continue
        before = words[place - 1].text if place and word.joined else ""
        if before and before not in DETERMINERS | STOP:
            continue  # "a blue circle", beside "a red circle"
        if word.text != head or length == 1:
            raise Left("the object is named in another number or as an owner")
        if before in ("the", "this", "that", "these", "those"):
            changes.append((word.start, word.end, new.split()[-1]))
        else:
            raise Left("another one of the kind may be meant")
    return changes


def _says_nothing(words: Sequence[Word], place: int) -> bool:
    """Whether an "it" stands for nothing: "it is", "it appears" at the head of "that"."""
    further = [word.text for word in words[place + 1 : place + 3]]
    return words[place].text == "it" and len(further) == 2 and further[1] == "that"
