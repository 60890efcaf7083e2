"""At which resolution a processor hands an image to its model."""

import math
from collections.abc import Callable
from functools import partial

from transformers import ProcessorMixin

PIXEL_BUDGET = 4096
"""A `longest_edge` above this is a number of pixels (the Qwen-VL convention), not the length of a side."""


def model_resolution(processor: ProcessorMixin) -> Callable[[int, int], int] | None:
    """From an image's (height, width) to the shorter side, in pixels, at which the processor hands it to the model; None
    where the processor does not say."""
    size = dict(getattr(getattr(processor, "image_processor", None), "size", None) or {})
    longest, shortest = size.get("longest_edge"), size.get("shortest_edge")
    if longest and longest > PIXEL_BUDGET:
        return partial(_side_within_pixels, longest)
    if longest and not shortest:
        return partial(_side_beside_longest, longest)
    shortest = shortest or min(size.get("height") or 0, size.get("width") or 0)
    return partial(_fixed_side, shortest) if shortest else None


def _fixed_side(side: int, height: int, width: int) -> int:
    return side


def _side_beside_longest(longest: int, height: int, width: int) -> int:
    return max(1, round(longest * min(height, width) / max(height, width)))


def _side_within_pixels(pixels: int, height: int, width: int) -> int:
    return max(1, round(min(height, width) * min(1.0, math.sqrt(pixels / (height * width)))))
