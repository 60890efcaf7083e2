"""What mirror rows do where the preference data share the model's habits.

    python benchmarks/mirror_rows.py --seeds 0 1 2 --editor oracle transplant --output benchmarks/results/mirror_rows.json

For each seed the base and the pairs of `mfpo demo`, and students with and without the twins that `mfpo build --mirror` makes of these: SFT on
the chosen answers, and the demo's own, but for the learning rate (2e-4) and the noise schedule (`linear`). Scored on greedy captions of the demo's test scenes, in which nothing comes along.

`oracle` draws the replacement where the object was, with the phrases as they are known, and asks no detector; `transplant` takes another
row's object, and a detector of shapes checks before and after the edit.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from demo_choices import table
from PIL import Image, ImageDraw
from rich.console import Console
from scipy import ndimage
from transformers import set_seed
from trl import DPOConfig, DPOTrainer

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl.data.build import BuildOptions, run
from mfpo_trl.demo import story
from mfpo_trl.demo.alignment import METHODS, shared_settings, train_student
from mfpo_trl.demo.progress import only_our_bars
from mfpo_trl.demo.scenes import BACKGROUND, COLOURS, PIXEL_NOISE, SHAPES, Scene, draw_shape, make_scenes
from mfpo_trl.demo.scoring import mentions, score_captions
from mfpo_trl.demo.tiny_model import build_processor

LEARNING_RATE = 2e-4
STUDENTS: dict[str, tuple[type[DPOTrainer], type[DPOConfig], dict[str, Any]]] = {
    "SFT": (DPOTrainer, DPOConfig, {"loss_type": "sft"}),
    **METHODS,
    "MFPO": (MFPOTrainer, MFPOConfig, {"corruption_kwargs": {"step": 500, "schedule": "linear"}}),
}
EDITORS: dict[str, dict[str, Any]] = {
    "oracle": {"mirror_editor": "mirror_rows:redraw", "grounder": "column"},
    "transplant": {"mirror_editor": "transplant", "grounder": "mirror_rows:see"},
}
SMALLEST, NARROWEST, LONGEST = 30, 6, 1.6
"""Pixels of a shape and of its sides, and the ratio of these."""


def redraw(
    image: Image.Image, region: np.ndarray, old: str, new: str, rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """The editor that knows the world: the old object rubbed out, and the new one drawn in its box."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    clean = Image.new("RGB", image.size, (BACKGROUND,) * 3)
    colour, shape = new.split()
    tint = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 12, size=3), 0, 255).astype(int)
    draw_shape(ImageDraw.Draw(clean), shape, box, tuple(tint.tolist()))
    noisy = np.asarray(clean, dtype=np.float32) + PIXEL_NOISE * rng.standard_normal(
        (*region.shape, 3), dtype=np.float32
    )
    place = np.zeros_like(region)
    place[box[1] : box[3], box[0] : box[2]] = True
    made = np.where(place[..., None], np.clip(noisy, 0, 255).astype(np.uint8), np.asarray(image))
    return Image.fromarray(made), place


def see(images: list[Image.Image], phrases: list[list[str]]) -> list[list[tuple[np.ndarray, str, float]]]:
    """A grounder for the world: connected pixels of a colour, told by the shape that overlaps them most."""
    return [
        [(mask, name, score) for name, mask, score in things(image) if name in own]
        for image, own in zip(images, phrases, strict=True)
    ]


def things(image: Image.Image) -> list[tuple[str, np.ndarray, float]]:
    """The objects of a picture: name, mask (H, W), overlap with its shape in 0..1."""
    pixels = np.asarray(image, dtype=np.float32)
    known = np.array([*COLOURS.values(), (BACKGROUND,) * 3], dtype=np.float32)
    nearest = ((pixels[:, :, None] - known) ** 2).sum(axis=3).argmin(axis=2)
    found = []
    for number, colour in enumerate(COLOURS):
        labels, count = ndimage.label(ndimage.median_filter((nearest == number).astype(np.uint8), 3))
        for label in range(1, count + 1):
            mask = labels == label
            short, long = sorted([mask.any(axis=0).sum(), mask.any(axis=1).sum()])
            if mask.sum() >= SMALLEST and short >= NARROWEST and long <= LONGEST * short:
                overlaps = {shape: _overlap(mask, shape) for shape in SHAPES}
                shape = max(overlaps, key=lambda name: overlaps[name])
                found.append((f"{colour} {shape}", mask, overlaps[shape]))
    return found


def _overlap(mask: np.ndarray, shape: str) -> float:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    drawn = Image.new("L", mask.shape[::-1])
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    draw_shape(ImageDraw.Draw(drawn), shape, box, 255)
    ideal = np.asarray(drawn) > 0
    return float((mask & ideal).sum() / (mask | ideal).sum())


def with_phrases(pairs: Dataset, scenes: list[Scene]) -> Dataset:
    """The pairs with the names of their regions, which a real data set has from its grounder."""
    boxes = {(*(thing.box for thing in scene.things), scene.caption): scene for scene in scenes}
    rows = []
    for number, row in enumerate(pairs):
        scene = boxes[(*map(tuple, row["key_regions"]), row["chosen"][0]["content"])]
        regions = [{"box": list(thing.box), "phrase": thing.name} for thing in scene.things]
        rows.append({**row, "id": f"pair {number}", "keywords": scene.names, "key_regions": regions})
    return Dataset.from_list(rows)


def twins_of(source: Dataset, folder: Path, editor: str, seed: int) -> tuple[Dataset, dict[str, Any]]:
    """The rows with their twins, and what the build says of the steps."""
    source.to_parquet(folder / "pairs.parquet")
    options = BuildOptions(
        dataset=str(folder / "pairs.parquet"), output=folder / editor, mirror=True, mirror_choice="uniform", seed=seed,
        progress=False, **EDITORS[editor],
    )  # fmt: skip
    run(options)
    report = json.loads((folder / editor / "report.json").read_text())
    return load_dataset(str(folder / editor), split="train"), report["mirror"]


def truth(rows: Dataset) -> float:
    """Of the twins, the share whose chosen answer names what a detector of shapes sees in its image, and nothing else."""
    twins = [row for row in rows if row["mirror_of"] is not None]
    right = [
        sorted(mentions(row["chosen"][0]["content"][0]["text"]))
        == sorted(name for name, *_ in things(row["images"][0]))
        for row in twins
    ]
    return float(np.mean(right)) if right else float("nan")


def measure(folder: Path, seed: int, editors: list[str], plan: story.Plan) -> dict[str, Any]:
    """The scores of base and students by name, and the steps of each build."""
    set_seed(seed)
    processor = build_processor()
    test = make_scenes(plan.scenes_to_test, story.world_seed(seed, story.SCENES_TO_TEST), story.NONE)
    base, _ = story.train_base(processor, folder / "base", plan, seed)
    scenes = make_scenes(plan.scenes_to_prefer, story.world_seed(seed, story.SCENES_TO_PREFER), story.FULL)
    source = with_phrases(story.draw_pairs(base, processor, plan, seed), scenes)
    data = {"": source.remove_columns(["id", "keywords"])}
    steps: dict[str, Any] = {"pairs": len(source)}
    for editor in editors:
        data[f", {editor} twins"], steps[editor] = twins_of(source, folder, editor, seed)
        steps[editor]["true"] = truth(data[f", {editor} twins"])

    def scored(model: torch.nn.Module) -> dict[str, float]:
        return asdict(score_captions(story.caption_scenes(model, processor, test), [scene.names for scene in test]))

    scores = {"base": scored(base)}
    for method, (trainer_class, config_class, own) in STUDENTS.items():
        for name, rows in data.items():
            settings = {**shared_settings(plan.align_steps, seed), "learning_rate": LEARNING_RATE, **own}
            args = config_class(str(folder / "student"), **settings)
            trainer = train_student(
                trainer_class, args, folder / "base", processor, rows, f"{method}{name}, seed {seed}"
            )
            scores[method + name] = scored(trainer.model)
    return {"scores": scores, "steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--editor", nargs="+", choices=EDITORS, default=["oracle"])
    parser.add_argument("--quick", action="store_true", help="a few steps of everything; the figures mean nothing")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures of every seed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder, only_our_bars():
            plan = story.QUICK if args.quick else story.Plan()
            results[seed] = measure(Path(folder), seed, args.editor, plan)
        print(f"seed {seed}: {results[seed]['steps']}", flush=True)
        if args.output:
            args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    Console(width=120).print(table({seed: found["scores"] for seed, found in results.items()}, "test"))


if __name__ == "__main__":
    main()
