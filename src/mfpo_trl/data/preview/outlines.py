"""Pictures at the size at which they are shown, with the borders of their regions drawn on them."""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

COLOURS = ("#e6194b", "#42d4f4", "#ffe119", "#f032e6", "#3cb44b", "#f58231", "#4363d8", "#b07aff")

# All in pixels.
PICTURE = (340, 300)
OUTLINE, THIN = 3, 60


@functools.lru_cache
def typeface(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, the same on every machine, at `size` pixels."""
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont), "a size asks for the font with outlines"
    return font


def fitted(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height at which a picture fills its place on the sheet, its aspect ratio kept, 1 pixel at least."""
    scale = min(PICTURE[0] / size[0], PICTURE[1] / size[1])
    width, height = (max(1, min(most, round(side * scale))) for side, most in zip(size, PICTURE, strict=True))
    return width, height


def displayed(image: Image.Image) -> Image.Image:
    """The picture at the size of `fitted`; pixels of small ones are enlarged to squares, not blurred."""
    size = fitted(image.size)
    smaller = size[0] < image.width or size[1] < image.height
    return image.resize(size, Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST)


def display_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) bool at width and height `size`; a smaller one marks every pixel that holds a marked one."""
    for axis, length in ((0, size[1]), (1, size[0])):
        before = mask.shape[axis]
        if length < before:
            mask = np.logical_or.reduceat(mask, np.arange(length) * before // length, axis=axis)
        else:
            mask = mask.take((2 * np.arange(length) + 1) * before // (2 * length), axis=axis)
    return mask


def outlined(picture: Image.Image, masks: Sequence[np.ndarray]) -> Image.Image:
    """A copy of the picture with every region's border in its colour, between dark lines, and its number on it.

    Where borders of several regions meet, their colours alternate. The colour covers the region's outermost `OUTLINE`
    pixels, 1 where the picture is a strip.

    Args:
        picture: RGB.
        masks: one (H, W) bool a region, of the picture's size; its colour is that of its place in `COLOURS`.
    """
    if not masks:
        return picture.copy()
    pixels = np.array(picture)
    bands = []
    # Three pixels and a dark line inside would hide what a strip shows.
    thickness = OUTLINE if min(picture.size) >= THIN else 1
    for mask in masks:
        inner = mask
        for _ in range(thickness):
            inner = _eroded(inner)
        bands.append(mask & ~inner)
        pixels[_grown(mask, False) & ~mask] = 0
        if thickness == OUTLINE:
            pixels[inner & ~_eroded(inner)] = 0
    down, across = np.arange(pixels.shape[0])[:, None], np.arange(pixels.shape[1])
    turn = (down + across) // 8 % np.maximum(np.sum(bands, axis=0), 1)
    rank = np.zeros(pixels.shape[:2], dtype=int)
    for n, band in enumerate(bands):
        pixels[band & (rank == turn)] = _rgb(n)
        rank += band
    result = Image.fromarray(pixels)
    _number(result, masks)
    return result


def _grown(mask: np.ndarray, outside: bool) -> np.ndarray:
    padded = np.pad(mask, 1, constant_values=outside)
    return mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def _eroded(mask: np.ndarray) -> np.ndarray:
    """Beyond the picture's edge there is no region, so that a border on the edge is drawn too."""
    return ~_grown(~mask, True)


def _number(picture: Image.Image, masks: Sequence[np.ndarray]) -> None:
    """A region's number goes to an end of its border where it covers no other number; without such a place it is left
    out, and the colour tells the region."""
    draw, font, height = ImageDraw.Draw(picture), typeface(13), 17
    taken: list[tuple[int, int, int]] = []
    for n, mask in enumerate(masks):
        width = int(font.getlength(str(n + 1))) + 8
        ys, xs = np.nonzero(mask)
        ends = [np.lexsort(keys)[place] for place in (0, -1) for keys in ((xs, ys), (ys, xs))]
        for end in ends:
            left, top = min(int(xs[end]), picture.width - width), min(int(ys[end]), picture.height - height)
            if min(left, top) < 0 or any(
                left < a + w and a < left + width and top < b + height and b < top + height for a, b, w in taken
            ):
                continue
            taken.append((left, top, width))
            red, green, blue = colour = _rgb(n)
            ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"
            draw.rectangle((left, top, left + width - 1, top + height - 1), fill=colour, outline="black")
            draw.text((left + width / 2, top + height / 2), str(n + 1), fill=ink, font=font, anchor="mm")
            break


def _rgb(position: int) -> tuple[int, int, int]:
    red, green, blue = ImageColor.getrgb(COLOURS[position % len(COLOURS)])[:3]
    return red, green, blue
