"""Branches -> rows of tokens: the layouts of a batch.

A layout is a function from branches to tensors; everything behind the forward reads its tables and is the same for all.

Shapes: N branches, R rows, T tokens of a row.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ..objective import IGNORED_LABEL
from .packing import FLAT, PACKED_ROW, PACKED_ROWS


@dataclass
class EncodedPrompt:
    """A prompt with its images, as the processor encodes it: per-token tensors (T,) and image tensors; and what the
    per-token tensors hold behind it, in completions, 0 where nothing is said. A prompt whose last token is an image's
    cannot be `shared`: that token is repeated for every branch, and each of an image's tokens stands for a part of it."""

    tokens: dict[str, Tensor]
    vision: dict[str, Tensor]
    behind: dict[str, int] = field(default_factory=dict)
    shared: bool = True

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
    """One (image variant, response) pair: an encoded prompt, the ids of the completion, and, where terms read it, which of them the
    other answer has not."""

    prompt: EncodedPrompt
    completion: list[int]
    changed: Sequence[bool] = ()


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
            batch[name][row, prompt:length] = branch.prompt.behind.get(name, 0)
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
    """Branches with the same image and prompt behind one copy of it (`mfpo_trl.batch.packing`), padded on the right.

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
        same = branch.prompt.identity if branch.prompt.shared else number
        answers = groups.setdefault(same, (branch.prompt, {}))[1]
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


LAYOUTS: dict[str, Callable[..., dict[str, Tensor]]] = {
    FLAT: lay_flat,
    PACKED_ROWS: lay_packed,
    PACKED_ROW: partial(lay_packed, one_row=True),
}
