"""A row's image and its dispreferred one in one prompt, which says which of the two is asked about."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ..objective import POSITION
from ..rows import row_digest, row_generator


def own_image_first(row: Mapping[str, Any], images: Sequence[Image.Image]) -> bool:
    """Whether the row's own image stands before the dispreferred one: drawn from the row's prompt and image, so that a model cannot
    learn the place in stead of the picture, and every branch, epoch and process sees the same order."""
    return bool(row_generator(row_digest(row.get("prompt"), images), 0, "order of both images").integers(2))


def instruction_for(own: bool, own_first: bool, instruction: str) -> str:
    """The sentence for one of the two images.

    Args:
        own: whether the row's own image is meant.
        own_first: whether that is the first of the two.
        instruction: with `{position}` where it says which.
    """
    return instruction.replace(POSITION, "first" if own == own_first else "second")


def asked_of_both(messages: Sequence[Mapping[str, Any]], images: Sequence[Image.Image], sentence: str) -> list[Any]:
    """Messages with two images in place of one, and the sentence behind the last question.

    Args:
        messages: of parts, with one image part.
        images: the two, in their order.
        sentence: says which of them is meant.
    """
    found = []
    for message in messages:
        parts: list[Any] = []
        for part in message.get("content") or []:
            parts += [{"type": "image", "image": own} for own in images] if part["type"] == "image" else [part]
        found.append({**message, "content": parts} if parts else message)
    last = next(message for message in reversed(found) if message["role"] == "user")
    text = next((part for part in reversed(last["content"]) if part["type"] == "text"), None)
    said = {"type": "text", "text": f"{text['text']} {sentence}" if text else sentence}
    last["content"] = [said if part is text else part for part in last["content"]] + ([] if text else [said])
    return found


def asked_of_both_in_text(prompt: str, place: "re.Pattern[str]", sentence: str) -> str:
    """A plain prompt with places for two images where it has one, and the sentence right behind them: what follows may already be
    the model's turn."""

    def doubled(match: re.Match[str]) -> str:
        one = match[0].removesuffix("\n")
        return f"{one}{one} {sentence}{match['end'] or ' '}"

    return place.sub(doubled, prompt)
