"""`mfpo check --negatives`: the probe against areas known by hand, the worth of images against sums by hand, and both ends warned of."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor

from mfpo_trl import MFPOConfig
from mfpo_trl.check import command
from mfpo_trl.check.negatives import (
    Examiner,
    Shown,
    Worth,
    between,
    finding,
    of_setting,
    of_words,
    phrases_of,
    swept,
    worth,
)
from mfpo_trl.check.probe import Area, area_under_curve, linear_probe
from mfpo_trl.demo.pairs import preference_row
from mfpo_trl.demo.scenes import caption_of, make_scenes
from mfpo_trl.demo.tiny_model import build_model, build_processor
from mfpo_trl.evaluation import load_base
from mfpo_trl.images import DispreferredImages
from mfpo_trl.objective import CHOSEN, CORRUPTED


def gaussians(shift: float, n: int = 1500, dimensions: int = 6, seed: int = 0):
    rng = np.random.default_rng(seed)
    real, other = rng.standard_normal((2, n, dimensions))
    other[:, 0] += shift
    return real, other, [str(k) for k in range(n)]


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_the_area_of_two_gaussians(shift):
    """Two normal clouds at this distance: the best direction has the area Phi(shift / sqrt 2)."""
    real, other, groups = gaussians(shift)
    known = 0.5 * (1 + math.erf(shift / 2))
    found = linear_probe(real, other, groups)
    assert found.value == pytest.approx(known, abs=0.02) and found.low <= known <= found.high


def test_what_the_probe_must_not_do():
    """Learn rows by heart, read the pairing, trip over constant features, or tell apart what is equal."""
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((2, 60, 500))
    assert linear_probe(*noise, [str(k) for k in range(60)]).value == pytest.approx(0.5, abs=0.12)
    assert linear_probe(noise[0], noise[0], [str(k) for k in range(60)]).value == 0.5
    constant = np.ones((2, 60, 3))
    constant[1, :, 0] = 2
    assert linear_probe(*constant, [str(k) for k in range(60)]).value == 1.0
    assert linear_probe(*constant, ["a"] * 60) is None, "one image: nothing is held out"
    # Rows of one image are told apart by that image if they lie on both sides.
    images = np.repeat(rng.standard_normal((2, 6, 500)), 10, axis=1)
    assert linear_probe(*images, [str(k // 10) for k in range(60)]).value < 0.9


@pytest.mark.parametrize("folds", [2, 5])
def test_the_probe_against_another_computation(folds):
    """Ridge regression by its normal equations on the features, in place of the kernel's, and the area by ranks (Mann-Whitney), in
    parts that hold a group and the copies of its images together: 40 rows of 16 images."""
    rng = np.random.default_rng(3)
    groups = [f"image {n % 16}" for n in range(40)]
    of_image = rng.standard_normal((16, 7))
    real = of_image[[n % 16 for n in range(40)]]
    other = real + rng.standard_normal((40, 7)) + 0.5
    names = sorted(set(groups))
    part_of = {
        name: int(n) % folds for n, name in zip(np.random.default_rng(0).permutation(len(names)), names, strict=True)
    }
    total = 0.0
    for part in range(folds):
        held = np.array([part_of[name] == part for name in groups])
        known, asked = np.concatenate([real[~held], other[~held]]), np.concatenate([real[held], other[held]])
        label = np.concatenate([-np.ones((~held).sum()), np.ones((~held).sum())])
        middle, spread = known.mean(axis=0), known.std(axis=0)
        x = (known - middle) / spread
        ridge = 0.1 * (x**2).sum() / len(x)
        weights = np.linalg.inv(x.T @ x + ridge * np.eye(7)) @ x.T @ label
        scores = np.round((asked - middle) / spread @ weights, 9)
        size = int(held.sum())
        ranks = np.array([(scores < own).sum() + ((scores == own).sum() + 1) / 2 for own in scores])
        total += size * (ranks[size:].sum() - size * (size + 1) / 2) / size**2
    found = linear_probe(real, other, groups, folds)
    assert found.value == pytest.approx(total / 40, abs=1e-9) and found.pairs == 40
    # Hanley and McNeil by hand, for as many different images as there are.
    a, n = total / 40, 16
    one, two = a / (2 - a) - a * a, 2 * a * a / (1 + a) - a * a
    error = math.sqrt((a * (1 - a) + (n - 1) * (one + two)) / n**2)
    assert found.low == pytest.approx(a - 1.96 * error) and found.high == pytest.approx(min(1, a + 1.96 * error))


def test_area_by_hand():
    """Of nine pairs six have the second higher, and one is a tie."""
    assert area_under_curve(np.array([1.0, 2.0, 3.0]), np.array([2.5, 2.0, 4.0])) == pytest.approx(6.5 / 9)


def test_tokens_of_key_words():
    tokenizer = tiny.processor().tokenizer
    tokens = tokenizer("a red dog and a blue cat on the green grass.", add_special_tokens=False)["input_ids"]
    marked = of_words(tokens, ["Red Dog", "grass", "do"], tokenizer)
    assert [tokenizer.decode([own]).strip() for own in np.array(tokens)[marked]] == ["red", "dog", "grass"] or (
        tokenizer.decode(np.array(tokens)[marked]).replace(" ", "").startswith("reddoggrass")
    )


class Letters:
    """A tokenizer whose tokens are letters."""

    def decode(self, tokens):
        return "".join(map(chr, tokens))


def test_a_letter_that_is_two_in_small_moves_no_word():
    """Folded, ß is ss and İ two letters: the key word behind it is found where it is."""
    text = "Straße in İzmir, a DOG, dogs."
    marked = of_words([ord(letter) for letter in text], ["dog", "straße"], Letters())
    assert "".join(letter for letter, mark in zip(text, marked, strict=True) if mark) == "StraßeDOG"


@pytest.mark.parametrize(
    ("row", "phrases"),
    [
        ({"keywords": ["dog"]}, ["dog"]),
        ({"keywords": None, "key_regions": [{"box": [0, 0, 4, 4], "phrase": "red dog"}]}, ["red dog"]),
        ({"key_regions": [[0, 0, 4, 4]]}, ["red dog", "green grass"]),
        ({"key_regions": "no region"}, ["red dog", "green grass"]),
    ],
)
def test_key_words_of_a_row(row, phrases):
    assert phrases_of({"images": [1], "chosen": "A red dog on the green grass.", **row}) == phrases


def test_drops_by_hand():
    """Two rows: 3 nats over 2 tokens, of which the key word's lost 2; 1 nat over 3 tokens without a key word."""
    real = Shown(
        np.zeros((2, 1)),
        [np.array([-1.0, -1.0]), np.array([-1.0, -1.0, -1.0])],
        [np.array([False, True]), np.zeros(3, bool)],
    )
    other = Shown(np.zeros((2, 1)), [np.array([-2.0, -3.0]), np.array([-1.0, -2.0, -1.0])], real.words)
    found = worth("noise", real, other, ["a", "b"])
    assert (found.drop, found.per_token, found.per_word) == (2.0, pytest.approx(4 / 5), 2.0)
    assert found.error == pytest.approx(1.0) and found.area is None


def setting(name, area, per_token, **kwargs) -> Worth:
    return Worth(name, Area(area, area, area, 50), 10 * per_token, per_token, None, 0.001, kwargs=kwargs)


def test_both_ends_are_warned_of_and_the_middle_is_named():
    weak, middle, strong = (
        setting("weak", 0.55, 0.01),
        setting("middle", 0.8, 0.3, step=250, schedule="cosine"),
        setting("strong", 1.0, 0.5),
    )
    said = {own.name: finding(own) for own in (weak, middle, strong)}
    assert {name: own.status for name, own in said.items()} == {"weak": "warning", "middle": "ok", "strong": "warning"}
    assert "evidence is still" in said["weak"].advice and "without reading the answer" in said["strong"].advice
    assert between([weak, middle, strong]) is middle
    assert "{'step': 250, 'schedule': 'cosine'}" in swept([weak, middle, strong], {}).advice
    # Of what is not recognised, the one that takes away most; noise is named beside what stays a photograph.
    moved = setting("transplant", 0.9, 0.4)
    assert between([weak, middle, moved, strong]) is moved
    both = swept([weak, middle, moved, strong], {"inpaint": "it needs OpenCV"})
    assert both.advice.startswith(
        "between the ends lies transplant: set corruption: transplant; of the noise alone, middle"
    )
    assert both.details["best_noise"] == "middle"
    assert "inpaint: not looked at, it needs OpenCV" in both.value and both.details["left_out"]
    none = swept([weak, strong], {})
    assert none.status == "warning" and "none lies between" in none.advice
    # Few images: pure noise is at 0.94 by chance, and its interval says so.
    chance = replace(strong, name="noise", area=Area(0.94, 0.87, 1.0, 23), kwargs={"step": 999, "schedule": "cosine"})
    assert between([middle, chance]) is middle and between([weak, chance]) is chance
    assert "rows" not in swept([middle, chance], {}).advice
    assert "noise may be recognised on more images: look at more rows (--rows)" in swept([weak, chance], {}).advice
    noisy = replace(middle, error=10.0)
    assert noisy.there, "a drop within its error is none"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An untrained model of the demo's world, and pairs with the phrases of their regions."""
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    processor = build_processor()
    build_model(processor).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    rows = []
    for scene in make_scenes(24, 3, 0.0):
        row = preference_row(scene, caption_of(["red cross"]))
        row["key_regions"] = [{"box": list(thing.box), "phrase": thing.name} for thing in scene.things]
        rows.append(row)
    from datasets import Dataset

    Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    return folder, rows


def test_log_probabilities_are_those_of_the_model(world):
    """Of the chosen answer under both images, against the model's own forward on the processor's own inputs."""
    folder, rows = world
    processor = AutoProcessor.from_pretrained(folder / "model")
    training = MFPOConfig(output_dir="unused", use_cpu=True, bf16=False, report_to="none", max_length=None)
    examiner = Examiner(load_base(str(folder / "model")), processor, training, None)
    model = load_base(str(folder / "model"), scored=False)
    for branch, making in ((CHOSEN, None), (CORRUPTED, DispreferredImages("black"))):
        found = examiner.shown(rows[:5], branch, making)
        for row, logps, words in zip(rows[:5], found.answers, found.words, strict=True):
            image = row["images"][0] if making is None else making(row, row["images"])[0]
            prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "describe"}]}]
            texts = [processor.apply_chat_template(prompt), processor.apply_chat_template([*prompt, *row["chosen"]])]
            start, inputs = (processor(images=[image], text=text, return_tensors="pt") for text in texts)
            begin, ids = start["input_ids"].shape[1], inputs["input_ids"][0]
            own = model(**inputs).logits[0].log_softmax(dim=-1)[begin - 1 : -1].gather(1, ids[begin:, None])[:, 0]
            np.testing.assert_allclose(logps, own.numpy(), atol=1e-4)
            # "a red circle , a blue square ." and the end: two words of each object.
            assert words.sum() == 2 * len(row["key_regions"])
    assert found.features.shape == (5, 192)


def test_rows_of_one_image_are_held_out_together(world):
    """However they are asked: of four images in twelve rows no area is told. And an image of another row is no sign of anything."""
    folder, rows = world
    processor = AutoProcessor.from_pretrained(folder / "model")
    training = MFPOConfig(output_dir="unused", use_cpu=True, bf16=False, report_to="none", max_length=None)
    examiner = Examiner(load_base(str(folder / "model")), processor, training, None)
    asked = [{"prompt": [{"role": "user", "content": f"describe {n}"}]} for n in range(3)]
    few = [row | own for own in asked for row in rows[:4]]
    found = of_setting(examiner, few, examiner.shown(few, CHOSEN), DispreferredImages("black"), "black")
    assert found.area is None and "too few images" in str(found)
    swapped = of_setting(examiner, rows, examiner.shown(rows, CHOSEN), DispreferredImages("swap", donors=rows), "swap")
    assert not swapped.recognised and swapped.skipped == 0


def run(folder, capsys, *fields):
    argv = ["--model_name_or_path", str(folder / "model"), "--dataset_name", str(folder / "rows.parquet"), "--output_dir",
            str(folder / "out"), "--use_cpu", "--bf16", "false", "--report_to", "none", "--json", *fields]  # fmt: skip
    status = command.main(argv)
    return status, {own["check"]: own for own in json.loads(capsys.readouterr().out)["findings"]}


def test_from_the_command_line(world, capsys):
    """An untrained model looks at no image: its drop is none, and the advice says so; pure noise is recognised all the same."""
    status, found = run(world[0], capsys, "--negatives", "sweep", "--corruption", "diffusion", "--corruption_kwargs",
                        '{"step": 999, "schedule": "linear"}')  # fmt: skip
    assert status == 0
    own, sweep = found["negatives"], found["negatives, sweep"]
    assert own["status"] == "warning" and "the evidence is still" in own["advice"]
    assert own["details"]["area"]["value"] > 0.7 and own["details"]["drop_per_key_word_token"] < 0.05
    assert (
        len(sweep["details"]["settings"]) == 4 * 5 + 2
        and not sweep["details"]["left_out"]
        and sweep["status"] == "warning"
    )
    by_name = {one["name"]: one for one in sweep["details"]["settings"]}
    assert by_name["linear, step 999"]["area"] == own["details"]["area"]
    assert by_name["linear, step 999"]["drop"] == pytest.approx(own["details"]["drop"])


def test_the_policy_of_an_adapter_is_looked_at(world, capsys, tmp_path):
    """Named in place of a model, its figures are those of the model with its weights merged, and not those of the model without."""
    folder = world[0]
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, r=4)
    torch.manual_seed(0)
    around = get_peft_model(AutoModelForImageTextToText.from_pretrained(folder / "model"), config)
    around.save_pretrained(tmp_path / "adapter")
    around.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoProcessor.from_pretrained(folder / "model").save_pretrained(tmp_path / "merged")
    names = [folder / "model", tmp_path / "adapter", tmp_path / "merged"]
    of_model, of_adapter, of_merged = (
        run(folder, capsys, "--negatives", "--model_name_or_path", str(name), "--corruption", "black")
        for name in names
    )
    assert of_adapter[0] == 0 and of_adapter[1]["model"]["details"]["adapter"] == str(tmp_path / "adapter")
    drops = [found["negatives"]["details"]["drop"] for _, found in (of_model, of_adapter, of_merged)]
    assert drops[1] == pytest.approx(drops[2], rel=1e-3) and abs(drops[0] - drops[1]) > 10 * abs(drops[1] - drops[2])


def test_without_weights_one_sentence(world, capsys):
    folder = world[0]
    (folder / "bare" / "model").mkdir(parents=True)
    for path in set((folder / "model").iterdir()) - set((folder / "model").glob("*.safetensors")):
        (folder / "bare" / "model" / path.name).write_bytes(path.read_bytes())
    (folder / "bare" / "rows.parquet").write_bytes((folder / "rows.parquet").read_bytes())
    _, found = run(folder / "bare", capsys, "--negatives")
    assert found["negatives"]["status"] == "warning"
    assert (
        found["negatives"]["value"].startswith("not looked at: the weights of ")
        and "\n" not in found["negatives"]["value"]
    )
    _, found = run(folder, capsys, "--negatives", "--rows", "9")
    assert found["negatives"]["value"] == "not looked at: 9 rows with images, at least 10 are needed"
    assert "negatives" not in run(folder, capsys)[1]
