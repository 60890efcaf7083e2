"""Rows -> batch: read, check, corrupt, encode and lay out the branches that the terms read."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin
from trl import apply_chat_template, is_conversational, prepare_multimodal_messages

from .._trl import NumberedRows
from ..config import MFPOConfig
from ..images import AUTO, DispreferredImages, check_rejected_images, takes_from_others
from ..objective import (
    BRANCHES,
    CLIPPED,
    COLUMN,
    IGNORED_LABEL,
    IMAGE_INSTRUCTION,
    NO_IMAGE,
    OF_BOTH,
    POSITION,
    BranchName,
    branch_of,
    columns_of,
)
from ..objective.terms import reads_changed
from ..rows import (
    PREFIX,
    REFERENCE,
    checked_texts,
    dispreferred_column,
    enlarged,
    has_images,
    image_places,
    image_tokens,
    load_images,
    plural_of,
    prefix_of,
    row_error,
    row_name,
    rows_with_images,
    same_answer,
    written_out,
)
from .begun import begun_tokens
from .both import asked_of_both, asked_of_both_in_text, instruction_for, own_image_first
from .endings import end_completion, end_of_sequence
from .layouts import LAYOUTS, Branch, EncodedPrompt
from .packing import FLAT
from .resolution import model_resolution
from .segments import changed_table, changed_tokens

logger = logging.getLogger(__name__)

SUFFIXES = {"PaliGemmaProcessor": {"token_type_ids": 1}}
"""What a processor writes behind a prompt where that is not 0. PaliGemma's tokens of type 0 see each other in both
directions: an answer of that type would see its own end."""


SUBJECTS = ("equal", "cut")
"""What is warned of once."""


def _nothing_said() -> Tensor:
    return torch.zeros(len(SUBJECTS), dtype=torch.bool).share_memory_()


@dataclass
class MFPOCollator:
    """Data collator for preference rows with images.

    Args:
        processor: of the model; its tokenizer must have a padding token.
        branches: what has to be scored (`MFPOConfig.branches`), each as (image variant, answer) or by a short name out of
            `chosen`, `rejected`, `corrupted` (`mfpo_trl.objective.names`).
        dispreferred: makes the dispreferred images.
        max_length: rows are cut to this many tokens; None cuts nothing.
        pad_to_multiple_of: pad rows to a multiple of this many tokens.
        add_eos: end every completion with the end-of-sequence token unless the chat template has closed it.
        columns: of the rows, whose numbers terms read.
        changed: whether terms read sums over the tokens in which the answers differ.
        image_instruction: the sentence that says which of two images in one prompt is meant, with `{position}` for `first` or `second`.
        layout: `flat`, or, where branches share their image and prompt, `packed rows` or a `packed row` for them all
            (`mfpo_trl.batch.packing`). A branch that several rows of the data have in common is then scored once.

    A call takes a list of B rows and returns a dict of tensors: what the model reads (`input_ids`, `attention_mask`,
    `labels`, (R, T), and the processor's image tensors), and the tables `pairs` (B, K) and `branches` (N, 3) that
    `mfpo_trl.objective.branches` describes. One row a branch: the chosen ones, then the rejected, then the corrupted, then the others.

    ```python
    >>> batch = MFPOCollator(processor)([row, row])
    >>> batch["pairs"]  # chosen, rejected, corrupted branch of each sample
    tensor([[0, 2, 4],
            [1, 3, 5]])
    >>> batch["branches"]  # row, first label position and number of labels of each branch
    tensor([[ 0, 19,  7],
            [ 1, 19,  7],
            [ 2, 19,  5],
            [ 3, 19,  5],
            [ 4, 19,  7],
            [ 5, 19,  7]])
    ```

    Raises:
        ValueError: an unknown branch or layout; a row that cannot be used, whose message names the row and the field.
    """

    processor: ProcessorMixin
    branches: Sequence[BranchName] = BRANCHES
    dispreferred: DispreferredImages = field(default_factory=DispreferredImages)
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    add_eos: bool = True
    layout: str = FLAT
    columns: Sequence[str] = ()
    changed: bool = False
    image_instruction: str = IMAGE_INSTRUCTION
    _said: Tensor = field(default_factory=_nothing_said, init=False, repr=False, compare=False)

    def __post_init__(self):
        try:
            self.branches = tuple(map(branch_of, self.branches))
        except ValueError as error:
            raise ValueError(f"branches of the collator: {error}") from None
        assert POSITION in self.image_instruction, "the configuration has looked at it"
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout of the collator: {self.layout!r} is unknown; expected {', '.join(LAYOUTS)}")

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        samples = [self.encode(example) for example in examples]
        laid: list[Branch] = []
        known: dict[Any, int] = {}
        branches = columns_of(self.branches)
        pairs = torch.full((len(samples), len(branches)), -1)
        for column, name in enumerate(branches):
            for position, sample in enumerate(samples):
                if name in sample:
                    branch = sample[name]
                    told = branch.prompt.identity, tuple(branch.completion), tuple(branch.changed)
                    same = len(laid) if self.layout == FLAT else told
                    pairs[position, column] = known.setdefault(same, len(laid))
                    laid += [branch] if pairs[position, column] == len(laid) else []
        lay = LAYOUTS[self.layout]
        rows = lay(laid, self.processor.tokenizer.pad_token_id, self.max_length, self.pad_to_multiple_of)
        if self.max_length is not None:
            rows["cut"] = self._cut(laid)
        if self.changed:
            rows["changed"] = changed_table(laid, rows["branches"])
        # First, because Trainer weighs an evaluation batch by the first dimension of its first tensor.
        if all(REFERENCE in example for example in examples):
            rows[REFERENCE] = torch.tensor([example[REFERENCE] for example in examples])
        for own in self.columns:
            rows[COLUMN.format(own)] = torch.tensor([_number(example, own) for example in examples])
        return {"pairs": pairs, **rows}

    def encode(self, example: Mapping[str, Any]) -> dict[BranchName, Branch]:
        """One row -> the branches that it takes part in.

        Raises:
            RowError: the row cannot be used; names the row and the field.
        """
        for column in self.columns:
            _number(example, column)
        answers = self.answers
        texts = checked_texts(example, image_tokens(self.processor), answers[2:])
        if same_answer(example):
            self._say("equal", f"{row_name(example)}: 'chosen' equals 'rejected'; its text term teaches nothing.")
        example = _with_remote_files(example)
        images = load_images(example, "image") or []
        check_rejected_images(example, len(images))
        texts = written_out(example, texts, answers)
        written = self._templated(example, texts, images, answers)
        begun, completions = self._completions(example, written, texts)
        changed = changed_tokens(completions) if self.changed else {}
        prompts: dict[str, EncodedPrompt] = {}
        made: dict[int, list[Image.Image]] = {}
        sample = {}
        for branch in self.branches:
            if branch.image != "image" and not images:
                continue
            if branch.variant and branch.variant not in made:
                made[branch.variant] = self.dispreferred(example, images, branch.variant)
            if branch.image not in prompts:
                shown = self._shown(branch, example, written["prompt"], texts, images, made)
                prompts[branch.image] = self._encode_prompt(example, *shown, begun)
            sample[branch] = Branch(prompts[branch.image], completions[branch.answer], changed.get(branch.answer, ()))
        return sample

    def _shown(
        self,
        branch: BranchName,
        example: Mapping[str, Any],
        prompt: str,
        texts: dict,
        images: list[Image.Image],
        made: Mapping[int, list[Image.Image]],
    ) -> tuple[str, str, list[Image.Image]]:
        """Of a branch the field that an error names, the prompt as a text, and its images."""
        if branch.image == "image":
            return "prompt", prompt, images
        if branch.image == NO_IMAGE:
            return "prompt", self._without_image(example, texts), []
        field = plural_of(dispreferred_column(branch.variant))
        if branch.image in OF_BOTH:
            return field, *self._of_both(branch, example, texts, images, made[branch.variant])
        return field, prompt, made[branch.variant]

    def _of_both(
        self, branch: BranchName, example: Mapping[str, Any], texts: dict, images: list[Image.Image], other: list
    ) -> tuple[str, list[Image.Image]]:
        """The prompt with the row's image and the dispreferred one, which asks about one of them, and the two in their order."""
        if len(images) > 1:
            raise row_error(
                example,
                "images",
                f"holds {len(images)}, and of both images the first or the second is asked about; give the row one image",
            )
        first = own_image_first(example, images)
        both = [*images, *other] if first else [*other, *images]
        sentence = instruction_for(OF_BOTH[branch.image] == "image", first, self.image_instruction)
        if not is_conversational(texts):
            places = image_places(self.processor)
            if places is None or not places.search(texts["prompt"]):
                problem = "has no place for its image, behind which the other one would stand; write it as messages"
                raise row_error(example, "prompt", problem)
            return asked_of_both_in_text(texts["prompt"], places, sentence), both
        if not any(message["role"] == "user" for message in texts["prompt"]):
            raise row_error(example, "prompt", "has no message of the user, which could ask about one of both images")
        messages = asked_of_both(prepare_multimodal_messages(texts["prompt"], images=images), both, sentence)
        return self._templated(example, {**texts, "prompt": messages}, [], ("chosen", "rejected"))["prompt"], both

    def _completions(
        self, example: Mapping[str, Any], written: Mapping[str, str], texts: dict
    ) -> tuple[list[int], dict[str, list[int]]]:
        """The tokens of the begun answer, none in most rows, and of each answer those that are scored."""
        answers = {name: written[name] for name in self.answers}
        if not prefix_of(example):
            return [], {name: self._completion_ids(text) for name, text in answers.items()}
        return begun_tokens(example, answers, texts, self._ids)

    def _without_image(self, example: Mapping[str, Any], texts: dict) -> str:
        """The prompt as a text: without its images, and a plain one without their placeholders."""
        if is_conversational(texts):
            bare = [_without_parts(message, "image") for message in texts["prompt"]]
            return self._templated(example, {**texts, "prompt": bare}, [], ("chosen", "rejected"))["prompt"]
        places = image_places(self.processor)
        return places.sub("", texts["prompt"]) if places else texts["prompt"]

    @property
    def answers(self) -> tuple[str, ...]:
        """The columns of the answers that are read."""
        return tuple(dict.fromkeys(["chosen", "rejected", *(branch.answer for branch in self.branches)]))

    def _say(self, subject: str, message: str) -> None:
        """Warn of a subject once in this process and its data workers, which begin anew in each epoch."""
        place = SUBJECTS.index(subject)
        if not self._said[place]:
            self._said[place] = True
            logger.warning(f"{message} Said once; there may be more.")

    def _cut(self, branches: Sequence[Branch]) -> Tensor:
        """Which branches lose the end of their answer, (N,) bool."""
        assert self.max_length is not None
        cut = [len(b.prompt.tokens["input_ids"]) + len(b.completion) > self.max_length for b in branches]
        worker = torch.utils.data.get_worker_info()
        if any(cut) and (worker is None or worker.id == 0):
            problem = f"cuts the end of answers, in this batch {sum(cut)} of {len(cut)}; the share of all is logged as {CLIPPED}."
            self._say("cut", f"max_length={self.max_length} {problem}")
        return torch.tensor(cut)

    def _templated(
        self, example: Mapping[str, Any], texts: dict, images: list[Image.Image], answers: Sequence[str]
    ) -> dict[str, str]:
        """The prompt and the answers as the model reads them, by their names."""
        if not is_conversational(texts):
            return {name: texts[name] for name in ("prompt", *answers)}
        tools = example.get("tools")
        try:
            messages = {"prompt": prepare_multimodal_messages(texts["prompt"], images=images)}
            messages |= {name: prepare_multimodal_messages(texts[name]) for name in ("chosen", "rejected")}
            if example.get("chat_template_kwargs"):
                messages["chat_template_kwargs"] = example["chat_template_kwargs"]
            tools = json.loads(tools) if isinstance(tools, str) else tools
            written = apply_chat_template(messages, self.processor, tools=tools)
            for name in answers[2:]:
                # TRL's knows two answers.
                own = {**messages, "chosen": prepare_multimodal_messages(texts[name])}
                written[name] = apply_chat_template(own, self.processor, tools=tools)["chosen"]
        except Exception as error:
            raise row_error(example, "prompt", f"the chat template cannot write it: {error}") from error
        return written

    def _completion_ids(self, text: str) -> list[int]:
        ids = self._ids(text)
        return end_completion(ids, self.processor.tokenizer) if self.add_eos else ids

    def _ids(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _encode_prompt(
        self, example: Mapping[str, Any], field: str, text: str, images: list, begun: Sequence[int] = ()
    ) -> EncodedPrompt:
        try:
            encoded = self.processor(
                images=[[enlarged(image) for image in images]] if images else None,
                text=[text],
                # The chat template has written them, and a plain prompt is taken as it stands, as in TRL.
                add_special_tokens=False,
                return_tensors="pt",
            )
        except Exception as error:
            raise row_error(example, field, f"the processor cannot encode prompt and images: {error}") from error
        shape = encoded["input_ids"].shape
        if not shape[1]:
            raise row_error(example, "prompt", "is empty; there is nothing to answer")
        tensors = {
            key: value for key, value in encoded.items() if isinstance(value, Tensor) and key != "attention_mask"
        }
        tokens = {key: value[0] for key, value in tensors.items() if value.shape == shape}
        behind = SUFFIXES.get(type(self.processor).__name__, {})
        if begun:
            # Some processors write labels too, of a prompt none.
            said = {"labels": IGNORED_LABEL, **behind}
            more = {key: value.new_full((len(begun),), said.get(key, 0)) for key, value in tokens.items()}
            more["input_ids"] = torch.tensor(begun)
            tokens = {key: torch.cat([value, more[key]]) for key, value in tokens.items()}
        if self.max_length is not None and len(tokens["input_ids"]) >= self.max_length:
            raise row_error(example, "prompt", self._too_long(tokens["input_ids"], len(begun)))
        vision = {key: value for key, value in tensors.items() if key not in tokens}
        image_ids = self.processor.tokenizer.convert_tokens_to_ids(list(image_tokens(self.processor)))
        shared = not vision or int(tokens["input_ids"][-1]) not in image_ids
        return EncodedPrompt(tokens, vision, behind, shared)

    def _too_long(self, ids: Tensor, begun: int) -> str:
        image_tokens = int((ids == getattr(self.processor, "image_token_id", -1)).sum())
        advice = "raise max_length or set it to None"
        if begun:
            advice = f"{begun} of them are the begun answer in {PREFIX!r}; {advice}"
        if image_tokens:
            return (
                f"max_length={self.max_length} would cut the {len(ids)} tokens of the prompt, {image_tokens} of which are "
                f"the image; {advice}"
            )
        return f"max_length={self.max_length} leaves no room for the answer after {len(ids)} prompt tokens; {advice}"


def build_collator(args: MFPOConfig, processor: ProcessorMixin, dataset: Any, layout: str) -> MFPOCollator:
    """The collator that a configuration asks for.

    Args:
        args: names the branches, the corruption and the lengths.
        processor: of the model.
        dataset: the training data, whose rows give their images to the corruptions `swap` and `transplant`.
        layout: a key of `mfpo_trl.batch.layouts.LAYOUTS`.

    Raises:
        ValueError: images are to be swapped in a stream, or answers ended without a token for it.
    """
    if args.add_eos and processor is not None:
        end_of_sequence(processor.tokenizer)
    dispreferred = DispreferredImages.of(args, model_resolution(processor))
    if takes_from_others(args.corruption) and not isinstance(dataset, Dataset):
        raise ValueError(
            f"corruption={args.corruption!r} takes another row's image, which an IterableDataset cannot give at random; use a "
            "map-style data set, or fill 'rejected_images' yourself"
        )
    # Rows to evaluate on may swap where those to train on do not.
    if (
        (takes_from_others(args.corruption) or args.corruption == AUTO)
        and isinstance(dataset, Dataset)
        and has_images(dataset)
    ):
        dispreferred.donors = _Donors(dataset)
    return MFPOCollator(
        processor=processor,
        branches=args.branches,
        columns=tuple(dict.fromkeys(name for own in args.terms for name in own.term.columns)),
        changed=reads_changed(args.terms),
        dispreferred=dispreferred,
        max_length=args.max_length,
        pad_to_multiple_of=args.pad_to_multiple_of,
        add_eos=args.add_eos,
        image_instruction=args.image_instruction,
        layout=layout,
    )


def _number(example: Mapping[str, Any], name: str) -> float:
    value = example.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        found = "is missing" if value is None else f"is {str(value)[:40]!r}"
        raise row_error(example, name, f"{found}; the objective needs a number in every row")
    return float(value)


def _without_parts(message: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A message without its parts of a kind."""
    content = message["content"]
    kept = content if isinstance(content, str) else [part for part in content if part["type"] != kind]
    return {**message, "content": kept}


class _Donors:
    """The rows of a data set that have an image, as a sequence."""

    def __init__(self, dataset: Dataset):
        self.rows, self.dataset = NumberedRows.of(dataset), dataset

    @cached_property
    def numbers(self) -> np.ndarray:
        return rows_with_images(self.dataset)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.rows.__getitems__([int(self.numbers[position])])[0]


def _with_remote_files(example: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fetch the images that a streamed data set keeps as paths inside of remote archives, which `datasets` alone opens."""

    def fetched(field: str, value: Any) -> Any:
        if isinstance(value, list):
            return [fetched(field, item) for item in value]
        if isinstance(value, Mapping) and value.get("bytes") is None and "://" in str(value.get("path")):
            try:
                return datasets.Image().decode_example(dict(value))
            except Exception as error:
                raise row_error(example, field, f"{value['path']} cannot be read: {error}") from error
        return value

    fields = [name for name in example if name.startswith(("image", "rejected_image")) and example[name] is not None]
    return {**example, **{field: fetched(field, example[field]) for field in fields}}
