"""The things that an answer names, for AMBER: its nouns in the singular, as words of a fixed vocabulary, repeats kept.

The official scorer takes what NLTK tags as a noun, as WordNet lemmatises it, and looks it up as it is written: "Trees" at the
beginning of a sentence is no "tree" there, and neither is it here.
"""

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")

MARKS = ',;:@#$%&*?!()\\[\\]{}<>"`“”‘’«»‒–—―'
TOKEN = re.compile(
    rf"(?:(?<![^\s{MARKS}])|(?<=--)|(?<=\.\.)|(?<=\W'))[^\W_]+(?:-[^\W_]+)*"
    rf"(?=[\s{MARKS}]|$|'(?:'|[sSdDmM]|[rRvV][eE]|[lL][lL])?(?:[\s{MARKS}.]|$)|\.[\])}}>\"'”’»]*(?:\s|$)|\.\.|--)"
)
"""A word between spaces and the marks that NLTK's tokenizer cuts off: of "cat/dog", "_cat_" and "cat.jpg" it makes no "cat"."""

SUFFIXES = (
    ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
    ("ies", "y"),
)  # fmt: skip
"""Endings of English plurals and of their singulars, as WordNet detaches them."""

IRREGULAR = {
    "busses": "bus",
    "camerae": "camera",
    "children": "child",
    "geese": "goose",
    "knives": "knife",
    "mice": "mouse",
    "potatoes": "potato",
    "tomatoes": "tomato",
    "leaves": "leaf",
    "men": "men",
    "vases": "vas",
    "chopsticks": "chopstick",
    "earrings": "earring",
    "slippers": "slipper",
    "sunglasses": "sunglass",
}
"""NLTK takes the shortest lemma that WordNet has, and the first of these: "men" is one itself, "vas" is another. Neither these two nor
the last four are in AMBER's vocabulary as such, and are thus never found, as officially."""

UNKNOWN = frozenset(
    """
TV air-conditioning baconic bedsheet cann cathole chopsticks closestool cooktop doghole e-book earing earrings ebook electrombile hot
kiwifruit paraglider pissoir rpoe sanitizer scoon seegull showerpuff slippers streetlamp waterfont
""".split()
)
"""Words of the vocabulary that WordNet 3.0 does not have, and whose plurals are thus no form of them."""

POSSESSIVE = re.compile(r"['’]s?\s+")

SEVERAL = frozenset(
    """
few many several various all both these those its their his her two three four five six seven eight nine ten of with
""".split()
)
"""What "individual" stands behind rather as an adjective."""

PRONOUNS = frozenset("it him them me us".split())
"""What stands behind a verb and never behind a noun."""

DETERMINERS = frozenset(
    """
a an the this these those his her its their our my your some any no each every another both several many few various all
one two three four five six seven eight nine ten 's
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
flag floor flower fork ground hose hot house ice individual juice leave light line lock lounge milk mirror monitor net note orange pack
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
    text = f" {text}"
    words = list(TOKEN.finditer(text))
    found = []
    for place, word in enumerate(words):
        own = lemma(word[0], vocabulary)
        if own is None:
            continue
        if own not in EITHER or is_noun(word[0], own, *neighbours(text, words, place)):
            found.append(own)
    return found


def neighbours(text: str, words: Sequence[re.Match[str]], place: int) -> tuple[str, str]:
    """The words before and behind one, in lower case; empty where a mark stands between, and "'s" for a possessive before it."""
    found = []
    for one, other in ((place - 1, place), (place, place + 1)):
        if one < 0 or other == len(words):
            found.append("")
            continue
        between = text[words[one].end() : words[other].start()]
        word = words[one if other == place else other][0].lower() if between.isspace() else ""
        found.append("'s" if POSSESSIVE.fullmatch(between) and other == place else word)
    return found[0], found[1]


def lemma(word: str, vocabulary: frozenset[str]) -> str | None:
    """The vocabulary's word of which this one is a form; None where there is none."""
    if word in IRREGULAR:
        forms = [IRREGULAR[word]]
    else:
        singular = [word.removesuffix(end) + own for end, own in SUFFIXES if word.endswith(end)]
        forms = [word, *(form for form in singular if form not in UNKNOWN)]
    return min((form for form in forms if form in vocabulary), key=len, default=None)


def is_noun(word: str, own: str, previous: str, following: str) -> bool:
    """Whether a word that may be a noun or not is one, by its neighbours in lower case, empty where there is none."""
    if word == "hot":
        return False
    if word == "individual":
        return previous not in SEVERAL
    if word == "can":
        return previous in DETERMINERS or previous in BINS
    # "plugs it in", "a light blue wall"
    if previous in VERBAL or following in PRONOUNS or (word == "light" and following in COLOURS):
        return False
    if word == "orange":
        return previous in LEADERS and (not following or following in LEADERS)
    # "trees line the road", "the boat rocks gently"
    verb = following in DETERMINERS or following.endswith("ly")
    return previous in LEADERS or not previous or not verb
