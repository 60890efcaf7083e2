"""What a seed of the world is made into: a base, preference data of every kind, and what is held out."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, List, Value, load_dataset
from PIL import Image as Pictures
from PIL import ImageDraw
from transformers import LlavaForConditionalGeneration, set_seed

from mfpo_trl.cli import main as mfpo
from mfpo_trl.demo.scenes import caption_of

from .captioner import FULL, HALF, LITTLE, NONE, Stage, processor_of_the_world, train_base, write_answers
from .naming import mentions
from .world import (
    BACKGROUND,
    DESCRIBE,
    KINDS,
    OBJECTS,
    Scene,
    ask,
    draw_shape,
    make_scenes,
    noisy,
    scene_stream,
    tint_of,
)

SEE, PRESUME, PREFER, TEST, CHOOSE, HELD, OWN = range(7)
"""Parts of a seed's world, which share no scene. Settings are chosen on `CHOOSE` alone."""

REGION = {"box": List(Value("int64")), "phrase": Value("string")}
MESSAGES = List({"role": Value("string"), "content": Value("string")})
ROW = Features(
    {
        "id": Value("string"),
        "images": List(Image()),
        "prompt": MESSAGES,
        "chosen": MESSAGES,
        "rejected": MESSAGES,
        "key_regions": List(REGION),
        "keywords": List(Value("string")),
    }
)


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        tower: steps and scenes of the vision tower's own training.
        stages: of the base's training behind it.
        pairs: of a usual data set.
        most: of the largest one.
        scenes: in which pairs are looked for, at most.
        test: scenes that captions are scored on; half as many to choose on.
        questions: with yes or no.
        held: pairs for `mfpo reliance`.
        asked: scenes that `mfpo pairs` asks about.
        steps: of a training, at most.
    """

    tower: tuple[int, int] = (600, 8000)
    stages: tuple[Stage, Stage] = (
        Stage(steps=2600, scenes=24000, company=LITTLE, learning_rate=1e-3, asked=0.55),
        Stage(steps=60, scenes=3200, company=FULL, learning_rate=4e-4),
    )
    pairs: int = 400
    most: int = 1600
    scenes: int = 16000
    test: int = 1000
    questions: int = 600
    held: int = 120
    asked: int = 300
    steps: int = 100_000


SMALL = Size(
    tower=(2, 64),
    stages=(
        Stage(steps=4, scenes=64, company=LITTLE, learning_rate=1e-3),
        Stage(steps=2, scenes=64, company=FULL, learning_rate=4e-4),
    ),
    pairs=24,
    most=40,
    scenes=120,
    test=16,
    questions=12,
    held=6,
    asked=12,
    steps=2,
)


def part_seed(seed: int, part: int) -> int:
    """Of one part of the world of a seed."""
    return 100 * seed + part


@dataclass(frozen=True)
class Place:
    """The folder of one seed, and how much is made in it."""

    folder: Path
    seed: int
    size: Size

    @property
    def base(self) -> Path:
        """The base's folder, trained where it is not there."""
        return _once(self.folder / "base", self._train_base)

    def _train_base(self, folder: Path) -> None:
        seeds = (part_seed(self.seed, SEE), part_seed(self.seed, PRESUME))
        train_base(folder, seeds, self.size.stages, self.size.tower, self.seed)

    def data(self, name: str) -> Path:
        """The folder of the data set of that name, one of `DATA` or `name-N`, built where it is not there."""
        return _once(self.folder / "data" / name, partial(_made, self, name))

    def held_out(self, part: int) -> Path:
        """The folder of the scenes of a part that captions are scored on, with questions and pairs of scenes without habits."""
        return _once(self.folder / f"held-out-{part}", partial(_write_held_out, self, part))


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made under another name first so that a killed run leaves none that is half made."""
    if not folder.exists():
        begun = folder.with_name(f"{folder.name}-begun")
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
        make(begun)
        begun.rename(folder)
    return folder


def message(role: str, content: str) -> list[dict[str, str]]:
    """One turn."""
    return [{"role": role, "content": content}]


def preference_row(scene: Scene, rejected: str, name: str) -> dict[str, Any]:
    """The truth against a caption that names something absent."""
    return {
        "id": name,
        "images": [scene.image],
        "prompt": message("user", DESCRIBE),
        "chosen": message("assistant", scene.caption),
        "rejected": message("assistant", rejected),
        "key_regions": [{"box": list(thing.box), "phrase": thing.name} for thing in scene.things],
        "keywords": scene.names,
    }


def columns_of(chosen: str, rejected: str) -> dict[str, Any]:
    """What some objectives read beside two answers: a second chosen one, which is the rejected one without what is wrong of it, and how
    much is wrong."""
    true, said = mentions(chosen), mentions(rejected)
    wrong = sum(own not in true for own in said)
    return {
        "chosen_2": message("assistant", caption_of([own for own in dict.fromkeys(said) if own in true] or true)),
        "weight": 0.5 + wrong / 2,
        "beta_scale": 0.5 + wrong / 2,
        "chosen_score": 5.0,
        "rejected_score": 5.0 * (1 - wrong / max(1, len(said))),
    }


def draw_pairs(place: Place, company: float, count: int, start: int = 0) -> list[dict[str, Any]]:
    """Pairs in the order of the scenes: one caption of the base is drawn a scene, and kept if it names something absent.

    Raises:
        ValueError: the base names too little that is absent for so many pairs.
    """
    model = LlavaForConditionalGeneration.from_pretrained(place.base, use_safetensors=True)
    processor = processor_of_the_world()
    set_seed(place.seed)
    stream, rows, seen = scene_stream(part_seed(place.seed, PREFER) + int(10000 * company) + start, company), [], 0
    while len(rows) < count and seen < place.size.scenes:
        scenes = [next(stream) for _ in range(min(500, place.size.scenes - seen))]
        drafts = write_answers(model, processor, [own.image for own in scenes], [DESCRIBE] * len(scenes), sample=True)
        for scene, draft in zip(scenes, drafts, strict=True):
            if set(mentions(draft)) - set(scene.names):
                rows.append(preference_row(scene, draft, f"scene {seen}"))
            seen += 1
    if len(rows) < min(count, place.size.pairs):
        raise ValueError(f"{seen} drawn captions gave {len(rows)} pairs, and {place.size.pairs} are needed")
    return rows[:count]


def build(source: Path | Sequence[dict[str, Any]], folder: Path, place: Place, *more: str) -> None:
    """`mfpo build` on rows that bring the phrases of their regions; `folder/rows` becomes the data set, with `columns_of` beside."""
    if not isinstance(source, Path):
        rows, source = source, folder / "source.parquet"
        Dataset.from_list(list(rows), features=ROW).to_parquet(source)
    options = ["--dataset", str(source), "--output", str(folder / "rows"), "--resolution", "64"]
    options += ["--grounder", "column", "--difficulty", "nll", "--model", str(place.base), "--batch-size", "32"]
    _run(["build", *options, *more, "--part-rows", "100000"])
    rows = load_dataset(str(folder / "rows"), split="train")
    texts = [[own[0]["content"][0]["text"] for own in rows[name]] for name in ("chosen", "rejected")]
    more_columns = [columns_of(*pair) for pair in zip(*texts, strict=True)]
    for name in more_columns[0]:
        kind = MESSAGES if name == "chosen_2" else Value("float64")
        rows = rows.add_column(name, [own[name] for own in more_columns], feature=kind)
    rows.to_parquet(folder / "all.parquet")
    shutil.rmtree(folder / "rows")
    (folder / "rows").mkdir()
    (folder / "all.parquet").rename(folder / "rows" / "rows.parquet")


def _run(command: Sequence[str]) -> None:
    if mfpo(list(command)):
        raise RuntimeError(f"mfpo {' '.join(command)} failed, see above")


def rows_of(folder: Path) -> Dataset:
    """The rows that were built in a folder."""
    return load_dataset(str(folder / "rows"), split="train")


def save(rows: Dataset, folder: Path) -> None:
    """Rows as `rows_of` reads them."""
    (folder / "rows").mkdir(parents=True)
    rows.to_parquet(folder / "rows" / "rows.parquet")


def _made(place: Place, name: str, folder: Path) -> None:
    kind, _, number = name.partition("-")
    DATA[kind](place, folder, *([int(number)] if number else []))


def _pairs(place: Place, folder: Path, count: int | None = None) -> None:
    """From scenes with habits; any number of them are the first of the largest set."""
    if count is None or count <= place.size.pairs:
        wanted = place.size.pairs if count is None else count
        if count is None:
            return build(draw_pairs(place, FULL, wanted), folder, place)
        return save(rows_of(place.data("pairs")).select(range(min(wanted, place.size.pairs))), folder)
    build(draw_pairs(place, FULL, min(count, place.size.most)), folder, place)


def _habits(place: Place, folder: Path, percent: int) -> None:
    """From scenes with that much company."""
    build(draw_pairs(place, percent / 100, place.size.pairs), folder, place)


def _mixed(place: Place, folder: Path) -> None:
    """A third each from scenes without, with some and with much company."""
    third = place.size.pairs // 3 + 1
    rows = [
        {**row, "id": f"{company} {row['id']}"}
        for company in (NONE, HALF, FULL)
        for row in draw_pairs(place, company, third)
    ]
    build(rows[: place.size.pairs], folder, place)


def _flipped(place: Place, folder: Path, percent: int) -> None:
    """Chosen and rejected exchanged in that share of the rows, drawn by the seed."""
    rows = rows_of(place.data("pairs"))
    wrong = set(np.random.default_rng(place.seed).permutation(len(rows))[: len(rows) * percent // 100].tolist())

    def flip(row: dict[str, Any], number: int) -> dict[str, Any]:
        return {"chosen": row["rejected"], "rejected": row["chosen"]} if number in wrong else {}

    save(rows.map(flip, with_indices=True), folder)


def _mirror(place: Place, folder: Path, count: int | None = None) -> None:
    """The pairs and their twins, whose objects are redrawn; with a number, twins of the first pairs alone."""
    if count is None:
        return _twins(place, folder, "--mirror-editor", "laboratory.material:redraw")
    rows = rows_of(place.data("mirror"))
    first = set(rows_of(place.data("pairs"))["id"][:count])
    kept = [number for number, own in enumerate(rows["mirror_of"]) if own is None or own in first]

    def without_twin(row: dict[str, Any]) -> dict[str, Any]:
        return (
            {} if row["mirror_of"] or row["id"] in first else {"rejected_images": None, "rejected_image_chosen": None}
        )

    save(rows.select(kept).map(without_twin), folder)


def _transplanted(place: Place, folder: Path) -> None:
    """The pairs and twins that `transplant` edits."""
    _twins(place, folder, "--mirror-editor", "transplant")


def _twins(place: Place, folder: Path, *more: str) -> None:
    source = place.data("pairs") / "source.parquet"
    build(source, folder, place, "--mirror", "--mirror-choice", "uniform", "--seed", str(place.seed), *more)


def _noisy(place: Place, folder: Path) -> None:
    """The rows of `mirror` without the edited image as their dispreferred one: noise takes its place."""
    save(rows_of(place.data("mirror")).remove_columns(["rejected_images", "rejected_image_chosen"]), folder)


def _replaced(place: Place, folder: Path) -> None:
    """The pairs, each with an edited image as its dispreferred one, and without the answer that is true of it."""
    rows = rows_of(place.data("mirror"))
    kept = [number for number, own in enumerate(rows["mirror_of"]) if own is None]
    save(rows.select(kept).remove_columns(["rejected_image_chosen", "mirror_of"]), folder)


def _similar(place: Place, folder: Path) -> None:
    """The pairs, each with the image of another row that shares most objects with it, as retrieval finds it."""
    rows = rows_of(place.data("pairs"))
    named = [set(own) for own in rows["keywords"]]
    images = rows.cast_column("images", List(Image(decode=False)))["images"]

    def nearest(number: int) -> int:
        def likeness(other: int) -> tuple[float, int]:
            share = len(named[number] & named[other]) / len(named[number] | named[other])
            return (-1.0 if other == number or named[other] == named[number] else share, -other)

        return max(range(len(named)), key=likeness)

    retrieved = [images[nearest(number)] for number in range(len(rows))]
    save(rows.add_column("rejected_images", retrieved, feature=ROW["images"]), folder)


def _begun(place: Place, folder: Path) -> None:
    """The base's own captions up to their first wrong object: a true one goes on, or the wrong one."""
    rows = rows_of(place.data("pairs"))

    def begin(row: dict[str, Any]) -> dict[str, Any]:
        true, said = set(row["keywords"]), mentions(row["rejected"][0]["content"][0]["text"])
        first = next(number for number, own in enumerate(said) if own not in true)
        left = [own for own in row["keywords"] if own not in said[:first]]
        prefix = " , ".join(f"a {own}" for own in said[:first])
        goes = " , " if first else ""
        return {
            "answer_prefix": prefix,
            "chosen": message("assistant", f"{goes}a {left[0]} ," if left else " ."),
            "rejected": message("assistant", f"{goes}a {said[first]} ,"),
        }

    begun = [begin(row) for row in rows.select_columns(["keywords", "rejected"])]
    rows = rows.remove_columns(["chosen", "rejected", "chosen_2"])
    for name, kind in (("answer_prefix", Value("string")), ("chosen", MESSAGES), ("rejected", MESSAGES)):
        rows = rows.add_column(name, [own[name] for own in begun], feature=kind)
    save(rows, folder)


def _own(place: Place, folder: Path) -> None:
    """Scenes to ask about, as `mfpo pairs` and `mfpo loop` read them."""
    scenes = make_scenes(place.size.asked, part_seed(place.seed, OWN), FULL)
    rows = [
        {
            "images": [scene.image],
            "prompt": DESCRIBE,
            "objects": scene.names,
            "key_regions": [{"box": list(thing.box), "phrase": thing.name} for thing in scene.things],
        }
        for scene in scenes
    ]
    columns = {
        "images": List(Image()),
        "prompt": Value("string"),
        "objects": List(Value("string")),
        "key_regions": List(REGION),
    }
    save(Dataset.from_list(rows, features=Features(columns)), folder)


DATA: dict[str, Callable[..., None]] = {
    "pairs": _pairs,
    "habits": _habits,
    "mixed": _mixed,
    "flipped": _flipped,
    "mirror": _mirror,
    "transplanted": _transplanted,
    "noisy": _noisy,
    "replaced": _replaced,
    "similar": _similar,
    "begun": _begun,
    "own": _own,
}
"""Data sets by name; a number behind the name is handed on."""


def _write_held_out(place: Place, part: int, folder: Path) -> None:
    """Scenes without habits as `mfpo generate`, `mfpo score` and `mfpo reliance` read them."""
    count = place.size.test if part == TEST else place.size.test // 2
    scenes = make_scenes(count, part_seed(place.seed, part), NONE)
    rows = [{"image_id": n, "images": [scene.image], "prompt": DESCRIBE} for n, scene in enumerate(scenes)]
    Dataset.from_list(
        rows, features=Features({"image_id": Value("int64"), "images": List(Image()), "prompt": Value("string")})
    ).to_parquet(folder / "captions.parquet")
    truth = {str(number): scene.names for number, scene in enumerate(scenes)}
    (folder / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    (folder / "synonyms.txt").write_text("\n".join(OBJECTS) + "\n", encoding="utf-8")
    _write_questions(place, scenes, folder)
    pairs = [
        preference_row(scene, wrong_caption(scene), f"held {n}") for n, scene in enumerate(scenes[: place.size.held])
    ]
    Dataset.from_list(pairs, features=ROW).to_parquet(folder / "pairs.parquet")


def wrong_caption(scene: Scene) -> str:
    """The true caption with its first object taken for one that is not there."""
    other = next(name for name in OBJECTS if name not in scene.names)
    return caption_of([other, *scene.names[1:]])


def _write_questions(place: Place, scenes: Sequence[Scene], folder: Path) -> None:
    """Yes/no questions: rows to ask, and the published form of POPE with an answer to each, a file for what is there and one for sizes."""
    rng = np.random.default_rng(part_seed(place.seed, TEST))
    count = min(place.size.questions, len(scenes) * len(KINDS))
    rows: dict[str, list[dict[str, Any]]] = {"objects": [], "sizes": []}
    labels: dict[str, list[str]] = {"objects": [], "sizes": []}
    for number in range(count):
        scene, kind = scenes[number % len(scenes)], KINDS[number % len(KINDS)]
        asked = ask(scene, kind, rng)
        group = "sizes" if kind == "size" else "objects"
        rows[group].append({"question_id": number, "images": [scene.image], "prompt": asked.text})
        label = {"question_id": number, "text": asked.text, "label": "yes" if asked.yes else "no"}
        labels[group].append(json.dumps(label))
    columns = Features({"question_id": Value("int64"), "images": List(Image()), "prompt": Value("string")})
    for group, own in rows.items():
        Dataset.from_list(own, features=columns).to_parquet(folder / f"{group}.parquet")
        (folder / f"{group}.jsonl").write_text("\n".join(labels[group]) + "\n", encoding="utf-8")


def redraw(
    image: Pictures.Image, region: np.ndarray, old: str, new: str, rng: np.random.Generator
) -> tuple[Pictures.Image, np.ndarray]:
    """The editor that knows the world: the old object rubbed out, and the new one drawn in its box."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    clean = Pictures.new("RGB", image.size, (BACKGROUND,) * 3)
    draw_shape(ImageDraw.Draw(clean), new.split()[1], box, tint_of(new, rng))
    place = np.zeros_like(region)
    place[box[1] : box[3], box[0] : box[2]] = True
    return Pictures.fromarray(np.where(place[..., None], noisy(clean, rng), np.asarray(image))), place
