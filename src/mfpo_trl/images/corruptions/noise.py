"""Forward-diffusion noise, and the schedules by which a step says how much of it."""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch

from .pixels import bounds, nearest

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
        raise ValueError(f"unknown noise schedule {schedule!r}{nearest(schedule, SCHEDULES)}")
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
    rows, columns = bounds(region)
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
