"""The phrases of an English text that may name a thing in a picture.

Positions count words (runs of letters and digits) from 0.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .words import (
    ABSTRACT_ENDINGS,
    ADJECTIVE_ENDINGS,
    ADJECTIVES,
    DETERMINERS,
    ING_ED_NOUNS,
    IRREGULAR,
    LY_NOUNS,
    NOT_THINGS,
    PARTICIPLES,
    PLURAL_ONLY,
    PRONOUNS,
    QUANTITIES,
    STOP,
    SUFFIX_NOUNS,
    VERBS,
)

WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*['’]?")
LATIN = re.compile(r"[a-zß-öø-ɏ'\-]*[a-zß-öø-ɏ][a-zß-öø-ɏ'\-]*")

Words = Sequence[tuple[str, int, int]]
"""Every word of a text in lower case, with the offsets of its first character and of the one behind its last."""

_FUNCTION_WORDS = STOP | DETERMINERS


@dataclass(frozen=True)
class Candidate:
    """A phrase in lower case as it first stands in the text, the positions of the first word of all its occurrences,
    ascending, and its words in the singular, by which repeats are recognised."""

    phrase: str
    positions: tuple[int, ...]
    stems: tuple[str, ...]


def candidates(text: str, nlp: Any = None) -> list[Candidate]:
    """The phrases of the text that may name a thing in the picture, in the order of their first occurrence.

    Args:
        text: English; a text without Latin letters has no candidates.
        nlp: a spaCy pipeline, or anything with `nlp(text).noun_chunks`: its noun chunks, without determiners, pronouns
            and numbers at their beginning. None: runs of words between stop words, verbs, numbers and punctuation, with
            the adjectives in front of a noun.

    Returns:
        repeats are merged whatever their case and number ("a red car", "Red cars"). Phrases whose last word says
        something about the picture ("background"), encloses all of it ("kitchen") or is abstract ("mood") are left out.
    """
    text = unicodedata.normalize("NFC", text)
    words = [(match.group().lower().replace("’", "'"), match.start(), match.end()) for match in WORD.finditer(text)]
    runs = _runs(text, words) if nlp is None else _chunks(nlp(text), words)
    places: dict[tuple[str, ...], list[tuple[int, str]]] = {}
    for start, end in sorted(set(runs)):
        phrase = [word for word, _, _ in words[start:end]]
        phrase[-1] = phrase[-1].removesuffix("'s").removesuffix("'")
        if phrase[-1] and _names_a_thing(phrase[-1]) and LATIN.fullmatch("".join(phrase)):
            stems = tuple(singular(word) for word in phrase)
            places.setdefault(stems, []).append((start, " ".join(phrase)))
    return [Candidate(found[0][1], tuple(place for place, _ in found), stems) for stems, found in places.items()]


def _runs(text: str, words: Words) -> list[tuple[int, int]]:
    """First word and end of every noun phrase that the word lists can make out."""
    inner = [not text[end:begin].strip(" \t") for (_, _, end), (_, begin, _) in pairwise(words)]
    # Whether only blanks stand between a word and the one before it.
    joined = [False, *inner, False]
    runs, start = [], None
    for i, (word, _, _) in enumerate(words):
        previous = words[i - 1][0] if joined[i] else ""
        following = words[i + 1][0] if joined[i + 1] else ""
        if start is not None and (not joined[i] or previous.endswith("'")):
            runs.append((start, i))
            start = None
        if _in_a_phrase(word, previous, following, start is not None):
            start = i if start is None else start
        elif start is not None:
            runs.append((start, i))
            start = None
    if start is not None:
        runs.append((start, len(words)))
    trimmed = [_without_adjective_end(words, *run) for run in runs]
    return [(start, end) for start, end in trimmed if start < end and not _denied(text, words, start)]


def _denied(text: str, words: Words, start: int) -> bool:
    """Whether the phrase stands behind "no" or "without": "there is no dog", "without a helmet"."""
    before = start - 1
    if before > 0 and words[before][0] in ("a", "an", "any", "the"):
        before -= 1
    said = [word for word, _, _ in words[max(before, 0) : start]]
    return (
        bool(said)
        and said[0] in ("no", "without")
        and text[words[before][1] : words[start][1]].split()
        == [text[begin:end] for _, begin, end in words[before:start]]
    )


def _in_a_phrase(word: str, previous: str, following: str, inside: bool) -> bool:
    """Whether a word may belong to a noun phrase, `inside` of one or at its beginning; any other ends the phrase.

    Args:
        previous, following: its neighbours, empty where more than blanks stands between them.
    """
    if (
        not LATIN.fullmatch(word)
        or word in _FUNCTION_WORDS
        or word.removesuffix("'s") in PRONOUNS
        or word.endswith(("n't", "'re", "'ve", "'ll", "'d", "'m"))
        or (word in QUANTITIES and following == "of")
    ):
        return False
    determined = previous in DETERMINERS or previous in ADJECTIVES or previous.endswith("'s")
    if word in VERBS:
        # "a stand", "a blue cross": a verb's form behind a determiner or an adjective is a noun, unless a noun is to come.
        return determined and (not inside or previous in ADJECTIVES) and (following in STOP or not following)
    if word in PARTICIPLES or (word.endswith(("ing", "ed")) and word not in ING_ED_NOUNS and len(word) > 4):
        # "a parked car" keeps its participle, "a man wearing", "is parked in" do not.
        return determined and following != "" and following not in _FUNCTION_WORDS
    return not word.endswith("ly") or word in LY_NOUNS


def _without_adjective_end(words: Words, start: int, end: int) -> tuple[int, int]:
    """The run without the adjectives at its end ("the sky blue"), empty when nothing is left; "an orange" stays."""
    # "an orange and white cat" has none.
    paired = end + 1 < len(words) and words[end][0] in ("and", "or") and _is_adjective(words[end + 1][0])
    if start and words[start - 1][0] == "an" and words[end - 1][0] == "orange" and not paired:
        return start, end
    while end > start and _is_adjective(words[end - 1][0]):
        end -= 1
    return start, end


def _is_adjective(word: str) -> bool:
    if word in ADJECTIVES:
        return True
    return word not in SUFFIX_NOUNS and len(word) > 5 and word.endswith(ADJECTIVE_ENDINGS)


def _names_a_thing(word: str) -> bool:
    stem = singular(word)
    if stem in NOT_THINGS or word in NOT_THINGS or stem in STOP or len(stem) < 2:
        return False
    return stem in SUFFIX_NOUNS or not (len(stem) > 5 and stem.endswith(ABSTRACT_ENDINGS))


def _chunks(document: Any, words: Words) -> list[tuple[int, int]]:
    """First word and end of every noun chunk, counted in our words; spaCy's own tokens include punctuation."""
    begins = [begin for _, begin, _ in words]
    runs = []
    for chunk in document.noun_chunks:
        tokens = list(chunk)
        while tokens and tokens[0].pos_ in ("DET", "PRON", "NUM", "PUNCT", "SPACE", "ADP", "CCONJ"):
            tokens.pop(0)
        tokens = [token for token in tokens if token.pos_ not in ("PUNCT", "SPACE")]
        if tokens:
            start, last = (bisect_right(begins, token.idx) - 1 for token in (tokens[0], tokens[-1]))
            runs.append((start, last + 1))
    return [run for run in runs if 0 <= run[0] < run[1]]


def singular(word: str) -> str:
    """The singular of a regular or well-known irregular English plural; other words as they are."""
    word = word.removesuffix("'s").removesuffix("'")
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) < 4 or word.endswith(("ss", "us", "is")) or not word.endswith("s") or word in PLURAL_ONLY:
        return word
    if word.endswith("ies"):
        return word[:-3] + "y" if len(word) > 4 else word[:-1]
    if word.endswith(("ches", "shes", "sses", "xes", "zzes", "toes")) and word != "shoes":
        return word[:-2]
    return word[:-1]
