"""The stage of a build that gives rows their twins: object, replacement, answer, edit, check."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ...images import encode_rle, region_mask
from ...rows import plain_text, row_digest, row_generator
from .answer import Left, mirrored, stands_in
from .edits import Editor
from .pool import Example, Pool, normal, phrase_of, stem

Row = dict[str, Any]

STEPS = ("object", "replacement", "answer", "edit", "check")
"""In their order; a row that is left out is counted at the first that it does not pass."""

SMALLEST, LARGEST = 0.005, 0.5
"""Shares of its image between which an object is neither tiny nor most of it."""
ASKED = 6
"""Replacements that the detector is asked for in an image at once."""
OVERLAP = 0.3
"""Of what the grounder finds for the new phrase, or for the old one, that must lie in the region to count as there."""

MADE = "made"


@dataclass
class Plan:
    """What is to be done with a row.

    Args:
        image, region: the place of the object among the row's `key_regions`.
        old: its phrase.
        answers: for each possible replacement the chosen answer that is true with it, the preferred one first.
        mask: of the object.
        rng: of the row.
    """

    image: int
    region: int
    old: str
    answers: dict[str, list[dict[str, Any]]]
    mask: np.ndarray
    rng: np.random.Generator


class Mirror:
    """Puts m' into rows as `rejected_images` and y' as `rejected_image_chosen`, and their twins into `twins`.

    Args:
        pool: what may take an object's place.
        edit: replaces it.
        example: from an `Example` to (picture, mask) of it.
        grounder: says what is in an image; None asks nobody, and the rows' own phrases and answers must do.
        choice: as `Pool.candidates` takes it.
        only: phrases in place of those of the data set.
        seed: of what is drawn.
    """

    def __init__(
        self,
        pool: Pool,
        edit: Editor,
        example: Callable[[Example], tuple[Image.Image, np.ndarray]],
        grounder: Any = None,
        choice: str = "rare",
        only: Sequence[str] | None = None,
        seed: int = 0,
    ):
        self.pool, self.edit, self.example, self.grounder = pool, edit, example, grounder
        self.choice, self.only, self.seed = choice, only, seed

    def __call__(self, rows: list[Row]) -> list[Row]:
        for row in rows:
            row["mirror"], row["twins"], row["plan"] = "", [], None
            try:
                row["plan"] = self._plan(row)
            except Left as error:
                row["mirror"] = str(error)
        self._without_what_is_there([row for row in rows if row["plan"]])
        made = [row for row in rows if row["plan"] and self._edited(row)]
        self._checked(made)
        for row in made:
            if row["mirror"] == MADE:
                _fill(row)
        for row in rows:
            del row["plan"]
            row.pop("edited", None)
        return rows

    def _plan(self, row: Row) -> Plan:
        """The first object, in an order drawn by the row, that can be replaced; else the reason of the one that got farthest."""
        if not row["pictures"]:
            raise Left("object: the row has no image")
        if row.get("rejected_images") is not None:
            raise Left("object: the row brings its dispreferred images")
        rng = row_generator(row_digest(row["prompt"], row["pictures"]), self.seed, "mirror")
        places = [(image, place) for image, own in enumerate(row["key_regions"]) for place in range(len(own))]
        reasons = []
        for at in rng.permutation(len(places)).tolist():
            try:
                image, place = places[at]
                return self._of_object(row, image, place, rng)
            except Left as error:
                reasons.append(str(error))
        farthest = max(reasons, key=lambda reason: STEPS.index(reason.split(":")[0]), default=None)
        raise Left(farthest or "object: no region with a phrase")

    def _of_object(self, row: Row, image: int, place: int, rng: np.random.Generator) -> Plan:
        region, picture = row["key_regions"][image][place], row["pictures"][image]
        old = phrase_of(region)
        if not old:
            raise Left("object: no region with a phrase")
        if not stands_in(plain_text(row["chosen"]), old):
            raise Left("object: no phrase of a region stands in the chosen answer")
        if stands_in(plain_text(row["prompt"]), old):
            raise Left("object: the prompt speaks of it")
        mask = region_mask([region], picture.height, picture.width)
        share = float(mask.mean())
        if not SMALLEST <= share <= LARGEST:
            raise Left(f"object: it covers {'too little' if share < SMALLEST else 'most'} of the image")
        own = [phrase_of(one) for some in row["key_regions"] for one in some]
        rest = [phrase for phrase in dict.fromkeys(own) if phrase and stem(phrase) != stem(old)]
        names = self.pool.candidates(old, share, rest, self.choice, rng, self.only)
        names = [name for name in names if not stands_in(plain_text(row["chosen"]), name)]
        if not names:
            raise Left("replacement: no other phrase of its number and size class")
        answers: dict[str, list[dict[str, Any]]] = {}
        for name in names[:ASKED]:
            try:
                answers[name] = _answer(row["chosen"], old, name)
            except Left as error:
                raise Left(f"answer: {error}") from error
        return Plan(image, place, old, answers, mask, rng)

    def _without_what_is_there(self, rows: Sequence[Row]) -> None:
        """Leave out replacements that the grounder finds in the image."""
        if self.grounder is None or not rows:
            return
        found = self.grounder.ground(
            [row["pictures"][row["plan"].image] for row in rows], [list(row["plan"].answers) for row in rows]
        )
        for row, there in zip(rows, found, strict=True):
            seen = {normal(one.phrase) for one in there if one.phrase}
            row["plan"].answers = {name: own for name, own in row["plan"].answers.items() if name not in seen}
            if not row["plan"].answers:
                row["mirror"], row["plan"] = "replacement: the detector finds all of them in the image", None

    def _edited(self, row: Row) -> bool:
        plan: Plan = row["plan"]
        new = next(iter(plan.answers))
        examples = self.pool.of_size(new, float(plan.mask.mean()))
        try:
            example = self.example(examples[int(plan.rng.integers(len(examples)))]) if examples else None
            picture, place = self.edit(row["pictures"][plan.image], plan.mask, plan.old, new, plan.rng, example)
        except (Left, ValueError, OSError) as error:
            # It costs the twin; the row stays.
            row["mirror"] = f"edit: {error}"
            return False
        row["edited"] = new, picture, place
        row["mirror"] = MADE
        return True

    def _checked(self, rows: Sequence[Row]) -> None:
        """Leave out rows in whose edited image the grounder does not see the new object in the old one's place."""
        if self.grounder is None or not rows:
            return
        asked = [[row["edited"][0], row["plan"].old] for row in rows]
        found = self.grounder.ground([row["edited"][1] for row in rows], asked)
        for row, there in zip(rows, found, strict=True):
            new, _, place = row["edited"]
            seen = {normal(one.phrase) for one in there if one.phrase and _lies_in(one.mask, place | row["plan"].mask)}
            if new not in seen:
                row["mirror"] = "check: the new object is not found in its place"
            elif row["plan"].old in seen:
                row["mirror"] = "check: the old object is still found in its place"


def with_twins(rows: Sequence[Row]) -> list[Row]:
    """The rows, each followed by its twins."""
    return [own for row in rows for own in (row, *row.pop("twins", ()))]


def _lies_in(mask: np.ndarray, place: np.ndarray) -> bool:
    return bool((mask & place).sum() >= OVERLAP * mask.sum())


def _answer(messages: Sequence[Mapping[str, Any]], old: str, new: str) -> list[dict[str, Any]]:
    """The messages of an answer with the object replaced in every text that names it."""
    parts = [part["text"] for message in messages for part in message["content"] if part.get("text")]
    named = [text for text in parts if stands_in(text, old)]
    if len(named) != 1:
        raise Left("the object is named in several parts of the answer")
    made = mirrored(named[0], old, new)
    return [
        {
            **message,
            "content": [
                {**part, "text": made if part.get("text") == named[0] else part.get("text")}
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def _fill(row: Row) -> None:
    """Give the row its counterpart, and make its twin."""
    plan, (new, picture, place) = row["plan"], row["edited"]
    changed = {"bytes": _png(picture), "path": None}
    images = [changed if n == plan.image else own for n, own in enumerate(row["images"])]
    regions = [list(own) for own in row["key_regions"]]
    regions[plan.image][plan.region] = {"rle": encode_rle(place), "phrase": new, "score": None}
    words = row.get("keywords")
    twin: Row = {
        **{name: row[name] for name in ("prompt", "number", "grounded", "mask_area") if name in row},
        "id": f"{row['id']}~mirror",
        "images": images,
        "pictures": [picture if n == plan.image else own for n, own in enumerate(row["pictures"])],
        "chosen": plan.answers[new],
        "rejected": row["chosen"],
        "rejected_images": row["images"],
        "key_regions": regions,
        "keywords": words and [new if normal(word) == plan.old else word for word in words],
        "mirror_of": row["id"],
        "mirror": "",
    }
    row["rejected_images"], row["rejected_image_chosen"], row["twins"] = images, plan.answers[new], [twin]


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
