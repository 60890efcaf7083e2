"""Rows as `mfpo check` looks at them: read and encoded one by one as training would, and what each shows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from .. import _trl
from ..batch import FLAT, MFPOCollator, build_collator, end_completion
from ..config import MFPOConfig
from ..images import DispreferredImages, check_rejected_images, region_mask, regions_per_image
from ..objective import BranchName
from ..rows import (
    ROW_NUMBER,
    checked_texts,
    image_list,
    image_tokens,
    load_images,
    plain_text,
    prefix_of,
    same_answer,
)


@dataclass
class Look:
    """What one row shows.

    Args:
        number: of the row in the data set.
        error: why training could not use it, with its name and field.
        same_answer: whether `chosen` equals `rejected`.
        prompt: tokens of the prompt, the longer of those with the image and with the dispreferred one.
        image: those of them that stand for images.
        answers: tokens of `chosen` and `rejected`.
        unended: the answers whose end is not scored.
        begun: whether the answers go on from an `answer_prefix`; their end is never scored.
        joined: whether they do so without a blank, so that two words may have become one.
        images: how many.
        regions: whether `key_regions` names a region.
        own: whether the row brings its dispreferred images.
        identical: whether all dispreferred images equal their originals; None where there are none.
        inside, outside: mean absolute difference (0..255) of the images in and out of the regions; None where there is no
            such pixel.
    """

    number: int
    error: str | None = None
    same_answer: bool = False
    prompt: int = 0
    image: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    unended: list[str] = field(default_factory=list)
    begun: bool = False
    joined: bool = False
    images: int = 0
    regions: bool = False
    own: bool = False
    identical: bool | None = None
    inside: float | None = None
    outside: float | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt with its longer answer."""
        return self.prompt + max(self.answers.values(), default=0)

    def has_room(self, max_length: int | None) -> bool:
        """Whether `max_length` leaves room for an answer; the collator refuses a row where it does not."""
        return max_length is None or self.prompt < max_length

    @property
    def size(self) -> int:
        """Tokens of its packed row, up to a few: the prompt with each image once, and the answers behind them."""
        variants = 1 if self.identical is None else 2
        return variants * self.prompt + sum(self.answers.values()) + (variants - 1) * self.answers.get("chosen", 0)


class _Watched:
    """Dispreferred images as they are made, and what was made last of the first of them."""

    def __init__(self, make: DispreferredImages):
        self.make = make
        self.last: tuple[list[Image.Image], list[Image.Image]] | None = None

    def __call__(self, row: Mapping[str, Any], images: Sequence[Image.Image], variant: int = 1) -> list[Image.Image]:
        self.last = self.last if variant > 1 else None
        made = self.make(row, images, variant)
        # Of several, the first.
        self.last = self.last or (list(images), made)
        return made


def read(dataset: Any, count: int) -> Iterator[tuple[int, Mapping[str, Any] | Exception]]:
    """Rows by their number, or why they cannot be read: of a map-style data set `count` spread evenly over it, of a stream the
    first."""
    if isinstance(dataset, Dataset):
        rows = _trl.NumberedRows.of(dataset)
        for number in chosen_rows(len(dataset), count):
            try:
                yield number, rows.__getitems__([number])[0]
            except Exception as error:
                yield number, error
        return
    for number, row in enumerate(islice(iter(_trl.undecoded(dataset)), count)):
        yield number, {**row, ROW_NUMBER: number}


def chosen_rows(rows: int, count: int) -> list[int]:
    """The numbers of `count` rows that are spread evenly, the first and the last among them; all where there are no more."""
    return np.unique(np.linspace(0, rows - 1, min(count, rows)).round().astype(int)).tolist() if rows else []


class Looker:
    """Looks at rows with the collator that training would use.

    Args:
        training: names the branches, the corruption and the lengths.
        processor: of the model; without one (None) no token is counted.
        dataset: whose rows they are, and among which `swap` finds its images.
    """

    def __init__(self, training: MFPOConfig, processor: Any, dataset: Any):
        # Cuts nothing, so that every length is seen.
        collator = build_collator(training, processor, dataset, FLAT)
        self.watched = _Watched(collator.dispreferred)
        stand_in: Any = self.watched
        self.collator: MFPOCollator = replace(collator, max_length=None, dispreferred=stand_in)
        self.processor = processor

    def __call__(self, number: int, row: Mapping[str, Any] | Exception) -> Look:
        """One row, or the error of reading it."""
        look = Look(number)
        if isinstance(row, Exception):
            look.error = str(row)
            return look
        self.watched.last = None
        try:
            if self.processor is None:
                self._without_tokens(row)
            else:
                self._count(look, self.collator.encode(row))
            look.same_answer = same_answer(row)
            look.begun = bool(prefix_of(row))
            look.joined = look.begun and _joined(row)
            look.images = len(image_list(row, "image") or [])
            look.regions = any(_readable(row, look.images))
            look.own = image_list(row, "rejected_image") is not None
            if self.watched.last is not None:
                self._compare(look, row, *self.watched.last)
        except ValueError as error:
            look.error = str(error)
        except Exception as error:
            look.error = f"row {number}: {type(error).__name__}: {error}"
        return look

    def _without_tokens(self, row: Mapping[str, Any]) -> None:
        checked_texts(row, further=self.collator.answers[2:])
        images = load_images(row, "image") or []
        check_rejected_images(row, len(images))
        if images and any(branch.variant for branch in self.collator.branches):
            self.watched(row, images)

    def _count(self, look: Look, sample: Mapping[BranchName, Any]) -> None:
        tokenizer = self.processor.tokenizer
        ids = tokenizer.convert_tokens_to_ids(list(image_tokens(self.processor)))
        for name, branch in sample.items():
            tokens = branch.prompt.tokens["input_ids"]
            look.prompt = max(look.prompt, len(tokens))
            look.image = max(look.image, sum(int((tokens == own).sum()) for own in set(ids)))
            if name.image == "image":
                look.answers[name.answer] = len(branch.completion)
                if tokenizer.eos_token_id is None or end_completion(branch.completion, tokenizer) != branch.completion:
                    look.unended.append(name.answer)

    def _compare(self, look: Look, row: Mapping[str, Any], images: list, made: list) -> None:
        masks = _masks(row, images) if look.own else self.watched.make.masks(row, images)
        changes = [difference(image, other) for image, other in zip(images, made, strict=True)]
        look.identical = not any(change.any() for change in changes)
        look.inside = _mean([change[mask] for change, mask in zip(changes, masks, strict=True)])
        look.outside = _mean([change[~mask] for change, mask in zip(changes, masks, strict=True)])


def _joined(row: Mapping[str, Any]) -> bool:
    """Whether an answer begins without a blank behind a beginning that ends without one."""
    rests = [plain_text(row[name]) for name in ("chosen", "rejected")]
    return not prefix_of(row)[-1].isspace() and any(rest[:1].isalnum() for rest in rests)


def _readable(row: Mapping[str, Any], images: int) -> list[list[Any]]:
    """The regions of each image; none where they are written in no known form. The collator refuses those where it reads
    them, which it does not for a row with dispreferred images of its own, or where no term has use for any."""
    try:
        return regions_per_image(row.get("key_regions"), max(images, 1))
    except (ValueError, TypeError):
        return [[] for _ in range(images)]


def _masks(row: Mapping[str, Any], images: Sequence[Image.Image]) -> list[np.ndarray]:
    """The regions of each image as a mask (H, W); whole images where the row has none that can be read."""
    found = []
    for own, image in zip(_readable(row, len(images)), images, strict=True):
        try:
            found.append(region_mask(own, image.height, image.width))
        except (ValueError, TypeError, OSError):
            found.append(np.ones((image.height, image.width), dtype=bool))
    # Beside an image with regions, one without is not to change at all.
    return found if any(mask.any() for mask in found) else [np.ones_like(mask) for mask in found]


def difference(image: Image.Image, other: Image.Image) -> np.ndarray:
    """How far two RGB pictures lie apart in each pixel, (H, W) in 0..255, the mean of the channels; `other` is brought to the
    size of `image`."""
    if other.size != image.size:
        other = other.resize(image.size, Image.Resampling.BILINEAR)
    return np.abs(np.asarray(image, dtype=np.int16) - np.asarray(other, dtype=np.int16)).mean(axis=2)


def _mean(parts: Sequence[np.ndarray]) -> float | None:
    pixels = np.concatenate(parts)
    return float(pixels.mean()) if len(pixels) else None
