"""What a card is told of a training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import TrainerState

from ..config import MFPOConfig
from ..objective.terms import Weighted
from ..order import Plan


@dataclass(frozen=True)
class Training:
    """A training as it is when its card is written; the trainer hands it over.

    Args:
        args: its configuration.
        model: with the adapter, where there is one.
        state: the steps so far, and what was logged.
        train_dataset, data_collator: what it was trained on, and what made batches of it.
        method: the name of its method, and `title`, `id` and `citation` of that method's paper as far as there are any.
        loss_types: TRL's names of the text term.
        terms: those that were trained.
        image_beta: of every term but the text term.
        plan, evaluations: of its curriculum, where there is one: the stages, and what was measured at the end of each.
        has_images: whether its rows have images.
        micro_batch_size: rows of a micro-batch of one process.
        is_deepspeed_enabled: whether DeepSpeed shares the work out.
    """

    args: MFPOConfig
    model: nn.Module
    accelerator: Accelerator
    state: TrainerState
    train_dataset: Any
    data_collator: Any
    method: tuple[str, Mapping[str, str]]
    loss_types: Sequence[str]
    terms: Sequence[Weighted]
    image_beta: float
    plan: Plan | None
    evaluations: Sequence[Mapping[str, float]]
    has_images: bool
    micro_batch_size: int
    is_deepspeed_enabled: bool

    @property
    def term_weights(self) -> dict[str, float]:
        """The weight of each term, by its name."""
        return {own.term.name: own.weight for own in self.terms}
