"""Paths of images in rows -> files inside of the data set's folder."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from accelerate import PartialState
from datasets import Dataset, Features, Json, List, concatenate_datasets

from .. import __version__
from ..data.reading import MissingFileError, image_file
from ..rows import image_columns

REGIONS = "key_regions"
PATHS = ("img_path", "image_path")
"""Columns of an image that conventions have and the trainer does not read."""


def of_files(columns: Iterable[str], published: bool) -> list[str]:
    """Those of these columns that may name files which are read.

    Args:
        published: whether rows are read by a convention, in which an image may lie in one of `PATHS` too.
    """
    others = (*PATHS, REGIONS) if published else (REGIONS,)
    return [*image_columns(columns), *(own for own in others if own in columns)]


def located(dataset: Dataset, columns: Sequence[str], roots: Sequence[Path]) -> Dataset:
    """The rows with whole paths of images and masks; columns that hold none are left alone, and no image is copied.

    Args:
        columns: those that may name files.
        roots: the folders that paths are relative to and may not leave.

    Raises:
        ValueError: a path that leads out of the roots, or many of which none leads to a file; names row and column.
    """
    for column in columns:
        only = dataset.select_columns(column)
        batches = only.with_format("arrow").iter(1000)
        if holds_json(only.features[column]) or any(_has_paths(batch.column(0)) for batch in batches):
            made = mapped(only, _locate, only.features, column=column, roots=list(map(str, roots)))
            dataset = concatenate_datasets([dataset.remove_columns(column), made], axis=1)
    return dataset


def whole(number: int, value: Any, roots: Sequence[Path], column: str) -> Any:
    """A value of a row with whole paths in place of those that it names.

    Raises:
        ValueError: a path that leads nowhere or out of the roots; names row and column.
    """
    try:
        return _whole(value, roots, column)
    except (ValueError, OSError) as error:
        kind = MissingFileError if isinstance(error, MissingFileError) else ValueError
        raise kind(f"row {number}, field {column!r}: {error}") from error


def mapped(dataset: Dataset, function: Any, features: Features, **given: Any) -> Dataset:
    """The columns that `function(rows, numbers, **given)` makes of batches of rows whose images are not decoded; made by the
    first process for all, and kept in the cache of `datasets`."""
    with PartialState().main_process_first():
        made = dataset.with_format("arrow").map(
            _of_rows,
            batched=True,
            batch_size=100,
            with_indices=True,
            remove_columns=dataset.column_names,
            features=features,
            # A cache of another version may have read otherwise.
            fn_kwargs={
                "function": function,
                "given": given,
                "stored": dataset.features,
                "version": __version__,
            },
            desc="Reading the rows",
        )
    return made.with_format(None)


def _of_rows(
    table: pa.Table, numbers: Sequence[int], function: Any, given: Mapping[str, Any], stored: Features, version: str
) -> dict[str, list]:
    rows = table.to_pylist()
    if any(map(holds_json, stored.values())):
        rows = [{name: _unwritten(value, stored[name]) for name, value in row.items()} for row in rows]
    return function(rows, numbers, **given)


def holds_json(feature: Any) -> bool:
    """Whether values of a feature are stored as JSON, as `datasets` does with those of several kinds."""
    if isinstance(feature, Mapping):
        return any(map(holds_json, feature.values()))
    return isinstance(feature, Json) or (isinstance(feature, List) and holds_json(feature.feature))


def _unwritten(value: Any, feature: Any) -> Any:
    """A value as stored, with the values that it has as JSON."""
    if value is None or not holds_json(feature):
        return value
    if isinstance(feature, Json):
        return json.loads(value)
    if isinstance(feature, List):
        return [_unwritten(own, feature.feature) for own in value]
    return {name: _unwritten(own, feature[name]) for name, own in value.items()}


def _locate(
    rows: Sequence[Mapping[str, Any]], numbers: Sequence[int], column: str, roots: Sequence[str]
) -> dict[str, list]:
    """Single files that are missing are left to whoever reads the row; where all of them are, the root is wrong."""
    folders, values, missing = list(map(Path, roots)), [], []
    for number, row in zip(numbers, rows, strict=True):
        try:
            values.append(whole(number, row[column], folders, column))
        except MissingFileError as error:
            values.append(_whole(row[column], folders, column, must_exist=False))
            missing.append(error)
    if missing and len(missing) == sum(bool(row[column]) for row in rows):
        raise missing[0]
    return {column: values}


def _whole(value: Any, roots: Sequence[Path], column: str, must_exist: bool = True) -> Any:
    inner = partial(_whole, roots=roots, column=column, must_exist=must_exist)
    if isinstance(value, list):
        return list(map(inner, value))
    if isinstance(value, str):
        # A text among regions is no region, which is said where regions are read.
        return value if column == REGIONS else _file(value, roots, must_exist)
    if isinstance(value, Mapping) and value.get("bytes") is None and isinstance(value.get("path"), str):
        return {**value, "path": _file(value["path"], roots, must_exist)}
    if isinstance(value, Mapping):
        return {key: inner(own) if key == "mask" else own for key, own in value.items()}
    return value


def _file(path: str, roots: Sequence[Path], must_exist: bool) -> str:
    try:
        return str(image_file(path, roots))
    except MissingFileError:
        if must_exist:
            raise
        wholes = [(root / path).resolve() for root in roots]
        return str(next(own for own, root in zip(wholes, roots, strict=True) if own.is_relative_to(root)))


def _has_paths(values: Any) -> bool:
    """Whether an array of Arrow holds a text, or a path without bytes."""
    if isinstance(values, pa.ChunkedArray):
        # One by one, because together they would be copied, with the bytes of their images.
        return any(map(_has_paths, values.chunks))
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _has_paths(values.flatten())
    if pa.types.is_struct(kind):
        # A field taken by itself would not know of the rows in which the whole struct is missing.
        fields = dict(zip((own.name for own in kind), values.flatten(), strict=True))
        if "path" in fields:
            named = pc.is_valid(fields["path"])
            return bool(pc.any(pc.and_(named, pc.is_null(fields["bytes"])) if "bytes" in fields else named).as_py())
        return "mask" in fields and _has_paths(fields["mask"])
    return (pa.types.is_string(kind) or pa.types.is_large_string(kind)) and values.null_count < len(values)
