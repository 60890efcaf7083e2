"""What the demo's students train with, chosen on scenes that no demo is tested on.

    python benchmarks/demo_choices.py --seeds 3 4 5 --output benchmarks/results/demo_choices.json

For each seed one base and one set of pairs, as `mfpo demo` makes them, and a student for each candidate. All are scored
on greedy captions of 1000 validation scenes, a part of the world of their own (`story.SCENES_TO_CHOOSE`); the test
scenes of a demo are never drawn, and its seeds are not those of the README's table. The candidate with the highest mean F1 of objects is chosen: CHAIRs alone can be had
by naming less.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import set_seed

from mfpo_trl.demo import story
from mfpo_trl.demo.alignment import METHODS, shared_settings, train_student
from mfpo_trl.demo.progress import only_our_bars
from mfpo_trl.demo.scenes import make_scenes
from mfpo_trl.demo.scoring import score_captions
from mfpo_trl.demo.tiny_model import build_processor
from mfpo_trl.images.corruptions import SCHEDULES

RATES = (5e-5, 1e-4, 2e-4, 4e-4)
CANDIDATES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "schedule": {
        f"MFPO, {name}": ("MFPO", {"corruption_kwargs": {"step": 500, "schedule": name}}) for name in SCHEDULES
    },
    "learning rate": {
        f"{method}, {rate:.0e}": (method, {"learning_rate": rate}) for method in METHODS for rate in RATES
    },
}
"""For each choice the candidates by name: a method of the demo, and what it trains with instead of the demo's setting."""

FIGURES = {"chair_s": "CHAIRs", "chair_i": "CHAIRi", "coverage": "cover", "words": "words", "f1": "F1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choice", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--quick", action="store_true", help="a few steps of everything; the figures mean nothing")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures of every seed")
    args = parser.parse_args()
    # As the demo does.
    torch.set_num_threads(1)
    candidates = {name: own for choice in args.choice for name, own in CANDIDATES[choice].items()}
    results = {}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder, only_our_bars():
            plan = story.QUICK if args.quick else story.Plan()
            results[seed] = measure(Path(folder), seed, candidates, plan)
        if args.output:
            args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    Console(width=100).print(table(results))


def measure(
    folder: Path, seed: int, candidates: dict[str, tuple[str, dict[str, Any]]], plan: story.Plan
) -> dict[str, dict[str, float]]:
    """The scores of the base and of every candidate on the validation scenes of a seed, by name."""
    set_seed(seed)
    processor = build_processor()
    scenes = make_scenes(plan.scenes_to_test, story.world_seed(seed, story.SCENES_TO_CHOOSE), story.NONE)
    base, _ = story.train_base(processor, folder / "base", plan, seed)
    pairs = story.draw_pairs(base, processor, plan, seed)

    def scored(model: torch.nn.Module) -> dict[str, float]:
        captions = story.caption_scenes(model, processor, scenes)
        return asdict(score_captions(captions, [scene.names for scene in scenes]))

    scores = {"base": scored(base)}
    for name, (method, settings) in candidates.items():
        trainer_class, config_class, own = METHODS[method]
        args = config_class(str(folder / "student"), **shared_settings(plan.align_steps, seed) | own | settings)
        trainer = train_student(trainer_class, args, folder / "base", processor, pairs, f"{name}, seed {seed}")
        scores[name] = scored(trainer.model)
    return scores


def table(results: dict[int, dict[str, dict[str, float]]], scenes: str = "validation") -> Table:
    """One row a student: the means over seeds, and the F1 of each seed."""
    count = next(iter(next(iter(results.values())).values()))["n"]
    made = Table(title=f"{count} {scenes} scenes a seed; means over seeds, and F1 % of each", title_justify="left")
    made.add_column("student", no_wrap=True)
    for heading in (*FIGURES.values(), *(f"seed {seed}" for seed in results)):
        made.add_column(heading, justify="right")
    for name in next(iter(results.values())):
        own = [
            {key: value if key == "words" else 100 * value for key, value in found[name].items()}
            for found in results.values()
        ]
        figures = [mean(one[key] for one in own) for key in FIGURES] + [one["f1"] for one in own]
        made.add_row(name, *(f"{figure:.1f}" for figure in figures))
    return made


if __name__ == "__main__":
    main()
