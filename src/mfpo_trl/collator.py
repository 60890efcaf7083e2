"""Rows -> batch: read, check, corrupt, encode and lay out the branches that the terms read."""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from trl import apply_chat_template, is_conversational, prepare_multimodal_messages

from .branches import IGNORED_LABEL
from .dispreferred import DispreferredImages, check_rejected_images
from .losses import BRANCHES
from .packing import FLAT, PACKED_ROW, PACKED_ROWS
from .rows import IMAGE_COLUMNS, REFERENCE, enlarged, load_images, row_error, row_name, same_answer
from .validation import checked_texts, image_tokens

logger = logging.getLogger(__name__)

PIXEL_BUDGET = 4096
"""A `longest_edge` above this is a number of pixels (the Qwen-VL convention), not the length of a side."""


@dataclass
class EncodedPrompt:
    """A prompt with its images, as the processor encodes it: per-token tensors (T,) and image tensors."""

    tokens: dict[str, Tensor]
    vision: dict[str, Tensor]

    @cached_property
    def identity(self) -> bytes:
        """Equal for prompts that a model cannot tell apart."""
        digest = hashlib.blake2b(digest_size=16)
        for name, values in sorted((self.tokens | self.vision).items()):
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.digest()


@dataclass
class Branch:
    """One (image variant, response) pair: an encoded prompt and the ids of the completion."""

    prompt: EncodedPrompt
    completion: list[int]


@dataclass
class MFPOCollator:
    """Data collator for preference rows with images.

    Args:
        processor: of the model; its tokenizer must have a padding token.
        branches: what has to be scored, out of `chosen`, `rejected`, `corrupted` (`MFPOConfig.branches`).
        dispreferred: makes the dispreferred images.
        max_length: rows are cut to this many tokens; None cuts nothing.
        pad_to_multiple_of: pad rows to a multiple of this many tokens.
        add_eos: end every completion with the end-of-sequence token unless the chat template has closed it.
        layout: `flat`, or, where branches share their image and prompt, `packed rows` or a `packed row` for them all
            (`mfpo_trl.packing`). A branch that several rows of the data have in common is then scored once.

    A call takes a list of B rows and returns a dict of tensors: what the model reads (`input_ids`, `attention_mask`,
    `labels`, (R, T), and the processor's image tensors), and the tables `pairs` (B, 3) and `branches` (N, 3) that
    `mfpo_trl.branches` describes. One row a branch: the chosen ones, then the rejected, then the corrupted.

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
        ValueError: a row that cannot be used; the message names the row and the field.
    """

    processor: ProcessorMixin
    branches: Sequence[str] = BRANCHES
    dispreferred: DispreferredImages = field(default_factory=DispreferredImages)
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    add_eos: bool = True
    layout: str = FLAT
    _said: set[str] = field(default_factory=set, init=False, repr=False)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        samples = [self.encode(example) for example in examples]
        laid: list[Branch] = []
        known: dict[Any, int] = {}
        pairs = torch.full((len(samples), len(BRANCHES)), -1)
        for column, name in enumerate(BRANCHES):
            for position, sample in enumerate(samples):
                if name in sample:
                    branch = sample[name]
                    same = len(laid) if self.layout == FLAT else (branch.prompt.identity, tuple(branch.completion))
                    pairs[position, column] = known.setdefault(same, len(laid))
                    laid += [branch] if pairs[position, column] == len(laid) else []
        self._say_when_cut(laid)
        lay = LAYOUTS[self.layout]
        rows = lay(laid, self.processor.tokenizer.pad_token_id, self.max_length, self.pad_to_multiple_of)
        # First, because Trainer weighs an evaluation batch by the first dimension of its first tensor.
        if all(REFERENCE in example for example in examples):
            rows[REFERENCE] = torch.from_numpy(np.stack([example[REFERENCE] for example in examples]))
        return {"pairs": pairs, **rows}

    def encode(self, example: Mapping[str, Any]) -> dict[str, Branch]:
        """One row -> the branches that it takes part in."""
        texts = checked_texts(example, image_tokens(self.processor))
        if same_answer(example):
            self._say("equal", f"{row_name(example)}: 'chosen' equals 'rejected'; its text term teaches nothing.")
        example = _with_remote_files(example)
        images = load_images(example, "image") or []
        check_rejected_images(example, len(images))
        prompt, chosen, rejected = self._templated(example, texts, images)
        completions = {name: self._completion_ids(text) for name, text in (("chosen", chosen), ("rejected", rejected))}
        clean = self._encode_prompt(example, "prompt", prompt, images)
        sample = {name: Branch(clean, completions[name]) for name in ("chosen", "rejected") if name in self.branches}
        if images and "corrupted" in self.branches:
            variant = self._encode_prompt(example, "rejected_images", prompt, self.dispreferred(example, images))
            sample["corrupted"] = Branch(variant, completions["chosen"])
        return sample

    def _say(self, subject: str, message: str) -> None:
        """Warn of a subject once in this process."""
        if subject not in self._said:
            self._said.add(subject)
            logger.warning(f"{message} Said once; there may be more.")

    def _say_when_cut(self, branches: Sequence[Branch]) -> None:
        if self.max_length is None:
            return
        cut = [len(b.prompt.tokens["input_ids"]) + len(b.completion) > self.max_length for b in branches]
        if any(cut):
            problem = f"cuts the end of answers, in this batch {sum(cut)} of {len(cut)}."
            self._say("cut", f"max_length={self.max_length} {problem}")

    def _templated(self, example: Mapping[str, Any], texts: dict, images: list[Image.Image]) -> tuple[str, str, str]:
        """The prompt, chosen and rejected response as the model reads them."""
        if not is_conversational(texts):
            return texts["prompt"], texts["chosen"], texts["rejected"]
        tools = example.get("tools")
        try:
            messages = {"prompt": prepare_multimodal_messages(texts["prompt"], images=images)}
            messages |= {name: prepare_multimodal_messages(texts[name]) for name in ("chosen", "rejected")}
            if example.get("chat_template_kwargs"):
                messages["chat_template_kwargs"] = example["chat_template_kwargs"]
            tools = json.loads(tools) if isinstance(tools, str) else tools
            written = apply_chat_template(messages, self.processor, tools=tools)
        except Exception as error:
            raise row_error(example, "prompt", f"the chat template cannot write it: {error}") from error
        return written["prompt"], written["chosen"], written["rejected"]

    def _completion_ids(self, text: str) -> list[int]:
        tokenizer = self.processor.tokenizer
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return end_completion(ids, tokenizer) if self.add_eos else ids

    def _encode_prompt(self, example: Mapping[str, Any], field: str, text: str, images: list) -> EncodedPrompt:
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
        if self.max_length is not None and shape[1] >= self.max_length:
            raise row_error(example, "prompt", self._too_long(tokens["input_ids"]))
        return EncodedPrompt(tokens, {key: value for key, value in tensors.items() if key not in tokens})

    def _too_long(self, ids: Tensor) -> str:
        image_tokens = int((ids == getattr(self.processor, "image_token_id", -1)).sum())
        advice = "raise max_length or set it to None"
        if image_tokens:
            return (
                f"max_length={self.max_length} would cut the {len(ids)} tokens of the prompt, {image_tokens} of which are "
                f"the image; {advice}"
            )
        return f"max_length={self.max_length} leaves no room for the answer after {len(ids)} prompt tokens; {advice}"


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

    fields = [field for field in IMAGE_COLUMNS if example.get(field) is not None]
    return {**example, **{field: fetched(field, example[field]) for field in fields}}


def end_completion(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """End a completion with the end-of-sequence token, so that stopping is learnt.

    A completion that ends with a special token, such as a chat template's end of turn, up to blank tokens, stays as it
    is. Otherwise blank tokens that the template left behind the answer make room for the end-of-sequence token.

    Raises:
        ValueError: the tokenizer has no end-of-sequence token.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ValueError("add_eos=True needs a tokenizer with an end-of-sequence token; set it, or set add_eos=False")
    last = len(ids)
    while last and not tokenizer.decode([ids[last - 1]]).strip():
        last -= 1
    added = tokenizer.added_tokens_decoder
    closed = last and (ids[last - 1] == eos or (ids[last - 1] in added and added[ids[last - 1]].special))
    return ids if closed else [*ids[:last], eos]


def lay_flat(
    branches: Sequence[Branch], pad_token_id: int, max_length: int | None = None, multiple: int | None = None
) -> dict[str, Tensor]:
    """One row a branch: prompt, then completion, padded on the right.

    Args:
        branches: N branches.
        pad_token_id: fills `input_ids`; every other per-token tensor is filled with 0.
        max_length: rows are cut to this many tokens.
        multiple: pad to a multiple of this many tokens.

    Returns:
        `branches` (N, 3), `input_ids`, `attention_mask`, `labels` and the processor's other per-token tensors (N, T), and
        the image tensors of all rows joined along their first dimension.
    """
    lengths = [len(branch.prompt.tokens["input_ids"]) + len(branch.completion) for branch in branches]
    kept = [min(length, max_length or length) for length in lengths]
    width = math.ceil(max(kept) / (multiple or 1)) * (multiple or 1)
    names = dict.fromkeys(name for branch in branches for name in branch.prompt.tokens)
    batch = {name: torch.zeros(len(branches), width, dtype=torch.long) for name in names}
    batch["input_ids"].fill_(pad_token_id)
    batch["attention_mask"] = torch.zeros(len(branches), width, dtype=torch.long)
    batch["labels"] = torch.full((len(branches), width), IGNORED_LABEL)
    table = []
    for row, (branch, length) in enumerate(zip(branches, kept, strict=True)):
        prompt = len(branch.prompt.tokens["input_ids"])
        completion = torch.tensor(branch.completion)[: length - prompt]
        for name, values in branch.prompt.tokens.items():
            batch[name][row, :prompt] = values
        batch["input_ids"][row, prompt:length] = completion
        batch["labels"][row, prompt:length] = completion
        batch["attention_mask"][row, :length] = 1
        assert prompt > 0, "a completion behind an empty prompt has no position that predicts its first token"
        # Position t predicts token t + 1, so the first label stands at the prompt's last token.
        table.append([row, prompt - 1, len(completion)])
    return {"branches": torch.tensor(table), **batch, **_join([branch.prompt.vision for branch in branches])}


def lay_packed(
    branches: Sequence[Branch],
    pad_token_id: int,
    max_length: int | None = None,
    multiple: int | None = None,
    one_row: bool = False,
) -> dict[str, Tensor]:
    """Branches with the same image and prompt behind one copy of it (`mfpo_trl.packing`), padded on the right.

    Args:
        branches, pad_token_id, multiple: as in `lay_flat`.
        max_length: a prompt with one of its responses is cut to this many tokens.
        one_row: put all groups into one row. Otherwise groups lie in rows as wide as the widest group, as few of them as
            a first-fit by decreasing length finds.

    Returns:
        As `lay_flat`, but with `shift_labels` instead of `labels`, and with `prefixes` (N, 2).
    """
    groups = _groups(branches, max_length)
    lengths = [len(prompt.tokens["input_ids"]) - 1 + sum(map(len, answers.values())) for prompt, answers in groups]
    rows = [list(range(len(groups)))] if one_row else _first_fit(lengths)
    width = math.ceil(max(sum(lengths[g] for g in row) for row in rows) / (multiple or 1)) * (multiple or 1)
    names = dict.fromkeys(name for prompt, _ in groups for name in prompt.tokens)
    batch = {name: torch.zeros(len(rows), width, dtype=torch.long) for name in names}
    batch["input_ids"].fill_(pad_token_id)
    batch["attention_mask"] = torch.zeros(len(rows), width, dtype=torch.long)
    batch["shift_labels"] = torch.full((len(rows), width), IGNORED_LABEL)
    table = torch.zeros(len(branches), 3, dtype=torch.long)
    prefixes = torch.zeros(len(branches), 2, dtype=torch.long)
    for row, members in enumerate(rows):
        first = 0
        for prompt, answers in (groups[g] for g in members):
            prefix = len(prompt.tokens["input_ids"]) - 1
            start = first + prefix
            for name, values in prompt.tokens.items():
                batch[name][row, first:start] = values[:-1]
            for branch, labels in answers.items():
                end = start + len(labels)
                for name, values in prompt.tokens.items():
                    batch[name][row, start] = values[-1]
                batch["input_ids"][row, start + 1 : end] = labels[:-1]
                batch["shift_labels"][row, start:end] = labels
                table[branch] = torch.tensor([row, start, len(labels)])
                prefixes[branch] = torch.tensor([first, prefix])
                start = end
            first = start
        batch["attention_mask"][row, :first] = 1
    vision = _join([groups[g][0].vision for row in rows for g in row])
    return {"branches": table, "prefixes": prefixes, **batch, **vision}


def _groups(branches: Sequence[Branch], max_length: int | None) -> list[tuple[EncodedPrompt, dict[int, Tensor]]]:
    """Each prompt with the labels of the branches that share it, by the branch's number."""
    groups: dict[Any, tuple[EncodedPrompt, dict[int, Tensor]]] = {}
    for number, branch in enumerate(branches):
        room = None if max_length is None else max_length - len(branch.prompt.tokens["input_ids"])
        answers = groups.setdefault(branch.prompt.identity, (branch.prompt, {}))[1]
        answers[number] = torch.tensor(branch.completion[:room])
    return list(groups.values())


def _first_fit(lengths: Sequence[int]) -> list[list[int]]:
    """Which items lie together in bins as wide as the longest item, filled by decreasing length."""
    bins: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        place = next((n for n, left in enumerate(room) if left >= lengths[item]), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(max(lengths))
        bins[place].append(item)
        room[place] -= lengths[item]
    return bins


LAYOUTS: dict[str, Callable[..., dict[str, Tensor]]] = {
    FLAT: lay_flat,
    PACKED_ROWS: lay_packed,
    PACKED_ROW: partial(lay_packed, one_row=True),
}


def _join(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join the image tensors of rows along their first dimension; where images have different sizes or numbers of tiles
    the others are padded with zeros, as processors do and models expect."""
    joined = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        tensors = [row[name] for row in rows if name in row]
        largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
        joined[name] = torch.cat([_padded(tensor, largest) for tensor in tensors])
    return joined


def _padded(tensor: Tensor, trailing: Sequence[int]) -> Tensor:
    missing = [(0, want - have) for want, have in zip(trailing, tensor.shape[1:], strict=True)]
    return torch.nn.functional.pad(tensor, [n for pair in reversed(missing) for n in pair])


def model_resolution(processor: ProcessorMixin) -> Callable[[int, int], int] | None:
    """From an image's (height, width) to the shorter side, in pixels, at which the processor hands it to the model; None
    where the processor does not say."""
    size = dict(getattr(getattr(processor, "image_processor", None), "size", None) or {})
    longest, shortest = size.get("longest_edge"), size.get("shortest_edge")
    if longest and longest > PIXEL_BUDGET:
        return partial(_side_within_pixels, longest)
    if longest and not shortest:
        return partial(_side_beside_longest, longest)
    shortest = shortest or min(size.get("height") or 0, size.get("width") or 0)
    return partial(_fixed_side, shortest) if shortest else None


def _fixed_side(side: int, height: int, width: int) -> int:
    return side


def _side_beside_longest(longest: int, height: int, width: int) -> int:
    return max(1, round(longest * min(height, width) / max(height, width)))


def _side_within_pixels(pixels: int, height: int, width: int) -> int:
    return max(1, round(min(height, width) * min(1.0, math.sqrt(pixels / (height * width)))))
