"""Corruptions that need nothing but the image: crop, mean colour, black, mask, blur."""

import math

import numpy as np
from PIL import Image, ImageFilter

from .pixels import resized


def crop(
    image: np.ndarray, region: np.ndarray, rng: np.random.Generator, *, scale: tuple[float, float] = (0.01, 0.2)
) -> np.ndarray:
    """A random crop, resized back to the image's size.

    Args:
        scale: smallest and largest share of the image's area that the crop covers, drawn uniformly; its aspect ratio
            lies between 3:4 and 4:3 of the image's own.

    Raises:
        ValueError: `scale` is not two shares.

    Source: mDPO (arXiv 2406.11839), which keeps less than 20 % of the image.
    """
    if not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
        raise ValueError(f"the crop's scale must be two shares, 0 < smallest <= largest <= 1, found {list(scale)}")
    height, width = image.shape[:2]
    side = math.sqrt(rng.uniform(*scale))
    stretch = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)) / 2)
    h = min(height, max(1, round(height * min(1.0, side * stretch))))
    w = min(width, max(1, round(width * min(1.0, side / stretch))))
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    return resized(image[top : top + h, left : left + w], height, width)


def mean(image: np.ndarray, region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image's mean colour everywhere."""
    totals = [int(image[..., channel].sum(dtype=np.int64)) for channel in range(3)]
    colour = np.rint(np.array(totals) / image[..., 0].size).astype(np.uint8)
    return np.broadcast_to(colour, image.shape)


def black(image: np.ndarray, region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Black everywhere."""
    return np.zeros_like(image)


def mask(image: np.ndarray, region: np.ndarray, rng: np.random.Generator, *, share: float = 1.0) -> np.ndarray:
    """The middle of the region in the image's mean colour, the rest of it as it is.

    Args:
        share: of the region's area, above 0 and up to 1. A larger share covers all that a smaller one does.

    Raises:
        ValueError: `share` is none.

    Source: LPOI (arXiv 2505.21061), which masks 25, 50, 75 and 100 % of the key object's box.
    """
    picture = image.copy()
    picture[middle(region, share)] = mean(image, region, rng)[0, 0]
    return picture


def middle(region: np.ndarray, share: float) -> np.ndarray:
    """So much of a region, (H, W) bool, from the middle of its bounding box to its edges, in boxes of its own shape; one pixel at least.

    Raises:
        ValueError: `share` is none.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise ValueError(
            f"the share of the region must lie above 0 and up to 1, or be a list of such numbers, found {share!r}"
        )
    found = np.zeros_like(region)
    rows, columns = np.nonzero(region)
    if len(rows):
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        down = np.abs(2 * rows - rows.min() - rows.max()) / height
        across = np.abs(2 * columns - columns.min() - columns.max()) / width
        nearest = np.argsort(np.maximum(down, across), kind="stable")[: max(1, round(share * len(rows)))]
        found[rows[nearest], columns[nearest]] = True
    return found


def blur(image: np.ndarray, region: np.ndarray, rng: np.random.Generator, *, sigma: float = 0.05) -> np.ndarray:
    """Gaussian blur; `sigma` is a share of the image's shorter side, so that it means the same at any size.

    Raises:
        ValueError: `sigma` is no share.
    """
    if not (isinstance(sigma, int | float) and 0 < sigma <= 1):
        raise ValueError(f"the blur's sigma is a share of the shorter side, above 0 and at most 1, found {sigma!r}")
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma * min(image.shape[:2]))))
