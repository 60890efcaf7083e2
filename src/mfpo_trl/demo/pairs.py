"""Preference pairs from the base model's own errors."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from .captioner import PROMPT, answer, write_captions
from .scenes import Scene
from .scoring import hallucinated


def preference_row(scene: Scene, rejected: str) -> dict[str, Any]:
    """The truth against `rejected`; the key regions are the boxes of the objects that the truth names."""
    return {
        "images": [scene.image],
        "prompt": PROMPT,
        "chosen": answer(scene.caption),
        "rejected": answer(rejected),
        "key_regions": [list(thing.box) for thing in scene.things],
    }


def preference_pairs(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, scenes: list[Scene], most: int
) -> Dataset:
    """At most `most` pairs, in the order of `scenes`: one caption is drawn a scene, and kept if it hallucinates.

    Raises:
        ValueError: the model hallucinates in none of the scenes.
    """
    drafts = write_captions(model, processor, [scene.image for scene in scenes], sample=True)
    rows = [
        preference_row(scene, draft)
        for scene, draft in zip(scenes, drafts, strict=True)
        if hallucinated(draft, scene.names)
    ]
    if not rows:
        raise ValueError(
            f"none of {len(drafts)} drawn captions names an absent object: there is nothing to prefer against"
        )
    return Dataset.from_list(rows[:most])
