"""An answer that is begun: the text that both answers of a row go on from, which is read and never scored."""

from collections.abc import Mapping, Sequence
from typing import Any

from .schema import PREFIX, row_error


def prefix_of(row: Mapping[str, Any]) -> str:
    """The begun answer of a row; empty where there is none.

    Raises:
        RowError: it is no text.
    """
    prefix = row.get(PREFIX)
    if not isinstance(prefix, str | None):
        raise row_error(
            row,
            PREFIX,
            f"is {str(prefix)[:60]!r}; expected a text, the beginning that 'chosen' and 'rejected' go on from",
        )
    return prefix if prefix and prefix.strip() else ""


def written_out(row: Mapping[str, Any], texts: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The texts of a row with its answers from their beginning on: the begun answer and, letter by letter behind it, the rest.

    Args:
        row: with `answer_prefix`.
        texts: of the row, as `checked_texts` returns them.
        names: of the answers among them.

    Raises:
        RowError: an answer that is more than one message of one text.
    """
    prefix = prefix_of(row)
    if not prefix:
        return dict(texts)
    return {**texts, **{name: _behind(prefix, row, name, texts[name]) for name in names}}


def _behind(prefix: str, row: Mapping[str, Any], name: str, answer: Any) -> Any:
    if isinstance(answer, str):
        return prefix + answer
    content = answer[0].get("content") if len(answer) == 1 and not answer[0].get("tool_calls") else None
    if isinstance(content, list) and len(content) == 1:
        content = content[0].get("text")
    if not isinstance(content, str):
        raise row_error(
            row, name, f"is not one message of one text, which alone can go on from the begun answer in {PREFIX!r}"
        )
    return [{**answer[0], "content": prefix + content}]
