"""A begun answer in tokens: which of them every answer of a row shares, and what each scores behind them."""

from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any

from ..rows import PREFIX, plain_text, prefix_of, row_error


def begun_tokens(
    row: Mapping[str, Any],
    written: Mapping[str, str],
    answers: Mapping[str, Any],
    ids_of: Callable[[str], list[int]],
) -> tuple[list[int], dict[str, list[int]]]:
    """The tokens of a begun answer, and those of each answer behind it.

    Together they are the tokens of the whole answer, so that a model reads what it would write itself. Where the text of the
    beginning ends inside of a token, that token is scored with the answer. An end of the answer that a chat template writes is
    left out: a rest is a piece of an answer, which goes on.

    Args:
        row: with `answer_prefix`.
        written: each answer as the model reads it, from its beginning on.
        answers: the same as texts or messages, as `rows.written_out` returns them.
        ids_of: a text's tokens.

    Raises:
        RowError: the chat template changes the text of an answer.
    """
    prefix = prefix_of(row).lstrip()
    beginning: list[int] | None = None
    whole = {}
    for name, text in written.items():
        said = plain_text(answers[name]).strip()
        start = text.find(said)
        if start < 0:
            raise row_error(
                row,
                PREFIX,
                f"the chat template writes {name!r} otherwise than it stands: {text[:80]!r}; it cannot go on from a begun answer",
            )
        whole[name] = ids_of(text[: start + len(said)])
        # Its last token may differ from the whole answer's where the next letter changes it.
        alone = ids_of(text[: start + len(prefix)])
        beginning = shared(shared(alone if beginning is None else beginning, alone), whole[name])
    assert beginning is not None, "a row has answers"
    return beginning, {name: ids[len(beginning) :] for name, ids in whole.items()}


def shared(one: list[int], two: list[int]) -> list[int]:
    """The tokens with which both begin."""
    return [own for own, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False))]
