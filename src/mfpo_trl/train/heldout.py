"""A share of the rows, held out to evaluate on."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset

from .mirrors import MIRROR_OF

SHOWN = ("prompt", "image", "images")


def hold_out(dataset: Dataset, ratio: float, seed: int) -> tuple[Dataset, Dataset]:
    """The rows to train on and those that are held out, each in their order.

    Rows with the same prompt and images, and rows and their twins, are on one side, so that what is held out has not been seen. Prompts are drawn one
    after the other, and those that still fit into the share, in whole rows, are held out; at least the rows of one prompt are.

    Args:
        ratio: the share, between 0 and 1.
        seed: of the draw; nothing else decides it but the rows.

    Raises:
        ValueError: all rows have the same prompt and images.
    """
    groups, sizes = _groups(dataset)
    if len(sizes) < 2:
        raise ValueError(
            f"eval_split_ratio={ratio}: all {len(dataset)} rows have the same prompt and images, so that none can be held out"
        )
    room = max(round(ratio * len(dataset)), int(sizes.min()))
    chosen = np.zeros(len(sizes), dtype=bool)
    for group in np.random.default_rng(seed % 2**64).permutation(len(sizes)):
        if sizes[group] <= room and not chosen.sum() == len(sizes) - 1:
            chosen[group] = True
            room -= sizes[group]
    held = chosen[groups]
    return dataset.select(np.flatnonzero(~held)), dataset.select(np.flatnonzero(held))


def _groups(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """For each row the number of its prompt with its images, by first appearance, and for each of these how many rows it has."""
    shown = dataset.select_columns([own for own in SHOWN if own in dataset.column_names]).with_format("arrow")
    known: dict[bytes, int] = {}
    groups = [known.setdefault(_digest(row), len(known)) for batch in shown.iter(100) for row in batch.to_pylist()]
    if {"id", MIRROR_OF} <= set(dataset.column_names):
        # A twin shows the picture of its row but for one object.
        names = dataset.select_columns(["id", MIRROR_OF]).with_format("arrow")[:]
        place = {own: n for n, own in enumerate(names["id"].to_pylist())}
        for n, source in enumerate(names[MIRROR_OF].to_pylist()):
            if source in place:
                groups[n] = groups[place[source]]
        _, numbers = np.unique(groups, return_inverse=True)
        return numbers, np.bincount(numbers)
    return np.array(groups), np.bincount(groups)


def _digest(row: Mapping[str, Any]) -> bytes:
    """16 bytes that stand for a row's prompt and the files of its images."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(row, sort_keys=True, default=lambda data: hashlib.blake2b(data).hexdigest()).encode())
    return digest.digest()
