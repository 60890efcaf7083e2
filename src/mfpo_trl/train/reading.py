"""A data set as it is published or written by hand -> rows as the trainer takes them."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset, Features, List, Value, concatenate_datasets

from ..data.reading import SOURCES, NoPair, check_unread, check_unread_files, convert, image_roots, recognise
from ..rows import COLUMNS, rows_with_images
from .paths import PATHS, located, mapped, of_files, whole

logger = get_logger(__name__)

TEXTS = ("prompt", "chosen", "rejected")
MESSAGES = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})

READ = (*COLUMNS, "difficulty", "stage")
"""Columns that a training reads."""

PLACE = re.compile(r"[<\[]\|?\w*(?:image|img)\w*\|?[>\]]", re.IGNORECASE)
"""Where an image goes in a plain prompt, in the words of some model: <image>, <|image_pad|>, <IMG_CONTEXT>, [IMG]."""

FROM = "row_of_the_source"


def as_rows(dataset: Any, name: str, source: str = "auto", image_root: str | None = None) -> Any:
    """The rows of a data set as the trainer takes them.

    Args:
        dataset: one split; a stream is read as it comes.
        name: of the data set: a path, or an id on the Hub.
        source: a name in `mfpo_trl.data.reading.SOURCES`. `auto`: rows in TRL's columns are taken as they are, others by the
            first convention whose columns are all there.
        image_root: the folder that image paths are relative to and may not leave; None: that of the data set.

    Raises:
        ValueError: rows of no known convention, a row that is not what its convention says, images in a column that is not
            read, or an image path that leads out of its root.
    """
    # The logger asks it which process this is.
    PartialState()
    columns = columns_of(dataset)
    kind = convention(columns) if source == "auto" else source
    roots = image_roots(name, None if image_root is None else Path(image_root))
    if kind is None:
        # The trainer looks at columns that hold images, as it does where a script calls it.
        check_unread_files(dataset, name, roots, ("images", "image"))
    else:
        check_unread(dataset, name, roots, SOURCES[kind].images)
    if kind is not None and source == "auto":
        logger.warning(f"{name} is read as {kind!r}, by its columns; --source names another convention.")
    elif kind is None and _lacks_places(dataset, columns):
        kind = "trl"
        logger.warning(
            f"The prompts of {name} are plain texts without a place for the image (<image>): they are read as messages, in "
            "which the chat template puts the image before the question."
        )
    names = {own: own for own in columns} if kind is None else _kept(columns, dataset.features, kind)
    # A path that nobody reads may lead anywhere.
    files = of_files(names, published=kind is not None)
    if not isinstance(dataset, Dataset):
        return _stream(dataset, columns, names, files, kind, roots, name)
    dataset = located(dataset, files, roots)
    return dataset if kind is None else _converted(dataset, names, kind, name)


def columns_of(dataset: Any) -> list[str]:
    """The names of the columns, of a stream that does not know them those of its first row."""
    return list(dataset.column_names or next(iter(dataset), {}))


def convention(columns: Sequence[str]) -> str | None:
    """The convention by which rows with these columns are read; None where they are taken as they are.

    Raises:
        ValueError: none is known, and nothing of a preference row is there.
    """
    there = set(columns)
    if set(TEXTS) <= there and ({"image", "images"} & there or not set(PATHS) & there):
        return None
    try:
        return recognise(columns)
    except ValueError:
        if not there & set(TEXTS):
            raise
        # The prompt may be inside of the answers; the trainer says what is missing.
        return None


# Plain prompts


def _lacks_places(dataset: Any, columns: Sequence[str]) -> bool:
    """Whether prompts are plain texts, of which none says where the image of its row goes.

    Raises:
        ValueError: some say it and others do not.
    """
    images = [own for own in ("image", "images") if own in columns]
    if not images or not set(TEXTS) <= set(columns):
        return False
    first: dict[bool, int] = {}
    for number, prompt in _plain_prompts(dataset, images):
        first.setdefault(bool(PLACE.search(prompt)), number)
    if len(first) == 2:
        raise ValueError(
            f"row {first[False]}, field 'prompt': has no place for its image, and that of row {first[True]} has one; write "
            "<image> where it goes, or read all rows as messages: --source trl"
        )
    return False in first


def _plain_prompts(dataset: Any, images: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The prompts that are plain texts in rows with an image, by their numbers; of a stream that of the first row, which
    stands for all."""
    if not isinstance(dataset, Dataset):
        row: Mapping[str, Any] = next(iter(dataset), {})
        prompts: Iterable[tuple[int, Any]] = [(0, row["prompt"])] if any(row.get(own) for own in images) else []
    elif isinstance(dataset.features["prompt"], List):
        return
    else:
        shown = rows_with_images(dataset)
        prompts = zip(shown.tolist(), dataset.select_columns("prompt").select(shown)["prompt"], strict=True)
    yield from ((number, prompt) for number, prompt in prompts if isinstance(prompt, str))


# Conventions


def _converted(dataset: Dataset, names: Mapping[str, str], kind: str, name: str) -> Dataset:
    """A row for every pair, its texts as messages of parts, beside the columns that are kept, by their names in both."""
    features = Features({**_text_features(kind), FROM: Value("int64")})
    texts = mapped(dataset, _texts, features, kind=kind, name=name)
    rows = [int(number) for number in texts[FROM]]
    if not rows:
        raise ValueError(f"{name}: no row, read as {kind!r}, holds two answers of which one is better")
    if left := len(dataset) - len(set(rows)):
        logger.warning(
            f"{name}: {left} of the {len(dataset)} rows hold no two answers of which one is better. They are left out."
        )
    if not names:
        return texts.remove_columns(FROM)
    rest = dataset.select_columns(list(names)).rename_columns(dict(names))
    if rows != list(range(len(dataset))):
        rest = rest.select(rows)
    return concatenate_datasets([rest, texts.remove_columns(FROM)], axis=1)


def _kept(columns: Sequence[str], features: Features | None, kind: str) -> dict[str, str]:
    """The columns of images, and those that mean the same in every convention, each with its name in the trainer's rows."""
    looked = [own for own in columns if own in SOURCES[kind].images]
    images = [own for own in ("image", "images") if own in looked] or [own for own in PATHS if own in looked][:1]
    names = {own: own for own in images}
    if len(images) == 1:
        listed = images[0] == "images" or isinstance((features or {}).get(images[0]), List)
        names = {images[0]: "images" if listed else "image"}
    others = set(READ) - {*TEXTS, "image", "images"} - {*SOURCES[kind].needs, *SOURCES[kind].texts}
    return {**names, **{own: own for own in columns if own in others}}


def _text_features(kind: str) -> dict[str, Any]:
    """What a convention's rows hold that is converted: prompt and answers, and its further texts."""
    return {**dict.fromkeys(TEXTS, MESSAGES), **dict.fromkeys(SOURCES[kind].texts, Value("string"))}


def _texts(rows: Sequence[Mapping[str, Any]], numbers: Sequence[int], kind: str, name: str) -> dict[str, list]:
    texts = list(_text_features(kind))
    found: dict[str, list] = {own: [] for own in (*texts, FROM)}
    for number, row in zip(numbers, rows, strict=True):
        for pair in _pairs(row, number, kind, name, may_hold_none=True):
            for own in texts:
                found[own].append(pair[own])
            found[FROM].append(number)
    return found


def _pairs(
    row: Mapping[str, Any], number: int, kind: str, name: str, may_hold_none: bool = False
) -> list[dict[str, Any]]:
    """The pairs of a row as published.

    Raises:
        ValueError: the row is not what the convention says, or holds no pair.
    """
    try:
        return convert(row, kind)
    except Exception as error:
        if may_hold_none and isinstance(error, NoPair):
            return []
        said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{name}, row {number}, cannot be read as {kind!r}: {said}; mend it, or have `mfpo build --dataset {name} "
            f"--source {kind} --output FOLDER` set such rows aside, and train on FOLDER"
        ) from error


# Streams


def _stream(
    dataset: Any,
    columns: Sequence[str],
    names: Mapping[str, str],
    files: Sequence[str],
    kind: str | None,
    roots: Sequence[Path],
    name: str,
) -> Any:
    """A stream whose rows are read as they come. Its images of the type `Image` are left to `datasets`, which opens what is
    inside of archives and on the web."""
    features = dataset.features
    forms: Mapping[str, Any] = features or next(iter(dataset), {})
    files = [own for own in files if _names_files(forms.get(own))]
    if kind is None and not files:
        return dataset
    if features is not None:
        dataset = dataset.decode(False)
        features = {new: features[old] for old, new in names.items()}
        features = Features(features if kind is None else features | _text_features(kind))
    function = partial(_stream_batch, kind=kind, name=name, names=names, files=files, roots=roots)
    return dataset.map(
        function, batched=True, batch_size=16, with_indices=True, remove_columns=list(columns), features=features
    )


def _names_files(form: Any) -> bool:
    """Whether a feature, or a value, is a text or a path without being an image for `datasets`."""
    if isinstance(form, Mapping):
        return "path" in form or _names_files(form.get("mask"))
    if isinstance(form, list):
        return any(map(_names_files, form))
    return isinstance(form, str) or form == Value("string") or (isinstance(form, List) and _names_files(form.feature))


def _stream_batch(
    batch: Mapping[str, list],
    numbers: Sequence[int],
    kind: str | None,
    name: str,
    names: Mapping[str, str],
    files: Sequence[str],
    roots: Sequence[Path],
) -> dict[str, list]:
    made = []
    for position, number in enumerate(numbers):
        row = {column: values[position] for column, values in batch.items()}
        row |= {own: whole(number, row[own], roots, own) for own in files}
        kept = {new: row[old] for old, new in names.items()}
        pairs = [] if kind is None else _pairs(row, number, kind, name)
        made += (
            [kept]
            if kind is None
            else [{**kept, **{own: pair[own] for own in _text_features(kind)}} for pair in pairs]
        )
    columns = [*names.values(), *(() if kind is None else _text_features(kind))]
    return {column: [row[column] for row in made] for column in columns}
