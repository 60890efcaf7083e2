"""Columns that hold images and that nobody reads, so that their rows would be trained as texts without a word."""

from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Image, IterableDataset
from PIL.Image import Image as Picture

from .columns import is_stored, rows_with_images
from .schema import COLUMNS

READ = ("images", "image")
"""Columns in which a trainer looks for the images of its rows."""


def check_image_columns(dataset: Any, name: str, read: Collection[str] = READ) -> None:
    """Refuse rows that would be trained as texts although a column that nobody reads holds images.

    Args:
        dataset: of rows that are not stored, the first one says it for all.
        name: how to call it in a message.
        read: the columns in which images are looked for.

    Raises:
        ValueError: names the column, and what it should be called.
    """
    if not isinstance(dataset, Dataset | IterableDataset):
        return
    features: Any = dataset.features
    if not is_stored(dataset):
        features = None if isinstance(dataset, Dataset) else features
        if features is not None and (set(read) & set(features) or not any(map(may_hold_images, features.values()))):
            return
        row: Mapping[str, Any] = next(iter(dataset if features is None else dataset.decode(False)), {})
        holding = [] if set(read) & set(row) else [own for own in row if _is_image(row[own])]
    else:
        candidates = [column for column in features if may_hold_images(features[column])]
        if not candidates or len(rows_with_images(dataset, read)):
            return
        batches = {column: dataset.select_columns(column).with_format("arrow").iter(1000) for column in candidates}
        holding = [own for own in candidates if any(_has_image(batch.column(0)) for batch in batches[own])]
    for column in sorted(holding, key=COLUMNS.__contains__):
        raise ValueError(
            f"{name}, column {column!r} holds images, and no image is read: {unread_advice(column, read)}"
        )


def unread_advice(column: str, read: Collection[str] = READ) -> str:
    """What to do about a column of images in rows of which none has an image where it is looked for."""
    if column in COLUMNS:
        return f"it goes with images of the rows themselves, in a column {next(iter(read))!r}, and none has any"
    names = (
        "'images' (a list in each row) or 'image' (a single one)" if set(READ) <= set(read) else repr(next(iter(read)))
    )
    return f"rename it to {names}, or remove it to train on texts alone"


def may_hold_images(feature: Any) -> bool:
    """Whether a feature is an image, bytes with a path, or holds one of them."""
    if isinstance(feature, Mapping):
        return {"bytes", "path"} <= set(feature) or any(map(may_hold_images, feature.values()))
    inner = getattr(feature, "feature", None)
    return isinstance(feature, Image) or (inner is not None and may_hold_images(inner))


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
