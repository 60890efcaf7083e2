"""Values of a data set, kept in files under a key."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from .._trl import fingerprint

VALUES = ("chosen", "rejected", "corrupted", "text_chosen", "text_rejected", "chosen_tokens")
"""What is kept of every row: the summed log-probability of each branch, 0 where there is none; of chosen and rejected also as TRL's
loss weighs their tokens (`ld_alpha`); and the number of tokens that were scored of the chosen answer. Behind them, the log-probability of each branch beyond the three."""

FORMAT = 3
"""Counts the changes of this package after which the same rows get other values."""

DIGEST = re.compile(r"[0-9a-f]{16,}( [0-9a-f]{16,})*")
"""A value that says nothing to a reader."""

PART = 256
"""Rows of a part file; a pass that was killed loses no finished part."""


class ReferenceCache:
    """The values of one data set under one key, as part files in a folder of their own.

    Args:
        folder: where caches of this data set lie.
        key: everything that the values depend on, by name.
        rows: of the data set.
        values: what is kept of a row.
    """

    def __init__(self, folder: Path, key: Mapping[str, str], rows: int, values: Sequence[str] = VALUES):
        digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=12).hexdigest()
        self.values = tuple(values)
        self.folder, self.key, self.rows = folder / f"mfpo-reference-{digest}", dict(key), rows
        self.parts = [range(start, min(start + PART, rows)) for start in range(0, rows, PART)]

    def missing(self) -> list[int]:
        """The rows whose part is not there yet."""
        return [row for number, part in enumerate(self.parts) if not self._path(number).exists() for row in part]

    def changes(self) -> list[str]:
        """In what this key differs from the nearest other one that was used here; empty where there is none or this one
        is there."""
        if self.folder.exists():
            return []
        others = []
        for path in self.folder.parent.glob("mfpo-reference-*/key.json"):
            other = json.loads(path.read_text(encoding="utf-8"))
            if other.get("dataset") != self.key.get("dataset"):
                continue
            differing = [name for name in self.key if other.get(name) != self.key[name]]
            others.append((len(differing), -path.stat().st_mtime, differing, other))
        if not others:
            return []
        _, _, differing, other = min(others, key=lambda found: found[:2])
        return [
            f"{name} changed"
            if DIGEST.fullmatch(self.key[name])
            else f"{name} was {other.get(name)}, is {self.key[name]}"
            for name in differing
        ]

    def store(self, results: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        """Write each part as soon as its rows are known; `results` gives row numbers (n,) and values (n, V)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(
            self.folder / "key.json", lambda path: path.write_text(json.dumps(self.key, indent=2), encoding="utf-8")
        )
        waiting: dict[int, dict[int, np.ndarray]] = {}
        for rows, values in results:
            for row, value in zip(rows.tolist(), values, strict=True):
                part = waiting.setdefault(row // PART, {})
                part[row] = value
                if len(part) == len(self.parts[row // PART]):
                    self._write(row // PART, waiting.pop(row // PART))
        assert not waiting, "the pass ended inside of a part"

    def _write(self, number: int, part: Mapping[int, np.ndarray]) -> None:
        values = np.stack([part[row] for row in self.parts[number]]).astype(np.float32)
        table = pa.table(dict(zip(self.values, values.T, strict=True)))
        _replace(self._path(number), lambda path: pq.write_table(table, path))

    def read(self) -> np.ndarray:
        """All values, (rows, V) float32."""
        tables = [pq.read_table(self._path(number)) for number in range(len(self.parts))]
        return np.stack([pa.concat_tables(tables)[name].to_numpy() for name in self.values], axis=1)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}-of-{len(self.parts):05d}.parquet"


def _replace(path: Path, write: Any) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    write(temporary)
    temporary.replace(path)


def cache_folder(dataset: Dataset) -> Path:
    """Beside the data set's own files, or, for one in memory, in a folder of its own in the cache of `datasets`."""
    files = dataset.cache_files
    if files and os.access(Path(files[0]["filename"]).parent, os.W_OK):
        return Path(files[0]["filename"]).parent
    return Path(datasets.config.HF_DATASETS_CACHE) / "mfpo_trl" / fingerprint(dataset)
