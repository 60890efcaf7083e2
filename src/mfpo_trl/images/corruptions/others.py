"""Corruptions that take from another row: its image, or one of its regions."""

import numpy as np

from .filled import opencv
from .pixels import blended, bounds, resized, soft_edge

SAME_SIZE = 4.0
"""Two regions are of one size class where neither covers more than this many times the other's share of its image: twice as
long and twice as wide."""
OPENCV_EDGE = 3
"""Pixels along the edge of a region in which OpenCV's Poisson blending keeps the gradients of what was there."""


def swap(image: np.ndarray, region: np.ndarray, rng: np.random.Generator, *, donor: np.ndarray) -> np.ndarray:
    """Another row's image, (H', W', 3) uint8, resized to this one's size."""
    return resized(donor, *image.shape[:2])


def transplant(
    image: np.ndarray,
    region: np.ndarray,
    rng: np.random.Generator,
    *,
    donor: np.ndarray,
    donor_region: np.ndarray,
    blend: str = "feather",
    border: float = 0.1,
) -> np.ndarray:
    """What another row shows in a region of the same size class, stretched to this region's bounds and blended in.

    The blending lies inside of the region; what is outside of it stays as it is.

    Args:
        donor: the other image, (H', W', 3) uint8.
        donor_region: (H', W') bool.
        blend: `feather`, a soft edge; `poisson`, which keeps the other region's gradients and takes its colours from the
            edge of this one, where three pixels keep its own gradients (needs OpenCV).
        border: width of the soft edge, as a share of the shorter side of the region's bounds.

    Raises:
        ValueError: an unknown `blend`, a border that is no share, a region that covers the whole image, or one that is all edge for
            `poisson`.
        ImportError: `poisson` without OpenCV.

    Source: Pérez et al., "Poisson Image Editing" (2003), for `poisson`.
    """
    if blend not in ("feather", "poisson"):
        raise ValueError(f"blend is {blend!r}; expected 'feather' or 'poisson'")
    if isinstance(border, bool) or not isinstance(border, int | float) or not 0 <= border <= 0.5:
        raise ValueError(f"the border is a share of the region's shorter side, from 0 to 0.5, found {border!r}")
    if region.all():
        raise ValueError(
            "the region covers the whole image; transplant puts another row's region into what is around it"
        )
    rows, columns = bounds(region)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    picture = image.copy()
    if not height:
        return picture
    picture[rows, columns] = resized(donor[bounds(donor_region)], height, width)
    if blend == "poisson":
        return _poisson(image, picture, region)
    return blended(image, picture, soft_edge(region, border * min(height, width)))


def _poisson(image: np.ndarray, picture: np.ndarray, region: np.ndarray) -> np.ndarray:
    cv2 = opencv("transplant with blend 'poisson'")
    # OpenCV solves inside of a mask that touches no border of the image.
    wide = [np.pad(own, ((2, 2), (2, 2), (0, 0)), mode="edge") for own in (picture, image)]
    mask = np.pad(region, 2).astype(np.uint8) * 255
    if not cv2.erode(mask, np.ones((3, 3), dtype=np.uint8), iterations=OPENCV_EDGE).any():
        raise ValueError(
            f"a region is nowhere wider than the edge of {OPENCV_EDGE} pixels on each side that blend 'poisson' leaves as it is; 'feather' takes it"
        )
    rows, columns = bounds(mask > 0)
    middle = columns.start + (columns.stop - columns.start) // 2, rows.start + (rows.stop - rows.start) // 2
    return cv2.seamlessClone(*wide, mask, middle, cv2.NORMAL_CLONE)[2:-2, 2:-2]


def same_size(share: float, other: float) -> bool:
    """Whether two regions that cover these shares of their images are of one size class."""
    return max(share, other) <= SAME_SIZE * min(share, other)
