"""Source rows of which none has an image where its convention looks for one, although a column beside it holds images."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset

from ...rows import check_image_columns, may_hold_images, rows_with_images, unread_advice
from .files import DatasetRows, JsonRows, image_file

FIRST = 100
"""Rows of which the texts are taken for names of files; of a stream it is one."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings of the names of images."""

TEXTS = ("prompt", "chosen", "rejected")


def check_unread(rows: Any, name: str, roots: Sequence[Path], read: Collection[str]) -> None:
    """Refuse rows that would be taken for texts, because their images, or the names of their files, stand in a column that nobody
    reads.

    Args:
        rows: what `open_rows` gives.
        name: how to call them in a message.
        roots: where image paths may lead (`image_roots`).
        read: the columns in which images are looked for.

    Raises:
        ValueError: names the column, and what it should be called.
    """
    dataset = rows.dataset if isinstance(rows, DatasetRows) else rows
    check_image_columns(dataset, name, read)
    check_unread_files(dataset, name, roots, read)


def check_unread_files(dataset: Any, name: str, roots: Sequence[Path], read: Collection[str]) -> None:
    """The part of `check_unread` that looks for names of files, in the first rows.

    Args:
        dataset: a data set, a stream or the rows of a file.
        name, roots, read: as there.

    Raises:
        ValueError: names the column, and what it should be called.
    """
    if isinstance(dataset, Dataset) and len(rows_with_images(dataset, read)):
        return
    rows = list(_first(dataset))
    if any(row.get(column) for row in rows for column in read):
        return
    for row in rows:
        for column in set(row) - set(TEXTS):
            value = row[column][0] if isinstance(row[column], list) and row[column] else row[column]
            path = value.get("path") if isinstance(value, Mapping) else value
            if isinstance(path, str) and Path(path).suffix.lower() in PICTURES and _is_file(path, roots):
                advice = unread_advice(column, read)
                raise ValueError(
                    f"{name}, column {column!r} names files of images ({path!r}), and no image is read: {advice}"
                )


def _first(dataset: Any) -> Iterator[Mapping[str, Any]]:
    """The first rows, of a stored data set without the columns that hold images."""
    if isinstance(dataset, JsonRows):
        yield from (row for row in dataset.read(range(min(FIRST, len(dataset)))) if isinstance(row, Mapping))
    elif isinstance(dataset, Dataset):
        texts = [own for own, feature in dataset.features.items() if not may_hold_images(feature)]
        yield from dataset.select_columns(texts).with_format("arrow")[:FIRST].to_pylist()
    else:
        yield from islice(dataset if dataset.features is None else dataset.decode(False), 1)


def _is_file(path: str, roots: Sequence[Path]) -> bool:
    try:
        return bool(image_file(path, roots))
    except ValueError:
        return False
