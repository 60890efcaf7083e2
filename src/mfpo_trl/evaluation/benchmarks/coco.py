"""Objects of COCO in a text, as CHAIR finds them: tokens, singular forms, double words, synonyms."""

import re
from collections.abc import Callable, Mapping
from functools import cache, cached_property, lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

OBJECTS = """
person, girl, boy, man, woman, kid, child, chef, baker, people, adult, rider, children, baby, worker, passenger,
  sister, biker, policeman, cop, officer, lady, cowboy, bride, groom, male, female, guy, traveler, mother, father,
  gentleman, pitcher, player, skier, snowboarder, skater, skateboarder, foreigner, caller, offender, coworker,
  trespasser, patient, politician, soldier, grandchild, serviceman, walker, drinker, doctor, bicyclist, thief,
  buyer, teenager, student, camper, driver, solider, hunter, shopper, villager
bicycle, bike, unicycle, minibike, trike
car, automobile, van, minivan, sedan, suv, hatchback, cab, jeep, coupe, taxicab, limo, taxi
motorcycle, scooter, motor cycle, motorbike, moped
airplane, jetliner, plane, air plane, monoplane, aircraft, jet, airbus, biplane, seaplane
bus, minibus, trolley
train, locomotive, tramway, caboose
truck, pickup, lorry, hauler, firetruck
boat, ship, liner, sailboat, motorboat, dinghy, powerboat, speedboat, canoe, skiff, yacht, kayak, catamaran,
  pontoon, houseboat, vessel, rowboat, trawler, ferryboat, watercraft, tugboat, schooner, barge, ferry, sailboard,
  paddleboat, lifeboat, freighter, steamboat, riverboat, battleship, steamship
traffic light, street light, traffic signal, stop light, streetlight, stoplight
fire hydrant, hydrant
stop sign
parking meter
bench, pew
bird, ostrich, owl, seagull, goose, duck, parakeet, falcon, robin, pelican, waterfowl, heron, hummingbird,
  mallard, finch, pigeon, sparrow, seabird, osprey, blackbird, fowl, shorebird, woodpecker, egret, chickadee,
  quail, bluebird, kingfisher, buzzard, willet, gull, swan, bluejay, flamingo, cormorant, parrot, loon, gosling,
  waterbird, pheasant, rooster, sandpiper, crow, raven, turkey, oriole, cowbird, warbler, magpie, peacock,
  cockatiel, lorikeet, puffin, vulture, condor, macaw, peafowl, cockatoo, songbird
cat, kitten, feline, tabby
dog, puppy, beagle, pup, chihuahua, schnauzer, dachshund, rottweiler, canine, pitbull, collie, pug, terrier,
  poodle, labrador, doggie, doberman, mutt, doggy, spaniel, bulldog, sheepdog, weimaraner, corgi, cocker,
  greyhound, retriever, brindle, hound, whippet, husky
horse, colt, pony, racehorse, stallion, equine, mare, foal, palomino, mustang, clydesdale, bronc, bronco
sheep, lamb, ram, goat, ewe
cow, cattle, oxen, ox, calf, holstein, heifer, buffalo, bull, zebu, bison
elephant
bear, panda
zebra
giraffe
backpack, knapsack
umbrella
handbag, wallet, purse, briefcase
tie, bow, bow tie
suitcase, suit case, luggage
frisbee
skis, ski
snowboard
sports ball, ball
kite
baseball bat
baseball glove
skateboard
surfboard, longboard, skimboard, shortboard, wakeboard
tennis racket, racket
bottle
wine glass
cup
fork
knife, pocketknife, knive
spoon
bowl, container
banana
apple
sandwich, burger, sub, cheeseburger, hamburger
orange
broccoli
carrot
hot dog
pizza
donut, doughnut, bagel
cake, cupcake, shortcake, coffeecake, pancake
chair, seat, stool
couch, sofa, recliner, futon, loveseat, settee, chesterfield
potted plant, houseplant
bed
dining table, table, desk
toilet, urinal, commode, lavatory, potty
tv, monitor, televison, television
laptop, computer, notebook, netbook, lenovo, macbook, laptop computer
mouse
remote
keyboard
cell phone, mobile phone, phone, cellphone, telephone, phon, smartphone
microwave
oven, stovetop, stove, stove top oven
toaster
sink
refrigerator, fridge, freezer
book
clock
vase
scissors
teddy bear, teddybear
hair drier, hairdryer
toothbrush
"""
"""The synonym list of CHAIR (BSD-2): a line an object, its name first; a line that begins with a space continues the one above.

Left out is what no caption can match there: two names behind a double space, and one with a capital letter.
"""

DOUBLE = (
    "motor bike, motor cycle, air plane, traffic light, street light, traffic signal, stop light, fire hydrant, stop sign, "
    "parking meter, suit case, sports ball, baseball bat, baseball glove, tennis racket, wine glass, hot dog, cell phone, "
    "mobile phone, teddy bear, hair drier, potted plant, laptop computer, stove top oven, home plate, train track"
).split(", ")
"""Two words that are one; some never meet the singular forms that they are compared with, as in the official scorer."""

YOUNG = "bird cat dog horse sheep cow elephant bear zebra giraffe animal cub".split()
"""Behind "baby" or "adult", which would be a person."""

DOUBLES: Mapping[str, str] = {
    **{own: own for own in DOUBLE},
    **{f"{age} {animal}": animal for animal in YOUNG for age in ("baby", "adult")},
    **{f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")},
    "bow tie": "tie",
    "toilet seat": "toilet",
    # The singular of "glass", by the rules.
    "wine glas": "wine glass",
}


JOINING = frozenset("of with in on at by from for near under over behind beside and or".split())
"""What stands between two things in a phrase."""


class Objects:
    """Objects in texts, by a synonym list.

    Args:
        synonyms: (name, its synonyms) of each object; those of CHAIR when None.
    """

    def __init__(self, synonyms: Mapping[str, str] | None = None):
        self.name_of = dict(built_in() if synonyms is None else synonyms)
        """Each synonym -> the name of its object."""

    @cached_property
    def _doubles(self) -> Mapping[str, str]:
        """`DOUBLES`, and names of two words in a list of one's own, which no single word would find."""
        pairs = [name for name in self.name_of if len(name.split(" ")) == 2 and all(name.split(" "))]
        # In the plural it becomes the name, and as it stands perhaps less: "cross" becomes "cros".
        return {**{own: name for name in pairs for own in (name, " ".join(singular_words(name)))}, **DOUBLES}

    def words(self, text: str) -> list[str]:
        """The words of a text that are in the list, singular, in its order with repeats.

        Raises:
            ValueError: what has to be installed.
        """
        words = merged(singular_words(text.lower()), self._doubles)
        if "toilet" in words:
            words = [word for word in words if word != "seat"]
        return [word for word in words if word in self.name_of]

    def heads(self, phrase: str) -> list[str]:
        """Of the things in a phrase those that are in the list, by the last word of each: a dog's collar is no dog.

        Raises:
            ValueError: what has to be installed.
        """
        words = merged(singular_words(phrase.lower()), self._doubles)
        last = [word for word, following in pairwise([*words, "and"]) if following in JOINING]
        return [word for word in last if word in self.name_of]

    def find(self, text: str) -> list[str]:
        """The objects that a text names: each word's, in its order with repeats.

        Raises:
            ValueError: what has to be installed.
        """
        return [self.name_of[word] for word in self.words(text)]


def merged(words: list[str], doubles: Mapping[str, str] = DOUBLES) -> list[str]:
    """With `doubles` in place of the two words that they consist of, from the left."""
    found, skipped = [], False
    for word, following in pairwise([*words, ""]):
        if skipped:
            skipped = False
            continue
        double = doubles.get(f"{word} {following}")
        found.append(word if double is None else double)
        skipped = double is not None
    return found


MARKED = re.compile(r"\.\S*\s*[^\w\s]|'\w*'")
"""A period with another mark behind it, spaces between them or none, or a second apostrophe. A quotation mark there, for one, may belong
to the sentence that ends, and then the official tokenizer leaves the period at its word."""


def singular_words(text: str) -> list[str]:
    """Words and marks in the singular.

    Raises:
        ValueError: what has to be installed.
    """
    pieces = [text] if MARKED.search(text) else text.split()
    return [word for piece in pieces for word in _singular_words(piece)]


@lru_cache(maxsize=100_000)
def _singular_words(piece: str) -> tuple[str, ...]:
    """Of a text, or of a piece of it without spaces: cut as by `nltk.word_tokenize`, singular by the rules of pattern.

    But for `MARKED`, a piece alone is cut as within its sentence, in a fortieth of the time. Neither way knows abbreviations, initials and
    numbers in front of a period, none of which is an object: there, and nowhere else, the official tokenizer asks a model that it
    downloads.
    """
    sentences, words, singularize = _rules()
    return tuple(singularize(token) for sentence in sentences.tokenize(piece) for token in words.tokenize(sentence))


@cache
def _rules() -> tuple[Any, Any, Callable[[str], str]]:
    """Sentences, words, and the singular of a word.

    Raises:
        ValueError: what has to be installed.
    """
    if find_spec("textblob") is None:
        raise ValueError("finding objects in captions needs textblob: pip install 'mfpo_trl[evaluation]'")
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    return PunktSentenceTokenizer(), NLTKWordTokenizer(), lru_cache(maxsize=100_000)(singular)


def singular(word: str) -> str:
    """By the rules of pattern, which are those of textblob but for two kinds of words."""
    from textblob.en.inflect import singular_ie, singularize

    if word.endswith("buses"):
        # To textblob, every one of them is a bus: airbuses, trolleybuses.
        return word[:-2]
    if word.endswith(tuple(f"{own}s" for own in singular_ie)):
        # pattern means to leave out their "s", and does not: "collies" are no dogs in the official scorer.
        return word
    return singularize(word)


def built_in() -> dict[str, str]:
    """Of `OBJECTS`: each synonym -> the name of its object."""
    lines = OBJECTS.strip().replace("\n  ", " ").split("\n")
    return {name: own[0] for own in (line.split(", ") for line in lines) for name in own}


def read_synonyms(path: Path) -> dict[str, str]:
    """Of a file with a line an object, its name first, separated by a comma and a space; a name with further spaces around it
    never matches, as in the official scorer.

    Raises:
        ValueError: what cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    rows = [line.strip().split(", ") for line in lines if line.strip()]
    if not rows:
        raise ValueError(f"{path} holds no objects; expected lines such as: dog, puppy, hound")
    return {name: own[0] for own in rows for name in own}
