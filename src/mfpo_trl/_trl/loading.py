"""Weights of checkpoints, read back under their own names and in their own precision."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import reduce

import torch
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from trl import DPOTrainer

from ..weights import refuse_pickled_checkpoint


@contextmanager
def precision_kept(model: torch.nn.Module) -> Iterator[None]:
    """Leave every parameter in its precision: PEFT reads the 16-bit adapter of a quantised model back in 32 bits, in which
    training would go on differently."""
    before = {name: value.dtype for name, value in model.named_parameters()}
    yield
    for name, value in model.named_parameters():
        if value.dtype != before.get(name, value.dtype):
            value.data = value.data.to(before[name])


def has_full_weights(trainer: DPOTrainer, folder: str) -> bool:
    """Whether a checkpoint holds all weights of the model as `save_pretrained` writes them: not an adapter, not the shards
    of DeepSpeed or FSDP.

    Raises:
        ValueError: its weights are pickles.
    """
    refuse_pickled_checkpoint(folder)
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or not isinstance(trainer.model, PreTrainedModel):
        return False
    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    return any(os.path.isfile(os.path.join(folder, name)) for name in names)


def load_full_weights(model: PreTrainedModel, folder: str) -> None:
    """Load the weights of a checkpoint into the model.

    `save_pretrained` writes a LLaVA's weights under the names of its published checkpoints; `Trainer` reads them back by
    the names of the modules, finds none and goes on from the weights that it started with
    (https://github.com/huggingface/transformers/issues/43701). `from_pretrained` knows both. It reads all weights in one
    precision: the widest of the model's, from which each goes back to its own.
    """
    floats = {value.dtype for value in model.state_dict().values() if value.is_floating_point()}
    saved = type(model).from_pretrained(folder, dtype=reduce(torch.promote_types, floats), use_safetensors=True)
    model.load_state_dict(saved.state_dict())


def savable(model: PreTrainedModel) -> None:
    """Let a model be saved that was loaded from quantised files and has whole weights now: `save_pretrained` would undo how they
    were read, and fails where that cannot be undone."""
    kept = []
    for conversion in getattr(model, "_weight_conversions", None) or ():
        with suppress(NotImplementedError):
            conversion.reverse_transform()
            kept.append(conversion)
    model._weight_conversions = kept or None
