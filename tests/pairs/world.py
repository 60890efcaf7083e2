"""The demo's world as images and prompts, and a stand-in for a captioner that is right about as often as not."""

import hashlib
import json
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, List, Value

from mfpo_trl.demo.scenes import OBJECTS, Scene, caption_of, make_scenes

REGION = {"box": List(Value("int64")), "phrase": Value("string")}
FEATURES = Features(
    {
        "image": Image(),
        "prompt": Value("string"),
        "image_id": Value("int64"),
        "objects": List(Value("string")),
        "key_regions": List(REGION),
    }
)


def write_world(path: Path, count: int, seed: int = 3) -> list[Scene]:
    """Scenes as rows with an image, a prompt, the objects and where they are."""
    scenes = make_scenes(count, seed, 0.5)
    rows = [
        {
            "image": scene.image,
            "prompt": "describe",
            "image_id": number,
            "objects": scene.names,
            "key_regions": [{"box": list(thing.box), "phrase": thing.name} for thing in scene.things],
        }
        for number, scene in enumerate(scenes)
    ]
    Dataset.from_list(rows, features=FEATURES).to_parquet(path)
    return scenes


def told_by(scene: Scene, seed: int) -> str:
    """A caption: each object of the scene is named with probability 0.8, and up to two that are not there."""
    rng = np.random.default_rng(seed)
    names = [name for name in scene.names if rng.random() < 0.8]
    names += [str(name) for name in rng.choice([o for o in OBJECTS if o not in scene.names], int(rng.integers(3)), False)]
    return caption_of(names) if names else "nothing ."
