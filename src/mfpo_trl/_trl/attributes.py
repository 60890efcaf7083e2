"""What is read and set of a trainer, a model or a data set under names that its library keeps private."""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset
from huggingface_hub import ModelCard
from trl import DPOTrainer
from trl.models import prepare_deepspeed
from trl.trainer import dpo_trainer


def has_vision_data(trainer: DPOTrainer) -> bool:
    """Whether TRL took the training data for rows with images."""
    return trainer._is_vision_dataset


def tokenizer_of(trainer: DPOTrainer) -> Any:
    """The tokenizer, also where the processing class is a processor."""
    return trainer._tokenizer


def micro_batch_size(trainer: DPOTrainer) -> int:
    """Rows of a micro-batch of one process in training."""
    return trainer._train_batch_size


def method_of(trainer: DPOTrainer) -> tuple[str, dict[str, str]]:
    """What a trainer's class says of itself: the name of its method, and `title`, `id` and `citation` of its paper as far as
    there are any."""
    kind = type(trainer)
    return kind._name, kind._paper


def card_of(trainer: DPOTrainer, write: Callable[..., None], *named: Any) -> ModelCard:
    """The model card that TRL would write.

    Args:
        write: `create_model_card` of TRL.
        named: what it is called with.
    """
    args = trainer.args
    with TemporaryDirectory() as folder:
        trainer.args = copy.copy(args)
        trainer.args.output_dir = folder
        try:
            write(*named)
        finally:
            trainer.args = args
        return ModelCard.load(os.path.join(folder, "README.md"))


def metrics_of(trainer: DPOTrainer, mode: str) -> dict[str, list[float]]:
    """What TRL has gathered since it logged last; `mode` is `train` or `eval`."""
    return trainer._metrics[mode]


def keep_columns(trainer: DPOTrainer, columns: Sequence[str]) -> None:
    """Add columns to those that reach the collator."""
    trainer._signature_columns = list(dict.fromkeys([*trainer._signature_columns, *columns]))


def set_scheduler(trainer: DPOTrainer, scheduler: Any) -> Any:
    """Make a learning-rate scheduler the trainer's, as one that it has made itself; returns it."""
    trainer.lr_scheduler, trainer._created_lr_scheduler = scheduler, True
    return scheduler


def on_device(trainer: DPOTrainer, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of the collator as a step gets it."""
    return trainer._prepare_inputs(batch)


def attention_kernel(config: Any) -> str:
    """The attention kernel of a model's configuration, or of a part's."""
    return config._attn_implementation


def model_id(config: Any) -> str:
    """The folder, or the name on the Hub, that a model was loaded from."""
    return config._name_or_path


def fingerprint(dataset: Dataset) -> str:
    """What `datasets` names the content of a data set."""
    return dataset._fingerprint


@contextmanager
def without_weights(architecture: Any) -> Iterator[None]:
    """Have TRL build its models by `architecture.from_pretrained(name, **options)` in place of the class that a model's
    configuration names, and hash none of their weights."""
    before = dpo_trainer.create_model_from_path, dpo_trainer.hash_module
    dpo_trainer.create_model_from_path = partial(before[0], architecture=architecture)
    dpo_trainer.hash_module = lambda module: ""
    try:
        yield
    finally:
        dpo_trainer.create_model_from_path, dpo_trainer.hash_module = before


def placed(trainer: DPOTrainer, model: Any) -> Any:
    """A model that can run before training has begun: DeepSpeed places and gathers its weights only inside of an engine."""
    return prepare_deepspeed(model, trainer.accelerator) if trainer.is_deepspeed_enabled else model


def unwrapped_of(trainer: DPOTrainer, model: Any) -> Any:
    """The model inside of what engines and `torch.compile` have put around it, by whose names weights are saved."""
    return trainer.accelerator.unwrap_model(model, keep_torch_compile=False)
