"""Students of one base: plain DPO, DPO with an anchor (which is MFPO without its image term), and MFPO, on the same pairs and budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from trl import DPOConfig, DPOTrainer

from .. import MFPOConfig, MFPOTrainer
from .progress import show_bar

# Schedule and rate have the highest F1 of those that were tried, on scenes that no demo is tested on
# (`benchmarks/demo_choices.py`, docs/method.md). The step is the paper's.
CORRUPTION = {"step": 500, "schedule": "cosine"}
LEARNING_RATE = 5e-5


METHODS: dict[str, tuple[type[DPOTrainer], type[DPOConfig], dict[str, Any]]] = {
    "DPO": (DPOTrainer, DPOConfig, {}),
    "DPO + anchor": (MFPOTrainer, MFPOConfig, {"image_loss_weight": 0.0}),
    "MFPO": (MFPOTrainer, MFPOConfig, {"corruption_kwargs": CORRUPTION}),
}
"""Trainer, configuration and own settings of each student."""


def folder_name(method: str) -> str:
    """Where a student is saved."""
    return method.lower().replace(" + ", "-")


def shared_settings(steps: int, seed: int) -> dict[str, Any]:
    """The settings that all students train with."""
    return {
        "max_steps": steps,
        "per_device_train_batch_size": 16,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "cosine",
        "warmup_steps": steps // 10,
        "beta": 0.1,
        "max_length": None,
        "logging_steps": max(1, steps // 25),
        "save_strategy": "no",
        "report_to": "none",
        "seed": seed,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_num_workers": 1,  # the second core prepares batches
    }


def align(
    method: str, base_dir: Path, processor: LlavaProcessor, pairs: Dataset, output_dir: Path, *, steps: int, seed: int
) -> tuple[LlavaForConditionalGeneration, list[dict[str, float]]]:
    """Train the model in `base_dir` with one of the `METHODS`, and save it.

    Returns:
        The trained model and the trainer's log.
    """
    trainer_class, config_class, own = METHODS[method]
    args = config_class(str(output_dir), **shared_settings(steps, seed), **own)
    trainer = train_student(trainer_class, args, base_dir, processor, pairs, f"{method:12}")
    trainer.model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    trainer.create_model_card(model_name=f"tiny-llava-{folder_name(method)}")
    return trainer.model, trainer.state.log_history


def train_student(
    trainer_class: type[DPOTrainer],
    args: DPOConfig,
    base_dir: Path,
    processor: LlavaProcessor,
    pairs: Dataset,
    label: str,
) -> DPOTrainer:
    """Train the model in `base_dir`, its vision tower frozen; returns the trainer that did."""
    model = LlavaForConditionalGeneration.from_pretrained(base_dir, use_safetensors=True)
    model.model.vision_tower.requires_grad_(False)
    trainer = trainer_class(model=model, args=args, train_dataset=pairs, processing_class=processor)
    show_bar(trainer, label)
    trainer.train()
    return trainer
