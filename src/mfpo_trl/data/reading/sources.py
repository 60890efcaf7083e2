"""Published preference data -> rows of one schema: `images, prompt, chosen, rejected`, and what of ours a row already has.

Every convention of a publisher is one function, from a row as published to the rows that it holds; `SOURCES` lists them.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

Row = dict[str, Any]
Messages = list[dict[str, Any]]

KEPT = ("id", "key_regions", "keywords", "difficulty", "rejected_images", "answer_prefix", "mirror_of")
"""Columns of our own schema that a source row may already carry."""
COUNTERPART = "rejected_image_chosen"
"""One more, of messages."""

IMAGE = "<image>"
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
ASKS, ANSWERS = re.compile(r"\b(?:USER|Human|User):"), ("ASSISTANT:", "Assistant:")
"""What a chat template writes before a question, and behind it."""


class NoPair(ValueError):
    """A row as published that holds no two answers of which one is better."""


class Source(NamedTuple):
    """A publisher's convention: columns that tell it from the others, the rows that a row as published holds, the columns in which its
    images are looked for, and the texts that its rows have beside prompt and answers."""

    needs: tuple[str, ...]
    rows: Callable[[Mapping[str, Any]], list[Row]]
    images: tuple[str, ...] = ("images", "image", "img_path", "image_path")
    texts: tuple[str, ...] = ()


def recognise(columns: Sequence[str]) -> str:
    """The name of the first convention whose columns are all there.

    Raises:
        ValueError: none is.
    """
    for name, source in SOURCES.items():
        if set(source.needs) <= set(columns):
            return name
    if set(columns) in ({"image"}, {"image", "label"}):
        raise ValueError(
            "the data set holds images alone, as `datasets` reads a folder with images in it; where a file of rows lies beside "
            "them, name that file in place of the folder"
        )
    known = "; ".join(f"{name}: {', '.join(source.needs)}" for name, source in SOURCES.items())
    raise ValueError(f"columns {', '.join(map(repr, columns))} are those of no known source ({known})")


def convert(row: Mapping[str, Any], name: str) -> list[Row]:
    """A row as published -> rows of our schema, with `images` as published and every text as messages of parts.

    Raises:
        ValueError: something is missing or not what the convention says.
    """
    row = {key: value for key, value in row.items() if value is not None}
    missing = [column for column in SOURCES[name].needs if column not in row]
    if missing:
        raise ValueError(f"field {missing[0]!r} is missing")
    found = SOURCES[name].rows(row)
    return [_finished(own, row, name, number if len(found) > 1 else None) for number, own in enumerate(found)]


def _finished(own: Row, row: Mapping[str, Any], source: str, number: int | None) -> Row:
    kept = {column: row[column] for column in KEPT if column in row}
    kept |= {column: own[column] for column in SOURCES[source].texts}
    if row.get("rejected_image") is not None:
        kept.setdefault("rejected_images", [row["rejected_image"]])
    if row.get(COUNTERPART) is not None:
        kept[COUNTERPART] = _messages(row[COUNTERPART], "assistant")
    if number is not None and "id" in kept:
        kept["id"] = f"{kept['id']}-{number}"
    images = own.pop("images", None)
    images = _images(row) if images is None else images
    prompt = with_image_parts(_messages(own["prompt"], "user"), len(images))
    answers = {name: _messages(own[name], "assistant") for name in ("chosen", "rejected")}
    try:
        # JSON can hold half a surrogate pair, which no file can.
        texts = json.dumps(
            [kept.get("id"), kept.get("keywords"), kept.get("answer_prefix"), prompt, answers],
            ensure_ascii=False,
            default=str,
        )
        texts.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a text holds half a character, which cannot be stored: {error.reason}") from error
    return {**kept, "images": images, "prompt": prompt, **answers}


def _images(row: Mapping[str, Any]) -> list[Any]:
    if "images" in row:
        if not isinstance(row["images"], Sequence) or isinstance(row["images"], str | bytes):
            raise ValueError(f"field 'images' is a {type(row['images']).__name__}; expected a list of images")
        return list(row["images"])
    one = next((row[name] for name in ("image", "img_path", "image_path") if name in row), None)
    return [] if one is None else list(one) if isinstance(one, list) else [one]


def _messages(value: Any, role: str) -> Messages:
    """A plain text, or messages whose contents are texts or parts, as messages of parts."""
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    if not isinstance(value, Sequence) or not all(isinstance(message, Mapping) for message in value):
        raise ValueError(f"found {str(value)[:60]!r}; expected a text or a list of messages")
    return [{"role": str(message.get("role") or role), "content": _parts(message.get("content"))} for message in value]


def _parts(content: Any) -> list[dict[str, str | None]]:
    if content is None or isinstance(content, str):
        return [{"type": "text", "text": content or ""}]
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise ValueError(f"found the content {str(content)[:60]!r}; expected a text or a list of parts")
    return [_part(part) for part in content]


def _part(part: Mapping[str, Any]) -> dict[str, str | None]:
    if part.get("type") == "image":
        return {"type": "image", "text": None}
    text = part.get("text")
    if part.get("type") not in ("text", None) or not isinstance(text, str | None):
        raise ValueError(f"found the part {str(dict(part))[:60]!r}; expected one of type 'text' or 'image'")
    return {"type": "text", "text": text or ""}


def with_image_parts(prompt: Messages, images: int) -> Messages:
    """Put an image part where the prompt says `<image>`, or, where it says nothing, one for each image before its first
    user message.

    Raises:
        ValueError: the prompt has another number of places than there are images.
    """
    prompt = [
        {**message, "content": [own for part in message["content"] for own in _split(part)]} for message in prompt
    ]
    places = sum(part["type"] == "image" for message in prompt for part in message["content"])
    if places == images:
        return prompt
    if places:
        raise ValueError(f"field 'prompt' has {places} place(s) for an image, and the row has {images} image(s)")
    first = next((message for message in prompt if message["role"] == "user"), prompt[0] if prompt else None)
    if first is None:
        raise ValueError("field 'prompt' is empty; there is nothing to answer")
    first["content"] = [{"type": "image", "text": None}] * images + first["content"]
    return prompt


def asked(prompt: Any, images: int) -> Messages:
    """A plain text, or messages, as messages of parts, with a part for each image: where the text says `<image>`, or before the
    first user message.

    Raises:
        ValueError: no text, or another number of places than there are images.
    """
    return with_image_parts(_messages(prompt, "user"), images)


def _split(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    if part["type"] == "image" or IMAGE not in part["text"]:
        return [dict(part)]
    texts = part["text"].split(IMAGE)
    found: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        found += [{"type": "image", "text": None}] if number else []
        # The line break beside a placeholder belongs to it.
        text = text.removeprefix("\n") if number else text
        text = text.removesuffix("\n") if number < len(texts) - 1 else text
        found += [{"type": "text", "text": text}] if text.strip() else []
    return found


# One function a convention


def _trl(row: Mapping[str, Any]) -> list[Row]:
    """TRL's, and ours: `images` or `image`, and texts or messages. Also trl-lib/rlaif-v."""
    return [{name: row[name] for name in ("prompt", "chosen", "rejected")}]


def _rlhf_v(row: Mapping[str, Any]) -> list[Row]:
    """openbmb/RLHF-V-Dataset: question and answers are JSON in `text`."""
    text = row["text"]
    if isinstance(text, str):
        try:
            text = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"field 'text' is not JSON: {error}") from error
    if not isinstance(text, Mapping):
        raise ValueError(f"field 'text' holds a {type(text).__name__}; expected question, chosen and rejected")
    missing = [name for name in ("question", "chosen", "rejected") if name not in text]
    if missing:
        raise ValueError(f"field 'text' holds no {missing[0]!r}")
    return [{"prompt": text["question"], "chosen": text["chosen"], "rejected": text["rejected"]}]


def _question(row: Mapping[str, Any]) -> list[Row]:
    """openbmb/RLAIF-V-Dataset and sqrti/SPA-VL: `question` and one `image`."""
    return [{"prompt": row["question"], "chosen": row["chosen"], "rejected": row["rejected"]}]


def _mdpo(row: Mapping[str, Any]) -> list[Row]:
    """fwnlp/mDPO-preference-data: a prompt that a chat template has written, and a path."""
    if not isinstance(row["prompt"], str):
        raise ValueError(f"field 'prompt' is a {type(row['prompt']).__name__}; expected a text")
    prompt = _without_template(row["prompt"])
    return [{"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"], "images": [row["img_path"]]}]


def _without_template(text: str) -> str:
    text = text.strip()
    ending = next((own for own in ANSWERS if text.endswith(own)), "")
    asks = ASKS.search(text)
    # A question may itself speak of a "User:"; only a template also has the answer's turn, or begins with the marker.
    if asks and (ending or asks.start() == 0):
        text = text[asks.end() :]
    return text.removesuffix(ending).strip()


def _vlfeedback(row: Mapping[str, Any]) -> list[Row]:
    """MMInstruction/VLFeedback (Silkie): every pair of responses whose mean rating differs, the better one chosen.

    A rating that is no number ("N/A") does not count, a response without any is left out.
    """
    rated = []
    for completion in _listed(row["completions"]):
        found = [_rating((completion.get("annotations") or {}).get(aspect)) for aspect in ASPECTS]
        ratings = [rating for rating in found if rating is not None]
        if ratings and completion.get("response"):
            rated.append((sum(ratings) / len(ratings), completion["response"]))
    pairs = [sorted(pair, key=lambda own: -own[0]) for pair in combinations(rated, 2) if pair[0][0] != pair[1][0]]
    if not pairs:
        raise NoPair(f"field 'completions' has no two responses with different ratings ({len(rated)} are rated)")
    return [{"prompt": row["prompt"], "chosen": better[1], "rejected": worse[1]} for better, worse in pairs]


def _listed(value: Any) -> list[Mapping[str, Any]]:
    """A list of mappings, also where `datasets` stored it as a mapping of lists."""
    if not isinstance(value, Mapping):
        return list(value)
    columns = {key: _listed(own) if isinstance(own, Mapping) else own for key, own in value.items()}
    if len({len(own) for own in columns.values()}) > 1:
        raise ValueError("field 'completions' has lists of different lengths")
    length = max(map(len, columns.values()), default=0)
    return [{key: own[n] for key, own in columns.items()} for n in range(length)]


def _rating(annotation: Any) -> float | None:
    try:
        value: Any = (annotation or {}).get("Rating")
        rating = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return rating if math.isfinite(rating) else None


def _povid(row: Mapping[str, Any]) -> list[Row]:
    """POVID: two conversations in LLaVA's form; one row for each turn whose answers differ, after the chosen turns."""
    chosen, rejected = (_conversation(row[name], name) for name in ("conversations", "rejected_conversations"))
    both = enumerate(zip(chosen, rejected, strict=False))
    turns = [n for n, pair in both if all(message["role"] == "assistant" for message in pair)]
    differ = [n for n in turns if chosen[n]["content"] != rejected[n]["content"]]
    if not differ:
        raise NoPair("field 'rejected_conversations' has no answer that differs from 'conversations'")
    return [{"prompt": chosen[:n], "chosen": chosen[n : n + 1], "rejected": rejected[n : n + 1]} for n in differ]


def _conversation(turns: Any, field: str) -> Messages:
    try:
        return [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in turns]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"field {field!r} is not a list of {{'from': human or gpt, 'value': text}}: {error!r}"
        ) from error


def _llama_factory(row: Mapping[str, Any]) -> list[Row]:
    """LLaMA-Factory's ShareGPT form: the turns up to the question, and one turn each for the answers."""
    prompt = _conversation(row["conversations"], "conversations")
    if row.get("system"):
        prompt.insert(0, {"role": "system", "content": row["system"]})
    if not prompt or prompt[-1]["role"] != "user":
        raise ValueError("field 'conversations' does not end with a question of the human")
    answers = {}
    for name in ("chosen", "rejected"):
        answers[name] = _conversation([row[name]], name)
        if answers[name][0]["role"] != "assistant":
            raise ValueError(f"field {name!r} is not an answer: it is from {row[name]['from']!r}; expected 'gpt'")
    return [{"prompt": prompt, **answers}]


def _ms_swift(row: Mapping[str, Any]) -> list[Row]:
    """ms-swift: `messages` that end with the chosen answer, and the text of the rejected one."""
    messages = list(row["messages"])
    if not messages or not isinstance(messages[-1], Mapping) or messages[-1].get("role") != "assistant":
        raise ValueError("field 'messages' does not end with an answer of the assistant")
    return [{"prompt": messages[:-1], "chosen": messages[-1:], "rejected": row["rejected_response"]}]


def _sentinel(row: Mapping[str, Any]) -> list[Row]:
    """SENTINEL: two next sentences, `y_win` and `y_lose`, behind the clean ones in `context`, which a blank parts from them."""
    context = row.get("context", "")
    if not isinstance(context, str):
        raise ValueError(
            f"field 'context' is a {type(context).__name__}; expected a text, the beginning of the answer"
        )
    blank = "" if context.endswith(("\n", "\t")) else " "
    prefix = context.rstrip(" ") + blank if context.strip() else ""
    answers = {}
    for name, column in (("chosen", "y_win"), ("rejected", "y_lose")):
        if not isinstance(row[column], str):
            raise ValueError(f"field {column!r} is a {type(row[column]).__name__}; expected a text")
        answers[name] = row[column].lstrip(" ")
    return [{"prompt": row["question"], **answers, "answer_prefix": prefix}]


SOURCES: dict[str, Source] = {
    "vlfeedback": Source(("completions", "prompt"), _vlfeedback),
    "povid": Source(("conversations", "rejected_conversations"), _povid),
    "llama-factory": Source(("conversations", "chosen", "rejected"), _llama_factory),
    "ms-swift": Source(("messages", "rejected_response"), _ms_swift),
    "mdpo": Source(("img_path", "prompt", "chosen", "rejected"), _mdpo, ("img_path",)),
    "sentinel": Source(("question", "y_win", "y_lose"), _sentinel, texts=("answer_prefix",)),
    "spa-vl": Source(("image_name", "question", "chosen", "rejected"), _question),
    "rlaif-v": Source(("question", "chosen", "rejected"), _question),
    "rlhf-v": Source(("text", "image"), _rlhf_v),
    "trl": Source(("prompt", "chosen", "rejected"), _trl),
}
"""In the order in which they are tried: the more particular first."""
