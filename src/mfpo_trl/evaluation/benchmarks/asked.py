"""Answers beside the questions that they answer: in one file, or joined by an id."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..figures import Answer, check_known, id_of, read_rows, shown

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """Answers with the fields of their questions in `row`, by what names a question.

    Attributes:
        answers: of the file.
        unanswered: questions of the data without an answer, by name; empty where there is no data.
    """

    answers: Mapping[str, Answer]
    unanswered: Mapping[str, Row]


def read_asked(
    path: Path,
    data: Path | None,
    name: Callable[[Row, str], str],
    fields: Sequence[str],
    text_fields: Sequence[str],
) -> Asked:
    """The answers of a file with their questions.

    Args:
        path: rows with the answer and the fields of the question, or with the answer and the question's `id`.
        data: the questions, for rows of the second kind.
        name: (row, where) -> what names its question, which is its id as well.
        fields: what a question must have.
        text_fields: where the answer may stand; the first that is there is it.

    Raises:
        ValueError: what cannot be read or does not fit together, and where.
    """
    questions = {} if data is None else read_questions(data, name, fields)
    found: dict[str, Answer] = {}
    for where, row in read_rows(path):
        field = next((one for one in text_fields if one in row), text_fields[0])
        text = row.get(field)
        if not isinstance(text, str):
            raise ValueError(f"{where}: {field!r} is {shown(text)}; expected the answer as text")
        own = id_of(row, "id", where) if "id" in row else name(row, where)
        if own in found:
            raise ValueError(
                f"{where}: {own!r} has an answer already, at {found[own].where}; leave one answer for each"
            )
        found[own] = Answer(own, text, row, where)
    if not found:
        raise ValueError(f"{path} holds no answers")
    if data is None:
        for answer in found.values():
            _check_fields(answer.row, fields, f"{answer.where} (or give the questions with --data)")
        return Asked(found, {})
    check_known(found, questions, f"the questions of {data}")
    answers = {own: replace(answer, row=questions[own]) for own, answer in found.items()}
    return Asked(answers, {own: row for own, row in questions.items() if own not in answers})


def read_questions(path: Path, name: Callable[[Row, str], str], fields: Sequence[str]) -> dict[str, Row]:
    """Questions by name.

    Raises:
        ValueError: what cannot be read, lacks a field or comes twice, and where.
    """
    found: dict[str, Row] = {}
    for where, row in read_rows(path):
        _check_fields(row, fields, where)
        own = id_of(row, "id", where) if "id" in row else name(row, where)
        if own in found:
            raise ValueError(f"{where}: question {own!r} comes twice; give each an 'id' of its own")
        found[own] = row
    if not found:
        raise ValueError(f"{path} holds no questions")
    return found


def _check_fields(row: Row, fields: Sequence[str], where: str) -> None:
    missing = [field for field in fields if row.get(field) is None]
    if missing:
        raise ValueError(
            f"{where}: {missing[0]!r} is missing; expected a question with the fields {', '.join(fields)}"
        )
