"""The stage of a build that gives rows their twins: object, replacement, answer, edit, check."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ...images import encode_rle, region_mask
from ...rows import PREFIX, plain_text, row_digest, row_generator
from .answer import checked, mirrored
from .edits import Editor
from .pool import Example, Pool, alike, normal, phrase_of
from .words import Left, head_of, is_plural, speaks_of, stands_in

Row = dict[str, Any]

STEPS = ("object", "replacement", "answer", "edit", "check")
"""In their order; a row that is left out is counted at the first that it does not pass."""

SMALLEST, LARGEST = 0.005, 0.5
"""Shares of its image between which an object is neither tiny nor most of it."""
TRIED = 6
"""Replacements of an object that are looked for in its image, or asked for."""
OVERLAP = 0.3
"""Of what the grounder finds for the new phrase, or for the old one, that must lie in the region to count as there."""

MADE = "made"
NO_PHRASE = "object: no region with a phrase"
NOT_NAMED = "object: no phrase of a region stands in the chosen answer"


@dataclass
class Plan:
    """What is to be done with a row.

    Args:
        image, region: the place of the object among the row's `key_regions`.
        old: its phrase.
        mask: of the object.
        rest: the phrases of what else the row shows.
        text: the chosen answer.
        names: possible replacements, the preferred one first; empty until the server is asked for them.
        rng: of the row.
        answer: the messages that are true of the edited image.
    """

    image: int
    region: int
    old: str
    mask: np.ndarray
    rest: list[str]
    text: str
    rng: np.random.Generator
    names: list[str] = field(default_factory=list)
    answer: list[dict[str, Any]] = field(default_factory=list)

    @property
    def new(self) -> str:
        """The replacement."""
        return self.names[0]

    @property
    def share(self) -> float:
        """Of the image that the object covers."""
        return float(self.mask.mean())


class Mirror:
    """Puts m' into rows as `rejected_images` and y' as `rejected_image_chosen`, and their twins into `twins`.

    Args:
        pool: what may take an object's place.
        edit: replaces it.
        example: from an `Example` to (picture, mask) of it; None where the editor needs none.
        grounder: says what is in an image; None asks nobody, and the rows' own phrases and answers must do.
        choice: as `Pool.candidates` takes it.
        only: phrases in place of those of the data set.
        names: asked for replacements in place of both, as `Asked.replacements`.
        writes: asked for answers in place of the rules, as `Asked.answers`.
        seed: of what is drawn.
    """

    def __init__(
        self,
        pool: Pool,
        edit: Editor,
        example: Callable[[Example], tuple[Image.Image, np.ndarray]] | None,
        grounder: Any = None,
        choice: str = "rare",
        only: Sequence[str] | None = None,
        names: Callable[[Sequence[Row], int], list[list[str]]] | None = None,
        writes: Callable[[Sequence[Row]], list[str]] | None = None,
        seed: int = 0,
    ):
        self.pool, self.edit, self.example, self.grounder = pool, edit, example, grounder
        self.choice, self.only, self.names, self.writes, self.seed = choice, only, names, writes, seed

    def __call__(self, rows: list[Row]) -> list[Row]:
        for row in rows:
            row["mirror"], row["twins"], row["plan"] = "", [], None
            try:
                row["plan"] = self._plan(row)
            except Left as error:
                row["mirror"] = str(error)
        for step in (self._name, self._without_what_is_there, self._answer, self._edit, self._check):
            planned = [row for row in rows if row["plan"]]
            for row, reason in zip(planned, step(planned) if planned else (), strict=True):
                if reason:
                    row["mirror"], row["plan"] = reason, None
        for row in rows:
            if row["plan"]:
                row["mirror"] = MADE
                _fill(row)
            del row["plan"]
            row.pop("edited", None)
        return rows

    def _plan(self, row: Row) -> Plan:
        """The first object, in an order drawn by the row, that can be replaced; else the reason of the one that got farthest."""
        if not row["pictures"]:
            raise Left("object: the row has no image")
        if row.get("rejected_images") is not None:
            raise Left("object: the row brings its dispreferred images")
        texts = [part["text"] for message in row["chosen"] for part in message["content"] if part.get("text")]
        if len(texts) > 1:
            raise Left("object: the chosen answer has several parts")
        rng = row_generator(row_digest(row["prompt"], row["pictures"]), self.seed, "mirror")
        places = [(image, place) for image, own in enumerate(row["key_regions"]) for place in range(len(own))]
        reasons = []
        for at in rng.permutation(len(places)).tolist():
            try:
                image, place = places[at]
                return self._of_object(row, image, place, texts[0], rng)
            except Left as error:
                reasons.append(str(error))
        raise Left(max(reasons, key=_how_far, default=NO_PHRASE))

    def _of_object(self, row: Row, image: int, place: int, text: str, rng: np.random.Generator) -> Plan:
        region, picture = row["key_regions"][image][place], row["pictures"][image]
        old = phrase_of(region)
        if not old:
            raise Left(NO_PHRASE)
        if not stands_in(text, old):
            raise Left(NOT_NAMED)
        if speaks_of(_asked(row), head_of(old)):
            raise Left("object: the prompt speaks of it")
        plan = Plan(image, place, old, region_mask([region], picture.height, picture.width), [], text, rng)
        if not SMALLEST <= plan.share <= LARGEST:
            raise Left(f"object: it covers {'too little' if plan.share < SMALLEST else 'most'} of the image")
        plan.rest = _rest(row, plan)
        if self.names is None:
            plan.names = self._fitting(row, plan, self.only)
            if not plan.names:
                raise Left("replacement: no other phrase of its number and size class")
        if self.writes is None:
            try:
                mirrored(text, old, old)
            except Left as error:
                raise Left(f"answer: {error}") from error
        return plan

    def _fitting(self, row: Row, plan: Plan, only: Sequence[str] | None) -> list[str]:
        """The phrases that may replace the object, the preferred one first, as many as are tried."""
        to_show = only is None or self.example is not None
        names = self.pool.candidates(plan.old, plan.share, plan.rest, self.choice, plan.rng, only, to_show)
        asked = _asked(row)
        return [name for name in names if not (speaks_of(plan.text, name) or speaks_of(asked, head_of(name)))][:TRIED]

    def _name(self, rows: Sequence[Row]) -> list[str]:
        """Ask the server for replacements, where it names them."""
        if self.names is None:
            return [""] * len(rows)
        reasons = []
        for row, names in zip(rows, self.names(rows, TRIED), strict=True):
            row["plan"].names = self._fitting(row, row["plan"], names)
            reasons.append("" if row["plan"].names else f"replacement: {self._unfit(row['plan'], names)}")
        return reasons

    def _unfit(self, plan: Plan, names: Sequence[str]) -> str:
        """Why none of the server's replacements can be used: what is wrong with the first."""
        if not names:
            return "the endpoint names nothing"
        if alike(names[0], plan.old):
            return "the endpoint names the object itself"
        if is_plural(names[0]) != is_plural(plan.old):
            return "the endpoint names it in another number"
        if self.example is not None and not self.pool.of_size(names[0], plan.share):
            return "the data set has no example of what the endpoint names"
        return "the endpoint names what the row speaks of"

    def _without_what_is_there(self, rows: Sequence[Row]) -> list[str]:
        """Leave out replacements that the grounder finds in any of a row's images."""
        if self.grounder is None:
            return [""] * len(rows)
        pictures = [picture for row in rows for picture in row["pictures"]]
        found = iter(self.grounder.ground(pictures, [row["plan"].names for row in rows for _ in row["pictures"]]))
        reasons = []
        for row in rows:
            seen = {normal(one.phrase) for _ in row["pictures"] for one in next(found) if one.phrase}
            row["plan"].names = [name for name in row["plan"].names if normal(name) not in seen]
            reasons.append("" if row["plan"].names else "replacement: the detector finds all of them in the image")
        return reasons

    def _answer(self, rows: Sequence[Row]) -> list[str]:
        """Write the answers that are true of the edited images."""
        replies = [None] * len(rows) if self.writes is None else self.writes(rows)
        reasons = []
        for row, reply in zip(rows, replies, strict=True):
            plan: Plan = row["plan"]
            try:
                if reply is None:
                    made = mirrored(plan.text, plan.old, plan.new)
                else:
                    made = checked(reply, plan.text, plan.old, plan.new, plan.rest)
            except Left as error:
                reasons.append(f"answer: {error}")
                continue
            plan.answer = _with_text(row["chosen"], made)
            reasons.append("")
        return reasons

    def _edit(self, rows: Sequence[Row]) -> list[str]:
        return [self._edited(row) for row in rows]

    def _edited(self, row: Row) -> str:
        plan: Plan = row["plan"]
        try:
            row["edited"] = self.edit(
                row["pictures"][plan.image], plan.mask, plan.old, plan.new, plan.rng, self._drawn_example(plan)
            )
        except (Left, ValueError, OSError) as error:
            # It costs the twin; the row stays.
            return f"edit: {error}"
        covered = any(_lies_in(other, row["edited"][1]) for other in _others(row, plan))
        return "edit: the new object covers another one" if covered else ""

    def _drawn_example(self, plan: Plan) -> tuple[Image.Image, np.ndarray] | None:
        examples = self.pool.of_size(plan.new, plan.share) if self.example is not None else []
        return self.example(examples[int(plan.rng.integers(len(examples)))]) if self.example and examples else None

    def _check(self, rows: Sequence[Row]) -> list[str]:
        """Leave out rows in whose edited image the grounder does not see the new object in the old one's place."""
        if self.grounder is None:
            return [""] * len(rows)
        asked = [[row["plan"].new, row["plan"].old] for row in rows]
        found = self.grounder.ground([row["edited"][0] for row in rows], asked)
        reasons = []
        for row, there in zip(rows, found, strict=True):
            plan, place = row["plan"], row["edited"][1]
            seen = {normal(one.phrase) for one in there if one.phrase and _lies_in(one.mask, place | plan.mask)}
            reasons.append(
                "check: the new object is not found in its place"
                if normal(plan.new) not in seen
                else "check: the old object is still found in its place"
                if plan.old in seen
                else ""
            )
        return reasons


def with_twins(rows: Sequence[Row]) -> list[Row]:
    """The rows, each followed by its twins."""
    return [own for row in rows for own in (row, *row.pop("twins", ()))]


def _lies_in(mask: np.ndarray, place: np.ndarray) -> bool:
    return bool((mask & place).sum() >= OVERLAP * mask.sum())


def _how_far(reason: str) -> tuple[int, int]:
    return STEPS.index(reason.split(":")[0]), (NO_PHRASE, NOT_NAMED, reason).index(reason)


def _asked(row: Row) -> str:
    """What stands before the answer: the prompt, and the beginning of a begun answer."""
    return f"{plain_text(row['prompt'])}\n{row.get(PREFIX) or ''}"


def _rest(row: Row, plan: Plan) -> list[str]:
    """The phrases of the other regions.

    Raises:
        Left: one of them shows the object too, or lies where the edit would take it away.
    """
    places = [
        (phrase_of(region), (image, place) == (plan.image, plan.region))
        for image, regions in enumerate(row["key_regions"])
        for place, region in enumerate(regions)
    ]
    rest = [phrase for phrase, own in places if phrase and not own]
    if any(alike(phrase, plan.old) for phrase in rest):
        raise Left("object: another region shows the same")
    if any(_lies_in(other, plan.mask) for other in _others(row, plan)):
        raise Left("object: another one lies in its place")
    return list(dict.fromkeys(rest))


def _others(row: Row, plan: Plan) -> Iterator[np.ndarray]:
    """The masks of the other things that the object's image shows."""
    for place, region in enumerate(row["key_regions"][plan.image]):
        if place != plan.region and phrase_of(region):
            yield region_mask([region], *plan.mask.shape)


def _with_text(messages: Sequence[Mapping[str, Any]], text: str) -> list[dict[str, Any]]:
    """The messages of an answer with another text."""
    return [
        {
            **message,
            "content": [{**part, "text": text if part.get("text") else None} for part in message["content"]],
        }
        for message in messages
    ]


def _fill(row: Row) -> None:
    """Give the row its counterpart, and make its twin."""
    plan, (picture, place) = row["plan"], row["edited"]
    new = plan.new
    changed = {"bytes": _png(picture), "path": None}
    images = [changed if n == plan.image else own for n, own in enumerate(row["images"])]
    regions = [list(own) for own in row["key_regions"]]
    regions[plan.image][plan.region] = {"rle": encode_rle(place), "phrase": new, "score": None}
    words = row.get("keywords")
    twin: Row = {
        **{name: row[name] for name in ("prompt", PREFIX, "number", "grounded") if name in row},
        "id": f"{row['id']}~mirror",
        "images": images,
        "pictures": [picture if n == plan.image else own for n, own in enumerate(row["pictures"])],
        "chosen": plan.answer,
        "rejected": row["chosen"],
        "rejected_images": row["images"],
        "key_regions": regions,
        "keywords": words and [new if normal(word) == plan.old else word for word in words],
        "mask_area": _covered(regions, row["pictures"]),
        "mirror_of": row["id"],
        "mirror": "",
    }
    row["rejected_images"], row["rejected_image_chosen"], row["twins"] = images, plan.answer, [twin]


def _covered(regions: Sequence[Sequence[Any]], pictures: Sequence[Image.Image]) -> float:
    """The share of the area of all pictures that regions cover."""
    covered = [region_mask(own, one.height, one.width).sum() for own, one in zip(regions, pictures, strict=True)]
    return float(sum(covered) / sum(one.width * one.height for one in pictures))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
