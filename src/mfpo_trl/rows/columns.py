"""Which rows of a data set hold an image, a region or a dispreferred image, read from its columns without decoding anything."""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset


def has_image_column(dataset: Any) -> bool:
    """Whether rows have a column for images; the first row of a stream says it for all."""
    return bool({"image", "images"} & set(getattr(dataset, "column_names", None) or next(iter(dataset))))


def has_images(dataset: Any) -> bool:
    """Whether some row may hold an image; True where it cannot be known without reading the data."""
    return not is_stored(dataset) or any(batch.any() for batch in _shown(dataset, "image", "images"))


def rows_with_images(dataset: Dataset, columns: Collection[str] = ("image", "images")) -> np.ndarray:
    """The numbers of the rows that hold an image in one of these columns, read from their lengths, not from the images."""
    holds = np.zeros(len(dataset), dtype=bool)
    for column in columns:
        if batches := list(_shown(dataset, column)):
            holds |= np.concatenate(batches)
    return np.flatnonzero(holds)


def _shown(dataset: Dataset, *columns: str) -> Iterator[np.ndarray]:
    """Batch by batch, which rows hold something in a column, for each of these that is there."""
    for column in columns:
        if column in dataset.column_names and len(dataset):
            for batch in dataset.select_columns(column).with_format("arrow").iter(1000):
                yield _is_filled(batch.column(0))


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


def is_stored(dataset: Any) -> bool:
    """Whether the rows are what is stored, and not what a transform makes of it."""
    return isinstance(dataset, Dataset) and dataset.format["type"] != "custom"
