"""What must hold of a row's texts, and one look at the texts of a whole data set before training."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset, Image
from trl import extract_prompt

from .columns import is_stored
from .prefix import prefix_of, written_out
from .schema import PREFIX, ROW_NUMBER, check_answers, image_columns, plain_text, row_error, same_answer, without_none

logger = get_logger(__name__)


def image_tokens(processor: Any) -> tuple[str, ...]:
    """The placeholders of an image in a processor's texts."""
    names, tokenizer = ("boi_token", "image_token"), getattr(processor, "tokenizer", None)
    tokens = (getattr(owner, name, None) for owner in (processor, tokenizer) for name in names)
    return tuple(dict.fromkeys(token for token in tokens if isinstance(token, str)))


AROUND = ("boi_token", "eoi_token", "vision_start_token", "vision_end_token", "vision_bos_token", "vision_eos_token")
"""A processor's names of what stands before and behind an image in a plain prompt."""
UNNAMED = ("<|vision_start|>", "<|vision_end|>")
"""The same of Qwen2-VL and Qwen2.5-VL, whose processors have no names for them."""


def image_places(processor: Any) -> "re.Pattern[str] | None":
    """The place of one image in a plain prompt, with what stands around it and the line break behind it, which is the group
    `end`; None for a processor without placeholders."""
    around = [*UNNAMED, *(getattr(processor, name, None) for name in AROUND)]
    wrapped = "|".join(re.escape(own) for own in around if isinstance(own, str))
    images = "|".join(re.escape(own) for own in image_tokens(processor))
    return re.compile(rf"(?:{wrapped})?(?:{images})(?:{wrapped})?(?P<end>\n?)") if images else None


def checked_texts(
    row: Mapping[str, Any], placeholders: Sequence[str] = (), further: Sequence[str] = ()
) -> dict[str, Any]:
    """The row's `prompt`, `chosen` and `rejected`, and further answers by the names of their columns, with the prompt taken out of the answers of a row that has no `prompt`.

    Args:
        row: a preference row, plain or conversational.
        placeholders: of an image, see `image_tokens`.
        further: columns of answers beside the two.

    Raises:
        ValueError: a text that is missing or empty, a begun answer that is none, or a placeholder where the processor would put an image that is not
            meant there.
    """
    check_answers(row)
    texts = {name: without_none(row[name]) for name in ("chosen", "rejected")}
    if "prompt" in row:
        if not row["prompt"]:
            raise row_error(row, "prompt", "is empty; there is nothing to answer")
        texts["prompt"] = without_none(row["prompt"])
    else:
        shorter, longer = sorted((row["chosen"], row["rejected"]), key=len)
        if isinstance(shorter, str) and longer.startswith(shorter):
            problem = "and 'rejected' begin alike to the end of one, and without 'prompt' its end cannot be told"
            raise row_error(row, "chosen", problem)
        texts = extract_prompt(texts)
        if not texts["prompt"]:
            raise row_error(row, "chosen", "shares no prompt with 'rejected', and the row has no 'prompt'")
        check_answers({**row, **texts})
    check_answers(row, further)
    texts |= {name: without_none(row[name]) for name in further}
    written_out(row, texts, [name for name in texts if name != "prompt"])
    for name, value in texts.items():
        if not isinstance(value, str) and not all("role" in message for message in value):
            raise row_error(row, name, "has a message without a 'role'")
    for token in placeholders:
        for name in ("prompt", "chosen", "rejected", *further):
            # A plain prompt is taken as it stands, and says itself where its images go.
            if token in plain_text(texts[name]) and not (name == "prompt" and isinstance(texts[name], str)):
                why = "the chat template puts the images in" if name == "prompt" else "an answer cannot hold an image"
                raise row_error(row, name, f"holds a literal {token!r} in its text; remove it, {why}")
        if token in prefix_of(row):
            raise row_error(
                row, PREFIX, f"holds a literal {token!r} in its text; remove it, an answer cannot hold an image"
            )
    return texts


def check_dataset(dataset: Any, name: str, placeholders: Sequence[str] = ()) -> None:
    """Look at the texts of every row.

    Images, regions and lengths are checked when a row is collated.

    Args:
        dataset: anything; only a `datasets.Dataset` without a transform is read, the rows of others are checked as they
            come.
        name: how to call it in a message.
        placeholders: of an image, see `image_tokens`.

    Raises:
        ValueError: no rows, no `chosen` or `rejected` column, `images` that is no list, or a row whose texts cannot be used.
    """
    if not isinstance(dataset, Dataset):
        return
    if not len(dataset):
        raise ValueError(f"{name} has no rows")
    if not is_stored(dataset):
        return
    missing = [column for column in ("chosen", "rejected") if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"{name} has no column {missing[0]!r}, only {dataset.column_names}; a preference row needs 'prompt', 'chosen' "
            "and 'rejected'"
        )
    for column in image_columns(dataset.column_names):
        if "images" in column and isinstance(dataset.features[column], Image):
            single = column.replace("images", "image")
            raise ValueError(f"{name}: {column!r} must hold a list of images; call a single image {single!r}")
    equal = []
    for number, row in enumerate(_texts(dataset)):
        try:
            checked_texts({**row, ROW_NUMBER: number}, placeholders)
        except ValueError as error:
            raise ValueError(f"{name}, {error}") from None
        if same_answer(row):
            equal.append(number)
    if equal:
        logger.warning(
            f"{name}: 'chosen' equals 'rejected' in {len(equal)} of {len(dataset)} rows (the first is row {equal[0]}). "
            "They are kept; their text term teaches nothing."
        )


def _texts(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The texts of the rows one by one, read in batches, which is several times faster."""
    texts = dataset.select_columns([c for c in ("prompt", PREFIX, "chosen", "rejected") if c in dataset.column_names])
    for batch in texts.iter(1000):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
