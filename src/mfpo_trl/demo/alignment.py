"""Two students of one base: plain DPO and MFPO, on the same pairs, with the same budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from trl import DPOConfig, DPOTrainer

from .. import MFPOConfig, MFPOTrainer
from .progress import show_bar

# The paper's step, 500, leaves shapes of a dozen pixels readable under VCD's schedule; under DDPM's they are not.
CORRUPTION = {"step": 500, "schedule": "linear"}


def shared_settings(steps: int, seed: int) -> dict[str, Any]:
    """The settings that both students train with."""
    return {
        "max_steps": steps,
        "per_device_train_batch_size": 16,
        "learning_rate": 2e-4,
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
    }


def align(
    method: str, base_dir: Path, processor: LlavaProcessor, pairs: Dataset, output_dir: Path, *, steps: int, seed: int
) -> tuple[LlavaForConditionalGeneration, list[dict[str, float]]]:
    """Train the model in `base_dir` with `method` ("DPO" or "MFPO"), its vision tower frozen, and save it.

    Returns:
        The trained model and the trainer's log.
    """
    model = LlavaForConditionalGeneration.from_pretrained(base_dir)
    model.model.vision_tower.requires_grad_(False)
    settings = shared_settings(steps, seed)
    if method == "DPO":
        trainer_class, args = DPOTrainer, DPOConfig(str(output_dir), **settings)
    else:
        trainer_class, args = MFPOTrainer, MFPOConfig(str(output_dir), corruption_kwargs=CORRUPTION, **settings)
    trainer = trainer_class(model=model, args=args, train_dataset=pairs, processing_class=processor)
    show_bar(trainer, f"{method:4}")
    trainer.train()
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    trainer.create_model_card(model_name=f"tiny-llava-{method.lower()}")
    return model, trainer.state.log_history
