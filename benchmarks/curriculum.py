"""Does the order matter? MFPO on the demo's world with its pairs shuffled, from easy to hard, and from hard to easy.

    python benchmarks/curriculum.py --seeds 0 1 2 --output curriculum.json

For each seed the base captioner of `mfpo demo`, and 1,600 pairs that it gives in scenes without habits. Every student sees each pair twice, with
the settings of the demo, but for the learning rate (2e-4) and the noise schedule (`linear`); the difficulty of a pair is the negative log-likelihood of its chosen caption under the base
(`curriculum_score="nll"`). CHAIRs and coverage are of greedy captions of 1000 held-out scenes.
"""

import argparse
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean

import torch
from rich.console import Console
from rich.table import Table
from transformers import set_seed

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl.demo import story
from mfpo_trl.demo.alignment import shared_settings, train_student
from mfpo_trl.demo.progress import only_our_bars
from mfpo_trl.demo.scenes import make_scenes
from mfpo_trl.demo.scoring import score_captions
from mfpo_trl.demo.tiny_model import build_processor

ORDERS = {
    "shuffled": {"curriculum": "none"},
    "staged": {"curriculum": "staged"},
    "sorted": {"curriculum": "sorted"},
    "anti": {"curriculum": "anti"},
    "staged, stage reference": {"curriculum": "staged", "curriculum_reference": "stage"},
}
PASSES = 2
LEARNING_RATE = 2e-4
CORRUPTION = {"step": 500, "schedule": "linear"}
PLAN = replace(story.Plan(), scenes_to_prefer=2800, company_to_prefer=story.NONE, most_pairs=1600)
"""More pairs than the demo's, and of scenes without habits, from which every student learns."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=["shuffled", "staged", "anti"])
    parser.add_argument("--quick", action="store_true", help="a few steps of everything; the figures mean nothing")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures of every seed")
    args = parser.parse_args()
    # As the demo does.
    torch.set_num_threads(1)
    results = {}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder, only_our_bars():
            results[seed] = measure(Path(folder), seed, args.orders, story.QUICK if args.quick else PLAN)
        if args.output:
            args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    Console().print(table(results))


def measure(folder: Path, seed: int, orders: list[str], plan: story.Plan) -> dict[str, dict[str, float]]:
    """The scores of the base and of one student an order, by name."""
    set_seed(seed)
    processor = build_processor()
    test = make_scenes(plan.scenes_to_test, story.world_seed(seed, story.SCENES_TO_TEST), story.NONE)
    base, _ = story.train_base(processor, folder / "base", plan, seed)
    pairs = story.draw_pairs(base, processor, plan, seed)

    def scored(model: torch.nn.Module, **more: int) -> dict[str, float]:
        captions = story.caption_scenes(model, processor, test)
        return {**asdict(score_captions(captions, [scene.names for scene in test])), **more}

    scores = {"base": scored(base, pairs=len(pairs))}
    for order in orders:
        settings = shared_settings(PASSES * len(pairs) // 16, seed)
        settings |= {
            "learning_rate": LEARNING_RATE,
            "max_steps": -1,
            "num_train_epochs": PASSES,
            "corruption_kwargs": CORRUPTION,
            **ORDERS[order],
        }
        config = MFPOConfig(str(folder / order), **settings)
        trainer = train_student(MFPOTrainer, config, folder / "base", processor, pairs, f"{order}, seed {seed}")
        scores[order] = scored(trainer.model, steps=trainer.state.global_step)
    return scores


def table(results: dict[int, dict[str, dict[str, float]]]) -> Table:
    """One row an order: CHAIRs and coverage for each seed and their mean."""
    widest = max(own["chair_s_high"] - own["chair_s_low"] for found in results.values() for own in found.values()) / 2
    title = f"CHAIRs % / coverage %; 95 % intervals of CHAIRs are at most {100 * widest:.1f} to each side"
    made = Table(title=title, title_justify="left")
    made.add_column("order")
    for heading in (*(f"seed {seed}" for seed in results), "mean"):
        made.add_column(heading, justify="right")
    for order in next(iter(results.values())):
        scores = [found[order] for found in results.values()]
        shares = [(own["chair_s"], own["coverage"]) for own in scores]
        shares.append((mean(own[0] for own in shares), mean(own[1] for own in shares)))
        made.add_row(order, *(f"{100 * chairs:.1f} / {100 * coverage:.1f}" for chairs, coverage in shares))
    return made


if __name__ == "__main__":
    main()
