"""Which objects a caption names."""

import re

from .world import COLOURS, SHAPES

_MENTION = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")


def mentions(caption: str) -> list[str]:
    """The objects that a caption names, in its order, repeats kept."""
    return [f"{colour} {shape}" for colour, shape in _MENTION.findall(caption)]
