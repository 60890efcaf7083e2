"""The stages of a build between source and storage, each from a batch of rows to the same rows with more in them.

A row in flight has the columns of `parts.features`, its decoded `pictures`, and, where it could not be used, is gone from the
batch: `Rejected` carries why. Shapes: H, W of a picture.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from ..images import (
    DispreferredImages,
    check_rejected_images,
    encode_rle,
    needs_outside,
    region_mask,
    regions_per_image,
)
from ..rows import (
    check_answers,
    dispreferred_column,
    load_images,
    plain_text,
    plural_of,
    prefix_of,
    row_digest,
    row_generator,
)
from .keywords import KeywordOptions, keywords
from .reading import IMAGE, convert, image_bytes, read_masks

Row = dict[str, Any]

LONGEST = 20_000
"""Letters of an answer: the time for the graph of its words grows with their square."""

Z_RLE = 3
"""zlib's strategy of run lengths only."""


class Rejected(Exception):
    """A row that cannot be used, and why."""


class Read:
    """A row as published -> rows of our schema, their images read, decoded and untouched.

    Args:
        source: a name in `sources.SOURCES`.
        roots: where image paths may lead (`reading.image_roots`).
    """

    def __init__(self, source: str, roots: Sequence[Path]):
        self.source, self.roots = source, roots

    def __call__(self, raw: Mapping[str, Any] | Exception, number: int) -> list[Row | Rejected]:
        """The rows that source row `number` holds, or why it, or one of them, cannot be used."""
        if isinstance(raw, Exception):
            return [Rejected(str(raw))]
        try:
            rows = convert(raw, self.source)
        except Exception as error:
            return [Rejected(_said(error))]
        for position, row in enumerate(rows):
            row.setdefault("id", f"row {number}" if len(rows) == 1 else f"row {number}-{position}")
        return [self._checked(row) for row in rows]

    def _checked(self, row: Row) -> Row | Rejected:
        try:
            check_answers(row)
            if not plain_text(row["prompt"]).strip():
                raise ValueError("field 'prompt' is empty; there is nothing to answer")
            for field in ("chosen", "rejected"):
                parts = [part["type"] for message in row[field] for part in message["content"]]
                if IMAGE in plain_text(row[field]) or "image" in parts:
                    raise ValueError(f"field {field!r} holds an image or {IMAGE!r}; an answer cannot hold an image")
            _check_kept(row)
            if row.get("key_regions"):
                row["key_regions"] = read_masks(row["key_regions"], self.roots)
            for column in ("images", "rejected_images"):
                if row.get(column) is not None:
                    row[column] = [self._image(value, column) for value in row[column]]
            row["pictures"] = load_images(row, "image")
            check_rejected_images(row, len(row["images"]))
            load_images(row, "rejected_image")
        except Exception as error:
            return Rejected(_said(error))
        return {**row, "id": str(row["id"])}

    def _image(self, value: Any, column: str) -> dict[str, Any]:
        try:
            return image_bytes(value, self.roots)
        except (ValueError, OSError) as error:
            raise ValueError(f"field {column!r}: {error}") from error


class Keywords:
    """Puts `keywords`, best first, into rows that bring none; of a very long answer the first `LONGEST` letters are read.

    Args:
        options: of the ranking.
        vectors, tagger: as `keywords.keywords` takes them.
    """

    def __init__(self, options: KeywordOptions, vectors: Any = None, tagger: Any = None):
        self.options, self.vectors, self.tagger = options, vectors, tagger

    def __call__(self, rows: list[Row]) -> list[Row]:
        for row in rows:
            if row.get("keywords") is None:
                found = keywords(plain_text(row["chosen"])[:LONGEST], self.options, self.vectors, self.tagger)
                row["keywords"] = [keyword.phrase for keyword in found]
        return rows


class Regions:
    """Puts `key_regions`, `grounded` and `mask_area` (share of the pictures' area) into rows.

    A row's own regions are kept. A row where no phrase is found anywhere gets no region, which means the whole image, and
    is marked by `grounded` = False.

    Args:
        grounder: a `grounding.Grounder`; None takes the rows' own regions only.
    """

    def __init__(self, grounder: Any = None):
        self.grounder = grounder

    def __call__(self, rows: list[Row]) -> list[Row | Rejected]:
        grounded = self._ground([row for row in rows if row["pictures"] and not _has_regions(row)])
        return [self._with_regions(row, grounded.get(id(row))) for row in rows]

    def _ground(self, rows: list[Row]) -> dict[int, list]:
        """What the grounder finds, a list of regions for each picture of a row."""
        if self.grounder is None or not rows:
            return {}
        pictures = [picture for row in rows for picture in row["pictures"]]
        phrases = [row["keywords"] for row in rows for _ in row["pictures"]]
        found = iter(self.grounder.ground(pictures, phrases))
        return {
            id(row): [[(one.mask, one.phrase, one.score) for one in next(found)] for _ in row["pictures"]]
            for row in rows
        }

    def _with_regions(self, row: Row, masks: list | None) -> Row | Rejected:
        if masks is None:
            try:
                own = regions_per_image(row.get("key_regions"), len(row["pictures"]))
                masks = [
                    [(_mask(region, picture), *_words(region)) for region in regions]
                    for regions, picture in zip(own, row["pictures"], strict=True)
                ]
            except Exception as error:
                return Rejected(f"field 'key_regions': {_said(error)}")
        row["key_regions"] = [
            [{"rle": encode_rle(mask), "phrase": phrase, "score": score} for mask, phrase, score in regions]
            for regions in masks
        ]
        row["grounded"] = any(map(len, masks))
        covered = [np.logical_or.reduce([mask for mask, *_ in own]).sum() if own else 0 for own in masks]
        pixels = sum(picture.width * picture.height for picture in row["pictures"])
        row["mask_area"] = float(sum(covered) / pixels) if row["grounded"] else 1.0
        return row


def _said(error: Exception) -> str:
    """An error in words, with its kind where that says more; the row is at fault, whatever the kind."""
    return str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"


def _check_kept(row: Row) -> None:
    """Raise ValueError where a column that the source brings cannot be stored."""
    difficulty = row.get("difficulty")
    if difficulty is not None and (
        isinstance(difficulty, bool) or not isinstance(difficulty, Real) or not isfinite(difficulty)
    ):
        raise ValueError(f"field 'difficulty' is {difficulty!r}; expected a finite number")
    prefix_of(row)
    words = row.get("keywords")
    if words is not None and not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        raise ValueError(f"field 'keywords' is {str(words)[:60]!r}; expected a list of texts")


def _has_regions(row: Row) -> bool:
    """Whether a row brings a region, or something that will be refused as one."""
    regions = row.get("key_regions")
    return bool(regions) and not (isinstance(regions, list) and all(own is None or own == [] for own in regions))


def _mask(region: Any, picture: Image.Image) -> np.ndarray:
    return region_mask([region], picture.height, picture.width)


def _words(region: Any) -> tuple[str | None, float | None]:
    region = region if isinstance(region, Mapping) else {}
    phrase, score = region.get("phrase", region.get("label")), region.get("score")
    if not isinstance(phrase, str | None) or not isinstance(score, Real | None):
        raise ValueError(f"found the phrase {phrase!r} with the score {score!r}; expected a text and a number")
    return phrase and phrase.encode("utf-8", "replace").decode(), cast("float | None", score)


class Corrupt:
    """Writes the recipe of the dispreferred images into rows, and, where asked, the images as PNG.

    Args:
        dispreferred: makes them.
        stored: how many of each image are stored as `rejected_images`, `rejected_images_2`, …; a row's own are kept as they are.
        fill: an `editing.Inpainter`, for the corruption `generate`.
    """

    def __init__(self, dispreferred: DispreferredImages, stored: int, fill: Any = None):
        self.dispreferred, self.stored, self.fill = dispreferred, stored, fill

    def __call__(self, rows: list[Row]) -> list[Row | Rejected]:
        return [self._with_recipe(row) for row in rows]

    def _with_recipe(self, row: Row) -> Row | Rejected:
        made = self.dispreferred
        if row.get("rejected_images") is not None:
            row["corruption"] = json.dumps({"corruption": "none"})
            return row
        region = {"auto": "key"}.get(made.region, made.region) if row["grounded"] else "global"
        if made.region == "random":
            region = "random"
        elif needs_outside(made.corruption) and row["pictures"] and row["mask_area"] >= 1:
            what = "no region was found" if not row["grounded"] else "the regions cover the whole image"
            return Rejected(f"{what}, and corruption {made.corruption!r} needs something around a region")
        kwargs = dict(made.kwargs)
        if self.fill is not None and Path(kwargs["model"]).exists():
            # Nobody makes these images again, and where a pipeline lies is nobody else's business.
            kwargs["model"] = Path(kwargs["model"]).resolve().name
        recipe = {"corruption": made.corruption, "kwargs": kwargs, "seed": made.seed, "region": region}
        row["corruption"] = json.dumps(recipe, sort_keys=True)
        for variant in range(1, self.stored + 1):
            images = made(row, row["pictures"], variant) if self.fill is None else self._filled(row)
            row[plural_of(dispreferred_column(variant))] = [{"bytes": _png(image), "path": None} for image in images]
        return row

    def _filled(self, row: Row) -> list[Image.Image]:
        """The row's pictures, filled by a generative model where their regions are."""
        made, digest = self.dispreferred, row_digest(row["prompt"], row["pictures"])
        options = {name: value for name, value in made.kwargs.items() if name != "model"}
        pictures = []
        for n, (picture, mask, regions) in enumerate(
            zip(row["pictures"], made.masks(row, row["pictures"]), row["key_regions"], strict=True)
        ):
            phrases = ", ".join(dict.fromkeys(region["phrase"] for region in regions if region["phrase"]))
            texts = {name: options[name].replace("{phrase}", phrases) for name in ("prompt", "negative_prompt")}
            rng = row_generator(digest, made.seed or 0, made.corruption, n)
            pictures.append(self.fill(picture, mask, rng, **{**options, **texts}) if mask.any() else picture)
        return pictures


def _png(image: Image.Image) -> bytes:
    """Noise does not compress: more effort than run lengths would cost time and save nothing."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1, compress_type=Z_RLE)
    return file.getvalue()


class Score:
    """Puts `difficulty` into rows that bring none.

    Args:
        score: a `difficulty.Scorer`; None leaves it empty.
    """

    def __init__(self, score: Callable[[Sequence[Mapping[str, Any]]], list[float]] | None):
        self.score = score

    def __call__(self, rows: list[Row]) -> list[Row]:
        todo = [row for row in rows if row.get("difficulty") is None]
        if self.score is not None and todo:
            inputs = [{**row, "images": row["pictures"]} for row in todo]
            for row, value in zip(todo, self.score(inputs), strict=True):
                row["difficulty"] = float(value)
        return rows
