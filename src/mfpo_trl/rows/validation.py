"""What must hold of a row's texts, and one look at the texts of a whole data set before training."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from accelerate.logging import get_logger
from datasets import Dataset, Image, IterableDataset
from PIL.Image import Image as Picture
from trl import extract_prompt

from .prefix import prefix_of, written_out
from .schema import PREFIX, ROW_NUMBER, check_answers, plain_text, row_error, same_answer, without_none

logger = get_logger(__name__)


def image_tokens(processor: Any) -> tuple[str, ...]:
    """The placeholders of an image in a processor's texts."""
    names, tokenizer = ("boi_token", "image_token"), getattr(processor, "tokenizer", None)
    tokens = (getattr(owner, name, None) for owner in (processor, tokenizer) for name in names)
    return tuple(dict.fromkeys(token for token in tokens if isinstance(token, str)))


AROUND = ("boi_token", "eoi_token", "vision_start_token", "vision_end_token", "vision_bos_token", "vision_eos_token")
"""A processor's names of what stands before and behind an image in a plain prompt."""
UNNAMED = ("<|vision_start|>", "<|vision_end|>")
"""The same of Qwen2-VL and Qwen2.5-VL, whose processors have no names for them."""


def image_places(processor: Any) -> "re.Pattern[str] | None":
    """The place of one image in a plain prompt, with what stands around it and the line break behind it, which is the group
    `end`; None for a processor without placeholders."""
    around = [*UNNAMED, *(getattr(processor, name, None) for name in AROUND)]
    wrapped = "|".join(re.escape(own) for own in around if isinstance(own, str))
    images = "|".join(re.escape(own) for own in image_tokens(processor))
    return re.compile(rf"(?:{wrapped})?(?:{images})(?:{wrapped})?(?P<end>\n?)") if images else None


def checked_texts(
    row: Mapping[str, Any], placeholders: Sequence[str] = (), further: Sequence[str] = ()
) -> dict[str, Any]:
    """The row's `prompt`, `chosen` and `rejected`, and further answers by the names of their columns, with the prompt taken out of the answers of a row that has no `prompt`.

    Args:
        row: a preference row, plain or conversational.
        placeholders: of an image, see `image_tokens`.
        further: columns of answers beside the two.

    Raises:
        ValueError: a text that is missing or empty, a begun answer that is none, or a placeholder where the processor would put an image that is not
            meant there.
    """
    check_answers(row)
    texts = {name: without_none(row[name]) for name in ("chosen", "rejected")}
    if "prompt" in row:
        if not row["prompt"]:
            raise row_error(row, "prompt", "is empty; there is nothing to answer")
        texts["prompt"] = without_none(row["prompt"])
    else:
        shorter, longer = sorted((row["chosen"], row["rejected"]), key=len)
        if isinstance(shorter, str) and longer.startswith(shorter):
            problem = "and 'rejected' begin alike to the end of one, and without 'prompt' its end cannot be told"
            raise row_error(row, "chosen", problem)
        texts = extract_prompt(texts)
        if not texts["prompt"]:
            raise row_error(row, "chosen", "shares no prompt with 'rejected', and the row has no 'prompt'")
        check_answers({**row, **texts})
    check_answers(row, further)
    texts |= {name: without_none(row[name]) for name in further}
    written_out(row, texts, [name for name in texts if name != "prompt"])
    for name, value in texts.items():
        if not isinstance(value, str) and not all("role" in message for message in value):
            raise row_error(row, name, "has a message without a 'role'")
    for token in placeholders:
        for name in ("prompt", "chosen", "rejected", *further):
            # A plain prompt is taken as it stands, and says itself where its images go.
            if token in plain_text(texts[name]) and not (name == "prompt" and isinstance(texts[name], str)):
                why = "the chat template puts the images in" if name == "prompt" else "an answer cannot hold an image"
                raise row_error(row, name, f"holds a literal {token!r} in its text; remove it, {why}")
        if token in prefix_of(row):
            raise row_error(
                row, PREFIX, f"holds a literal {token!r} in its text; remove it, an answer cannot hold an image"
            )
    return texts


def check_dataset(dataset: Any, name: str, placeholders: Sequence[str] = ()) -> None:
    """Look at the texts of every row.

    Images, regions and lengths are checked when a row is collated.

    Args:
        dataset: anything; only a `datasets.Dataset` without a transform is read, the rows of others are checked as they
            come.
        name: how to call it in a message.
        placeholders: of an image, see `image_tokens`.

    Raises:
        ValueError: no rows, no `chosen` or `rejected` column, `images` that is no list, or a row whose texts cannot be used.
    """
    if not isinstance(dataset, Dataset):
        return
    if not len(dataset):
        raise ValueError(f"{name} has no rows")
    if not is_stored(dataset):
        return
    missing = [column for column in ("chosen", "rejected") if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"{name} has no column {missing[0]!r}, only {dataset.column_names}; a preference row needs 'prompt', 'chosen' "
            "and 'rejected'"
        )
    for column in ("images", "rejected_images"):
        if isinstance(dataset.features.get(column), Image):
            raise ValueError(f"{name}: {column!r} must hold a list of images; call a single image {column[:-1]!r}")
    equal = []
    for number, row in enumerate(_texts(dataset)):
        try:
            checked_texts({**row, ROW_NUMBER: number}, placeholders)
        except ValueError as error:
            raise ValueError(f"{name}, {error}") from None
        if same_answer(row):
            equal.append(number)
    if equal:
        logger.warning(
            f"{name}: 'chosen' equals 'rejected' in {len(equal)} of {len(dataset)} rows (the first is row {equal[0]}). "
            "They are kept; their text term teaches nothing."
        )


def check_image_columns(dataset: Any, name: str) -> None:
    """Refuse rows that would be trained as texts although a column that nobody reads holds images.

    Args:
        dataset: of rows that are not stored, the first one says it for all.
        name: how to call it in a message.

    Raises:
        ValueError: names the column, and what it should be called.
    """
    if not isinstance(dataset, Dataset | IterableDataset):
        return
    features: Any = dataset.features
    if not is_stored(dataset):
        features = None if isinstance(dataset, Dataset) else features
        if features is not None and (
            {"image", "images"} & set(features) or not any(map(_may_hold_images, features.values()))
        ):
            return
        row: Mapping[str, Any] = next(iter(dataset if features is None else dataset.decode(False)), {})
        holding = [] if {"image", "images"} & set(row) else [own for own in row if _is_image(row[own])]
    else:
        candidates = [column for column in features if _may_hold_images(features[column])]
        if not candidates or len(rows_with_images(dataset)):
            return
        batches = {column: dataset.select_columns(column).with_format("arrow").iter(1000) for column in candidates}
        holding = [own for own in candidates if any(_has_image(batch.column(0)) for batch in batches[own])]
    for column in holding:
        raise ValueError(
            f"{name}, column {column!r} holds images, and no image is read: rename it to 'images' (a list in each row) or 'image' "
            "(a single one), or remove it to train on texts alone"
        )


def _may_hold_images(feature: Any) -> bool:
    """Whether a feature is an image, bytes with a path, or holds one of them."""
    if isinstance(feature, Mapping):
        return {"bytes", "path"} <= set(feature) or any(map(_may_hold_images, feature.values()))
    inner = getattr(feature, "feature", None)
    return isinstance(feature, Image) or (inner is not None and _may_hold_images(inner))


def _has_image(values: Any) -> bool:
    """Whether an array of Arrow holds a struct of bytes and path that is filled."""
    if isinstance(values, pa.ChunkedArray):
        # One by one, because together they would be copied, with the bytes of their images.
        return any(map(_has_image, values.chunks))
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        return _has_image(values.flatten())
    if not pa.types.is_struct(values.type):
        return False
    # A field taken by itself would not know of the rows in which the whole struct is missing.
    parts = dict(zip((own.name for own in values.type), values.flatten(), strict=True))
    if {"bytes", "path"} <= set(parts):
        return bool(pc.any(pc.or_(pc.is_valid(parts["bytes"]), pc.is_valid(parts["path"]))).as_py())
    return any(map(_has_image, parts.values()))


def _is_image(value: Any) -> bool:
    """Whether a value of a row is an image, or holds one."""
    if isinstance(value, Mapping):
        return {"bytes", "path"} <= set(value) or any(map(_is_image, value.values()))
    return isinstance(value, Picture) or (isinstance(value, list) and any(map(_is_image, value)))


def has_image_column(dataset: Any) -> bool:
    """Whether rows have a column for images; the first row of a stream says it for all."""
    return bool({"image", "images"} & set(getattr(dataset, "column_names", None) or next(iter(dataset))))


def has_images(dataset: Any) -> bool:
    """Whether some row may hold an image; True where it cannot be known without reading the data."""
    return not is_stored(dataset) or bool(len(rows_with_images(dataset)))


def rows_with_images(dataset: Dataset) -> np.ndarray:
    """The numbers of the rows that hold an image, read from the columns' lengths, not from the images."""
    holds = np.zeros(len(dataset), dtype=bool)
    for column in {"image", "images"} & set(dataset.column_names) if len(dataset) else ():
        batches = dataset.select_columns(column).with_format("arrow").iter(1000)
        values = [_is_filled(batch.column(0)) for batch in batches]
        holds |= np.concatenate(values)
    return np.flatnonzero(holds)


def rows_without_regions(dataset: Dataset) -> int:
    """How many rows with an image have neither `key_regions` nor dispreferred images of their own."""
    return int(rows_to_corrupt_whole(dataset).sum())


def rows_to_corrupt_whole(dataset: Dataset) -> np.ndarray:
    """Which rows have an image, and neither `key_regions` nor dispreferred images of their own, (rows,) bool."""
    return _with_image_but_without(dataset, {"key_regions", "rejected_image", "rejected_images"})


def rows_to_corrupt(dataset: Dataset) -> np.ndarray:
    """Which rows have an image and no dispreferred one of their own, (rows,) bool."""
    return _with_image_but_without(dataset, {"rejected_image", "rejected_images"})


def _with_image_but_without(dataset: Dataset, columns: set[str]) -> np.ndarray:
    """Which rows hold an image, and nothing in these columns, (rows,) bool."""
    bare = np.zeros(len(dataset), dtype=bool)
    bare[rows_with_images(dataset)] = True
    for column in columns & set(dataset.column_names):
        batches = dataset.select_columns(column).with_format("arrow").iter(1000)
        bare &= ~np.concatenate([_holds_anything(batch.column(0)) for batch in batches])
    return bare


def _holds_anything(values: pa.ChunkedArray) -> np.ndarray:
    """Whether a row's list holds something other than empty lists."""
    array = values.combine_chunks()
    if not (pa.types.is_list(array.type) and pa.types.is_list(array.type.value_type)):
        return _is_filled(values)
    parents, inner = pc.list_parent_indices(array), pc.fill_null(pc.list_value_length(array.flatten()), 0)
    return np.bincount(parents.to_numpy(), weights=inner.to_numpy() > 0, minlength=len(array)) > 0


def _is_filled(values: pa.ChunkedArray) -> np.ndarray:
    filled = pc.is_valid(values)
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        filled = pc.fill_null(pc.greater(pc.list_value_length(values), 0), False)
    return filled.to_numpy(zero_copy_only=False) if isinstance(filled, pa.Array) else filled.to_numpy()


def _texts(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The texts of the rows one by one, read in batches, which is several times faster."""
    texts = dataset.select_columns([c for c in ("prompt", PREFIX, "chosen", "rejected") if c in dataset.column_names])
    for batch in texts.iter(1000):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def is_stored(dataset: Any) -> bool:
    """Whether the rows are what is stored, and not what a transform makes of it."""
    return isinstance(dataset, Dataset) and dataset.format["type"] != "custom"
