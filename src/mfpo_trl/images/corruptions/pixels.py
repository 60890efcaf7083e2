"""What corruptions share: the bounds of a region, its soft edge, resizing, and the nearest of known names."""

import difflib
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageFilter


def bounds(region: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns between which a region lies; both empty for an empty region."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def soft_edge(region: np.ndarray, border: float) -> np.ndarray:
    """How much of a picture shows in each pixel of a region, (H, W) float32: 0 outside, rising from the edge inwards to 1.

    Args:
        region: (H, W) bool.
        border: width of the rise, in pixels; 0 for a hard edge. Along the image's own border there is none. Where the region is
            too thin for it, it is halved until a pixel is shown by half.
    """
    shown = region.astype(np.float32)
    if border <= 0 or not region.any():
        return shown
    margin = int(np.ceil(border)) + 1
    rows, columns = bounds(region)
    own = np.pad(region, margin, mode="edge")[
        rows.start : rows.stop + 2 * margin, columns.start : columns.stop + 2 * margin
    ]
    # Half of a box that is centred on a straight edge lies in the region, and all of it one border further in.
    blurred = Image.fromarray(own.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(border))
    inner = np.asarray(blurred, dtype=np.float32)[margin:-margin, margin:-margin] / 255
    shown[rows, columns] *= np.clip(2 * inner - 1, 0, 1)
    return shown if shown.max() >= 0.5 else soft_edge(region, border / 2)


def blended(image: np.ndarray, picture: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """`picture` over `image`, (H, W, 3) uint8, as much of it as `shown` says, (H, W) in 0..1."""
    share = shown[..., None]
    return np.rint(image * (1 - share) + picture * share).astype(np.uint8)


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image at another size, by bicubic interpolation."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BICUBIC))


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the known one that is meant, or all of them."""
    close = difflib.get_close_matches(str(name), known, n=1)
    choices = f"expected one of {sorted(known)}" if known else "it has none"
    return f"; did you mean {close[0]!r}? ({choices})" if close else f"; {choices}"
