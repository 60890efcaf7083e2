"""Several answers to one prompt, drawn from the model's distribution: the same ones wherever and beside whatever they are drawn.

A token is drawn by inversion (Devroye 1986, II.2): the first one at which the probabilities of `softmax(logits / temperature)` add up to
more than U, uniform in [0, 1). U comes from a generator of the answer's own, on the CPU wherever the model is, whose numbers no device
makes otherwise: neither the batch nor the process nor the device that an answer is drawn in changes it, up to the rounding of the
probabilities.
"""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .generate import Decoding, encode, placed, plain_generation
from .prompts import Prompt

logger = logging.getLogger(__name__)

SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bvs)[.!?…。!?][\"'”’)\]]*(?=\s|$)")
"""The end of a sentence, with the quotes behind it."""


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn.

    Args:
        temperature: 0 for greedy.
        top_p: of the probability, only the likeliest tokens that together have this much, in (0, 1].
        max_new_tokens: of an answer, at least 1.
        sentence: stop behind the first sentence.

    Raises:
        ValueError: a number out of its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    sentence: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; expected 0, which is greedy, or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected a share above 0, at most 1")
        Decoding(self.max_new_tokens)


def draw(
    model: Any,
    processor: Any,
    prompts: Sequence[Prompt],
    drawing: Drawing,
    seeds: Sequence[Sequence[int]],
    begun: Sequence[str] = (),
) -> list[list[str]]:
    """Answers to prompts with the same number of pictures, one for each seed; a prompt is read once, however many are drawn.

    Args:
        model: perhaps inside of an adapter; its own settings of generation are put aside.
        processor: of the model, with a chat template and a padding token.
        seeds: as many for each prompt.
        begun: how the answer to each prompt begins; what is returned goes on from there. Nothing by default.

    Returns:
        for each prompt the texts in the order of its seeds, as they are written, blanks at their beginning kept.

    Raises:
        ValueError: a prompt that cannot be encoded, or a model that gives no finite numbers; names the first of the prompts.
    """
    import torch

    count = len(seeds[0])
    assert all(len(own) == count for own in seeds)
    inputs = placed(encode(processor, prompts, begun), model)
    stops: list[Any] = [_AfterSentence(processor, inputs["input_ids"].shape[1])] if drawing.sentence else []
    with torch.inference_mode(), plain_generation(model, processor, Decoding(drawing.max_new_tokens)):
        inputs = repeated(model, inputs, count)
        numbers = [seed for own in seeds for seed in own]
        drawn = model.generate(**inputs, logits_processor=[_Drawn(drawing, numbers, prompts)], stopping_criteria=stops)
    new = drawn[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(new, skip_special_tokens=True)
    return [texts[start : start + count] for start in range(0, len(texts), count)]


def repeated(model: Any, inputs: dict[str, Any], count: int) -> dict[str, Any]:
    """Inputs of `generate` for so many answers a prompt, with what the model computes of the prompts computed once.

    A model whose past cannot be cut and repeated (sliding windows, recurrent layers, prompt learning) reads each prompt as often as it
    answers; a line of the log says so.

    Raises:
        ValueError: pictures of different sizes that cannot be copied for such a model.
    """
    if count == 1:
        return inputs
    # Tokens are one row a prompt; pictures have as many rows as their model likes.
    rows = {name: own for name, own in inputs.items() if _is_of_tokens(own, inputs["input_ids"])}
    if reason := _alone(model):
        return _copied(inputs, rows, count, reason)
    first = model.generate(**inputs, max_new_tokens=1, min_new_tokens=1, return_dict_in_generate=True)
    past = first.past_key_values
    if not all(type(layer).__name__ == "DynamicLayer" for layer in getattr(past, "layers", [None])):
        return _copied(inputs, rows, count, f"its past is a {type(past).__name__} of layers that cannot be cut")
    # The last token is read again, for the numbers of the first new one.
    past.crop(inputs["input_ids"].shape[1] - 1 - past.get_seq_length())
    past.batch_repeat_interleave(count)
    for part in model.modules():
        # By how much Qwen's positions behind the pictures lag behind their numbers, (B, 1).
        if (lag := getattr(part, "rope_deltas", None)) is not None:
            part.rope_deltas = lag.repeat_interleave(count, dim=0)
    return {**{name: own.repeat_interleave(count, dim=0) for name, own in rows.items()}, "past_key_values": past}


def _is_of_tokens(own: Any, tokens: Any) -> bool:
    return own.dim() == 2 and own.shape == tokens.shape


def _alone(model: Any) -> str:
    """Why the model's past holds more than its prompt; empty where it does not."""
    config = getattr(model, "active_peft_config", None)
    return "its adapter writes tokens of its own" if getattr(config, "is_prompt_learning", False) else ""


def _copied(inputs: dict[str, Any], rows: dict[str, Any], count: int, reason: str) -> dict[str, Any]:
    """The same, each prompt beside its copies."""
    import torch

    _say_once(f"each prompt is read {count} times, once an answer, because of the model: {reason}")
    prompts = inputs["input_ids"].shape[0]
    found = {name: own.repeat_interleave(count, dim=0) for name, own in rows.items()}
    for name, own in inputs.items():
        if name not in rows:
            if own.shape[0] % prompts:
                raise ValueError(
                    f"pictures of different sizes cannot be copied for this model ({name} has {own.shape[0]} rows for {prompts} "
                    "prompts); set --batch-size 1"
                )
            parts = own.split(own.shape[0] // prompts)
            found[name] = torch.cat([part for part in parts for _ in range(count)])
    return found


_SAID: set[str] = set()


def _say_once(line: str) -> None:
    if line not in _SAID:
        _SAID.add(line)
        logger.warning(line)


class _Drawn:
    """Logits -> 0 for the token that is drawn and -inf for all others, (R, V); the logits where the temperature is 0, which is greedy."""

    def __init__(self, drawing: Drawing, seeds: Sequence[int], prompts: Sequence[Prompt]):
        self.drawing, self.seeds, self.prompts = drawing, seeds, prompts
        self.generators: list[Any] = []

    def __call__(self, tokens: Any, scores: Any) -> Any:
        import torch

        scores = scores.float()
        if not scores.logsumexp(dim=-1).isfinite().all():
            raise ValueError(f"the model gives no finite probabilities for its answer to {dict(self.prompts[0].row)}")
        if not self.drawing.temperature:
            return scores
        scores = scores / self.drawing.temperature
        if self.drawing.top_p < 1:
            from transformers import TopPLogitsWarper

            scores = TopPLogitsWarper(self.drawing.top_p)(tokens, scores)
        if not self.generators:
            self.generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        uniform = torch.stack([torch.rand(1, generator=own, dtype=torch.float64) for own in self.generators])
        sums = scores.double().softmax(dim=-1).cumsum(dim=-1)
        drawn = torch.searchsorted(sums, uniform.to(sums.device) * sums[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn.clamp(max=scores.shape[-1] - 1), 0.0)


class _AfterSentence:
    """Which answers have a whole sentence and have begun the next, (R,) bool: a full stop alone may stand within a number."""

    def __init__(self, processor: Any, start: int):
        self.processor, self.start = processor, start

    def __call__(self, tokens: Any, scores: Any, **options: Any) -> Any:
        import torch

        texts = self.processor.batch_decode(tokens[:, self.start :], skip_special_tokens=True)
        done = [bool(first_sentence(own)[1].strip()) for own in texts]
        return torch.tensor(done, device=tokens.device)


def first_sentence(text: str) -> tuple[str, str]:
    """The first sentence of a text and what stands behind it; all of it where no sentence ends."""
    for match in SENTENCE_END.finditer(text):
        if any(map(str.isalnum, text[: match.start()])):
            return text[: match.end()], text[match.end() :]
    return text, ""
