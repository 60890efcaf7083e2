"""Corruptions that take the object out and fill its place: from the surroundings, or by a generative model."""

from typing import Any

import numpy as np
from PIL import Image

from .pixels import resized

METHODS = ("navier-stokes", "telea")


def opencv(what: str) -> Any:
    """OpenCV, on one thread: a training's loader has its own processes.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError(f'{what} needs OpenCV: pip install "mfpo_trl[inpaint]"') from error
    cv2.setNumThreads(0)
    return cv2


def inpaint(
    image: np.ndarray,
    region: np.ndarray,
    rng: np.random.Generator,
    *,
    method: str = "navier-stokes",
    radius: float = 3.0,
    resolution: int | None = None,
) -> np.ndarray:
    """The region filled from what surrounds it: the object is gone, and no noise shows that something was done.

    Args:
        method: `navier-stokes`, which is smooth, or `telea`.
        radius: of the neighbourhood that a filled pixel is made of, in pixels at `resolution`.
        resolution: shorter side, in pixels, at which the model sees the image and at which the region is filled; a larger
            image's filling is enlarged. None: at the image's own size.

    Raises:
        ValueError: an unknown method, a radius or a resolution out of range, or a region that covers the whole image.
        ImportError: OpenCV is not installed.

    Source: Bertalmio et al., "Navier-Stokes, fluid dynamics, and image and video inpainting" (2001); Telea, "An image inpainting
    technique based on the fast marching method" (2004).
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected {METHODS[0]!r} or {METHODS[1]!r}")
    if isinstance(radius, bool) or not isinstance(radius, int | float) or not 0 < radius <= 100:
        raise ValueError(f"the radius is a number of pixels, above 0 and at most 100, found {radius!r}")
    if resolution is not None and not (isinstance(resolution, int) and resolution > 0):
        raise ValueError(f"the resolution of inpaint is a number of pixels above 0, found {resolution!r}")
    if region.all():
        raise ValueError("the region covers the whole image; nothing is left for inpaint to fill it from")
    height, width = region.shape
    scale = min(1.0, resolution / min(height, width)) if resolution else 1.0
    small, hole = image, region
    if scale < 1:
        h, w = max(1, round(height * scale)), max(1, round(width * scale))
        # A pixel that holds any of the region is filled, so that nothing of the object bleeds into its surroundings.
        hole = np.asarray(Image.fromarray(region.astype(np.float32)).resize((w, h), Image.Resampling.BOX)) > 0
        small = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BOX))
    if hole.all():
        raise ValueError(
            "the region leaves nothing of the image at the model's resolution for inpaint to fill it from"
        )
    cv2 = opencv("inpaint")
    flag = cv2.INPAINT_TELEA if method == "telea" else cv2.INPAINT_NS
    filled = cv2.inpaint(np.ascontiguousarray(small), hole.astype(np.uint8), float(radius), flag)
    return resized(filled, height, width) if scale < 1 else filled


BUILT_ONLY = "pictures of a generative model are made once, by mfpo build --corruption generate --materialize"


def generate(
    image: np.ndarray,
    region: np.ndarray,
    rng: np.random.Generator,
    *,
    model: str = "stable-diffusion-v1-5/stable-diffusion-inpainting",
    prompt: str = "empty background",
    negative_prompt: str = "{phrase}",
    num_inference_steps: int = 30,
    guidance_scale: float = 7.5,
) -> np.ndarray:
    """Refuses: `mfpo build --materialize` makes these pictures (`mfpo_trl.data.editing.Inpainter`), and a training reads them.

    Args:
        model: an inpainting pipeline of diffusers, an id on the Hub or a folder.
        prompt, negative_prompt: what is to be in the region and what is not; `{phrase}` stands for the phrases of the region.
        num_inference_steps: of denoising.
        guidance_scale: of the classifier-free guidance.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"generate cannot be made here: {BUILT_ONLY}")
