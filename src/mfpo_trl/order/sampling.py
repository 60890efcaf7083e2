"""The order of the rows of an epoch: pairs on the same image and prompt together."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from torch.utils.data import Sampler

from ..config import MFPOConfig
from ..rows import is_stored, without_none

HEAD = 4096
"""Bytes of a stored image that tell it from others."""

LOOK_AHEAD = 256
"""How many groups are tried for the rest of a batch before a group is cut in two."""


def prompt_groups(dataset: Dataset) -> list[int]:
    """A number for each row, the same for rows with the same prompt and the same stored images (bytes or paths).

    A row without a `prompt` of its own is alone in its group.
    """
    columns = [name for name in ("prompt", "image", "images") if name in dataset.column_names]
    numbers: dict[bytes, int] = {}
    groups: list[int] = []
    if "prompt" not in columns:
        return list(range(len(dataset)))
    for table in dataset.select_columns(columns).with_format("arrow").iter(256):
        images = [_names(table[name].combine_chunks()) for name in columns if name != "prompt"]
        for prompt, *names in zip(table["prompt"].to_pylist(), *images, strict=True):
            text = json.dumps([without_none(prompt), names], sort_keys=True, default=str)
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            groups.append(numbers.setdefault(digest, len(numbers)))
    return groups


def _names(images: pa.Array) -> list[Any]:
    """What tells stored images apart, an entry for each row: path, length and the beginning of the bytes.

    No more of them, because they would all be read from the disk; images that are wrongly taken for the same come into
    one batch, where they are compared.
    """
    if pa.types.is_list(images.type) or pa.types.is_large_list(images.type):
        names = iter(_names(images.flatten()))
        lengths = pc.fill_null(pc.list_value_length(images), 0).to_pylist()
        return [[next(names) for _ in range(length)] for length in lengths]
    if not pa.types.is_struct(images.type):
        return images.to_pylist() if pa.types.is_string(images.type) else _heads(images)
    heads = _heads(images.field("bytes"))
    return [head or path for head, path in zip(heads, images.field("path").to_pylist(), strict=True)]


def _heads(data: pa.Array) -> list[Any]:
    if not (pa.types.is_binary(data.type) or pa.types.is_large_binary(data.type)):
        return data.to_pylist()
    lengths, heads = pc.binary_length(data).to_pylist(), pc.binary_slice(data, 0, HEAD).to_pylist()
    return [head and (length, head) for length, head in zip(lengths, heads, strict=True)]


def keep_together(order: Sequence[int], groups: Sequence[int], batch_size: int) -> list[int]:
    """Reorder rows so that those of a group fall into one batch, as near as may be to where the first of them stood.

    Args:
        order: rows in any order.
        groups: the group of each row, indexed by row.
        batch_size: consecutive rows of the result that make a batch. A larger group fills several; a group is cut in two
            only where no other of the next 256 fits into the rest of a batch.

    Returns:
        The same rows; a pure function of its arguments.
    """
    members: dict[int, list[int]] = {}
    for row in order:
        members.setdefault(groups[row], []).append(row)
    waiting = [rows[n : n + batch_size] for rows in members.values() for n in range(0, len(rows), batch_size)]
    waiting.reverse()
    result: list[int] = []
    while waiting:
        room = batch_size - len(result) % batch_size
        ahead = range(len(waiting) - 1, max(len(waiting) - 1 - LOOK_AHEAD, -1), -1)
        place = next((n for n in ahead if len(waiting[n]) <= room), None)
        if place is None:
            result += waiting[-1][:room]
            waiting[-1] = waiting[-1][room:]
        else:
            result += waiting.pop(place)
    return result


class EpochSampler(Sampler[int]):
    """Rows in the order of the current epoch, the same on every rank.

    Args:
        order: from an epoch to its rows.
        epoch: the current epoch. It is asked for when an epoch begins, because an epoch that a trainer sets does not reach
            a sampler behind accelerate's sharding, and a resumed run would then see another order.
        rows: how many rows an epoch has.
    """

    def __init__(self, order: Callable[[int], list[int]], epoch: Callable[[], int], rows: int):
        self.order, self.epoch, self.rows = order, epoch, rows

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.epoch()))

    def __len__(self) -> int:
        return self.rows


def check_grouping(args: MFPOConfig, dataset: Any) -> None:
    """What `group_by_prompt` needs.

    Raises:
        ValueError: the rows of the data set cannot be compared, or another order is asked for as well.
    """
    if not args.group_by_prompt:
        return
    if not is_stored(dataset):
        raise ValueError(
            "group_by_prompt=True needs a map-style data set without a transform, whose rows can be compared"
        )
    if args.train_sampling_strategy not in ("random", "sequential"):
        raise ValueError(
            f"group_by_prompt=True orders rows itself and cannot keep train_sampling_strategy={args.train_sampling_strategy!r}; "
            "use 'random' or 'sequential'"
        )


def grouped_sampler(args: MFPOConfig, dataset: Any, batch_size: int, epoch: Callable[[], int]) -> EpochSampler:
    """Rows in a random order, or, with `train_sampling_strategy="sequential"`, as they stand, but for those on the same
    image and prompt, which come together.

    Args:
        args: gives the seed.
        dataset: map-style, without a transform.
        batch_size: rows of a micro-batch of one rank.
        epoch: gives the current epoch.
    """
    strategy = args.train_sampling_strategy
    groups = prompt_groups(dataset)
    seed = args.seed if args.data_seed is None else args.data_seed

    def order(number: int) -> list[int]:
        rows = np.arange(len(dataset))
        if strategy == "random":
            rows = np.random.default_rng([seed, number]).permutation(len(dataset))
        return keep_together(rows.tolist(), groups, batch_size)

    return EpochSampler(order, epoch, len(dataset))
