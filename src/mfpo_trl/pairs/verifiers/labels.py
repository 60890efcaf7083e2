"""Verifier "labels": the objects of each picture are known."""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...data import Row
from ...evaluation.benchmarks import Objects, Truth, image_id, read_synonyms, singular_words
from ..claims import ABSENT, PRESENT, Claim

DENIAL = re.compile(r"\b(?:no|without)\s+(?:(?:an?|any|the)\s+)?", re.IGNORECASE)
"""What the name of something stands behind that is not claimed to be there, with an adjective before it at most."""


class Labels:
    """An object that an answer names is present when it is among those of its picture, and else absent.

    Objects are found as CHAIR finds them: singular forms, double words, synonyms; but for what is denied ("no dog"), which is no
    claim. Nothing is uncertain, and nothing but objects is a claim.

    Args:
        known: rows -> the objects of each; None where nobody knows them.
        objects: finds objects in a text.
    """

    def __init__(self, known: Any, objects: Objects):
        self.known = known
        # CHAIR's rules cut "bus" to "bu", which no list holds: what a name becomes counts as the name.
        self.spelled = {"".join(singular_words(name)): name for name in objects.name_of if " " not in name}
        more = {own: objects.name_of[name] for own, name in self.spelled.items()}
        self.objects = Objects({**more, **objects.name_of})

    def verify(self, rows: Sequence[Row], answers: Sequence[Sequence[str]], kept: Any) -> list[list[list[Claim]]]:
        """See `Verifier`.

        Raises:
            ValueError: a row whose objects nobody knows.
        """
        return [
            [self._claims(text, there) for text in texts]
            for texts, there in zip(answers, self.known(rows), strict=True)
        ]

    def _claims(self, text: str, there: frozenset[str]) -> list[Claim]:
        words = dict.fromkeys(self._words(text))
        named = [(self.spelled.get(word, word), self.objects.name_of[word]) for word in words]
        return [Claim(word, PRESENT if name in there else ABSENT, name) for word, name in named]

    def _words(self, text: str) -> list[str]:
        """The words of a text that name objects, without what stands right behind a denial."""
        first, *denied = DENIAL.split(text)
        words = self.objects.words(first)
        for part in denied:
            own, next_to_it = self.objects.words(part), self.objects.words(" ".join(part.split()[:2]))
            words += own[len(next_to_it[:1]) :]
        return words


def of_column(rows: Any, count: int, synonyms: Any) -> Labels:
    """By the column `objects`, a list of names; every other name of the data set counts as absent.

    Args:
        rows: of the source, all of which are read for their names.
        count: as far as they are used.
        synonyms: path of a list of synonyms, which then says which names there are.

    Raises:
        ValueError: no row has objects, or a name is not in the list of synonyms.
    """
    if synonyms is not None:
        name_of = read_synonyms(synonyms)
    else:
        names = {name: None for own in _column(rows, "objects", count) for name in _listed(own)}
        name_of = {name: name for name in names}
    if not name_of:
        raise ValueError(
            "--verifier labels: no row has a column 'objects' with a list of names; add it, or name --coco-annotations or "
            "--ground-truth"
        )
    objects = Objects(name_of)

    def known(given: Sequence[Row]) -> list[frozenset[str]]:
        return [_named(row["published"].get("objects"), name_of) for row in given]

    return Labels(known, objects)


def _column(rows: Any, name: str, count: int) -> Iterator[Any]:
    """A column of the source, without reading others where that is possible."""
    for start in range(0, count, 4096):
        stop = min(start + 4096, count)
        if hasattr(rows, "dataset"):
            if name in rows.dataset.column_names:
                yield from rows.dataset.select_columns(name)[start:stop][name].to_pylist()
        else:
            yield from (None if isinstance(row, Exception) else row.get(name) for row in rows.read(range(start, stop)))


def _listed(value: Any) -> list[str]:
    return [own.lower() for own in value if isinstance(own, str)] if isinstance(value, list) else []


def _named(value: Any, name_of: Mapping[str, str]) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(own, str) for own in value):
        raise ValueError(f"field 'objects' is {str(value)[:60]!r}; expected a list of names")
    unknown = [own for own in value if own.lower() not in name_of]
    if unknown:
        raise ValueError(f"field 'objects' holds {unknown[0]!r}, which is not in the list of synonyms")
    return frozenset(name_of[own.lower()] for own in value)


def of_truth(options: Any, rows: Any, count: int) -> Labels:
    """By a file of objects, or the instances and captions of COCO, which are read once for all rows; raises as `Truth` does."""
    named = {name: getattr(options, name) for name in ("ground_truth", "coco_annotations", "synonyms")}
    truth = Truth(argparse.Namespace(**named))
    there = truth.of({image_id(str(own)) for own in _column(rows, "image_id", count)})

    def known(given: Sequence[Row]) -> list[frozenset[str]]:
        ids = [_image_of(row["published"]) for row in given]
        missing = [own for own in ids if own not in there]
        if missing:
            raise ValueError(f"field 'image_id': {missing[0]!r} is not among {truth.what}")
        return [there[own] for own in ids]

    return Labels(known, truth.objects)


def _image_of(published: Mapping[str, Any]) -> str:
    own = published.get("image_id")
    if not isinstance(own, int | str):
        raise ValueError("field 'image_id' is missing; it names the picture among those whose objects are known")
    return image_id(str(own))
