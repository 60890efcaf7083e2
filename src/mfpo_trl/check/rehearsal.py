"""The trainer of a training, built as `mfpo train` builds it but for the weights: whatever refuses there refuses here."""

import logging
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import set_module_tensor_to_device
from datasets import Dataset
from peft import PeftModel

from .. import _trl
from ..train import arguments, freeze_parts, going_on, parse
from ..trainer import MFPOTrainer
from .formulas import Engine
from .model import Weightless
from .rows import chosen_rows

TEXTS = 256
"""Rows of data without images that are tokenised, which a trainer does with all of them."""


class Rehearsal(MFPOTrainer):
    """A trainer that asks everything and does nothing that takes a device or time.

    Args:
        engine: on which devices the training would run.
    """

    def __init__(self, engine: Engine, **given: Any):
        self.engine = engine
        with _trl.without_weights(Weightless):
            super().__init__(**given)

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.device_placement = False

    def _move_model_to_device(self, model, device):
        pass

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        if isinstance(dataset, Dataset):
            dataset = dataset.select(chosen_rows(len(dataset), TEXTS))
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _precompute_ref_logps(self, dataset, name, batch_size):
        if isinstance(dataset, Dataset):
            return dataset
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def _set_layout(self, data_collator):
        # Set behind TRL's part, which would ask the engine itself for its shards.
        engine = self.engine
        self.is_deepspeed_enabled, self.is_fsdp_enabled = engine.deepspeed, bool(engine.stage) and not engine.deepspeed
        super()._set_layout(data_collator)

    def _cache_reference(self):
        _trl.forget_reference_model(self)

    def _start_curriculum(self):
        # Its rows are ordered by `check.curriculum`, which needs no scores.
        pass

    def begin(self) -> None:
        """What training asks between its start and the first step.

        Raises:
            Exception: as the trainer would.
        """
        if self.args.curriculum == "none":
            loader = self.get_train_dataloader()
            self.set_initial_training_values(self.args, loader)
        self.get_optimizer_cls_and_kwargs(self.args, self.model)


WITHOUT: dict[str, dict[str, Any]] = {
    "optimizer": {"optim": "adamw_torch", "optim_args": ""},
    "schedule": {"lr_scheduler_type": "linear", "lr_scheduler_kwargs": "{}"},
    "kernels": {"use_liger_kernel": False},
    "curriculum": {"curriculum": "none"},
    "evaluation rows": {
        "eval_strategy": "no",
        "eval_on_start": False,
        "eval_split_ratio": 0,
        "load_best_model_at_end": False,
        "save_strategy": "no",
        "lr_scheduler_type": "linear",
        "lr_scheduler_kwargs": "{}",
    },
    "resuming": {"resume_from_checkpoint": False},
    "output folder": {"output_dir": tempfile.gettempdir()},
}
"""By the name of a problem that is known, the fields that keep it from hiding the next one."""


def rehearse(fields: Sequence[str], engine: Engine, problems: Sequence[str] = ()) -> None:
    """Build the trainer of these fields without weights, and begin.

    Args:
        engine: on which devices the training would run.
        problems: that are known, by the names of their findings.

    Raises:
        Exception: as `mfpo train` would.
    """
    mended = {name: value for problem in problems for name, value in WITHOUT.get(problem, {}).items()}
    # What it warns of is said when it trains, or by a finding.
    logging.disable(logging.WARNING)
    try:
        script, training, settings = parse(
            [*fields, *(part for own in mended.items() for part in (f"--{own[0]}", str(own[1])))]
        )
        given = arguments(script, training, settings)
        # They leave traces, and are asked for by themselves.
        training.report_to, training.push_to_hub = [], False
        if engine.processes > 1:
            # One process of them cannot shard.
            training.fsdp = None
        with tempfile.TemporaryDirectory(prefix="mfpo-check-") as folder:
            training.output_dir = folder
            given = going_on(settings, given, Weightless)
            if isinstance(given["model"], PeftModel):
                _can_be_copied(given["model"])
            trainer = Rehearsal(engine, **given)
            freeze_parts(trainer.model, settings)
            trainer.begin()
    finally:
        logging.disable(logging.NOTSET)


def _can_be_copied(model: PeftModel) -> None:
    """Give the adapter of a model without weights tensors of some content, because TRL copies an adapter that is trained further."""
    for name, parameter in list(model.named_parameters()):
        if parameter.requires_grad and parameter.is_meta:
            set_module_tensor_to_device(model, name, "cpu", value=torch.empty_like(parameter, device="cpu"))
