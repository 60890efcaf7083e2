"""The whole demo, in order: a world, a captioner that presumes, pairs that presume as it does, three cures, one table."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import LlavaForConditionalGeneration, LlavaProcessor, set_seed

from ..images import DispreferredImages
from .alignment import CORRUPTION, METHODS, align, folder_name
from .captioner import train_captioner, write_captions
from .held_out import write_held_out
from .pairs import preference_pairs, preference_row
from .pictures import Exhibit, Log, draw_contact_sheet, draw_curves
from .progress import only_our_bars
from .scenes import Scene, make_scenes, presumed
from .scoring import CaptionScores, mentions, score_captions
from .tiny_model import build_model, build_processor

MILD, FULL, NONE = 0.5, 1.0, 0.0
# Worlds that share a seed of the demo must not share scenes. Settings are chosen (`benchmarks/demo_choices.py`) on scenes
# that no demo is tested on.
SCENES_TO_SEE, SCENES_TO_PRESUME, SCENES_TO_PREFER, SCENES_TO_TEST, SCENES_TO_CHOOSE = range(5)
LINES_OF_SHEET = 8


@dataclass(frozen=True)
class Plan:
    """How much of everything: optimizer steps, scenes and pairs; and how much company the scenes of the pairs keep."""

    see_steps: int = 450
    presume_steps: int = 100
    scenes_to_see: int = 8000
    scenes_to_presume: int = 3200
    scenes_to_prefer: int = 4000
    company_to_prefer: float = FULL
    most_pairs: int = 400
    align_steps: int = 200
    scenes_to_test: int = 1000


QUICK = Plan(
    see_steps=6,
    presume_steps=3,
    scenes_to_see=64,
    scenes_to_presume=64,
    scenes_to_prefer=48,
    most_pairs=32,
    align_steps=4,
    scenes_to_test=16,
)


def run(output_dir: Path, seed: int = 0, quick: bool = False) -> dict[str, Any]:
    """Run the demo and write models, pictures and `results.json` into `output_dir`.

    Args:
        output_dir: made if it is not there.
        seed: of the world, the models and the trainings.
        quick: a few steps of everything, to test that it runs; the figures mean nothing.

    Returns:
        What `results.json` holds.
    """
    begun = time.monotonic()
    plan = QUICK if quick else Plan()
    output_dir.mkdir(parents=True, exist_ok=True)
    # Matrices this small gain nothing from a second thread, which on a busy machine only waits for its turn; and one
    # thread always sums in the same order. Other processors may round differently.
    torch.set_num_threads(1)
    console = Console(highlight=False)
    test = make_scenes(plan.scenes_to_test, world_seed(seed, SCENES_TO_TEST), NONE)
    with only_our_bars():
        write_held_out(output_dir / "held-out", test)
        captions, logs, count = train_all(output_dir, plan, seed, test, console)

    console.print("[bold]4/4[/] Results on held-out scenes in which nothing usually comes along.")
    scores = {name: score_captions(said, [scene.names for scene in test]) for name, said in captions.items()}
    draw_curves(output_dir / "curves.png", logs)
    draw_contact_sheet(output_dir / "contact_sheet.png", exhibits(test, captions))
    results = {
        "seed": seed,
        "plan": asdict(plan),
        "pairs": count,
        "scores": {name: asdict(score) for name, score in scores.items()},
        "seconds": round(time.monotonic() - begun, 1),
        "logs": logs,
    }
    (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    console.print(results_table(scores))
    console.print("Naming less lowers CHAIRs, and coverage with it; F1 weighs both.")
    console.print(
        f"Pictures, models, the held-out scenes and results.json are in {output_dir}; {results['seconds']:.0f} s."
    )
    return results


def train_all(
    output_dir: Path, plan: Plan, seed: int, test: list[Scene], console: Console
) -> tuple[dict[str, list[str]], dict[str, Log], int]:
    """Train and save the base and its students.

    Returns:
        Each model's captions of `test`, the trainings' logs, and the number of preference pairs.
    """
    set_seed(seed)
    processor = build_processor()
    console.print("[bold]1/4[/] A captioner learns to see, then to presume what usually comes along.")
    base, logs = train_base(processor, output_dir / "base", plan, seed)
    captions = {"base": caption_scenes(base, processor, test)}

    console.print("[bold]2/4[/] In scenes with these habits, what it presumes becomes the rejected answer.")
    pairs = draw_pairs(base, processor, plan, seed)
    console.print(f"    {len(pairs)} pairs: the true caption against one that names what is not there.")

    console.print(f"[bold]3/4[/] {', '.join(METHODS)}: same base, same pairs, same number of steps.")
    for method in METHODS:
        folder = output_dir / folder_name(method)
        model, logs[method] = align(
            method, output_dir / "base", processor, pairs, folder, steps=plan.align_steps, seed=seed
        )
        captions[method] = caption_scenes(model, processor, test)
    return captions, logs, len(pairs)


def world_seed(seed: int, part: int) -> int:
    """Seed of one part of the world, so that no two parts, nor the same part under two seeds, share scenes."""
    return 10 * seed + part


def train_base(
    processor: LlavaProcessor, base_dir: Path, plan: Plan, seed: int
) -> tuple[LlavaForConditionalGeneration, dict[str, Log]]:
    """Train the base captioner and save it: all of it on mild company, then its language part alone on full company."""
    model = build_model(processor)
    logs = {
        "seeing": train_captioner(
            model,
            processor,
            base_dir,
            label="base, seeing",
            seed=world_seed(seed, SCENES_TO_SEE),
            company=MILD,
            steps=plan.see_steps,
            learning_rate=1.5e-3,
            pool=plan.scenes_to_see,
        )
    }
    model.model.vision_tower.requires_grad_(False)
    logs["presuming"] = train_captioner(
        model,
        processor,
        base_dir,
        label="base, presuming",
        seed=world_seed(seed, SCENES_TO_PRESUME),
        company=FULL,
        steps=plan.presume_steps,
        learning_rate=1e-3,
        pool=plan.scenes_to_presume,
    )
    model.save_pretrained(base_dir)
    processor.save_pretrained(base_dir)
    return model, logs


def draw_pairs(base: LlavaForConditionalGeneration, processor: LlavaProcessor, plan: Plan, seed: int) -> Dataset:
    """The pairs that all students train on: the truth against what the base says when it hallucinates.

    Their scenes have the habits that made the base presume, as the images of preference data resemble those of the
    pre-training; where they have none, the true captions alone undo the habits.
    """
    scenes = make_scenes(plan.scenes_to_prefer, world_seed(seed, SCENES_TO_PREFER), plan.company_to_prefer)
    set_seed(seed)
    return preference_pairs(base, processor, scenes, plan.most_pairs)


def caption_scenes(model: LlavaForConditionalGeneration, processor: LlavaProcessor, scenes: list[Scene]) -> list[str]:
    """The model's greedy caption of every scene."""
    return write_captions(model, processor, [scene.image for scene in scenes])


def exhibits(scenes: list[Scene], captions: dict[str, list[str]]) -> list[Exhibit]:
    """Lines of the contact sheet: scenes with their images corrupted as in MFPO's training, and the captions.

    They are the first scenes in which the base names an absent companion of what is there; where there are too few, the
    first others follow.
    """
    corrupt = DispreferredImages(kwargs=CORRUPTION)
    shown = sorted(
        range(len(scenes)), key=lambda index: not presumed(scenes[index], mentions(captions["base"][index]))
    )
    return [
        Exhibit(
            scenes[index],
            corrupt(preference_row(scenes[index], ""), [scenes[index].image])[0],
            {name: said[index] for name, said in captions.items()},
        )
        for index in shown[:LINES_OF_SHEET]
    ]


def results_table(scores: dict[str, CaptionScores]) -> Table:
    """The scores, one row a model; shares in %."""
    n = next(iter(scores.values())).n
    table = Table(title=f"{n} held-out scenes, 95 % intervals in brackets", title_justify="left")
    table.add_column("model")
    for heading in ("CHAIRs %", "CHAIRi %", "coverage %", "F1 %", "words"):
        table.add_column(heading, justify="right")
    for name, score in scores.items():
        table.add_row(
            name,
            f"{100 * score.chair_s:.1f} \\[{100 * score.chair_s_low:.1f}, {100 * score.chair_s_high:.1f}]",
            f"{100 * score.chair_i:.1f}",
            f"{100 * score.coverage:.1f}",
            f"{100 * score.f1:.1f}",
            f"{score.words:.1f}",
        )
    return table
