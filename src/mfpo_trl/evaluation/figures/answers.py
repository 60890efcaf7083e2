"""Answers of a model from a file, by their ids: what cannot be read is named with its line and field."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One row of a file of answers.

    Attributes:
        id: as text, so that 42 and "42" are one.
        text: what the model said.
        row: all fields.
        where: file and line, for messages.
    """

    id: str
    text: str
    row: Mapping[str, Any]
    where: str

    @property
    def words(self) -> int:
        """Length, in words between spaces."""
        return len(self.text.split())


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a JSON Lines file, or of a list in a JSON file, and where it stands.

    Raises:
        ValueError: what is no UTF-8, no JSON or no object, and where.
    """
    content = read_text(path)
    if content.lstrip()[:1] == "[":
        rows = parsed(content, str(path))
        if not isinstance(rows, list):
            raise ValueError(f"{path} holds {type(rows).__name__}; expected a list of objects")
        found: Iterable[tuple[str, Any]] = ((f"{path} row {n}", row) for n, row in enumerate(rows, 1))
    else:
        lines = enumerate(content.split("\n"), 1)
        found = ((f"{path} line {n}", parsed(line, f"{path} line {n}")) for n, line in lines if line.strip())
    for where, row in found:
        if not isinstance(row, dict):
            raise ValueError(f"{where} holds {type(row).__name__}; expected an object with fields")
        yield where, row


def read_text(path: Path) -> str:
    """A file of UTF-8, with or without its mark.

    Raises:
        ValueError: what cannot be read, and where.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path} line {line} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
        ) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: what cannot be read, and where.
    """
    return parsed(read_text(path), str(path))


def parsed(content: str, where: str) -> Any:
    """JSON from a text.

    Raises:
        ValueError: where it is not JSON.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from None


def read_answers(
    path: Path,
    id_field: str,
    text_field: str = "response",
    key: Callable[[str, Mapping[str, Any]], str] | None = None,
) -> dict[str, Answer]:
    """The answers of a file by their ids, in its order.

    Args:
        path: JSON Lines, or a JSON list.
        id_field: the field with the id, a whole number or text.
        text_field: the field with the answer.
        key: (id, row) -> what the answer is known by; the id itself when None.

    Raises:
        ValueError: a missing or wrong field, an id that comes twice, or no answers at all.
    """
    found: dict[str, Answer] = {}
    for where, row in read_rows(path):
        own = id_of(row, id_field, where)
        own = own if key is None else key(own, row)
        text = row.get(text_field)
        if not isinstance(text, str):
            raise ValueError(f"{where}: {text_field!r} is {shown(text)}; expected the answer as text")
        if own in found:
            raise ValueError(
                f"{where}: {id_field!r} {own} has an answer already, at {found[own].where}; leave one answer for each"
            )
        found[own] = Answer(own, text, row, where)
    if not found:
        raise ValueError(f"{path} holds no answers; expected rows such as {{{id_field!r}: …, {text_field!r}: '…'}}")
    return found


def id_of(row: Mapping[str, Any], field: str, where: str) -> str:
    """The id in a field of a row.

    Raises:
        ValueError: where the field is no id.
    """
    own = row.get(field)
    if isinstance(own, bool) or not isinstance(own, int | str) or not str(own).strip():
        raise ValueError(f"{where}: {field!r} is {shown(own)}; expected a number or a name")
    return str(own).strip()


def shown(value: Any) -> str:
    """A value as a message shows it."""
    if value is None:
        return "missing"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def check_known(answers: Mapping[str, Answer], known: Mapping[str, Any] | set[str], what: str) -> None:
    """Look for answers with ids that the benchmark does not know; `what` names what it knows.

    Raises:
        ValueError: the first one, and how many there are.
    """
    unknown = [answer for own, answer in answers.items() if own not in known]
    if unknown:
        more = f", and {len(unknown) - 1} more like it" if len(unknown) > 1 else ""
        raise ValueError(f"{unknown[0].where}: id {shown(unknown[0].id)} is not among {what}{more}")


def counted(answers: Iterable[Answer], missing: int, of: str) -> list[str]:
    """Notes of a report on what was not answered: `missing` ones of the benchmark, and empty texts."""
    empty = sum(not answer.text.strip() for answer in answers)
    notes = [f"{missing:,} {of} without an answer"] if missing else []
    return [*notes, f"{empty:,} answers are empty"] if empty else notes
