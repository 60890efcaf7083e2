"""Reference log-probabilities of a whole data set: computed in one pass, kept beside the data set's cache, used again."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from .._trl import NumberedRows, Replay, fingerprint, placed
from ..batch import unwrapped
from ..checkpoints import ResumeError
from ..images import takes_from_others, used_recipes
from ..objective import BRANCHES, OF_BOTH, BranchName, branch_of, columns_of, split_batch
from ..rows import PREFIX, ROW_NUMBER, is_stored
from .cache import FORMAT, VALUES, ReferenceCache, cache_folder
from .comparison import changed_value, reference_values
from .digests import (
    adapter_settings,
    files_digest,
    lasting,
    processor_digest,
    settings_digest,
    text_digest,
    weights_digest,
)

logger = get_logger(__name__)


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


def values_of(branches: Iterable[BranchName], changed: bool = False) -> tuple[str, ...]:
    """What is kept of a row whose branches these are.

    Args:
        changed: whether terms read sums over the tokens in which the answers differ.
    """
    every = columns_of(branches)
    return (*VALUES, *map(str, every[len(BRANCHES) :]), *(changed_value(own) for own in every if changed))


def score_reference(
    trainer: Any, batch: tuple | dict[str, Any], model: Any, columns: Sequence[BranchName] = BRANCHES
) -> Tensor:
    """The reference's values of every sample of a batch, (B, V), as `values_of` lists them.

    Args:
        trainer: an `MFPOTrainer`; TRL chooses the reference: its model, the adapter switched off, or the frozen copy of
            the adapter.
        batch: a batch of the collator, or its parts as `mfpo_trl.objective.branches.split_batch` gives them.
        model: what to run.
        columns: of `pairs`.
    """
    inputs, branches, pairs = split_batch(batch) if isinstance(batch, dict) else batch
    changed = batch.get("changed") if isinstance(batch, dict) else None
    return reference_values(trainer, Replay(model, inputs, branches, pairs, changed), columns)


class References:
    """The reference's values of every row of a trainer's data sets, which are scored before training.

    They lie in one table; a row of a batch knows its place there (`rows.REFERENCE`), so that values that change between two
    optimizer steps reach batches that were collated before.

    Args:
        trainer: an `MFPOTrainer` whose policy has not been trained yet, or whose reference is another model.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        # Row by row, the columns are `values_of` the branches.
        self._table = torch.empty(0, 0)
        # By fingerprint: how the data set is called, itself, and the place of its first row in the table.
        self._added: dict[str, tuple[str, Dataset, int]] = {}
        self._whole: set[str] = set()

    @property
    def columns(self) -> tuple[BranchName, ...]:
        """The branches whose values are kept."""
        return self.trainer.columns

    @property
    def names(self) -> tuple[str, ...]:
        """Of the values of a row, in their order."""
        return values_of(self.columns, self.trainer.data_collator.changed)

    @cached_property
    def model(self) -> Any:
        """What is run: the reference model, or the policy."""
        given = self.trainer.ref_model
        # A compiled model has no truth value.
        return placed(self.trainer, self.trainer.model) if given is None else given

    @cached_property
    def weights(self) -> list[tuple[str, str]]:
        """The digests of all ranks, taken once: hashing many gigabytes takes a minute."""
        return self._digests()

    def _digests(self) -> list[tuple[str, str]]:
        return sorted(set(gather_object([weights_digest(*_reference_model(self.trainer))])))

    def release(self) -> None:
        """Let go of a reference model that is no longer needed."""
        self.__dict__.pop("model", None)

    def of(self, dataset: Dataset) -> np.ndarray | None:
        """(rows, V) float32, the columns are `values_of` the branches; None for a data set that was not added."""
        first = self.first(dataset)
        return None if first is None else self._table[first : first + len(dataset)].numpy()

    def first(self, dataset: Dataset) -> int | None:
        """The place of a data set's first row in the table; None for a data set that was not added."""
        return self._added[fingerprint(dataset)][2] if fingerprint(dataset) in self._added else None

    def values(self, places: Tensor) -> Tensor:
        """The values at these places of the table, (B,) -> (B, V), on the device of `places`."""
        return self._table[places.cpu()].to(places.device)

    def add(self, name: str, dataset: Dataset, also: Collection[str] = ()) -> None:
        """Take the values of a data set from the cache, or compute them on all ranks and write them there.

        Args:
            name: how to call it.
            dataset: a map-style data set.
            also: branches that are scored whether or not a term reads them.

        Raises:
            ResumeError: values of an earlier run are gone, and so are the weights that gave them.
        """
        if self.first(dataset) is not None:
            # Evaluated on as well as trained on: a new stage needs all of its rows.
            self._whole.add(fingerprint(dataset))
            return
        collator = self.trainer.data_collator
        if not set(map(branch_of, also)) <= set(collator.branches):
            scored = {*collator.branches, *map(branch_of, also)}
            collator = replace(collator, branches=[own for own in columns_of(collator.branches) if own in scored])
        values = torch.from_numpy(self._cached(name, dataset, collator))
        self._added[fingerprint(dataset)] = name, dataset, len(self._table)
        self._table = torch.cat([self._table, values]) if len(self._table) else values

    def renew(self, rows: np.ndarray, stage: int) -> None:
        """Replace the values by those of the policy as it is now: of these rows of the training data, and of all data to
        evaluate on.

        Args:
            rows: of the training data, ascending.
            stage: whose reference this is, from 1.

        Raises:
            ResumeError: values of an earlier run are gone, and so are the weights that gave them.
        """
        self._replace(rows, stage, None)

    def restore(self, rows: np.ndarray, stage: int, weights: list[tuple[str, str]] | None) -> None:
        """Take the values that an earlier run has written in `renew`.

        Args:
            rows, stage: as they were there.
            weights: what `weights` was there, where those weights are gone; None where the reference is what it was there,
                so that it can score again.

        Raises:
            ResumeError: the values are no longer there, and neither are the weights.
        """
        self._replace(rows, stage, weights)

    def _replace(self, rows: np.ndarray, stage: int, weights: list[tuple[str, str]] | None) -> None:
        self.__dict__["model"] = self.trainer.model_wrapped
        self.__dict__["weights"] = weights or self._digests()
        for name, dataset, first in list(self._added.values()):
            own = dataset
            places: Any = slice(first, first + len(dataset))
            if dataset is self.trainer.train_dataset and fingerprint(dataset) not in self._whole:
                own, places = dataset.select(rows), first + rows
            collator = self.trainer.data_collator
            values = self._cached(f"{name}, stage {stage}", own, collator, may_score=weights is None, expected=True)
            self._table[places] = torch.from_numpy(values)
        self.release()

    def _cached(
        self, name: str, dataset: Dataset, collator: Any, may_score: bool = True, expected: bool = False
    ) -> np.ndarray:
        key = _key(self.trainer, dataset, name, collator, self.weights)
        kept = values_of(collator.branches, collator.changed)
        cache = ReferenceCache(cache_folder(dataset), key, len(dataset), kept)
        # What the main process finds decides: other machines may not see its disk, and a data set in memory may differ in name.
        missing, changes = _on_main(lambda: (cache.missing(), cache.changes()))
        if changes and not expected:
            logger.warning(f"The reference of {name} is computed again: {'; '.join(changes)}.")
        if missing and not may_score:
            raise ResumeError(
                f"the reference values of {name} are no longer in {cache.folder}, and the weights that gave them are gone; "
                "resume from the checkpoint at the end of the stage before, from which they are computed again"
            )
        if missing:
            results = self._score(name, dataset, collator, missing)
            if self.trainer.accelerator.is_main_process:
                cache.store(results)
            else:
                for _ in results:
                    pass
        else:
            logger.info(
                f"The reference of {name} is taken from the cache of an earlier run, which lies beside the data set's own."
            )
            logger.debug(f"That cache is {cache.folder}.")
        return _on_main(cache.read)

    def _score(
        self, name: str, dataset: Dataset, collator: Any, rows: list[int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Score rows on all ranks; every rank gets the numbers (n,) and values (n, V) of all."""
        trainer, accelerator = self.trainer, self.trainer.accelerator
        args = trainer.args
        training_data = name.startswith("train_dataset")
        size = args.per_device_train_batch_size if training_data else args.per_device_eval_batch_size
        loader: Any = DataLoader(
            Subset(NumberedRows.of(dataset), rows),
            batch_size=args.precompute_ref_batch_size or size,
            collate_fn=partial(_collate_numbered, collator),
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
                values = score_reference(trainer, batch, self.model, columns_of(collator.branches))
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
    value, failure = broadcast_object_list(found, from_process=0)
    if failure is not None:
        raise failure
    return value


def _collate_numbered(collator: Any, examples: list[dict[str, Any]]) -> tuple[Tensor, dict[str, Tensor]]:
    return torch.tensor([example[ROW_NUMBER] for example in examples]), collator(examples)


def _reference_model(trainer: Any) -> tuple[nn.Module, list[str]]:
    """What the reference's values are read off, and the names of the adapters that are switched on then."""
    model = trainer.accelerator.unwrap_model(trainer.model if trainer.ref_model is None else trainer.ref_model)
    adapters = getattr(model, "peft_config", {})
    # A policy's own adapter is switched off, or makes room for the copy of it that TRL scores with; the adapters that
    # transformers has loaded into a model are part of it.
    return model, [name for name in adapters if name == "ref" or not isinstance(model, PeftModel)]


def _key(trainer: Any, dataset: Dataset, name: str, collator: Any, weights: list[tuple[str, str]]) -> dict[str, str]:
    """Everything that the values depend on; a change is told by these names."""
    args, processor = trainer.args, collator.processor
    reads = any(branch.variant for branch in collator.branches)
    used = used_recipes(collator.dispreferred, dataset) if reads else []
    assert used is not None, "the rows of a cache are stored"
    made = [recipe for recipe, _ in used]
    others = trainer.train_dataset
    takes = any(takes_from_others(recipe.corruption) for recipe in made)
    donors = f"{fingerprint(others)} {files_digest(others)}" if takes else None
    model, adapters = _reference_model(trainer)
    # Read where two images stand in one prompt alone, so that other keys stay what they were.
    of_both = any(own.image in OF_BOTH for own in collator.branches)
    asked = {"image_instruction": collator.image_instruction} if of_both else {}
    if PREFIX in dataset.column_names:
        asked["begun answers"] = "read"
    return {
        "dataset": name,
        "data": fingerprint(dataset),
        "images in files": files_digest(dataset),
        "model weights": " ".join(own for own, _ in weights),
        "model config": settings_digest(lasting(unwrapped(model).config.to_dict())),
        "adapter": " ".join(reference for _, reference in weights),
        "adapter config": settings_digest(adapter_settings(model, adapters)),
        "processor": processor_digest(processor),
        "chat template": text_digest(str(processor.chat_template)),
        "corruption": _all(recipe.corruption for recipe in made),
        "corruption_kwargs": _all(json.dumps(recipe.changed, sort_keys=True) for recipe in made),
        "corruption_region": _all(recipe.region for recipe in made),
        "corruption_seed": _all(str(recipe.seed) for recipe in made),
        "images to swap in": str(donors),
        "max_length": str(collator.max_length),
        "add_eos": str(collator.add_eos),
        "ld_alpha": str(args.ld_alpha),
        "branches": " ".join([*map(str, collator.branches), *(["changed tokens"] if collator.changed else [])]),
        **asked,
        "precision": f"{trainer.model.dtype} {trainer.accelerator.mixed_precision}",
        "format": str(FORMAT),
    }


def _all(values: Iterable[str]) -> str:
    """The different values in one text; a short name of them where they are many."""
    text = " | ".join(sorted(set(values)))
    return text if len(text) < 300 else text_digest(text)
