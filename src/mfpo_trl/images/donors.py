"""Another row's image, or one of its regions, drawn by what a row shows and asks."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..rows import image_list, load_images, row_error
from .corruptions import same_size
from .regions import region_mask, regions_per_image

TRIES = 64
"""Rows that are looked at."""


class Donors(Protocol):
    """Rows by their position."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Mapping[str, Any]: ...


def another_image(
    row: Mapping[str, Any], pixels: np.ndarray, donors: Donors | None, rng: np.random.Generator
) -> np.ndarray:
    """The first image, (H', W', 3) uint8, of another row that shows something else.

    Raises:
        RowError: there are no other rows, or none was found among those that were tried.
    """
    for other in _drawn(row, donors, rng, "swap"):
        found = load_images(other, "image")
        if found and not np.array_equal(np.asarray(found[0]), pixels):
            return np.asarray(found[0])
    raise row_error(row, "images", f"no other image to swap in was found in {_tried(donors)} rows")


def another_region(
    row: Mapping[str, Any], pixels: np.ndarray, region: np.ndarray, donors: Donors | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A region of another row's image that covers about as much of it (`same_size`): the image, (H', W', 3) uint8, and the
    region, (H', W') bool. Where regions bring phrases, it is of something that the row's own do not name, if there is such a one.

    Args:
        region: (H, W) bool, of `pixels`.

    Raises:
        RowError: there are no other rows, or none that was tried has such a region.
    """
    share, shown = float(region.mean()), _phrases(row)
    for avoided in (shown, frozenset[str]()) if shown else (shown,):
        for other in _drawn(row, donors, rng, "transplant"):
            found = list(_fitting(other, pixels, share, avoided))
            if found:
                return found[int(rng.integers(len(found)))]
    raise row_error(
        row,
        "key_regions",
        f"no other row among {_tried(donors)} has a region of the same size class as one that covers {share:.1%} of its image, "
        "four times larger or smaller at most; transplant takes one",
    )


def _phrases(row: Mapping[str, Any]) -> frozenset[str]:
    regions = regions_per_image(row.get("key_regions"), len(image_list(row, "image") or []))
    return frozenset(filter(None, (_phrase(region) for own in regions for region in own)))


def _phrase(region: Any) -> str:
    """What a region is said to show, in lower case; empty where nothing is said."""
    phrase = (region.get("phrase") or region.get("label")) if isinstance(region, Mapping) else None
    return phrase.lower() if isinstance(phrase, str) else ""


def _fitting(
    row: Mapping[str, Any], pixels: np.ndarray, share: float, avoided: frozenset[str]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    try:
        regions = regions_per_image(row.get("key_regions"), len(image_list(row, "image") or []))
        regions = [[region for region in own if _phrase(region) not in avoided] for own in regions]
        images = load_images(row, "image") or [] if any(regions) else []
        for own, image in zip(regions, images, strict=True):
            for region in own:
                mask = region_mask([region], image.height, image.width)
                if same_size(share, float(mask.mean())) and not _same(image, pixels):
                    yield np.asarray(image), mask
    except (ValueError, TypeError, OSError):
        # A row that cannot be used says so when its own turn comes.
        return


def _same(image: Image.Image, pixels: np.ndarray) -> bool:
    return image.size == pixels.shape[1::-1] and np.array_equal(np.asarray(image), pixels)


def _drawn(
    row: Mapping[str, Any], donors: Donors | None, rng: np.random.Generator, name: str
) -> Iterator[Mapping[str, Any]]:
    if not donors:
        taken = "image" if name == "swap" else "region"
        raise row_error(
            row, "images", f"corruption={name!r} needs stored rows with images to take another {taken} from"
        )
    first = int(rng.integers(len(donors)))
    for step in range(_tried(donors)):
        yield donors[(first + step) % len(donors)]


def _tried(donors: Donors | None) -> int:
    return min(TRIES, len(donors)) if donors else 0
