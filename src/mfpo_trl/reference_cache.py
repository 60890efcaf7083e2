"""Values of a data set kept in files under a key, and the digests that make up such a key."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from torch import Tensor, nn

from .rows import IMAGE_COLUMNS

VALUES = ("chosen", "rejected", "corrupted", "text_chosen", "text_rejected", "chosen_tokens")
"""What is kept of a row: the summed log-probability of each branch, 0 where there is none; of chosen and rejected also as TRL's
loss weighs their tokens (`ld_alpha`); and the number of tokens that were scored of the chosen answer."""

FORMAT = 3
"""Counts the changes of this package after which the same rows get other values."""

PART = 256
"""Rows of a part file; a pass that was killed loses no finished part."""


class ReferenceCache:
    """The values of one data set under one key, as part files in a folder of their own.

    Args:
        folder: where caches of this data set lie.
        key: everything that the values depend on, by name.
        rows: of the data set.
    """

    def __init__(self, folder: Path, key: Mapping[str, str], rows: int):
        digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=12).hexdigest()
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
        return [f"{name} was {other.get(name)}, is {self.key[name]}" for name in differing]

    def store(self, results: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        """Write each part as soon as its rows are known; `results` gives row numbers (n,) and values (n, 6)."""
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
        table = pa.table(dict(zip(VALUES, values.T, strict=True)))
        _replace(self._path(number), lambda path: pq.write_table(table, path))

    def read(self) -> np.ndarray:
        """All values, (rows, 6) float32."""
        tables = [pq.read_table(self._path(number)) for number in range(len(self.parts))]
        return np.stack([pa.concat_tables(tables)[name].to_numpy() for name in VALUES], axis=1)

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
    return Path(datasets.config.HF_DATASETS_CACHE) / "mfpo_trl" / dataset._fingerprint


def weights_digest(model: nn.Module, adapters: Iterable[str] = ()) -> tuple[str, str]:
    """Digests of a model's own weights and of its adapter `ref`, as this process holds them.

    Args:
        model: a model, or an adapter around it.
        adapters: the names of its adapters; none of them counts as the model's own weights.
    """
    own, reference = hashlib.blake2b(digest_size=12), hashlib.blake2b(digest_size=12)
    tensors = {name: getattr(value, "ds_tensor", value) for name, value in model.named_parameters()}
    if not any(hasattr(value, "ds_tensor") for value in model.parameters()):
        tensors = model.state_dict()
    for name, value in sorted(tensors.items()):
        owner = next((adapter for adapter in adapters if f".{adapter}." in f"{name}."), None)
        if isinstance(value, Tensor) and owner in (None, "ref"):
            digest = own if owner is None else reference
            name = name.replace(".base_layer.", ".")  # where an adapter has wrapped a layer
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            # Of a tensor that FSDP has sharded, this process's own part.
            value = value.to_local() if hasattr(value, "to_local") else value
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return own.hexdigest(), reference.hexdigest()


def processor_digest(processor: Any) -> str:
    """Of everything but the chat template: the tokenizer with its added tokens, and the settings."""
    tokenizer = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    # A call with padding or truncation leaves them behind in the tokenizer.
    settings = processor.to_dict() | {"special": tokenizer.special_tokens_map, "chat_template": None}
    image_processor = getattr(processor, "image_processor", None)
    settings["image_processor"] = image_processor.to_dict() if image_processor is not None else None
    return settings_digest([{**words, "padding": None, "truncation": None}, settings])


def settings_digest(settings: Any) -> str:
    """A short name of nested settings, the same in every process."""

    def plain(value: Any) -> Any:
        return sorted(value, key=str) if isinstance(value, set | frozenset) else str(value)

    return text_digest(json.dumps(settings, sort_keys=True, default=plain))


def files_digest(dataset: Dataset) -> str:
    """Of the size and the time of every image that a data set keeps as a path: its fingerprint knows the path only."""
    digest = hashlib.blake2b(digest_size=12)
    for column in IMAGE_COLUMNS:
        if column in dataset.column_names:
            for batch in dataset.select_columns(column).with_format("arrow").iter(1024):
                for path in _paths(batch[column].combine_chunks()):
                    found = os.stat(path) if os.path.exists(path) else None
                    digest.update(f"{path} {found and (found.st_size, found.st_mtime_ns)}".encode())
    return digest.hexdigest()


def _paths(images: pa.Array) -> list[str]:
    """The paths of images without bytes, in a column of images or of lists of them."""
    if pa.types.is_list(images.type) or pa.types.is_large_list(images.type):
        return _paths(images.flatten())
    if pa.types.is_struct(images.type) and {"bytes", "path"} <= {own.name for own in images.type}:
        images = images.field("path").filter(images.field("bytes").is_null())
    return images.drop_null().to_pylist() if pa.types.is_string(images.type) else []


def text_digest(text: str) -> str:
    """A short name of a text."""
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


PASSING = {
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "attn_implementation",
    "_attn_implementation",
    "base_model_name_or_path",
    "peft_version",
    "auto_mapping",
    "inference_mode",
    "revision",
}


def lasting(config: Any) -> Any:
    """The configuration of a model or adapter without what changes no number: names, versions, what generation reads, and
    what saving and loading fill in. Precision is told by the weights."""
    if isinstance(config, dict):
        return {key: lasting(value) for key, value in config.items() if key not in PASSING}
    return config
