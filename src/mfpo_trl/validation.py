"""A map-style data set is read through once before training: what a row would break in hours from now is said at once."""

from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc
from accelerate.logging import get_logger
from datasets import Dataset

from .rows import ROW_NUMBER, check_answers, plain_text

logger = get_logger(__name__)


def check_dataset(dataset: Any, name: str) -> None:
    """Look at the texts of every row.

    Args:
        dataset: anything; only a `datasets.Dataset` without a transform is read, the rows of others are checked as they
            come.
        name: how to call it in a message.

    Raises:
        ValueError: no `chosen` or `rejected` column, or a row where one of them is empty.
    """
    if not _is_stored(dataset):
        return
    missing = [column for column in ("chosen", "rejected") if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"{name} has no column {missing[0]!r}, only {dataset.column_names}; a preference row needs 'prompt', 'chosen' "
            "and 'rejected'"
        )
    texts = dataset.select_columns([c for c in ("prompt", "chosen", "rejected") if c in dataset.column_names])
    equal = []
    for number, row in enumerate(_rows(texts)):
        try:
            check_answers({**row, ROW_NUMBER: number})
        except ValueError as error:
            raise ValueError(f"{name}, {error}") from None
        if plain_text(row["chosen"]) == plain_text(row["rejected"]):
            equal.append(number)
    if equal:
        logger.warning(
            f"{name}: 'chosen' equals 'rejected' in {len(equal)} of {len(texts)} rows (the first is row {equal[0]}). They "
            "are kept; their text term teaches nothing."
        )


def has_images(dataset: Any) -> bool:
    """Whether some row may hold an image; True where it cannot be known without reading the data."""
    if not _is_stored(dataset):
        return True
    for column in {"image", "images"} & set(dataset.column_names):
        values = dataset.data.column(column)
        filled = pc.list_value_length(values) if column == "images" else pc.cast(pc.is_valid(values), "int32")
        if (pc.sum(filled).as_py() or 0) > 0:
            return True
    return False


def _rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The rows one by one, read in batches, which is several times faster."""
    for batch in dataset.iter(1000):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def _is_stored(dataset: Any) -> bool:
    """Whether the rows are what is stored, and not what a transform makes of it."""
    return isinstance(dataset, Dataset) and dataset.format["type"] != "custom"
