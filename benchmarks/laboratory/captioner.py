"""The base: a captioner that learns to see and to answer, and then to presume; and what a model answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from PIL import Image
from tqdm.auto import tqdm
from transformers import CLIPVisionModel, LlavaForConditionalGeneration, LlavaProcessor, set_seed
from trl import SFTConfig, SFTTrainer

from mfpo_trl.demo.progress import show_bar
from mfpo_trl.demo.tiny_model import build_model, build_processor

from .world import CELL, DESCRIBE, GRID, KINDS, OBJECTS, SIZE, WORDS, Scene, ask, make_scenes

MOST_NEW_TOKENS = 40
NONE, LITTLE, HALF, FULL = 0.0, 0.25, 0.5, 1.0
TOWER = 50
"""Added to the seed of the first stage's scenes, for those of the tower."""


@dataclass(frozen=True)
class Stage:
    """Of the base's training.

    Attributes:
        steps: of the optimizer, `batch` rows each.
        scenes: different ones.
        company: of these.
        asked: share of rows with a yes/no question in place of a caption.
        learning_rate: the highest of a cosine.
    """

    steps: int
    scenes: int
    company: float
    learning_rate: float
    batch: int = 32
    asked: float = 0.5


def processor_of_the_world() -> LlavaProcessor:
    """The processor of the world's pictures and words."""
    return build_processor(WORDS, SIZE, CELL)


def messages(question: str, answer: str) -> dict[str, Any]:
    """Prompt and completion as TRL takes them."""
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def rows_of(seed: int, stage: Stage) -> Iterator[dict[str, Any]]:
    """Endless rows with captions and answers, each scene once a round."""
    scenes = make_scenes(stage.scenes, seed, stage.company)
    rng = np.random.default_rng(seed)
    while True:
        for place in rng.permutation(len(scenes)):
            scene = scenes[place]
            if rng.random() < stage.asked:
                asked = ask(scene, KINDS[rng.integers(len(KINDS))], rng)
                yield {"images": [scene.image], **messages(asked.text, "yes ." if asked.yes else "no .")}
            else:
                yield {"images": [scene.image], **messages(DESCRIBE, scene.caption)}


def cells_of(scene: Scene) -> list[int]:
    """What is in each cell: 0 nothing that has a name, else from 1 on the place of the object in `OBJECTS`, those of small ones behind."""
    cells = [0] * GRID**2
    for thing in scene.things:
        place = thing.box[1] // CELL * GRID + thing.box[0] // CELL
        cells[place] = 1 + OBJECTS.index(thing.name) + len(OBJECTS) * thing.small
    return cells


def train_tower(
    tower: CLIPVisionModel, processor: LlavaProcessor, seed: int, steps: int, scenes: int, batch: int = 64
) -> float:
    """Let the vision tower tell what is in each cell, before any language, as LLaVA's has learnt from captions before it.

    Args:
        tower: trained in place.
        processor: of the pictures.
        seed: of the scenes, which keep no company.
        steps: of the optimizer.
        scenes: different ones.
        batch: scenes a step.

    Returns:
        The share of objects that it tells right in the last tenth of the steps.
    """
    world = make_scenes(scenes, seed, NONE)
    pixels = processor.image_processor([own.image for own in world], return_tensors="pt")["pixel_values"]
    labels = torch.tensor([cells_of(own) for own in world])
    head = torch.nn.Linear(tower.config.hidden_size, 1 + 2 * len(OBJECTS))
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    draw, right = torch.Generator().manual_seed(seed), []
    tower.train()
    for step in tqdm(range(steps), desc="tower", ncols=88):
        some = torch.randint(len(world), (batch,), generator=draw)
        logits = head(tower(pixel_values=pixels[some]).last_hidden_state[:, 1:])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[some].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step >= 0.9 * steps:
            there = labels[some] > 0
            right.append((logits.argmax(-1) == labels[some])[there].float().mean().item())
    return float(np.mean(right))


def train_base(
    folder: Path, seeds: tuple[int, int], stages: tuple[Stage, Stage], tower: tuple[int, int], seed: int
) -> None:
    """Train and save the base: its vision tower, and then its language part and connector on both stages.

    Args:
        folder: of the base.
        seeds: of the scenes of each stage.
        stages: what it sees.
        tower: steps and scenes with which its vision tower is trained before.
        seed: of its weights and trainings.
    """
    set_seed(seed)
    processor = processor_of_the_world()
    model = build_model(processor)
    train_tower(model.model.vision_tower, processor, seeds[0] + TOWER, *tower)
    model.model.vision_tower.requires_grad_(False)
    for number, (scenes, stage) in enumerate(zip(seeds, stages, strict=True)):
        rows = IterableDataset.from_generator(rows_of, gen_kwargs={"seed": scenes, "stage": stage})
        args = SFTConfig(
            output_dir=str(folder),
            max_steps=stage.steps,
            per_device_train_batch_size=stage.batch,
            learning_rate=stage.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(30, stage.steps // 10),
            weight_decay=0.01,
            logging_steps=max(1, stage.steps // 20),
            save_strategy="no",
            report_to="none",
            seed=seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            max_length=None,
        )
        trainer = SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=processor)
        show_bar(trainer, f"base, {'presuming' if number else 'seeing'}, seed {seed}")
        trainer.train()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@torch.inference_mode()
def write_answers(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    *,
    sample: bool = False,
    batch_size: int = 250,
) -> list[str]:
    """One answer an image; greedy, or drawn at temperature 1 from torch's global generator if `sample`."""
    model.eval()
    drawing = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}
    answers: list[str] = []
    for start in range(0, len(images), batch_size):
        prompts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
                add_generation_prompt=True,
            )
            for question in questions[start : start + batch_size]
        ]
        inputs = processor(
            images=[[image] for image in images[start : start + batch_size]],
            text=prompts,
            return_tensors="pt",
            padding=True,
            padding_side="left",
        )
        tokens = model.generate(**inputs, do_sample=sample, max_new_tokens=MOST_NEW_TOKENS, **drawing)
        answers += processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]
