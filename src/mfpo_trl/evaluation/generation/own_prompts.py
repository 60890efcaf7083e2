"""Prompts of a user's own data set."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.reading import asked, image_bytes, image_file, image_roots, open_rows
from ..figures import shown
from .prompts import Prompt

IDS = ("id", "question_id", "image_id")
"""Fields that are written beside the answer as they are; without any, the number of the row is its `id`."""

QUESTIONS = ("prompt", "question", "query")
IMAGES = ("images", "image", "image_path", "img_path")
AT_ONCE = 256


class Stored:
    """The pictures of a row, read again when they are needed, so that no more than a batch of them is held."""

    def __init__(self, rows: Any, number: int, roots: Sequence[Path]):
        self.rows, self.number, self.roots = rows, number, roots

    def __call__(self) -> list[Any]:
        row = self.rows.read(range(self.number, self.number + 1))[0]
        return [image_bytes(own, self.roots)["bytes"] for own in images_of(row)]


def read_own(
    dataset: str,
    split: str = "train",
    image_root: Path | None = None,
    question: str | None = None,
    behind: str | None = None,
) -> list[Prompt]:
    """The prompts of a data set.

    Args:
        dataset: an id on the Hub, a folder, or a parquet, `.json` or `.jsonl` file; rows with a `prompt` or `question`, a text or
            messages, and perhaps `image` or `images`.
        split: of a data set that has several.
        image_root: the folder that image paths are relative to and may not leave; None: that of the data set.
        question: asked in place of every prompt.
        behind: words behind every prompt.

    Raises:
        ValueError: no such data set, or a row that cannot be used.
    """
    rows, roots = open_rows(dataset, split), image_roots(dataset, image_root)
    found: list[Prompt] = []
    for number, row in _numbered(rows):
        where = f"{dataset} row {number}"
        if isinstance(row, ValueError):
            raise ValueError(f"{where}: {row}")
        try:
            pictures = images_of(row)
            _check_there(pictures, roots)
            messages = asked(question_of(row) if question is None else question, len(pictures))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if behind:
            messages[-1]["content"].append({"type": "text", "text": behind})
        prompt = Prompt(_named(row, number), messages, Stored(rows, number, roots))
        found.append(Prompt({**prompt.row, "prompt": prompt.text}, messages, prompt.pictures))
    if not found:
        raise ValueError(f"{dataset} holds no rows")
    return found


def _numbered(rows: Any) -> Iterator[tuple[int, Any]]:
    for start in range(0, len(rows), AT_ONCE):
        yield from enumerate(rows.read(range(start, min(start + AT_ONCE, len(rows)))), start)


def images_of(row: Mapping[str, Any]) -> list[Any]:
    """The images of a row as they are stored."""
    value = next((row[name] for name in IMAGES if row.get(name) is not None), None)
    return value if isinstance(value, list) else [] if value is None else [value]


def _check_there(images: Sequence[Any], roots: Sequence[Path]) -> None:
    for own in images:
        path = own.get("path") if isinstance(own, Mapping) and own.get("bytes") is None else own
        if isinstance(path, str):
            image_file(path, roots)


def question_of(row: Mapping[str, Any]) -> Any:
    """The prompt of a row, a text or messages.

    Raises:
        ValueError: there is none, or it does not end with the user's turn.
    """
    found = next((row[name] for name in QUESTIONS if row.get(name)), None)
    if found is None:
        empty = [name for name in QUESTIONS if name in row]
        wanted = " or ".join(map(repr, QUESTIONS[:2]))
        what = f"field {empty[0]!r} is empty" if empty else f"has no {wanted}, only {', '.join(map(repr, row))}"
        raise ValueError(f"{what}; ask the same of every row with --prompt")
    if not isinstance(found, str) and found[-1].get("role", "user") != "user":
        raise ValueError(f"its prompt ends with a message of {shown(found[-1].get('role'))}; expected the user's")
    return found


def _named(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What names a row's answer."""
    named = {name: row[name] for name in IDS if isinstance(row.get(name), int | str)}
    return named or {"id": number}
