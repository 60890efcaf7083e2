"""How an object is replaced in a picture (`build_editor`): by another row's object, by a generative model, or by a function.

A function of yours gets `(image, region, old, new, rng)`: an RGB picture, the region (H, W) of bools, both phrases and a
`numpy.random.Generator`. It returns the edited picture, of the same size, or `(picture, region)` with the region of the new object.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ...images import blended, bounds, inpaint, resized, soft_edge
from ..editing import Inpainter
from ..plugin import plugged
from .words import Left, article, is_plural

Edited = tuple[Image.Image, np.ndarray]
"""The picture, and where the new object is in it, (H, W) bool."""

BORDER = 0.06
"""Of the soft edge of a transplanted object, as a share of the shorter side of its bounds."""

EDITORS = ("transplant", "generate")


class Editor(Protocol):
    """Replaces an object of a picture."""

    def __call__(
        self, image: Image.Image, region: np.ndarray, old: str, new: str, rng: np.random.Generator, example: Any
    ) -> Edited:
        """The edited picture; `example` shows the new object, (picture, mask), and is None where nothing does.

        Raises:
            Left: it cannot be done.
        """
        ...


def transplant(
    image: Image.Image, region: np.ndarray, old: str, new: str, rng: np.random.Generator, example: Any
) -> Edited:
    """The example's object, cut along its mask, scaled into the bounds of the old one and blended over its filled place.

    Raises:
        Left: there is no example.
        ImportError: OpenCV is not installed.
    """
    if example is None:
        raise Left("no example of the replacement to transplant")
    pixels = np.asarray(image)
    filled = np.where(region[..., None], inpaint(pixels, region, rng, resolution=336), pixels)
    rows, columns = bounds(region)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    other, mask = np.asarray(example[0]), example[1]
    own = bounds(mask)
    h, w = own[0].stop - own[0].start, own[1].stop - own[1].start
    scale = min(height / h, width / w)
    h, w = max(1, round(h * scale)), max(1, round(w * scale))
    # On the ground on which the old one stood, in its middle.
    top, left = rows.stop - h, columns.start + (width - w) // 2
    place = np.zeros_like(region)
    place[top : top + h, left : left + w] = np.asarray(
        Image.fromarray(mask[own]).resize((w, h), Image.Resampling.NEAREST)
    )
    if not place.any():
        raise Left("the example is too thin to be transplanted")
    picture = filled.copy()
    picture[top : top + h, left : left + w] = resized(other[own], h, w)
    made = blended(filled, picture, soft_edge(place, BORDER * min(h, w)))
    return Image.fromarray(made.astype(np.uint8)), place


class Generated:
    """The replacement, put into the region by an inpainting pipeline.

    Args:
        fill: the pipeline.
        options: of a call of it. In `prompt` and `negative_prompt`, `{phrase}` stands for the replacement with its article, and `{old}`
            for what was there; by default they are these two.
    """

    def __init__(self, fill: Inpainter, options: Mapping[str, Any]):
        self.fill, self.options = fill, {"prompt": "{phrase}", "negative_prompt": "{old}", **options}

    def __call__(
        self, image: Image.Image, region: np.ndarray, old: str, new: str, rng: np.random.Generator, example: Any
    ) -> Edited:
        """See `Editor`."""
        named = new if is_plural(new) else f"{article(new)} {new}"
        texts = {
            name: self.options[name].replace("{phrase}", named).replace("{old}", old)
            for name in ("prompt", "negative_prompt")
        }
        return self.fill(image, region, rng, **{**self.options, **texts}), region


class Plugged:
    """A function from outside of this package; the module's docstring says what it gets and may return.

    Raises:
        ValueError: there is no such function.
    """

    def __init__(self, name: str):
        self.function = plugged(name, "editor", f"{', '.join(EDITORS)}, or package.module:function")
        self.name = name

    def __call__(
        self, image: Image.Image, region: np.ndarray, old: str, new: str, rng: np.random.Generator, example: Any
    ) -> Edited:
        """See `Editor`.

        Raises:
            ValueError: what the function returned has not the promised form.
        """
        found = self.function(image.copy(), region.copy(), old, new, rng)
        made, place = found if isinstance(found, tuple) and len(found) == 2 else (found, region)
        if not isinstance(made, Image.Image) or made.size != image.size:
            size = f" of {made.size}" if isinstance(made, Image.Image) else ""
            raise ValueError(f"{self.name} returned a {type(made).__name__}{size}; expected a picture of {image.size}")
        place = np.asarray(place)
        if place.shape != region.shape or not place.any():
            raise ValueError(
                f"{self.name} returned a region of shape {place.shape}; expected {region.shape}, not empty"
            )
        return made.convert("RGB"), place > 0


def build_editor(name: str, fill: Inpainter | None = None, options: Mapping[str, Any] | None = None) -> Editor:
    """The editor of that name.

    Args:
        name: one of `EDITORS`, or "package.module:function".
        fill, options: of `generate`.

    Raises:
        ValueError: there is none of that name.
    """
    if name == "generate":
        assert fill is not None
        return Generated(fill, options or {})
    return transplant if name == "transplant" else Plugged(name)
