"""The things that an answer names, for AMBER: its nouns in the singular, as words of a fixed vocabulary, repeats kept.

The official scorer takes what NLTK tags as a noun, as WordNet lemmatises it, and looks it up as it is written: "Trees" at the
beginning of a sentence is no "tree" there, and neither is it here.
"""

import re
from collections.abc import Callable, Collection
from typing import Any

WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")

SUFFIXES = (
    ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
    ("ies", "y"),
)  # fmt: skip
"""Endings of English plurals and of their singulars, as WordNet detaches them."""

IRREGULAR = {
    "children": "child",
    "geese": "goose",
    "knives": "knife",
    "mice": "mouse",
    "potatoes": "potato",
    "tomatoes": "tomato",
    "leaves": "leaf",
    "chopsticks": "chopstick",
    "earrings": "earring",
    "slippers": "slipper",
    "sunglasses": "sunglass",
}
"""The last five are in AMBER's vocabulary in a form that no lemma has (`leave`, `slippers`), and are thus never found, as officially."""

DETERMINERS = frozenset(
    """
a an the this these those his her its their our my your some any no each every another both several many few various all
one two three four five six seven eight nine ten
""".split()
)

LEADERS = DETERMINERS | frozenset(
    """
of in on at with by for from near behind beside above below under over into onto through across around between along against
and or but small large big red green blue white black brown yellow gray grey wooden old young open
""".split()
)
"""What a noun stands behind rather than a verb."""

VERBAL = frozenset(
    "to could may might must shall should will would cannot not never i you we they he she it who which also".split()
)
"""What a verb stands behind rather than a noun."""

COLOURS = frozenset("blue green brown yellow gray grey pink purple red beige orange".split())

BINS = frozenset(
    "trash garbage tin soda beer watering spray aluminum aluminium soup paint metal drink rubbish".split()
)

EITHER = frozenset(
    """
bar bat bear board book bottle box bridge brush cage can card cash clock cloud core cup cut drain drawing drink duck fence file fish
flag floor flower fork ground hose house ice individual juice leave light line lock lounge milk mirror monitor net note orange pack
pad paddle painting pan paper path phone pipe plate plug pot rail range ring rock rope sailing sand scoop screen shell ship sign
signal sink skate ski snow sound spray stage star stone string support switch table tank tap tape tie track train wall warp watch
water wire
""".split()
)
"""Words of the vocabulary that are verbs or adjectives as well."""


def finder(kind: str, vocabulary: Collection[str], nlp: Any = None) -> Callable[[str], list[str]]:
    """text -> the words of the vocabulary that it names, in its order, repeats kept.

    Args:
        kind: `words`, every word as it stands; `rules`, nouns by word lists and their neighbours; `spacy`, what `nlp` tags
            as a noun (`NN...`), in its lemma.
        vocabulary: what may be named.
        nlp: a spaCy pipeline, for `spacy`.
    """
    known = frozenset(vocabulary)
    if kind == "words":
        return lambda text: [word for word in WORD.findall(text) if word in known]
    if kind == "rules":
        return lambda text: by_rules(text, known)
    assert kind == "spacy" and nlp is not None
    return lambda text: [one.lemma_ for one in nlp(text) if one.tag_.startswith("NN") and one.lemma_ in known]


def by_rules(text: str, vocabulary: frozenset[str]) -> list[str]:
    """The nouns of the vocabulary in a text, without a tagger."""
    words = WORD.findall(text)
    found = []
    for place, word in enumerate(words):
        own = lemma(word, vocabulary)
        if own is None:
            continue
        previous, following = (words[n].lower() if 0 <= n < len(words) else "" for n in (place - 1, place + 1))
        if own not in EITHER or is_noun(word, own, previous, following):
            found.append(own)
    return found


def lemma(word: str, vocabulary: frozenset[str]) -> str | None:
    """The vocabulary's word of which this one is a form; None where there is none."""
    if word in IRREGULAR:
        forms = [IRREGULAR[word]]
    else:
        forms = [word, *(word.removesuffix(end) + own for end, own in SUFFIXES if word.endswith(end))]
    return min((form for form in forms if form in vocabulary), key=len, default=None)


def is_noun(word: str, own: str, previous: str, following: str) -> bool:
    """Whether a word that may be a noun or not is one, by its neighbours in lower case, empty where there is none."""
    if word == "can":
        return previous in DETERMINERS or previous in BINS
    if previous in VERBAL or (word == "light" and following in COLOURS):
        return False
    if word == "orange":
        return previous in LEADERS and (not following or following in LEADERS)
    # "trees line the road", "a man watches the sea"
    return previous in LEADERS or not previous or following not in DETERMINERS
