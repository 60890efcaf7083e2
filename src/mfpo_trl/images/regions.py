"""Boxes, masks and run-length encodings -> one boolean mask, and back.

A *region* is written in any of these forms, always in pixels of the image as a viewer shows it (EXIF orientation applied):

- a box `[x0, y0, x1, y1]`, half-open, fractions allowed: it covers every pixel that it touches;
- a mask of the image's size: a PIL image, an array or the bytes of a PNG; everything above 0 counts;
- a COCO run-length encoding `{"size": [height, width], "counts": ...}`, compressed (str or bytes) or not (list);
- a dict that holds one of them under `box`, `mask` or `rle`, with anything beside it (`phrase`, `score`).
"""

import io
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from PIL import Image

FORMS = "a box [x0, y0, x1, y1] in pixels, a mask image, or a COCO RLE {'size': [h, w], 'counts': ...}"


def region_mask(regions: Any, height: int, width: int) -> np.ndarray:
    """The union of an image's regions as one mask.

    Args:
        regions: a list of regions, or a single one.
        height, width: of the image, in pixels.

    Returns:
        (H, W) bool, at least one True.

    Raises:
        ValueError: a region of no known form, outside the image, or empty.
    """
    if isinstance(regions, np.ndarray) and regions.ndim == 2 and regions.shape[1] == 4 != width:
        regions = regions.tolist()
    mask = np.zeros((height, width), dtype=bool)
    for region in [regions] if _is_one_region(regions) else regions:
        mask |= _one_mask(region, height, width)
    return mask


def regions_per_image(key_regions: Any, images: int) -> list[list[Any]]:
    """Split a row's `key_regions` into one list of regions for each of its images.

    A row with one image may hold the list of regions itself; a row with several holds one list an image. None and empty
    lists mean "no region".

    Raises:
        ValueError: the number of lists is not the number of images.
    """
    if key_regions is None or (isinstance(key_regions, Sequence) and len(key_regions) == 0):
        return [[] for _ in range(images)]
    if isinstance(key_regions, str):
        raise ValueError(f"found the text {key_regions[:60]!r}; expected {FORMS}, or a list of them")
    if _is_one_region(key_regions):
        key_regions = [key_regions]
    if all(_is_one_region(region) for region in key_regions):
        if images != 1:
            raise ValueError(f"found one list of regions for {images} images; give one list of regions an image")
        return [list(key_regions)]
    if len(key_regions) != images:
        raise ValueError(f"found {len(key_regions)} lists of regions for {images} image(s); give one list an image")
    return [[] if own is None else [own] if _is_one_region(own) else list(own) for own in key_regions]


def random_region(height: int, width: int, rng: np.random.Generator, area: float = 0.2) -> np.ndarray:
    """A random rectangle, (H, W) bool, that covers the share `area` of the image up to rounding, in a random place; its
    aspect ratio is at most twice or half the image's own, and such that it fits."""
    limit = min(math.log(2), -math.log(area)) / 2
    h = max(1, round(height * math.sqrt(area) * math.exp(rng.uniform(-limit, limit))))
    w = min(width, max(1, round(area * height * width / h)))
    top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + h, left : left + w] = True
    return mask


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W) as an uncompressed COCO run-length encoding: column-major runs, the first one of zeros."""
    # Transposed and made contiguous first: reading columns of a row-major mask takes ten times as long.
    flat = np.ascontiguousarray(np.asarray(mask, dtype=bool).T).reshape(-1).view(np.uint8)
    borders = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], borders, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat.size and flat[0] else runs}


def decode_rle(rle: Mapping[str, Any]) -> np.ndarray:
    """A COCO run-length encoding, compressed or not, as a mask (H, W) bool.

    Raises:
        ValueError: the runs do not add up to the size.
    """
    height, width = (int(n) for n in rle["size"])
    counts = rle["counts"]
    runs = _uncompress(counts) if isinstance(counts, str | bytes) else [int(n) for n in counts]
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise ValueError(
            f"the runs of the RLE cover {sum(runs)} pixels, its size {height}x{width} has {height * width}"
        )
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape((height, width), order="F")


def _uncompress(counts: str | bytes) -> list[int]:
    """Runs from COCO's compressed string: 5 bits a character from 48 up, bit 5 continues, from the fourth run on each is
    the difference to the run before the last."""
    data = counts.encode("ascii") if isinstance(counts, str) else counts
    runs: list[int] = []
    value = shift = 0
    for byte in data:
        chunk = byte - 48
        value |= (chunk & 0x1F) << shift
        shift += 5
        if chunk & 0x20:
            continue
        if chunk & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the RLE string ends in the middle of a run")
    return runs


def _is_one_region(value: Any) -> bool:
    if isinstance(value, Mapping | Image.Image | bytes | np.ndarray):
        return True
    return isinstance(value, Sequence) and len(value) > 0 and all(isinstance(n, Real) for n in value)


def _one_mask(region: Any, height: int, width: int) -> np.ndarray:
    region = _unwrap(region)
    if isinstance(region, Mapping):
        high, wide = region["size"]
        if (high, wide) != (height, width):
            # Before it is decoded, which takes as much memory as the size says.
            raise ValueError(f"a mask of {wide}x{high} pixels for an image of {width}x{height}")
        mask = decode_rle(region)
    elif isinstance(region, Image.Image):
        mask = _picture_mask(region)
    elif isinstance(region, bytes | str):
        try:
            mask = _picture_mask(Image.open(io.BytesIO(region) if isinstance(region, bytes) else region))
        except OSError as error:
            raise ValueError(f"the mask image cannot be read: {error}") from error
    elif isinstance(region, np.ndarray) and region.ndim == 2:
        mask = region > 0
    else:
        return _box_mask(region, height, width)
    if mask.shape != (height, width):
        raise ValueError(f"a mask of {mask.shape[1]}x{mask.shape[0]} pixels for an image of {width}x{height}")
    if not mask.any():
        raise ValueError("an empty mask: it covers no pixel")
    return mask


def _picture_mask(picture: Image.Image) -> np.ndarray:
    """What a mask picture marks: palette indices above 0 whatever their colours, else what is neither black nor clear."""
    if picture.mode == "P":
        return np.asarray(picture) > 0
    marked = np.asarray(picture.convert("L")) > 0
    return marked & (np.asarray(picture.getchannel("A")) > 0) if "A" in picture.getbands() else marked


def _unwrap(region: Any) -> Any:
    """Take the region out of a dict with other things beside it; parquet fills the forms that a row lacks with None."""
    if not isinstance(region, Mapping):
        return region
    for key in ("box", "mask", "rle"):
        own = region.get(key)
        if isinstance(own, Mapping) and any(value is not None for value in own.values()):
            return _unwrap(own)
        if own is not None and not isinstance(own, Mapping):
            return own
    if region.get("bytes") is not None:
        if not isinstance(region["bytes"], bytes):
            raise ValueError(f"the bytes of a mask are of type {type(region['bytes']).__name__}")
        return region["bytes"]
    if region.get("path") is not None:
        return region["path"]
    if region.get("counts") is not None and region.get("size") is not None:
        return region
    raise ValueError(f"a region that fills none of its keys {sorted(region)}; expected {FORMS}")


def _box_mask(box: Any, height: int, width: int) -> np.ndarray:
    if not isinstance(box, Sequence | np.ndarray) or len(box) != 4 or not all(isinstance(n, Real) for n in box):
        raise ValueError(f"found {box!r}; expected {FORMS}")
    if not all(math.isfinite(n) for n in box):
        raise ValueError(f"the box {list(box)} holds a number that is not finite")
    x0, y0, x1, y1 = (float(n) for n in box)
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"the box {list(box)} is empty; expected [x0, y0, x1, y1] with x0 < x1 and y0 < y1")
    if max(x1, y1) <= 1 and max(height, width) > 1:
        raise ValueError(f"the box {list(box)} lies inside one pixel; coordinates are pixels, not fractions")
    left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
    right, bottom = min(width, math.ceil(x1)), min(height, math.ceil(y1))
    if left >= right or top >= bottom:
        raise ValueError(f"the box {list(box)} lies outside the image of {width}x{height} pixels")
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask
