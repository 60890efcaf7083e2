"""What a preference row is: its columns, its errors, its identity, and an image as a viewer shows it."""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

ROW_NUMBER = "row_number"
"""Where the position in the data set travels with a row, so that an error can name it."""

REFERENCE = "ref_rows"
"""Where the place of a row in the table of cached reference values travels with it (`mfpo_trl.reference.references.References`)."""

IMAGE_COLUMNS = ("image", "images", "rejected_image", "rejected_images")
"""Further dispreferred images lie in `rejected_image_2` or `rejected_images_2`, and so on."""

IMAGE_COLUMN = re.compile(r"images?|rejected_images?(_([2-9]|[1-9]\d))?")

RECIPE = "corruption"
"""The column that says how a row's dispreferred images are made; `mfpo build` writes it."""

PREFIX = "answer_prefix"
"""The column of a begun answer, a text that both answers go on from; empty in a row whose answers begin at their beginning."""

VERDICTS = ("present", "absent", "uncertain")
"""What a verifier says of a claim in an answer (`mfpo pairs`); an uncertain claim decides nothing."""

COLUMNS = (
    "prompt",
    PREFIX,
    "chosen",
    "rejected",
    *IMAGE_COLUMNS,
    "key_regions",
    RECIPE,
    "tools",
    "chat_template_kwargs",
    ROW_NUMBER,
)
"""The columns that the collator reads; every other one is dropped before the rows are fetched."""

SMALLEST_SIDE = 4
"""Image processors take an array of 1 or 3 pixels in height for one whose channels come first."""


class RowError(ValueError):
    """A row of the data that cannot be used."""


def row_error(row: Mapping[str, Any], field: str, problem: str) -> RowError:
    """An error that says which row, which field and what is wrong, for the caller to raise."""
    return RowError(f"{row_name(row)}, field {field!r}: {problem}")


def row_name(row: Mapping[str, Any]) -> str:
    """The row's number where it is known, and the beginning of its prompt."""
    number = f"row {row[ROW_NUMBER]}" if row.get(ROW_NUMBER) is not None else "a row"
    text = " ".join(plain_text(row.get("prompt")).split())
    return f"{number} (prompt {text[:60] + ('…' if len(text) > 60 else '')!r})" if text else number


def plain_text(value: Any) -> str:
    """The words of a prompt or an answer, in TRL's plain or conversational form, without roles or image parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return plain_text(value.get("content") if "content" in value else value.get("text"))
    if isinstance(value, Sequence):
        return "\n".join(filter(None, map(plain_text, value)))
    return ""


def same_answer(row: Mapping[str, Any]) -> bool:
    """Whether `chosen` and `rejected` say the same; tool calls count, None-filled keys do not."""
    return without_none(row["chosen"]) == without_none(row["rejected"])


def check_answers(row: Mapping[str, Any], names: Sequence[str] = ("chosen", "rejected")) -> None:
    """Refuse a row whose answers are missing or say nothing.

    Raises:
        RowError: names the row and the field.
    """
    for field in names:
        if row.get(field) is None:
            if field not in ("chosen", "rejected"):
                raise row_error(row, field, "is missing; the objective reads this answer in every row")
            raise row_error(row, field, "is missing; a preference row needs both 'chosen' and 'rejected'")
        messages = not isinstance(row[field], str)
        if messages and not (isinstance(row[field], Sequence) and all(isinstance(m, Mapping) for m in row[field])):
            raise row_error(row, field, f"is {str(row[field])[:60]!r}; expected a string or a list of messages")
        if not plain_text(row[field]).strip() and not _calls_tools(row[field]):
            raise row_error(row, field, "is empty; there is no token to score")


def _calls_tools(messages: Any) -> bool:
    return not isinstance(messages, str) and any(isinstance(m, Mapping) and m.get("tool_calls") for m in messages)


def image_list(row: Mapping[str, Any], singular: str) -> list[Any] | None:
    """The undecoded images of `singular` (one) or its plural column (a list); None when the row has neither. The plural of
    `rejected_image_2` is `rejected_images_2`.

    Raises:
        ValueError: both columns are filled, or the plural one holds no list.
    """
    plural = plural_of(singular)
    one, many = row.get(singular), row.get(plural)
    if one is not None and many:
        raise row_error(row, plural, f"the row also has {singular!r}; fill one of the two")
    if one is not None:
        return [one]
    if many is None:
        return None
    if isinstance(many, str | bytes | Mapping) or not isinstance(many, Sequence):
        raise row_error(row, plural, f"is a {type(many).__name__}; expected a list of images")
    return list(many)


def image_columns(names: Iterable[str]) -> list[str]:
    """Which of these columns hold images: of a row itself, or its dispreferred ones, of every number."""
    return sorted(name for name in names if IMAGE_COLUMN.fullmatch(name))


def plural_of(singular: str) -> str:
    """`image` -> `images`, `rejected_image_2` -> `rejected_images_2`"""
    name, _, number = singular.rpartition("_")
    return f"{name}s_{number}" if number.isdigit() else f"{singular}s"


def dispreferred_column(variant: int) -> str:
    """The column of a row's dispreferred image of this number, from 1; for a list of them, `plural_of` it."""
    return "rejected_image" if variant == 1 else f"rejected_image_{variant}"


def load_images(row: Mapping[str, Any], singular: str) -> list[Image.Image] | None:
    """The row's images as RGB pictures; None when the row has no such column.

    Raises:
        ValueError: an image that cannot be read, naming the row and the field.
    """
    images = image_list(row, singular)
    if images is None:
        return None
    field = singular if row.get(singular) is not None else plural_of(singular)
    return [_load(row, field, n, image) for n, image in enumerate(images)]


def _load(row: Mapping[str, Any], field: str, position: int, value: Any) -> Image.Image:
    try:
        return to_rgb(value)
    except (OSError, ValueError, SyntaxError, TypeError, RuntimeError, Image.DecompressionBombError) as error:
        from_here = isinstance(error, FileNotFoundError) and not os.path.isabs(str(error.filename or os.sep))
        hint = "; a relative path is one from the working directory" if from_here else ""
        raise row_error(row, field, f"image {position} cannot be read: {error}{hint}") from error


def to_rgb(value: Any) -> Image.Image:
    """An image as a viewer shows it: first frame, EXIF orientation applied, transparency over white, 16 bits scaled to
    8, in RGB.

    Args:
        value: a PIL image, an array (H, W), (H, W, 3) or (H, W, 4) uint8, the bytes of a file, a local path, or the
            `{"bytes", "path"}` of `datasets`.

    Raises:
        ValueError: a value that is no image, or a URL.
        OSError: a file that is missing, empty or cut off.
    """
    image = _opened(value)
    # Decoding here, not later, is what makes a truncated file fail with its row's name.
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(paper, picture).convert("RGB")
    # `exif_transpose` has made a copy already.
    return image if image.mode == "RGB" else image.convert("RGB")


def _opened(value: Any) -> Image.Image:
    if isinstance(value, Mapping):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, np.ndarray):
        return Image.fromarray(value)
    if isinstance(value, bytes):
        if not value:
            raise ValueError("the file is empty (0 bytes)")
        return Image.open(io.BytesIO(value))
    if isinstance(value, str | Path):
        if "://" in str(value):
            raise ValueError(f"{str(value)[:80]!r} is a URL; download the images first")
        return Image.open(value)
    raise ValueError(f"expected an image, its bytes or its path, found {type(value).__name__}")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of more than 8 bits to 8: 16 bits by their upper byte, fractions in [0, 1] by 255."""
    values = np.asarray(image)
    if np.issubdtype(values.dtype, np.floating):
        values = values * 255 if values.max(initial=0) <= 1 else values
    elif values.max(initial=0) > 255 or image.mode.startswith("I;16"):
        values = values // 256
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def enlarged(image: Image.Image) -> Image.Image:
    """The image itself, or, when a side is under 4 pixels, the same picture with every pixel enlarged to a square."""
    factor = -(-SMALLEST_SIDE // min(image.size))
    if factor == 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def without_none(value: Any) -> Any:
    """Drop the keys that parquet filled with None because another row or message has them."""
    if isinstance(value, Mapping):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_none(item) for item in value]
    return value


def row_generator(digest: bytes, seed: int, purpose: str, position: int = 0) -> np.random.Generator:
    """A random generator that depends on what the row shows and asks, never on its place, worker or rank.

    Args:
        digest: `row_digest` of the row.
        seed: `corruption_seed`.
        purpose, position: keep the streams of one row apart, for example those of its second image.
    """
    return np.random.default_rng([seed % 2**64, *_words(digest), *_words(purpose), position])


def row_digest(prompt: Any, images: Sequence[Image.Image]) -> bytes:
    """16 bytes that name a row by its prompt's content and its RGB images' pixels.

    The answers are left out: pairs on the same image and prompt get the same dispreferred image wherever they have the
    same region, and can share its forward.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(without_none(prompt), sort_keys=True, default=_nothing).encode())
    for image in images:
        digest.update(repr(image.size).encode())
        digest.update(image.tobytes())
    return digest.digest()


def _nothing(value: Any) -> str:
    """Images inside of messages are already counted by their pixels."""
    return ""


def _words(data: bytes | str) -> list[int]:
    data = hashlib.blake2b(data.encode(), digest_size=8).digest() if isinstance(data, str) else data
    return [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
