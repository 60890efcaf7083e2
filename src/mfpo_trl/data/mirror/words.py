"""Phrases in a text: where they stand, in which number, behind which article."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..keywords import WORD, singular

AN, A = (
    re.compile(r"hour|honest|honou?r|heir|suv\b|led\b|xbox|8|11\b|18\b|[aeiou]|[fhlmnrsx][^\Waeiouy_]*\b", re.I),
    re.compile(r"uni[^nm]|us[ae]|usual|usb|ut[eio]|urin|uku|ufo|u\b|eu|ewe|one\b|once\b", re.I),
)
"""Beginnings of words behind "an" (vowels, silent letters, letters that are spelt: "an RV", "an x-ray"), and exceptions."""


class Left(Exception):
    """A row of which no twin can be made, and why."""


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


def mentions_of(words: Sequence[Word], phrase: str) -> list[int]:
    """Where the phrase begins, wherever its words stand one after the other."""
    own = [word.text for word in words_of(phrase)]
    return [
        start
        for start in range(len(words) - len(own) + 1)
        if own
        and [word.text for word in words[start : start + len(own)]] == own
        and all(word.joined for word in words[start + 1 : start + len(own)])
    ]


def stands_in(text: str, phrase: str) -> bool:
    """Whether a text mentions a phrase verbatim, whatever its case."""
    return bool(mentions_of(words_of(text), phrase))


def speaks_of(text: str, phrase: str) -> bool:
    """Whether a text mentions a phrase in any number."""
    said, own = stems_of(text), stems_of(phrase)
    return any(said[start : start + len(own)] == own for start in range(len(said) - len(own) + 1)) and bool(own)


def stems_of(text: str) -> list[str]:
    """The words of a text in the singular."""
    return [singular(word.text) for word in words_of(text)]


def head_of(phrase: str) -> str:
    """The last word of a phrase, which says what it is: "ball" of "red ball"."""
    return phrase.split()[-1]


def is_plural(phrase: str) -> bool:
    """Whether a phrase speaks of several things, by its last word."""
    last = head_of(phrase.lower())
    return singular(last) != last


def is_counted(text: str, phrase: str) -> bool:
    """Whether a text speaks of "a" or "an" such thing, so that it can follow one."""
    words = words_of(text)
    return any(behind_article(words, start) for start in mentions_of(words, phrase))


def behind_article(words: Sequence[Word], start: int) -> bool:
    """Whether "a" or "an" stands right before a word."""
    return start > 0 and words[start].joined and words[start - 1].text in ("a", "an")


def article(phrase: str) -> str:
    """The indefinite article of a phrase."""
    return "an" if AN.match(phrase) and not A.match(phrase) else "a"
