"""Reference log-probabilities of a whole data set: computed in one pass, kept beside the data set's cache, used again."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from ._trl import NumberedRows, Replay, placed
from .branches import has_branch, of_pairs, split_batch
from .forward import unwrapped
from .losses import BRANCHES
from .rows import IMAGE_COLUMNS, ROW_NUMBER
from .validation import is_stored

logger = get_logger(__name__)

VALUES = ("chosen", "rejected", "corrupted", "text_chosen", "text_rejected")
"""What is kept of a row: the summed log-probability of each branch, 0 where there is none, and of chosen and rejected also
as TRL's loss weighs their tokens (`ld_alpha`)."""

FORMAT = 2
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
        """Write each part as soon as its rows are known; `results` gives row numbers (n,) and values (n, 5)."""
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
        """All values, (rows, 5) float32."""
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


def check_cacheable(named: Mapping[str, Any], collator: Any) -> None:
    """What must hold before data sets with images are scored.

    Args:
        named: data sets by the names of their arguments.
        collator: the caller's own, if any.

    Raises:
        ValueError: a stream, or another collator, whose dispreferred images may differ from one call to the next.
    """
    for name, dataset in named.items():
        if not isinstance(dataset, Dataset):
            raise ValueError(
                "precompute_ref_log_probs=True needs map-style data sets, whose rows can be found again; "
                f"{name} is a {type(dataset).__name__}"
            )
        if not is_stored(dataset):
            raise ValueError(
                f"precompute_ref_log_probs=True needs rows that stay as they are; {name} has a transform, which may make "
                "another row of the same one. Apply it with `map`, or set precompute_ref_log_probs=False"
            )
    if collator is not None:
        raise ValueError("precompute_ref_log_probs=True with images needs the collator of MFPOTrainer")


def score_reference(trainer: Any, batch: tuple | dict[str, Any], model: Any) -> Tensor:
    """The reference's values of every sample of a batch, (B, 5), as `VALUES` lists them.

    Args:
        trainer: an `MFPOTrainer`; TRL chooses the reference: its model, the adapter switched off, or the frozen copy of
            the adapter.
        batch: a batch of the collator, or its parts as `mfpo_trl.branches.split_batch` gives them.
        model: what to run.
    """
    inputs, branches, pairs = split_batch(batch) if isinstance(batch, dict) else batch
    replay = Replay(model, inputs, branches, pairs)
    text = trainer.compute_ref_log_probs(replay, replay.preference_inputs())
    logps = [of_pairs(replay.logps, pairs, branch).masked_fill(~has_branch(pairs, branch), 0) for branch in BRANCHES]
    return torch.stack([*logps, *text], dim=1)


class References:
    """The reference's values of every row of a trainer's data sets, which are scored before training.

    Args:
        trainer: an `MFPOTrainer` whose policy has not been trained yet, or whose reference is another model.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._values: dict[str, np.ndarray] = {}

    @cached_property
    def model(self) -> Any:
        """What is run: the reference model, or the policy."""
        return self.trainer.ref_model or placed(self.trainer, self.trainer.model)

    @cached_property
    def _weights(self) -> list[tuple[str, str]]:
        """The digests of all ranks, taken once: hashing many gigabytes takes a minute."""
        return sorted(set(gather_object([weights_digest(*_reference_weights(self.trainer))])))

    def release(self) -> None:
        """Let go of a reference model that is no longer needed."""
        self.__dict__.pop("model", None)

    def of(self, dataset: Dataset) -> np.ndarray | None:
        """(rows, 5) float32, the columns are `VALUES`; None for a data set that was not added."""
        return self._values.get(dataset._fingerprint)

    def add(self, name: str, dataset: Dataset) -> None:
        """Take the values of a data set from the cache, or compute them on all ranks and write them there.

        Args:
            name: how to call it.
            dataset: a map-style data set.
        """
        if self.of(dataset) is not None:
            return
        args = self.trainer.args
        size = args.per_device_eval_batch_size
        if dataset is self.trainer.train_dataset:
            size = args.per_device_train_batch_size
        self._values[dataset._fingerprint] = self._cached(name, dataset, args.precompute_ref_batch_size or size)

    def _cached(self, name: str, dataset: Dataset, batch_size: int) -> np.ndarray:
        key = _key(self.trainer, dataset, name, self._weights)
        cache = ReferenceCache(cache_folder(dataset), key, len(dataset))
        # What the main process finds decides: other machines may not see its disk, and a data set in memory may differ in name.
        missing, changes = _on_main(lambda: (cache.missing(), cache.changes()))
        if changes:
            logger.warning(f"The reference of {name} is computed again: {'; '.join(changes)}.")
        if missing:
            results = self._score(name, dataset, missing, batch_size)
            if self.trainer.accelerator.is_main_process:
                cache.store(results)
            else:
                for _ in results:
                    pass
        else:
            logger.info(f"The reference of {name} is taken from {cache.folder}.")
        return _on_main(cache.read)

    def _score(
        self, name: str, dataset: Dataset, rows: list[int], batch_size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Score rows on all ranks; every rank gets the numbers (n,) and values (n, 5) of all."""
        trainer, accelerator = self.trainer, self.trainer.accelerator
        args = trainer.args
        loader = DataLoader(
            Subset(NumberedRows.of(dataset), rows),
            batch_size=batch_size,
            collate_fn=partial(_collate_numbered, trainer.data_collator),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )
        loader = accelerator.prepare_data_loader(loader)
        bar = tqdm(
            total=len(dataset),
            initial=len(dataset) - len(rows),
            unit="row",
            desc=f"Reference log-probabilities of {name}",
            disable=not accelerator.is_local_main_process or args.disable_tqdm,
        )
        training = self.model.training
        # Dropout would freeze one draw of it into the cache.
        self.model.eval()
        with bar:
            for numbers, batch in loader:
                values = score_reference(trainer, batch, self.model)
                numbers, values = accelerator.gather_for_metrics((numbers, values))
                bar.update(len(numbers))
                yield numbers.cpu().numpy(), values.float().cpu().numpy()
        self.model.train(training)


def _on_main(read: Callable[[], Any]) -> Any:
    """What the main process reads, on every rank; where it fails, it fails on all of them."""
    found: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            found[0] = read()
        except Exception as error:
            found[1] = error
    value, error = broadcast_object_list(found, from_process=0)
    if error is not None:
        raise error
    return value


def _collate_numbered(collator: Any, examples: list[dict[str, Any]]) -> tuple[Tensor, dict[str, Tensor]]:
    return torch.tensor([example[ROW_NUMBER] for example in examples]), collator(examples)


def _reference_weights(trainer: Any) -> tuple[nn.Module, list[str]]:
    model = trainer.accelerator.unwrap_model(trainer.ref_model or trainer.model)
    return (unwrapped(model), list(model.peft_config)) if isinstance(model, PeftModel) else (model, [])


def _key(trainer: Any, dataset: Dataset, name: str, weights: list[tuple[str, str]]) -> dict[str, str]:
    """Everything that the values depend on; a change is told by these names."""
    args, processor, collator = trainer.args, trainer.processing_class, trainer.data_collator
    images = collator.dispreferred
    donors = trainer.train_dataset._fingerprint if images.corruption == "swap" else None
    model = trainer.accelerator.unwrap_model(trainer.ref_model or trainer.model)
    adapter = getattr(model, "peft_config", {}).get("ref")
    return {
        "dataset": name,
        "data": dataset._fingerprint,
        "images in files": files_digest(dataset),
        "model weights": " ".join(own for own, _ in weights),
        "model config": settings_digest(_lasting(unwrapped(model).config.to_dict())),
        "adapter": " ".join(reference for _, reference in weights),
        "adapter config": settings_digest(adapter and adapter.to_dict()),
        "processor": processor_digest(processor),
        "chat template": text_digest(str(processor.chat_template)),
        "corruption": images.corruption,
        "corruption_kwargs": json.dumps(dict(images.kwargs), sort_keys=True, default=str),
        "corruption_region": images.region,
        "corruption_seed": str(images.seed),
        "images to swap in": str(donors),
        "max_length": str(args.max_length),
        "add_eos": str(args.add_eos),
        "ld_alpha": str(args.ld_alpha),
        "branches": " ".join(collator.branches),
        "precision": f"{trainer.model.dtype} {trainer.accelerator.mixed_precision}",
        "format": str(FORMAT),
    }


def _lasting(config: Any) -> Any:
    """A model's configuration without what changes no number: names, versions, and what generation reads."""
    passing = ("_name_or_path", "transformers_version", "use_cache", "attn_implementation", "_attn_implementation")
    if isinstance(config, dict):
        return {key: _lasting(value) for key, value in config.items() if key not in passing}
    return config
