"""The demo's world as images and prompts, and a stand-in for a captioner that is right about as often as not."""

import base64
import hashlib
import io
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

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
    names += [
        str(name) for name in rng.choice([o for o in OBJECTS if o not in scene.names], int(rng.integers(3)), False)
    ]
    return caption_of(names) if names else "nothing ."


class Captioner:
    """Answers requests of a chat server about scenes by `told_by`, whatever the picture's file."""

    def __init__(self, scenes: list[Scene], tell=told_by):
        self.scene_of = {np.asarray(scene.image).tobytes(): scene for scene in scenes}
        self.tell = tell

    def shown(self, body: dict) -> Scene:
        parts = next(own["content"] for own in body["messages"] if own["role"] == "user")
        data = base64.b64decode(parts[0]["image_url"]["url"].partition(",")[2])
        return self.scene_of[np.asarray(PILImage.open(io.BytesIO(data)).convert("RGB")).tobytes()]

    def __call__(self, body: dict) -> str:
        return self.tell(self.shown(body), body["seed"])


# Detectors of known error rates: they know the scenes of `write_world`'s seed, and err by a hash of picture and phrase.


def _detected(images, phrases, missed: float, invented: float, name: str):
    found = []
    for image, own in zip(images, phrases, strict=True):
        scene = KNOWN[np.asarray(image).tobytes()]
        found.append([])
        for phrase in own:
            box = next((thing.box for thing in scene.things if thing.name == phrase), None)
            digest = hashlib.blake2b(f"{name} {phrase}".encode() + image.tobytes(), digest_size=4).digest()
            chance = int.from_bytes(digest, "little") / 2**32
            if chance < (invented if box is None else missed):
                box = (0, 0, 9, 9) if box is None else None
            if box is not None:
                mask = np.zeros((image.height, image.width), dtype=bool)
                mask[box[1] : box[3], box[0] : box[2]] = True
                found[-1].append((mask, phrase, None))
    return found


KNOWN = {np.asarray(scene.image).tobytes(): scene for scene in make_scenes(400, 3, 0.5)}
MISSED, INVENTED = 0.1, 0.05


def perfect(images, phrases):
    return _detected(images, phrases, 0, 0, "perfect")


def first(images, phrases):
    return _detected(images, phrases, MISSED, INVENTED, "first")


def second(images, phrases):
    return _detected(images, phrases, MISSED, INVENTED, "second")


# A verifier for texts that mean nothing: every other word is there.


def words_by_hash(images, answers, row):
    return [
        [
            (word, "present" if hashlib.blake2b(word.encode()).digest()[0] % 2 else "absent")
            for word in dict.fromkeys(text.split())
        ]
        for text in answers
    ]


def nothing(images, answers, row):
    return [[] for _ in answers]


def nonsense(images, answers, row):
    return [[("dog", "perhaps")] for _ in answers]


def all_absent(images, answers, row):
    return [[("star", "absent"), (text, "absent")] for text in answers]


def all_unsure(images, answers, row):
    """A verifier that names every word and decides nothing."""
    return [[(word, "uncertain") for word in text.split()] for text in answers]
