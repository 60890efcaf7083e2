"""The held-out scenes as files: preference rows with pictures, and what the pictures show, as `mfpo generate` and `mfpo score` read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value

from .pairs import preference_row
from .scenes import OBJECTS, Scene, caption_of

MESSAGES = List({"role": Value("string"), "content": Value("string")})
FEATURES = Features(
    {
        "image_id": Value("int64"),
        "images": List(Image()),
        "prompt": MESSAGES,
        "chosen": MESSAGES,
        "rejected": MESSAGES,
        "key_regions": List(List(Value("int64"))),
    }
)


def write_held_out(folder: Path, scenes: list[Scene]) -> None:
    """Write `rows.parquet`, `ground_truth.json` and `synonyms.txt` into a folder.

    The rejected caption of a scene is the true one with its first object taken for one that is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"image_id": number, **held_out_row(scene)} for number, scene in enumerate(scenes)]
    Dataset.from_list(rows, features=FEATURES).to_parquet(folder / "rows.parquet")
    truth = {str(number): scene.names for number, scene in enumerate(scenes)}
    (folder / "ground_truth.json").write_text(json.dumps(truth) + "\n", encoding="utf-8")
    (folder / "synonyms.txt").write_text("\n".join(OBJECTS) + "\n", encoding="utf-8")


def held_out_row(scene: Scene) -> dict[str, Any]:
    """The preference row of a scene."""
    other = next(name for name in OBJECTS if name not in scene.names)
    return preference_row(scene, caption_of([other, *scene.names[1:]]))
