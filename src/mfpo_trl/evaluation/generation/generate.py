"""A model's answers to prompts, greedy unless told otherwise."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..models import adapter_settings
from .prompts import Prompt

PIXELS_A_TOKEN, LETTERS_A_TOKEN = 28 * 28, 4
"""About as many of an image, or of a text, become one token; only to put prompts of similar length together."""


@dataclass(frozen=True)
class Decoding:
    """How answers are written.

    Args:
        max_new_tokens: of an answer, at least 1.
        num_beams: 1 for greedy.

    Raises:
        ValueError: a number below 1.
    """

    max_new_tokens: int = 512
    num_beams: int = 1

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")


def answer(
    model: Any, processor: Any, prompts: Sequence[Prompt], decoding: Decoding, batch_size: int = 1, **options: Any
) -> Iterator[list[tuple[Prompt, str]]]:
    """Answers batch by batch, the longest prompts first, so that what does not fit fails at once.

    Args:
        model: perhaps inside of an adapter, in evaluation mode; its own settings of generation are put aside, but for the tokens
            that end an answer.
        processor: of the model, with a chat template and a padding token.
        batch_size: prompts at once, at least 1.
        options: of `generate`, for models that are shared out.

    Raises:
        ValueError: a prompt that the template or the processor cannot write, or a picture that cannot be read; names it.
    """
    import torch

    with torch.inference_mode(), plain_generation(model, processor, decoding):
        for batch in batches(prompts, batch_size):
            inputs = placed(encode(processor, batch), model)
            tokens = model.generate(**inputs, **options)
            texts = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            yield [(prompt, text.strip()) for prompt, text in zip(batch, texts, strict=True)]


def placed(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Tensors on the model's device, pixels in its type."""
    import torch

    kinds = {name: model.dtype if torch.is_floating_point(own) else None for name, own in inputs.items()}
    return {name: own.to(model.device, kinds[name]) for name, own in inputs.items()}


def batches(prompts: Sequence[Prompt], size: int) -> Iterator[list[Prompt]]:
    """Prompts of similar length, and with as many pictures each, together; the longest first."""
    found: dict[int, list[Prompt]] = {}
    for prompt in sorted(prompts, key=length, reverse=True):
        found.setdefault(prompt.shown, []).append(prompt)
    for own in found.values():
        for start in range(0, len(own), size):
            yield own[start : start + size]


def length(prompt: Prompt) -> float:
    """About how many tokens a prompt has."""
    texts = sum(len(own.get("text") or "") for message in prompt.messages for own in message["content"])
    return texts / LETTERS_A_TOKEN + sum(pixels(own) for own in prompt.pictures()) / PIXELS_A_TOKEN


def pixels(picture: Any) -> int:
    """Of a picture, of a file by its head; 0 where that cannot be read, which is said when the whole is."""
    if isinstance(picture, Path):
        return _of_file(picture)
    return _of_head(io.BytesIO(picture)) if isinstance(picture, bytes) else picture.width * picture.height


@cache
def _of_file(path: Path) -> int:
    return _of_head(path)


def _of_head(file: Any) -> int:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.width * image.height
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0


def encode(processor: Any, prompts: Sequence[Prompt], begun: Sequence[str] = ()) -> Any:
    """A batch as the model reads it, padded on the left, for prompts with the same number of pictures.

    Args:
        begun: how the answer to each prompt begins; nothing by default.

    Raises:
        ValueError: names the first of the prompts.
    """
    from ...rows import enlarged

    images = [[enlarged(picture) for picture in opened(prompt)] for prompt in prompts]
    try:
        texts = [written(processor, *own) for own in zip(prompts, begun or [""] * len(prompts), strict=True)]
        first = processor.tokenizer.bos_token
        return processor(
            images=images if prompts[0].shown else None,
            text=texts,
            # As transformers' own chats do: once, by the template or by the tokenizer.
            add_special_tokens=first is None or not texts[0].startswith(first),
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
    except Exception as error:
        raise ValueError(f"the prompt {dict(prompts[0].row)} cannot be encoded: {error}") from error


def written(processor: Any, prompt: Prompt, begun: str = "") -> str:
    """The conversation in the words of the template, up to the answer, or up to the end of what of it is begun."""
    messages = list(prompt.messages)
    if not begun:
        return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    messages.append({"role": "assistant", "content": [{"type": "text", "text": begun}]})
    return processor.apply_chat_template(messages, continue_final_message=True, tokenize=False)


def opened(prompt: Prompt) -> list[Any]:
    """Its pictures in RGB.

    Raises:
        ValueError: one that cannot be read; names the prompt.
    """
    from PIL import Image

    from ...rows import to_rgb

    try:
        return [to_rgb(own) for own in prompt.pictures()]
    except (OSError, ValueError, SyntaxError, TypeError, RuntimeError, Image.DecompressionBombError) as error:
        raise ValueError(f"the picture of the prompt {dict(prompt.row)} cannot be read: {error}") from error


@contextmanager
def plain_generation(model: Any, processor: Any, decoding: Decoding) -> Iterator[None]:
    """While answers are written: without the sampling and penalties that a published model brings.

    They are replaced and not only overridden, because `generate` takes what a call leaves open from the model's own.
    """
    from transformers import GenerationConfig

    from ...batch import unwrapped

    base = unwrapped(model)
    before, tokenizer = base.generation_config, processor.tokenizer
    ends = tokenizer.eos_token_id if before.eos_token_id is None else before.eos_token_id
    base.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=decoding.num_beams,
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        base.generation_config = before
        model.train(was_training)


def share(prompts: Sequence[Prompt], process: int, processes: int) -> list[Prompt]:
    """What one of several processes answers: as many prompts as any other, one more or less, and as long ones."""
    return sorted(prompts, key=length, reverse=True)[process::processes]


def versions() -> dict[str, str]:
    """Of what answers depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name in ("mfpo_trl", "torch", "transformers", "peft", "bitsandbytes"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def weights_told(folder: str) -> Mapping[str, Any] | None:
    """What tells the weights in a folder from others: names and sizes of their files, and a digest of pieces of them, with the same
    of the model that an adapter lies on; None for an id on the Hub, which names its weights itself."""
    told = _files_told(folder)
    base = told and (adapter_settings(folder) or {}).get("base_model_name_or_path")
    return {**told, "base": _files_told(base) or base} if told and base else told


def _files_told(folder: str) -> dict[str, Any] | None:
    import hashlib

    if not Path(folder).is_dir():
        return None
    digest, pieces, piece = hashlib.blake2b(digest_size=12), 16, 1 << 16
    files = sorted(Path(folder).glob("*.safetensors"))
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in sorted({size * number // pieces for number in range(pieces)}):
                file.seek(start)
                digest.update(file.read(piece))
    return {"files": len(files), "digest": digest.hexdigest()}
