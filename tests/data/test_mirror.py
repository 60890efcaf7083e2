"""Mirror rows: answers that stay true by rule, rows and their twins, each step counted, and who reads which."""

import io
import json
import logging
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from datasets import Dataset, List, load_dataset
from datasets import Image as Features
from PIL import Image
from stand_in_chat import StandInChat, text_of

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import mirror_rows

from mfpo_trl import MFPOConfig
from mfpo_trl.cli import main
from mfpo_trl.data.build import BuildOptions, run
from mfpo_trl.data.grounding.grounders import Grounded
from mfpo_trl.data.mirror.answer import mirrored
from mfpo_trl.data.mirror.edits import build_editor, transplant
from mfpo_trl.data.mirror.pool import Example, Pool, alike, normal, stem
from mfpo_trl.data.mirror.stage import Mirror
from mfpo_trl.data.mirror.words import Left, article, is_counted, is_plural
from mfpo_trl.data.preview.show import twins_first
from mfpo_trl.demo.pairs import preference_row
from mfpo_trl.demo.scenes import COLOURS, SHAPES, caption_of, make_scenes
from mfpo_trl.demo.scoring import mentions
from mfpo_trl.images.regions import encode_rle, region_mask
from mfpo_trl.rows.schema import plain_text, to_rgb
from mfpo_trl.train.heldout import hold_out
from mfpo_trl.train.mirrors import read_by_objective

# Answers


@pytest.mark.parametrize(
    ("text", "old", "new", "made"),
    [
        ("A red car stands beside a tall tree.", "tall tree", "apple tree", "A red car stands beside an apple tree."),
        ("No cats, but a dog near a tree.", "dog", "owl", "No cats, but an owl near a tree."),
        ("A dog and a cat are on a couch.", "dog", "hat", "A hat and a cat are on a couch."),
        ("A dog can be seen in the park.", "dog", "cat", "A cat can be seen in the park."),
        ("A dog is visible.", "dog", "cat", "A cat is visible."),
        ("A man sitting on a chair.", "chair", "bench", "A man sitting on a bench."),
        ("A man next to a dog.", "dog", "hat", "A man next to a hat."),
        ("A dog to the left of the car.", "car", "owl", "A dog to the left of the owl."),
        ("There is a TV on the wall.", "tv", "clock", "There is a clock on the wall."),
        ("A TV on the wall. The TV is there.", "tv", "clock", "A clock on the wall. The clock is there."),
        ("A clock on the wall.", "clock", "TV", "A TV on the wall."),
        ("A T-shirt on a bed.", "t-shirt", "hat", "A hat on a bed."),
        ('"A dog" near the tree.', "dog", "owl", '"An owl" near the tree.'),
        ("A dog, a ball, and a man walks by.", "dog", "owl", "An owl, a ball, and a man walks by."),
        ("A dog near a tree.\nThe dog is on grass.", "dog", "owl", "An owl near a tree.\nThe owl is on grass."),
        ("There are dogs near a tree. Some dogs are in the water.", "dogs", "cats", "There are cats near a tree. Some cats are in the water."),
        ("An umbrella near a dog.", "umbrella", "hat", "A hat near a dog."),
        ("Umbrellas and a dog.", "umbrellas", "hats", "Hats and a dog."),
        ("a red circle , a blue circle , a green cross .", "red circle", "green square", "a green square , a blue circle , a green cross ."),
        ("There is a red ball. The red ball is on the grass.", "red ball", "hat", "There is a hat. The hat is on the grass."),
        ("There is a red ball. The ball is on the grass.", "red ball", "blue box", "There is a blue box. The box is on the grass."),
        ("It is clear that a dog is next to a cat.", "cat", "owl", "It is clear that a dog is next to an owl."),
        ("A cat, in the corner.", "cat", "uniform", "A uniform, in the corner."),
        ("A dogma and a dog.", "dog", "hour hand", "A dogma and an hour hand."),
        ("A dog on a mat near the tree, and a man sits nearby.", "dog", "hat", "A hat on a mat near the tree, and a man sits nearby."),
        ("A dog on a mat and a cat on a chair.", "dog", "owl", "An owl on a mat and a cat on a chair."),
        ("A dog is on the couch. The couch is red.", "dog", "hat", "A hat is on the couch. The couch is red."),
    ],
)  # fmt: skip
def test_every_mention_is_replaced_and_the_article_agrees(text, old, new, made):
    assert mirrored(text, old, new) == made


@pytest.mark.parametrize(
    ("text", "old", "reason"),
    [
        ("A dog.", "cat", "does not name"),
        ("A brown dog near a tree.", "dog", "an adjective"),
        ("A sleeping dog near a tree.", "dog", "an adjective"),
        ("The dog is running.", "dog", "what it is or does"),
        ("The dog is brown.", "dog", "what it is or does"),
        ("A dog running in a park.", "dog", "what it is or does"),
        ("A dog sits on a mat.", "dog", "what it is or does"),
        ("A dog with a collar.", "dog", "what it is or does"),
        ("A dog that barks.", "dog", "what it is or does"),
        ("A man riding a horse.", "horse", "is done with"),
        ("Two dogs near a tree.", "dogs", "counted"),
        ("There is no dog here.", "dog", "denies"),
        ("A dog house near a tree.", "dog", "longer one"),
        ("A hot dog.", "dog", "an adjective|longer one"),
        ("A cup of coffee.", "cup", "longer one"),
        ("A dog near a tree. The dog's tail.", "dog", "another number or as an owner"),
        ("A dog near other dogs.", "dog", "another number"),
        ("A dog near a tree. It looks happy.", "dog", "a pronoun"),
        ("A red ball, and a ball of wool.", "red ball", "another one of the kind"),
        ("An umbrella lies near a dog.", "umbrella", "what it is or does"),
        ("This is not a dog.", "dog", "denies"),
        ("There isn't a dog on the mat.", "dog", "denies"),
        ("There is no cat or dog.", "dog", "denies"),
        ("A dog, sleeping on the couch.", "dog", "what it is or does"),
        ("A dog on the couch is asleep.", "dog", "what it is or does"),
        ("A dog in the foreground looks at a man.", "dog", "what it is or does"),
        ("A bowl on the table contains soup.", "bowl", "what it is or does"),
        ("Dogs near a tree are brown.", "dogs", "what it is or does"),
        ("A dog on the couch has a collar.", "dog", "what it is or does"),
        ("A dog on a couch, sleeping.", "dog", "what it is or does"),
        ("A dog on a couch, which is brown.", "dog", "what it is or does"),
        ("A dog on a couch and looks at a man.", "dog", "what it is or does"),
        ("An animal, a dog, is on the grass.", "dog", "another name"),
        ("There is a vehicle: a truck.", "truck", "another name"),
        ("A dog, which is brown.", "dog", "what it is or does"),
        ("A dog (brown) near a tree.", "dog", "what it is or does"),
        ("A dog and a cat sitting on a couch.", "dog", "what it is or does"),
        ("A dog and a cat are playing.", "dog", "what it is or does"),
        ("A dog can run.", "dog", "what it is or does"),
        ("A dog seems happy.", "dog", "what it is or does"),
        ("A dog also sits here.", "dog", "what it is or does"),
        ("A dog is also running.", "dog", "what it is or does"),
        ("A dog is seen running.", "dog", "what it is or does"),
        ("The tail of the dog.", "dog", "a part or a number"),
        ("A pair of dogs.", "dogs", "a part or a number"),
        ("A man riding on a horse.", "horse", "is done with"),
        ("A man playing with a dog.", "dog", "is done with"),
        ("A dog near a tree. A dog on a mat.", "dog", "another one of the kind"),
        ("Another dog near a tree.", "dog", "another one of the kind"),
        ("A dog near a tree. The animal sleeps.", "dog", "another name"),
        ("Two animals: a dog and a cat.", "dog", "another name"),
        ("There is water on the table.", "water", "is not counted"),
        ("A pair of scissors.", "scissors", "is not counted"),
        ("Ein Hund liegt vor einem Baum.", "Hund", "longer one"),
        ("一只狗", "狗", "does not name"),
        ("A salt & pepper set.", "salt & pepper", "does not name"),
    ],
)
def test_what_need_not_be_true_of_the_other_is_left_out(text, old, reason):
    with pytest.raises(Left, match=reason):
        mirrored(text, old, "cats" if is_plural(old) else "cat")


def test_words_and_articles():
    assert [article(word) for word in ("apple", "unicorn", "umbrella", "hour", "European", "one-way sign", "cat", "useful box")] == [
        "an", "a", "an", "an", "a", "a", "a", "a"
    ]  # fmt: skip
    assert {article(word) for word in ("RV", "SUV", "mp3 player", "x-ray", "LED lamp", "8-ball", "urn")} == {"an"}
    assert {article(word) for word in ("utensil", "urinal", "ukulele", "UFO", "USB stick", "TV", "fan", "hat")} == {
        "a"
    }
    assert (normal("The red Cars"), stem("The red Cars"), is_plural("red cars"), is_plural("glass")) == (
        "red cars", "red car", True, False
    )  # fmt: skip
    assert is_counted("There is a red car.", "red car") and not is_counted("There is water.", "water")


# The pool


def pool() -> Pool:
    """dog with ball in three rows of four, hat once with a tree; all of one size, but for the moon."""
    found = Pool()
    texts = [
        "a dog , a ball",
        "a dog , a ball",
        "a dog , a ball",
        "a hat , a tree , an owl",
        "a moon",
        "water",
        "a dog , some cats",
    ]
    for number, text in enumerate(texts):
        regions = [
            {
                "rle": {"size": [10, 10], "counts": [0, 90 if name == "moon" else 10, 10 if name == "moon" else 90]},
                "phrase": name,
            }
            for part in text.split(" , ")
            for name in [part.split(" ")[-1]]
        ]
        row = {"image": "none.png", "prompt": "?", "chosen": text, "rejected": "no", "key_regions": [regions]}
        found.add(number, row, "trl", [])
    return found


def test_candidates_are_of_the_number_and_size_and_not_in_the_row():
    rng = np.random.default_rng(0)
    assert sorted(pool().candidates("dog", 0.1, ["ball"], "uniform", rng)) == ["hat", "owl", "tree"]
    assert sorted(pool().candidates("moon", 0.9, [], "uniform", rng)) == [], "nothing else is as large"
    assert pool().candidates("hats", 0.1, ["dog"], "uniform", rng) == ["cats"]
    assert sorted(pool().candidates("dog", 0.1, [], "uniform", rng, ["A zebra", "dogs", "red dog"], False)) == [
        "zebra"
    ]
    assert pool().candidates("dog", 0.1, [], "uniform", rng, ["A zebra", "An Owl"]) == ["Owl"], (
        "of which there is an example"
    )
    assert pool().of_size("dog", 0.1)[0] == Example(0, 0, 0, 0.1)


def test_rare_comes_before_usual():
    """Beside a ball, the dog is always there; hat, owl and tree never are."""
    firsts = {pool().candidates("cat", 0.1, ["ball"], "rare", np.random.default_rng(seed))[-1] for seed in range(10)}
    assert firsts == {"dog"}
    assert pool().company("dog", ["ball"]) == 1.0 and pool().company("hat", ["ball", "tree"]) == 0.5
    uniform = {
        pool().candidates("cat", 0.1, ["ball"], "uniform", np.random.default_rng(seed))[0] for seed in range(30)
    }
    assert uniform == {"dog", "hat", "owl", "tree"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("car", "cars", True), ("The car", "red car", True), ("red car", "car", True), ("red car", "blue car", False),
        ("car", "cart", False), ("T-shirt", "t-shirts", True), ("dog", "cat", False),
    ],
)  # fmt: skip
def test_phrases_of_which_one_says_no_more_than_the_other(one, other, same):
    assert alike(one, other) == alike(other, one) == same


# Edits


def test_a_transplanted_object_stands_on_the_old_ones_ground():
    """A tall blue object into the place of a wide red one on grey: as high as it was, in its middle, and no red is left."""
    image, region = np.full((60, 80, 3), 128, dtype=np.uint8), np.zeros((60, 80), dtype=bool)
    region[20:40, 20:60] = True
    image[region] = (255, 0, 0)
    other, mask = np.full((50, 50, 3), 90, dtype=np.uint8), np.zeros((50, 50), dtype=bool)
    mask[5:45, 10:20] = True
    other[mask] = (0, 0, 255)
    made, place = transplant(
        Image.fromarray(image), region, "a", "b", np.random.default_rng(0), (Image.fromarray(other), mask)
    )
    made = np.asarray(made)
    assert place[20:40, 38:42].all() and place.sum() == 20 * 5
    assert (made[~region] == image[~region]).all(), "outside of the region nothing changes"
    assert made[30, 40].tolist() == [0, 0, 255] and np.abs(made[30, 22:30].astype(int) - 128).max() <= 2


def no_picture(image, region, old, new, rng):
    return "a text"


def no_region(image, region, old, new, rng):
    return image, np.zeros_like(region)


@pytest.mark.parametrize(("name", "said"), [("no_picture", "returned a str"), ("no_region", "not empty")])
def test_an_editor_that_returns_something_else(name, said):
    editor = build_editor(f"test_mirror:{name}")
    with pytest.raises(ValueError, match=said):
        editor(tiny.picture(0), np.ones((32, 40), dtype=bool), "a", "b", np.random.default_rng(0), None)


# Builds


def source(folder: Path, count: int = 12, **first) -> Path:
    """Scenes of the demo's world, whose regions bring their phrases; `first` is what the first row holds instead."""
    rows = []
    for number, scene in enumerate(make_scenes(count, 5, 1.0)):
        row = preference_row(scene, caption_of([*scene.names[:-1], "red cross"]))
        regions = [{"box": list(thing.box), "phrase": thing.name} for thing in scene.things]
        row |= {"id": f"pair {number}", "keywords": scene.names, "key_regions": regions, "prompt": "describe"}
        row |= {name: row[name][0]["content"] for name in ("chosen", "rejected")}
        rows.append(row | first if number == 0 else row)
    Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def options(path: Path, output: Path, **changes) -> BuildOptions:
    given = {
        "mirror": True,
        "mirror_editor": "mirror_rows:redraw",
        "grounder": "column",
        "part_rows": 5,
        "progress": False,
    }
    return BuildOptions(str(path), output, **{**given, **changes})


def told(body) -> tuple[str, str, str]:
    """The answer that a request quotes, the object, and its replacement, which is empty where that is asked for."""
    text = text_of(body)
    answer = re.search(r'says:\n\n"(.*)"', text)[1]
    found = re.search(r'"([^"]*)" was replaced by "([^"]*)"', text)
    return (answer, *found.groups()) if found else (answer, re.search(r'in the place of "([^"]*)"', text)[1], "")


def helpful(body) -> str:
    """What a good model says in the demo's world."""
    answer, old, new = told(body)
    absent = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES if f"{colour} {shape}" not in answer]
    return answer.replace(old, new) if new else "\n".join(f"{n}. A {name}" for n, name in enumerate(absent[:6], 1))


def asking(path, output, server, **changes):
    both = {"mirror_replacement": "endpoint", "mirror_answer": "endpoint", "served_model": "writer", "timeout": 0.5}
    return options(path, output, **{**both, "endpoint": server.url, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {own.name: own.read_bytes() for own in sorted((folder / "data").iterdir())}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mirror")
    return source(folder), run(options(folder / "rows.parquet", folder / "built"))


def test_a_row_and_its_twin(built):
    """m' shows what y' says; the twin has everything the other way round; regions and key words follow."""
    rows = list(load_dataset(str(built[1]), split="train"))
    assert len(rows) == 24
    for row, twin in zip(rows[::2], rows[1::2], strict=True):
        assert (row["mirror_of"], twin["mirror_of"]) == (None, row["id"]) and twin["id"] == f"{row['id']}~mirror"
        pixels = [
            np.asarray(to_rgb(own))
            for own in (*row["images"], *row["rejected_images"], *twin["images"], *twin["rejected_images"])
        ]
        assert (pixels[0] == pixels[3]).all() and (pixels[1] == pixels[2]).all() and (pixels[0] != pixels[1]).any()
        assert twin["chosen"] == row["rejected_image_chosen"] and twin["rejected"] == row["chosen"]
        assert twin["rejected_image_chosen"] is None and twin["prompt"] == row["prompt"]
        assert json.loads(row["corruption"]) == json.loads(twin["corruption"]) == {"corruption": "none"}
        before, after = (set(mentions(plain_text(own["chosen"]))) for own in (row, twin))
        assert len(before - after) == len(after - before) == 1
        assert sorted(after) == sorted(name for name, *_ in mirror_rows.things(to_rgb(twin["images"][0])))
        assert set(twin["keywords"]) == after == {own["phrase"] for own in twin["key_regions"][0]}
        changed = (pixels[0] != pixels[1]).any(axis=2)
        place = next(
            own for own, other in zip(twin["key_regions"][0], row["key_regions"][0], strict=True) if own != other
        )
        assert not changed[~region_mask([place], 48, 48)].any()
    report = json.loads((built[1] / "report.json").read_text())["mirror"]
    assert report == {
        "rows": 12,
        **dict.fromkeys(("object", "replacement", "answer", "edit", "check"), 12),
        "left_out_by_reason": {},
    }


def test_two_processes_and_a_second_run_build_the_same(built, tmp_path):
    """With a server that names and writes, whose answers come in another order."""
    with StandInChat(helpful) as server:
        one = run(asking(built[0], tmp_path / "one", server))
        again = run(asking(built[0], tmp_path / "two", server, num_proc=2, timeout=60.0))
    assert contents(again) == contents(one) and len(contents(one)) == 3
    # As after a kill: a part is gone, and is built again of what the server said, which is not there any more.
    (again / "data" / sorted(contents(one))[1]).unlink()
    run(asking(built[0], tmp_path / "two", server, num_proc=2))
    assert contents(again) == contents(one)


def test_machines_build_the_same(built, tmp_path):
    """With another row's object, which each of them finds for itself; Ray does in test_build.py."""
    changes = {"mirror_editor": "transplant"}
    one = run(options(built[0], tmp_path / "one", **changes))
    for machine in (1, 0):
        folder = run(options(built[0], tmp_path / "two", shards=2, shard_index=machine, **changes))
    assert contents(folder) == contents(one) and len(load_dataset(str(folder), split="train")) == 24


def test_twins_stay_twins_when_they_are_built_again(built, tmp_path):
    """As for a difficulty: who reads which row, and which are held out together, hangs on these columns."""
    given = {"mirror": False, "mirror_editor": "transplant", "difficulty": "mask-area"}
    again = run(options(built[1], tmp_path / "again", **given))
    before, after = (load_dataset(str(folder), split="train").to_list() for folder in (built[1], again))
    assert any(row["mirror_of"] for row in before) and all(row["difficulty"] is not None for row in after)
    names = ("id", "mirror_of", "rejected_image_chosen", "chosen", "rejected", "rejected_images")
    assert [[row[name] for name in names] for row in after] == [[row[name] for name in names] for row in before]


def test_preview_shows_twins(built, tmp_path):
    assert main(["preview", str(built[1]), "--n", "4", "--output", str(tmp_path / "sheet.html")]) == 0
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("of the other") == page.count("mirror of") == 2
    assert "of the other" in page and "mirror of" in page and "the row brings its dispreferred images" in page
    assert main(["preview", str(built[1]), "--n", "4", "--output", str(tmp_path / "sheet.png")]) == 0


@pytest.mark.parametrize(
    ("total", "twins", "n", "shown"),
    [
        (6, {3}, 2, [2, 3]),
        (6, {3}, 4, [2, 3, None, None]),
        (6, {1, 3, 5}, 4, [None] * 4),
        (6, {1, 3, 5}, 9, [0, 1, 2, 3, 4, 5]),
        (3, {2}, 1, [1]),
        (3, {2}, 9, [0, 1, 2]),
    ],
)
def test_twins_are_shown_before_other_rows(total, twins, n, shown):
    found = twins_first(total, twins, n, 0)
    assert found == sorted(set(found)) and len(found) == len(shown) and {*shown} - {None} <= {*found}
    assert n == 1 or all(end - 1 in found for end in twins & {*found})


def blind(images, phrases):
    """A grounder that finds nothing."""
    return [[] for _ in images]


def everywhere(images, phrases):
    """A grounder that finds everything it is asked for, all over the image."""
    return [
        [(np.ones(image.size[::-1], dtype=bool), own, 1.0) for own in some]
        for image, some in zip(images, phrases, strict=True)
    ]


def shown(text, regions, pictures=1, **changes):
    """A row between regions and corruption: `regions` are (phrase, box, image)."""
    masks = np.zeros((len(regions), 32, 40), dtype=bool)
    own: list[list] = [[] for _ in range(pictures)]
    for mask, (phrase, (x0, y0, x1, y1), image) in zip(masks, regions, strict=True):
        mask[y0:y1, x0:x1] = True
        own[image].append({"rle": encode_rle(mask), "phrase": phrase, "score": None})
    images = [tiny.picture(n) for n in range(pictures)]
    row = {
        "id": "a",
        "number": 0,
        "images": [{"bytes": b"", "path": None}] * pictures,
        "pictures": images,
        "key_regions": own,
    }
    texts = {
        "prompt": changes.pop("prompt", "describe"),
        "chosen": text,
        "rejected": changes.pop("rejected", "a zebra"),
    }
    for name, said in texts.items():
        row[name] = [{"role": "user", "content": [{"type": "text", "text": said}]}]
    return {**row, "keywords": ["dog"], "grounded": True, "mask_area": 0.5, "rejected_images": None, **changes}


def painted(image, region, old, new, rng, example):
    """An editor that paints the region black."""
    return Image.fromarray(np.where(region[..., None], 0, np.asarray(image)).astype(np.uint8)), region


def spread(image, region, old, new, rng, example):
    return image, np.ones_like(region)


def made_of(row, only=("cat",), edit=painted, grounder=None):
    return Mirror(Pool(), edit, None, grounder, only=list(only))([row])[0]


DOG, HAT = ("dog", (4, 4, 16, 16), 0), ("hat", (24, 4, 36, 16), 0)


@pytest.mark.parametrize(
    ("row", "only", "reason"),
    [
        (shown("A dog near a big hat.", [DOG, HAT]), ["cat"], "made"),
        (shown("A dog near a big hat.", [DOG, HAT], rejected="A cat near a hat."), ["cat"], "made"),
        (shown("A dog near a big hat.", [DOG, HAT], answer_prefix="A tree. "), ["cat"], "made"),
        (shown("Only a dog.", [DOG], prompt="Is there a cat?"), ["cat", "black cat"], "replacement: no other phrase"),
        (shown("Only a dog.", [DOG], prompt="Are there cats?"), ["cat"], "replacement: no other phrase"),
        (shown("A dog. There are no cats.", [DOG]), ["cat"], "replacement: no other phrase"),
        (shown("A dog near a hat.", [DOG, HAT]), ["dog", "small dog", "cats", "red hat"], "replacement: no other phrase"),
        (shown("A dog.", [DOG], answer_prefix="The cat is here. "), ["cat"], "replacement: no other phrase"),
        (shown("The dog is there.", [DOG], answer_prefix="A dog. "), ["cat"], "object: the prompt speaks of it"),
        (shown("A dog.", [DOG], prompt="Where are the dogs?"), ["cat"], "object: the prompt speaks of it"),
        (shown("A red ball.", [("red ball", *DOG[1:])], prompt="What colour has the ball?"), ["cat"], "object: the prompt speaks of it"),
        (shown("A dog.", [DOG, ("dog", *HAT[1:])]), ["cat"], "object: another region shows the same"),
        (shown("A dog.", [DOG, ("brown dog", *HAT[1:])]), ["cat"], "object: another region shows the same"),
        (shown("A dog.", [DOG, ("dogs", HAT[1], 1)], 2), ["cat"], "object: another region shows the same"),
        (shown("A dog with.", [DOG, ("collar", (6, 6, 10, 10), 0)]), ["cat"], "object: another one lies in its place"),
        (shown("A dog.", [DOG], chosen=[{"role": "assistant", "content": [{"text": "A dog."}, {"text": "It barks."}]}]), ["cat"], "object: the chosen answer has several parts"),
    ],
)  # fmt: skip
def test_what_may_be_replaced_by_what(row, only, reason):
    found = made_of(dict(row), only)
    assert found["mirror"].startswith(reason)
    if reason != "made":
        assert found["twins"] == [] and found["rejected_images"] is None and "rejected_image_chosen" not in found
        return
    twin = found["twins"][0]
    assert (
        plain_text(twin["chosen"]) == "A cat near a big hat."
        and plain_text(twin["rejected"]) == "A dog near a big hat."
    )
    assert twin.get("answer_prefix") == row.get("answer_prefix") and twin["keywords"] == ["cat"]
    assert twin["mask_area"] == pytest.approx(2 * 144 / 1280)


def test_a_new_object_that_covers_another_one_is_left_out():
    assert (
        made_of(shown("A dog near a hat.", [DOG, HAT]), edit=spread)["mirror"]
        == "edit: the new object covers another one"
    )


def test_of_several_images_one_is_edited_and_all_are_looked_at():
    """The object is in the second; a cat in the first would make the answer true of what was there before."""

    class Seeing:
        def __init__(self, first):
            self.first, self.asked = first, []

        def ground(self, images, phrases):
            self.asked.append([list(own) for own in phrases])
            if len(images) == 2:
                return [[Grounded(np.ones((32, 40), bool), own, 1.0) for own in self.first], []]
            mask = np.zeros((32, 40), bool)
            mask[4:16, 4:16] = True
            return [[Grounded(mask, "cat", 1.0)]]

    row = shown("A dog near a big hat.", [("dog", DOG[1], 1), HAT], 2)
    blind, sees = Seeing([]), Seeing(["cat"])
    found, twin = (own := made_of(dict(row), grounder=blind)), own["twins"][0]
    assert found["mirror"] == "made" and blind.asked == [[["cat"], ["cat"]], [["cat", "dog"]]]
    assert twin["images"][0] is row["images"][0] and twin["rejected_images"] == row["images"]
    after = np.asarray(to_rgb(twin["images"][1]))
    assert not after[4:16, 4:16].any() and [own[0]["phrase"] for own in twin["key_regions"]] == ["hat", "cat"]
    made_of(dict(row), grounder=sees)
    assert made_of(dict(row), grounder=sees)["mirror"] == "replacement: the detector finds all of them in the image"


def as_mode(mode: str) -> Image.Image:
    pixels = np.asarray(tiny.picture(1, 48, 48))
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    if mode == "RGBA":
        return Image.fromarray(np.dstack([pixels, np.full((48, 48), 255, np.uint8)]))
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "I;16", "CMYK"])
def test_images_of_any_mode(mode, tmp_path):
    """The edited image is what a viewer shows, in RGB; outside of bounds nothing changes, and the source's bytes stay."""
    file = io.BytesIO()
    as_mode(mode).save(file, "TIFF" if mode == "CMYK" else "PNG")
    texts = {"key_regions": [{**BOX, "phrase": "dog"}], "chosen": "a dog .", "keywords": ["dog"]}
    path = source(tmp_path, 4, images=[{"bytes": file.getvalue(), "path": None}], **texts)
    folder = run(options(path, tmp_path / "built", mirror_editor="transplant"))
    row, twin = (
        load_dataset(str(folder), split="train").cast_column("images", List(Features(decode=False))).select([0, 1])
    )
    assert row["images"][0]["bytes"] == file.getvalue() and twin["mirror_of"] == row["id"]
    before, after = np.asarray(to_rgb(file.getvalue())), to_rgb(twin["images"][0])
    assert after.mode == "RGB" and after.size == (48, 48)
    differs = (before != np.asarray(after)).any(axis=2)
    assert differs[2:14, 2:14].any() and not differs[14:].any() and not differs[:, 14:].any()


BOX = {"box": [2.0, 2.0, 14.0, 14.0]}


@pytest.mark.parametrize(
    ("first", "changes", "step", "reason"),
    [
        ({"key_regions": []}, {"grounder": "none"}, "object", "no region with a phrase"),
        ({"key_regions": [{**BOX, "phrase": None}]}, {}, "object", "no region with a phrase"),
        ({"key_regions": [{**BOX, "phrase": "dog"}]}, {}, "object", "no phrase of a region stands in the chosen answer"),
        ({"key_regions": [{**BOX, "phrase": "dog"}], "chosen": "a dog .", "prompt": "Where is the dog?"}, {}, "object", "the prompt speaks of it"),
        ({"key_regions": [{"box": [0.0, 0.0, 48.0, 40.0], "phrase": "dog"}], "chosen": "a dog ."}, {}, "object", "it covers most of the image"),
        ({"key_regions": [{"box": [0.0, 0.0, 3.0, 3.0], "phrase": "dog"}], "chosen": "a dog ."}, {}, "object", "it covers too little of the image"),
        ({"key_regions": [{**BOX, "phrase": "dogs"}], "chosen": "some dogs ."}, {}, "replacement", "no other phrase of its number and size class"),
        ({"key_regions": [{**BOX, "phrase": "dog"}], "chosen": "a brown dog ."}, {}, "answer", "something is said of the object: an adjective"),
        ({}, {"mirror_editor": "test_mirror:no_picture"}, "edit", "test_mirror:no_picture returned a str"),
        ({}, {"grounder": "test_mirror:blind"}, "check", "the new object is not found in its place"),
        ({}, {"grounder": "test_mirror:everywhere"}, "replacement", "the detector finds all of them in the image"),
    ],
)  # fmt: skip
def test_rows_without_a_twin_are_kept_and_counted(first, changes, step, reason, tmp_path):
    folder = run(options(source(tmp_path, 4, **first), tmp_path / "built", **changes))
    report = json.loads((folder / "report.json").read_text())
    found = report["mirror"]
    steps = ("object", "replacement", "answer", "edit", "check")
    lost = found["rows"] - found["check"]
    assert found["rows"] == 4 and lost == (1 if first else 4)
    before = [found[own] for own in steps[: steps.index(step)]]
    assert before == [4] * len(before) and found[step] == 4 - lost
    assert next(iter(found["left_out_by_reason"])).startswith(f"{step}: {reason}")
    assert report["rows_out"] == 4 + found["check"]


def test_a_real_check_finds_what_was_transplanted(tmp_path):
    """With a detector of shapes before and after: every twin that is left says what is to be seen."""
    path = source(tmp_path, 30)
    folder = run(options(path, tmp_path / "built", mirror_editor="transplant", grounder="mirror_rows:see"))
    found = json.loads((folder / "report.json").read_text())["mirror"]
    assert 15 <= found["check"] < found["edit"] == 30
    assert mirror_rows.truth(load_dataset(str(folder), split="train")) == 1.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mirror", "--mirror-choice", "common"], "expected rare or uniform"),
        (["--mirror", "--mirror-editor", "inpaint"], "expected transplant, generate, or package.module:function"),
        (["--mirror-answer", "endpoint"], "is of --mirror; add it"),
        (["--mirror", "--mirror-kwargs", "{}", "--mirror-editor", "transplant", "--mirror-kwargs", '{"model": "x"}'], "are options of --mirror-editor generate"),
        (["--mirror", "--mirror-editor", "generate", "--mirror-kwargs", '{"modell": "x"}'], "did you mean 'model'"),
        (["--mirror", "--grounder", "column"], "run mfpo build without --mirror first"),
        (["--mirror", "--grounder", "column", "--mirror-editor", "no.such:editor"], "run mfpo build without|cannot be imported"),
    ],
)  # fmt: skip
def test_mistakes(arguments, said, tmp_path, capsys):
    tiny.dataset(2).to_parquet(tmp_path / "rows.parquet")
    assert (
        main(["build", "--dataset", str(tmp_path / "rows.parquet"), "--output", str(tmp_path / "built"), *arguments])
        == 1
    )
    assert re.search(said, " ".join(capsys.readouterr().err.split()))


# Who reads which


@pytest.mark.parametrize("objective", ["mfpo", "dpo", "symmpo", "svco", "mfpo-sym"])
@pytest.mark.parametrize("stream", [False, True])
def test_symmetric_objectives_read_the_source_rows_only(objective, stream, caplog):
    answer = [{"role": "assistant", "content": "a dog"}]
    rows = [
        {
            **row,
            "id": str(n),
            "mirror_of": str(n - 1) if n in (1, 3) else None,
            "rejected_image_chosen": answer if n in (0, 2) else None,
        }
        for n, row in enumerate(tiny.rows(5))
    ]
    dataset = Dataset.from_list(rows)
    training = MFPOConfig(output_dir="unused", objective=objective, use_cpu=True, bf16=False, report_to="none")
    with caplog.at_level(logging.WARNING, "mfpo_trl"):
        found = read_by_objective(dataset.to_iterable_dataset() if stream else dataset, training, "built")
    symmetric = objective in ("symmpo", "svco", "mfpo-sym")
    assert [row["id"] for row in found] == (["0", "2"] if symmetric else ["0", "1", "2", "3", "4"])
    lines = [own.message for own in caplog.records if "twin" in own.message]
    assert len(lines) == symmetric
    if symmetric and not stream:
        assert (
            "of 5 rows it takes the 2 that have a twin, and neither the 2 twins" in lines[0]
            and "nor the 1 rows" in lines[0]
        )


def test_a_row_and_its_twin_are_held_out_together(built):
    dataset = load_dataset(str(built[1]), split="train")
    for seed in range(3):
        train, held = hold_out(dataset, 0.3, seed)
        sides = [{name.removesuffix("~mirror") for name in own["id"]} for own in (train, held)]
        assert sides[0].isdisjoint(sides[1]) and len(train) + len(held) == 24 and len(held)


def test_parts_hold_the_columns(built):
    schema = pq.read_schema(next((built[1] / "data").iterdir()))
    assert {"mirror_of", "rejected_image_chosen", "rejected_images"} <= set(schema.names)
