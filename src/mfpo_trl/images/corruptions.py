"""From an image to the dispreferred image: (image, region, generator) -> image, one function each.

Every function returns a picture of the image's size that is right inside of the region; `corrupt` takes that part of it
only, so that every pixel outside stays bit-identical. Images are (H, W, 3) uint8 arrays in RGB, regions (H, W) bool.
"""

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

NOISE_STEPS = 1000

USUAL_RESOLUTION = 336
"""Shorter side, in pixels, at which LLaVA-1.5 sees an image: that of the noise where no model is known."""


def _sigmoid_betas() -> torch.Tensor:
    return torch.sigmoid(torch.linspace(-6, 6, NOISE_STEPS)) * (5e-3 - 1e-5) + 1e-5


def _cosine_betas() -> torch.Tensor:
    def level(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = range(NOISE_STEPS)
    return torch.tensor([min(1 - level((i + 1) / NOISE_STEPS) / level(i / NOISE_STEPS), 0.999) for i in steps])


SCHEDULES: dict[str, Callable[[], torch.Tensor]] = {
    "vcd_sigmoid": _sigmoid_betas,
    "cosine": _cosine_betas,
    "scaled_linear": lambda: torch.linspace(0.00085**0.5, 0.012**0.5, NOISE_STEPS) ** 2,
    "linear": lambda: torch.linspace(1e-4, 0.02, NOISE_STEPS),
}
"""Noise variances beta_t of 1000 steps, (1000,) float32. `vcd_sigmoid` is that of VCD and POVID, the others are those of
improved DDPM, Stable Diffusion and DDPM; they equal diffusers' schedules of `squaredcos_cap_v2`, `scaled_linear` (0.00085
to 0.012) and `linear`. The MFPO paper names a step (500) but no schedule."""


@functools.lru_cache
def noise_level(step: int, schedule: str) -> tuple[float, float]:
    """`sqrt(abar_t), sqrt(1 - abar_t)` at a step from 0 to 999 of the named schedule.

    Raises:
        ValueError: an unknown schedule, or a step out of range.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown noise schedule {schedule!r}{_nearest(schedule, SCHEDULES)}")
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < NOISE_STEPS:
        raise ValueError(f"the noise step must be a whole number from 0 to {NOISE_STEPS - 1}, found {step!r}")
    kept = torch.cumprod(1.0 - SCHEDULES[schedule](), dim=0)[step]
    return float(kept.sqrt()), float((1.0 - kept).sqrt())


def diffusion(
    image: np.ndarray,
    region: np.ndarray,
    rng: np.random.Generator,
    *,
    step: int = 500,
    schedule: str = "vcd_sigmoid",
    resolution: int | None = None,
) -> np.ndarray:
    """Forward-diffusion noise, `sqrt(abar_t) * m + sqrt(1 - abar_t) * eps`, on pixels scaled to [-1, 1].

    Args:
        image: (H, W, 3) uint8.
        region: (H, W) bool; the picture outside of its bounding box is left as it is, which is where the time goes.
        rng: the source of `eps`.
        step: t, from 0 to 999; 500 in the paper.
        schedule: a name in `SCHEDULES`.
        resolution: shorter side, in pixels, at which the model sees the image. `eps` is drawn on that grid and enlarged
            to the image, because noise drawn for each pixel of a larger photo is averaged away by the model's
            down-sampling. None: one draw a pixel.

    Raises:
        ValueError: an unknown schedule, or a step or a resolution out of its range.

    Source: MFPO (arXiv 2410.15334), perturbation of key regions.
    """
    if resolution is not None and not (isinstance(resolution, int) and resolution > 0):
        raise ValueError(f"the noise resolution is a number of pixels above 0, found {resolution!r}")
    signal, noise = noise_level(step, schedule)
    height, width = image.shape[:2]
    scale = min(1.0, resolution / min(height, width)) if resolution else 1.0
    grid_height, grid_width = max(1, round(height * scale)), max(1, round(width * scale))
    eps = rng.standard_normal((grid_height, grid_width, 3), dtype=np.float32)
    # In grey levels, [-1, 1] is 127.5 wide on either side of 127.5: 127.5 + signal * (m - 127.5) + noise * 127.5 * eps.
    eps *= np.float32(127.5 * noise)
    eps += np.float32(127.5 * (1 - signal))
    rows, columns = _bounds(region)
    lines, places = np.arange(height)[rows] * grid_height // height, np.arange(width)[columns] * grid_width // width
    # First the columns of the few lines of the grid, then those lines as often as the image has them.
    first, last = (lines[0], lines[-1] + 1) if len(lines) else (0, 0)
    noisy = eps[first:last].take(places, axis=1).take(lines - first, axis=0)
    noisy += np.multiply(image[rows, columns], np.float32(signal), dtype=np.float32)
    np.rint(noisy, out=noisy)
    np.clip(noisy, 0, 255, out=noisy)
    picture = image.copy()
    picture[rows, columns] = noisy
    return picture


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
    return _resized(image[top : top + h, left : left + w], height, width)


def mean(image: np.ndarray, region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image's mean colour everywhere."""
    totals = [int(image[..., channel].sum(dtype=np.int64)) for channel in range(3)]
    colour = np.rint(np.array(totals) / image[..., 0].size).astype(np.uint8)
    return np.broadcast_to(colour, image.shape)


def black(image: np.ndarray, region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Black everywhere."""
    return np.zeros_like(image)


def mask(
    image: np.ndarray, region: np.ndarray, rng: np.random.Generator, *, share: float | Sequence[float] = 1.0
) -> np.ndarray:
    """The middle of the region in the image's mean colour, the rest of it as it is.

    Args:
        share: of the region's area, above 0 and up to 1; a list is one share for each of a row's dispreferred images. A larger share
            covers all that a smaller one does.

    Raises:
        ValueError: `share` is none.

    Source: LPOI (arXiv 2505.21061), which masks 25, 50, 75 and 100 % of the key object's box.
    """
    shares = [share] if isinstance(share, int | float) else list(share)
    if not shares or not all(isinstance(own, int | float) and 0 < own <= 1 for own in shares):
        raise ValueError(
            f"the share of the region must lie above 0 and up to 1, or be a list of such numbers, found {share!r}"
        )
    picture = image.copy()
    rows, columns = np.nonzero(region)
    if len(rows):
        # From the middle of the region's bounding box to its edges, in boxes of its own shape.
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        down = np.abs(2 * rows - rows.min() - rows.max()) / height
        across = np.abs(2 * columns - columns.min() - columns.max()) / width
        nearest = np.argsort(np.maximum(down, across), kind="stable")[: max(1, round(shares[0] * len(rows)))]
        picture[rows[nearest], columns[nearest]] = mean(image, region, rng)[0, 0]
    return picture


def blur(image: np.ndarray, region: np.ndarray, rng: np.random.Generator, *, sigma: float = 0.05) -> np.ndarray:
    """Gaussian blur; `sigma` is a share of the image's shorter side, so that it means the same at any size.

    Raises:
        ValueError: `sigma` is no share.
    """
    if not (isinstance(sigma, int | float) and 0 < sigma <= 1):
        raise ValueError(f"the blur's sigma is a share of the shorter side, above 0 and at most 1, found {sigma!r}")
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma * min(image.shape[:2]))))


def swap(image: np.ndarray, region: np.ndarray, rng: np.random.Generator, *, donor: np.ndarray) -> np.ndarray:
    """Another row's image, (H', W', 3) uint8, resized to this one's size."""
    return _resized(donor, *image.shape[:2])


NO_CORRUPTION = "none"
"""Make no dispreferred image: every row with an image has to bring its own."""

CORRUPTIONS: dict[str, Callable[..., np.ndarray]] = {
    "diffusion": diffusion,
    "crop": crop,
    "mean": mean,
    "black": black,
    "mask": mask,
    "blur": blur,
    "swap": swap,
}


def corrupt(
    image: np.ndarray, region: np.ndarray, rng: np.random.Generator, name: str = "diffusion", **kwargs: Any
) -> np.ndarray:
    """Corrupt an image inside a region; pixels outside are those of `image`, bit by bit.

    Args:
        image: (H, W, 3) uint8, RGB.
        region: (H, W) bool.
        rng: the only source of randomness, see `row_generator`.
        name: a name in `CORRUPTIONS`.
        kwargs: the options of that function.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        ValueError: an unknown corruption or option.
    """
    _check_options(name, kwargs)
    picture = CORRUPTIONS[name](image, region, rng, **kwargs)
    result, box = image.copy(), _bounds(region)
    np.copyto(result[box], picture[box], where=region[box][..., None])
    return result


def check_corruption(name: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse a corruption or options that cannot be used.

    Raises:
        ValueError: an unknown corruption, option or schedule, with the nearest known name, or a value that the corruption
            refuses.
    """
    _check_options(name, kwargs)
    if name == NO_CORRUPTION:
        return
    donor = {"donor": np.zeros((1, 1, 3), dtype=np.uint8)} if "donor" in corruption_defaults(name) else {}
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    try:
        CORRUPTIONS[name](image, np.ones((8, 8), dtype=bool), np.random.default_rng(0), **{**kwargs, **donor})
    except (TypeError, KeyError) as error:
        raise ValueError(f"corruption {name!r} cannot use {dict(kwargs)}: {error}") from error


def check_some_corruption(kwargs: Mapping[str, Any]) -> None:
    """Refuse options that no corruption takes.

    Raises:
        ValueError: names an unknown one's nearest, or what stands against them together.
    """
    options = {name: corruption_defaults(name) for name in CORRUPTIONS}
    known = dict.fromkeys(key for own in options.values() for key in own)
    for key in kwargs:
        if key not in known:
            raise ValueError(f"no corruption has an option {key!r}{_nearest(key, known)}")
    errors = []
    for name in (name for name, own in options.items() if set(kwargs) <= set(own)):
        try:
            return check_corruption(name, kwargs)
        except ValueError as error:
            errors.append(error)
    raise errors[0] if errors else ValueError(f"no corruption has all of the options {', '.join(kwargs)}")


def options_of_others(name: str, kwargs: Mapping[str, Any]) -> list[str]:
    """Those options that this corruption does not have and another one has.

    Raises:
        ValueError: an unknown corruption.
    """
    own = corruption_defaults(name)
    known = {key for other in CORRUPTIONS for key in corruption_defaults(other)} - {"donor"}
    return [key for key in kwargs if key in known and key not in own]


def _check_options(name: str, kwargs: Mapping[str, Any]) -> None:
    known = corruption_defaults(name)
    for key in kwargs:
        if key not in known:
            raise ValueError(f"corruption {name!r} has no option {key!r}{_nearest(key, known)}")


def corruption_defaults(name: str) -> dict[str, Any]:
    """The options of a corruption and their default values.

    Raises:
        ValueError: an unknown corruption.
    """
    if name == NO_CORRUPTION:
        return {}
    if name not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {name!r}{_nearest(name, [*CORRUPTIONS, NO_CORRUPTION])}")
    parameters = inspect.signature(CORRUPTIONS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _bounds(region: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns between which a region lies; both empty for an empty region."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    choices = f"expected one of {sorted(known)}" if known else "it has none"
    return f"; did you mean {close[0]!r}? ({choices})" if close else f"; {choices}"


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BICUBIC))
