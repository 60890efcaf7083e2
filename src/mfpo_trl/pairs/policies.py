"""Who answers: a model that is loaded here, or a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..endpoint import Request, complete
from ..evaluation.generation import Drawing, Prompt, batches, draw, said
from ..evaluation.models import Quantisation, load_base, load_processor, place_of, with_adapter

if TYPE_CHECKING:
    from .options import PairOptions

SERVED_AS_BEGUN = {"continue_final_message": True, "add_generation_prompt": False}
"""What tells a server (vLLM, SGLang) to go on with the last message instead of answering it."""


class Asked(NamedTuple):
    """A prompt of which answers are wanted.

    Attributes:
        prompt: with its pictures.
        seeds: of each answer.
        missing: places of the seeds whose answers are not there yet.
        begun: how the answers begin.
    """

    prompt: Prompt
    seeds: Sequence[int]
    missing: Sequence[int]
    begun: str = ""


Found = Iterator[tuple[int, list[tuple[int, str]]]]
"""Answers as they come: the place of what was asked, and some of its answers, each with the place of its seed."""


class Policy(Protocol):
    """Answers prompts."""

    def answer(self, asked: Sequence[Asked], drawing: Drawing) -> Found:
        """All that is missing, as it comes.

        Raises:
            ValueError: a prompt that cannot be encoded, or a model that gives no finite numbers.
            MemoryError: a GPU does not hold a batch.
            EndpointError: a server did not answer; what it answered before was handed on.
        """
        ...


class Loaded:
    """A model of this machine.

    Args:
        options: which.
        device: of the model; None takes a GPU where there is one.

    Raises:
        ValueError: it cannot be loaded, or its processor has no chat template.
    """

    def __init__(self, options: PairOptions, device: str | None):
        assert options.model is not None
        place = place_of(options.model, options.adapter)
        self.processor = load_processor(place)
        if not getattr(self.processor, "chat_template", None):
            raise ValueError(f"the processor of {place.name} has no chat template, by which questions are asked")
        stored = Quantisation() if options.load_in_4bit else None
        model = load_base(place.base, options.dtype, stored, scored=False, device=device)
        self.model = model if place.adapter is None else with_adapter(model, place.adapter)
        self.batch_size = options.batch_size

    def answer(self, asked: Sequence[Asked], drawing: Drawing) -> Found:
        """See `Policy`; all answers of a prompt at once.

        Raises:
            ValueError: a prompt that cannot be encoded, or a model that gives no finite numbers.
            MemoryError: a GPU does not hold a batch.
        """
        import torch

        place = {id(own.prompt): number for number, own in enumerate(asked)}
        for batch in batches([own.prompt for own in asked], self.batch_size):
            numbers = [place[id(prompt)] for prompt in batch]
            seeds, begun = [asked[number].seeds for number in numbers], [asked[number].begun for number in numbers]
            try:
                texts = draw(self.model, self.processor, batch, drawing, seeds, begun)
            except torch.OutOfMemoryError as error:
                raise MemoryError(
                    f"the memory of the GPU does not hold {len(batch)} prompts with {len(seeds[0])} answers each ({error}); lower "
                    "--batch-size, with which the same command goes on, or build elsewhere with fewer --samples or --load-in-4bit"
                ) from error
            for number, found in zip(numbers, texts, strict=True):
                yield number, list(enumerate(found))


class Served:
    """A model of a server."""

    def __init__(self, options: PairOptions):
        self.server = options.server

    def answer(self, asked: Sequence[Asked], drawing: Drawing) -> Found:
        """See `Policy`; each answer as it comes."""
        for request, text in complete(self._requests(asked, drawing), self.server, in_order=False):
            number, sample = request.tag
            yield number, [(sample, text)]

    def _requests(self, asked: Sequence[Asked], drawing: Drawing) -> Iterator[Request]:
        for number, own in enumerate(asked):
            messages: list[Any] = said(own.prompt)
            fields: dict[str, Any] = {} if drawing.top_p == 1 else {"top_p": drawing.top_p}
            if own.begun:
                messages = [*messages, {"role": "assistant", "content": own.begun}]
                fields |= SERVED_AS_BEGUN
            for sample in own.missing:
                name, more = {**own.prompt.row, "sample": sample}, {"seed": own.seeds[sample]}
                yield Request(
                    name,
                    messages,
                    drawing.max_new_tokens,
                    drawing.temperature,
                    fields | (more if drawing.temperature else {}),
                    tag=(number, sample),
                )


def build_policy(options: PairOptions, device: str | None) -> Policy:
    """The policy that the options name; raises as `Loaded` does."""
    return Served(options) if options.endpoint is not None else Loaded(options, device)
