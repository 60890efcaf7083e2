"""The base captioner: how it comes to see and to presume, and how captions are drawn from a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from trl import SFTConfig, SFTTrainer

from .progress import show_bar
from .scenes import QUESTION, make_scenes

PROMPT = [{"role": "user", "content": QUESTION}]
MOST_NEW_TOKENS = 32


def answer(caption: str) -> list[dict[str, str]]:
    """`caption` as the assistant's turn."""
    return [{"role": "assistant", "content": caption}]


def caption_rows(seed: int, company: float, pool: int) -> Iterator[dict[str, Any]]:
    """Endless rows (`images`, `prompt`, `completion`) from `pool` scenes, shuffled anew each time round."""
    scenes = make_scenes(pool, seed, company)
    rng = np.random.default_rng(seed)
    while True:
        for index in rng.permutation(pool):
            scene = scenes[index]
            yield {"images": [scene.image], "prompt": PROMPT, "completion": answer(scene.caption)}


def train_captioner(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    output_dir: Path,
    *,
    label: str,
    seed: int,
    company: float,
    steps: int,
    learning_rate: float,
    pool: int,
    batch_size: int = 32,
    schedule: str = "cosine",
) -> list[dict[str, float]]:
    """Train `model` in place with TRL's SFTTrainer on true captions of scenes with this much `company`.

    Returns:
        The trainer's log.
    """
    args = SFTConfig(
        output_dir=str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=min(30, steps // 10),
        weight_decay=0.01,
        logging_steps=max(1, steps // 20),
        save_strategy="no",
        report_to="none",
        seed=seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_num_workers=1,
        max_length=None,
    )
    rows = IterableDataset.from_generator(caption_rows, gen_kwargs={"seed": seed, "company": company, "pool": pool})
    trainer = SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=processor)
    show_bar(trainer, label)
    trainer.train()
    return trainer.state.log_history


@torch.inference_mode()
def write_captions(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: Sequence[Image.Image],
    *,
    sample: bool = False,
    batch_size: int = 250,
) -> list[str]:
    """One caption an image; greedy, or drawn at temperature 1 from torch's global generator if `sample`."""
    was_training = model.training
    model.eval()
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
    )
    drawing = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}
    captions: list[str] = []
    for start in range(0, len(images), batch_size):
        batch = [[image] for image in images[start : start + batch_size]]
        inputs = processor(
            images=batch, text=[prompt] * len(batch), return_tensors="pt", padding=True, padding_side="left"
        )
        tokens = model.generate(**inputs, do_sample=sample, max_new_tokens=MOST_NEW_TOKENS, **drawing)
        captions += processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    model.train(was_training)
    return [caption.strip() for caption in captions]
