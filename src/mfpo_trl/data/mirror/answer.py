"""An answer with the name of one object replaced: articles and number by rule, and nothing left that the edit makes false.

The rules are for English. They would rather leave an answer out (`Left`) than change it to one that may be false.
"""

import re
from collections.abc import Sequence

from ..keywords import ADJECTIVES, DETERMINERS, PARTICIPLES, PRONOUNS, STOP, VERBS, singular
from .words import Left, Word, article, behind_article, head_of, is_plural, mentions_of, stems_of, words_of

PERSONS = frozenset("it its itself he him his himself she her herself they them their themselves one ones".split())
KINDS = frozenset(
    """
    animal creature pet vehicle object item thing machine device appliance furniture food fruit vegetable dish snack toy tool
    instrument
    """.split()
)
"""Words by which an answer may come back to an object without its name: "the animal", "both vehicles"."""
COUNTS = frozenset(
    "two three four five six seven eight nine ten eleven twelve dozen several many few multiple numerous various both".split()
)
DENIALS = frozenset("no not without never neither nor none cannot instead rather lacks lacking missing absent".split())
ONE = frozenset("a an the this that his her its their my your our each every".split())
"""Determiners of a thing that can be counted, one of them."""
NEUTRAL = frozenset(
    """
    is are was were be has have had show shows showing shown feature features featuring contain contains containing include
    includes including see sees seen depict depicts depicting display displays displaying
    """.split()
)
"""Verbs before a name that say no more than that it is there."""
RESTING = frozenset(
    """
    sit sits sitting sat seated stand stands standing stood lie lies lying lay lays laying rest rests resting hang hangs hanging
    hung perch perched perches parked placed located situated positioned set lean leans leaning mounted displayed arranged seen
    shown scattered
    """.split()
)
"""Verbs whose "on" and "in" say no more than where."""
LOCATING = frozenset("located placed positioned situated visible seen shown present found there".split())
COPULAS = frozenset("is are was were be been being can could may might".split())
FINITE = COPULAS - {"be", "been", "being"} | {"has", "have", "had", "do", "does", "did"}
"""What begins a statement of the subject, however far it stands behind it."""
ADVERBS = frozenset("also just now still already clearly partially partly only always never".split())
PLACES = frozenset(
    """
    on in at near by next behind beside beneath under underneath above below between inside outside over against along across
    around among amid to off atop within
    """.split()
)
INVOLVING = frozenset("on in at with by from for through over into onto inside off across around along".split())
SIDES = frozenset(
    "front top left right side middle center centre bottom picture photo photograph image view shot close-up portrait scene".split()
)
"""What an "of" behind it says of a thing is where it is, or that it is seen."""
SAYING = PRONOUNS | {
    "with", "without", "has", "have", "had", "whose", "seem", "seems", "seemed", "do", "does", "did", "like"
}  # fmt: skip
ENDS = re.compile(r"[.!?;\n]")

SAID = "something is said of the object: what it is or does"
ANOTHER = "another one of the kind may be meant"


def mirrored(text: str, old: str, new: str) -> str:
    """The text with every mention of `old` replaced by `new`, of the same number.

    Raises:
        Left: `old` is not mentioned, or something is said of it that need not be true of `new`.
    """
    words, length = words_of(text), len(words_of(old))
    mentions = mentions_of(words, old)
    if not mentions:
        raise Left("the answer does not name the object")
    for start in mentions:
        _check_before(text, words, start, is_plural(old))
        _check_after(text, words, start + length)
    if sum(behind_article(words, start) for start in mentions) > 1:
        raise Left(ANOTHER)
    changes = [(words[start].start, words[start + length - 1].end, new) for start in mentions]
    changes += _of_head(words, old, new, mentions)
    _check_references(words, mentions, length)
    changes = [(begin, end, _cased(text, begin, own)) for begin, end, own in changes]
    return _replaced(text, [*changes, *_articles(text, words, mentions, new)])


def _articles(text: str, words: Sequence[Word], mentions: Sequence[int], new: str) -> list[tuple[int, int, str]]:
    """Where "a" or "an" stands before a mention, and how it agrees with the name that will."""
    found, own = [], article(new)
    for start in mentions:
        if behind_article(words, start):
            before = words[start - 1]
            found.append((before.start, before.end, own.title() if text[before.start].isupper() else own))
    return found


def _replaced(text: str, changes: Sequence[tuple[int, int, str]]) -> str:
    for begin, end, own in sorted(changes, reverse=True):
        text = text[:begin] + own + text[end:]
    return text


def checked(reply: str, text: str, old: str, new: str, rest: Sequence[str]) -> str:
    """An answer that somebody else wrote, as it can be used: the article before `new` agrees with it.

    Args:
        text: the answer that it was made of.
        rest: phrases of the other things that are shown.

    Raises:
        Left: it is empty, still names `old`, does not name `new` or another thing that `text` names, or says something that neither
            `text` nor `new` does.
    """
    reply = reply.strip()
    if len(reply) > 1 and reply[0] + reply[-1] in ('""', "“”") and text.strip()[:1] != reply[0]:
        reply = reply[1:-1].strip()
    words, said = words_of(reply), words_of(text)
    if not words:
        raise Left("the endpoint's answer is empty")
    places = mentions_of(words, new)
    inside = {place + n for place in places for n in range(len(words_of(new)))}
    left = [word for place, word in enumerate(words) if place not in inside]
    if _names(left, old):
        raise Left("the endpoint's answer still names the old object")
    if not places:
        raise Left("the endpoint's answer does not name the new object")
    if any(mentions_of(said, own) and not mentions_of(words, own) for own in rest):
        raise Left("the endpoint's answer leaves out another thing")
    known = {*stems_of(text), *stems_of(new)} | STOP | DETERMINERS
    if any(singular(word.text) not in known for word in left):
        raise Left("the endpoint's answer says something new")
    return _replaced(reply, _articles(reply, words, places, new))


def _names(words: Sequence[Word], phrase: str) -> bool:
    """Whether words name a thing in any number, in full or by its last word alone ("the ball", of a red ball)."""
    own, head = stems_of(phrase), singular(head_of(phrase.lower()))
    stems = [singular(word.text) for word in words]
    for place, stem in enumerate(stems):
        before = words[place - 1].text if place and words[place].joined else ""
        if stem == head and (not before or before in DETERMINERS | STOP):
            return True
        if stems[place : place + len(own)] == own:
            return True
    return False


def _cased(text: str, begin: int, own: str) -> str:
    """A name with a capital where one stood because a sentence begins, and not because it is a name: "a TV"."""
    starts = not text[:begin].rstrip(" \t\"'“‘(*-") or text[:begin].rstrip(" \t\"'“‘(*-")[-1] in ".!?:\n"
    return own[0].upper() + own[1:] if starts and text[begin].isupper() else own


def _check_before(text: str, words: Sequence[Word], start: int, plural: bool) -> None:
    first = start
    while first and not ENDS.search(text[words[first - 1].end : words[first].start]):
        first -= 1
    sentence = [word.text for word in words[first:start]]
    if "but" in sentence:
        sentence = sentence[len(sentence) - sentence[::-1].index("but") :]
    if any(word in DENIALS or word.endswith("n't") for word in sentence):
        raise Left("the answer denies the object")
    near = _joined_before(words, start, 4)
    last = near[-1] if near else ""
    if last in COUNTS or last.isdigit():
        raise Left("the object is counted")
    if last in ("other", "another"):
        raise Left(ANOTHER)
    if last in ADJECTIVES or (_is_verb(last) and last not in VERBS | NEUTRAL | STOP):
        raise Left("something is said of the object: an adjective")
    if last and last not in STOP | DETERMINERS | VERBS | NEUTRAL | {"and", "or"}:
        raise Left("the name is part of a longer one")
    if not plural and last not in ONE:
        raise Left("the object is not counted")
    _check_relation(near[:-1] if last in DETERMINERS else near)


def _check_relation(before: Sequence[str]) -> None:
    """What the words before a name and its determiner say of it: nothing, or where it is."""
    further, last = ["", "", *before][-2:]
    if last == "of":
        if further not in SIDES:
            raise Left("something is said of the object: a part or a number of it")
    elif _is_verb(last) and last not in NEUTRAL and last not in STOP:
        raise Left("something is done with the object")
    elif last in INVOLVING and _is_verb(further) and further not in RESTING | NEUTRAL:
        raise Left("something is done with the object")


def _check_after(text: str, words: Sequence[Word], end: int) -> None:
    if end >= len(words):
        return
    if not words[end].joined:
        if not ENDS.search(text[words[end - 1].end : words[end].start]):
            _check_list(text, words, end, apart=True)
        return
    place, copula, located = end, False, False
    while place < len(words) and words[place].joined and words[place].text in COPULAS | ADVERBS | LOCATING:
        copula |= words[place].text in COPULAS
        located |= words[place].text in LOCATING
        place += 1
    word = words[place].text if place < len(words) and words[place].joined else ""
    if not word:
        return _check_after(text, words, place)
    if word in ("and", "or"):
        return _check_list(text, words, place, apart=False)
    if word in PLACES:
        return _check_behind_place(text, words, place)
    if copula and not (located and word in STOP - SAYING):
        raise Left(SAID)
    if word == "of":
        raise Left("the name is part of a longer one")
    if word in SAYING or (_is_verb(word) and word not in STOP):
        raise Left(SAID)
    if word not in STOP | DETERMINERS:
        raise Left("the name is part of a longer one")


def _check_behind_place(text: str, words: Sequence[Word], start: int) -> None:
    """What follows behind where the object is: "on the couch is asleep", "in the street drives", "on a plate, ripe"."""
    for place in range(start + 1, len(words)):
        word, between = words[place], text[words[place - 1].end : words[place].start]
        if ENDS.search(between):
            return
        if not word.joined and (word.text in SAYING or word.text in ADJECTIVES or _is_verb(word.text)):
            raise Left(SAID)
        if not word.joined or word.text in ("and", "or", "while", "as", "but"):
            return _check_list(text, words, place, apart=not word.joined)
        if word.text in FINITE or (
            _ends_as_of_one(word.text) and words[place - 1].text not in DETERMINERS | ADJECTIVES
        ):
            raise Left(SAID)


def _ends_as_of_one(word: str) -> bool:
    """Whether a word is a verb of one thing: "barks"."""
    return word in VERBS and word.endswith("s")


def _check_list(text: str, words: Sequence[Word], start: int, apart: bool) -> None:
    """What follows behind a comma, or an "and": something of the object, other things, or what all of them do.

    Args:
        apart: whether more than blanks stands between the object and what follows.
    """
    for place in range(start, len(words)):
        word, before = words[place].text, words[place - 1].text if place > start else ""
        if place > start and ENDS.search(text[words[place - 1].end : words[place].start]):
            return
        if place == start and apart and (word in SAYING or word in ADJECTIVES):
            raise Left(SAID)
        if word in PLACES or word in ("while", "as", "but", "is", "was"):
            return
        if word in ("are", "were") and words[min(place + 1, len(words) - 1)].text not in LOCATING | PLACES:
            raise Left(SAID)
        if _is_verb(word) and word not in STOP | NEUTRAL and before not in DETERMINERS | ADJECTIVES:
            if place > start and before not in ("and", "or") and _ends_as_of_one(word):
                return  # "and a man sits": what one does, and that is the other
            raise Left(SAID)


def _check_references(words: Sequence[Word], mentions: Sequence[int], length: int) -> None:
    inside = {start + n for start in mentions for n in range(length)}
    for start in mentions:
        # "an animal, a dog"; "a vehicle: a truck".
        named = start - 1 if start and words[start - 1].text in DETERMINERS else start
        if named and not words[named].joined and singular(words[named - 1].text) in KINDS:
            raise Left("another name may speak of the object")
    for place, word in enumerate(words):
        before = words[place - 1].text if place and word.joined else ""
        if place > mentions[0] and word.text in PERSONS and not _says_nothing(words, place):
            raise Left("a pronoun may speak of the object")
        if (
            place not in inside
            and singular(word.text) in KINDS
            and (before in COUNTS or before in ("the", "this", "that", "these", "those", "all", "other"))
        ):
            raise Left("another name may speak of the object")


def _of_head(words: Sequence[Word], old: str, new: str, mentions: Sequence[int]) -> list[tuple[int, int, str]]:
    """Where the object is named by its last word alone: "the dog", after "a red dog".

    Raises:
        Left: in another number, or as an owner.
    """
    length, head = len(words_of(old)), head_of(old.lower())
    inside = {start + length - 1 for start in mentions}
    changes = []
    for place, word in enumerate(words):
        if place in inside or singular(word.text) != singular(head):
            continue
        before = words[place - 1].text if place and word.joined else ""
        if before and before not in DETERMINERS | STOP:
            continue  # "a blue circle", beside "a red circle"
        if word.text != head or length == 1:
            raise Left("the object is named in another number or as an owner")
        if before in ("the", "this", "that", "these", "those"):
            changes.append((word.start, word.end, head_of(new)))
        else:
            raise Left(ANOTHER)
    return changes


def _joined_before(words: Sequence[Word], start: int, most: int) -> list[str]:
    """The words right before a place, with nothing but blanks between them."""
    first = start
    while first and start - first < most and words[first].joined:
        first -= 1
    return [word.text for word in words[first:start]]


def _is_verb(word: str) -> bool:
    return word in VERBS or word in PARTICIPLES or (word.endswith(("ing", "ed")) and len(word) > 4)


def _says_nothing(words: Sequence[Word], place: int) -> bool:
    """Whether an "it" stands for nothing: "it is", "it appears" at the head of "that"."""
    further = [word.text for word in words[place + 1 : place + 3]]
    return words[place].text == "it" and len(further) == 2 and further[1] == "that"
