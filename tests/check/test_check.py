"""`mfpo check`: a good recipe, and every fault on its own."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import families
import numpy as np
import pytest
import test_memory
import tiny
import torch
import warm
from datasets import Dataset, Features, Image, List, Value
from peft import LoraConfig, get_peft_model
from PIL import Image as PILImage
from scaling import LLAVA_7B
from transformers import AutoModelForImageTextToText, AutoProcessor

from mfpo_trl.batch.collator import MFPOCollator
from mfpo_trl.check import command, step
from mfpo_trl.check import rows as check_rows
from mfpo_trl.check import table as check_table
from mfpo_trl.check.formulas import GIB, Engine, deepspeed_estimate
from mfpo_trl.train import build, parse, parts
from mfpo_trl.train import main as train

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "llava-1.5"
NAMES = ("mfpo-lora", "mfpo-qlora", "mfpo-full", "dpo-lora")
LORA, QLORA, FULL, DPO = (str(RECIPES / f"7b-{name}.yaml") for name in NAMES)
MISSING = "no/such/model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and good rows of which every one has an image of its own size, a box and both answers."""
    folder = tmp_path_factory.mktemp("check")
    tiny.save_pretrained(folder / "model", template=tiny.LLAVA_TEMPLATE)
    tiny.dataset(8, tiny.BOXES, key_regions=tiny.boxes).to_parquet(folder / "good.parquet")
    return folder


@pytest.fixture
def checked(folder, tmp_path, capsys):
    """Run the command on rows (or a file) with a recipe; the exit status, and the findings by their names."""

    def run(rows="good.parquet", *fields, recipe=LORA):
        if isinstance(rows, Dataset):
            rows.to_parquet(tmp_path / "rows.parquet")
            rows = tmp_path / "rows.parquet"
        argv = [
            "--config",
            recipe,
            "--model_name_or_path",
            str(folder / "model"),
            "--dataset_name",
            str(folder / rows),
        ]
        status = command.main([*argv, "--output_dir", str(tmp_path / "out"), "--json", *fields])
        printed = json.loads(capsys.readouterr().out)
        assert printed["exit_code"] == status == (printed["status"] == "problem")
        found = {finding["check"]: finding for finding in printed["findings"]}
        assert len(found) == len(printed["findings"])
        return status, found

    return run


def statuses(found, *but):
    """The checks that are not ok, without those that are named."""
    return {
        name: finding["status"] for name, finding in found.items() if finding["status"] != "ok" and name not in but
    }


def rows(count=4, change=None, features=None, **columns):
    """Good rows with one of them changed: the second, by `change`."""
    made = tiny.rows(count, key_regions=tiny.boxes, **columns)
    if change is not None:
        change(made[1])
    return Dataset.from_list(made, features=Features({**tiny.FEATURES, **tiny.BOXES, **(features or {})}))


# A good recipe


def test_a_good_recipe(checked):
    """The longest row has the 4 image tokens of 28 x 28 pixels in patches of 14."""
    status, found = checked()
    assert status == 0 and not statuses(found)
    assert found["rows"]["details"] == {"read": 8, "rows": 8, "invalid": []}
    lengths = found["token lengths"]["details"]
    words = tiny.tokenizer()

    def answer(text):
        return len(words(f" {text}")["input_ids"]) + 1

    expected = {}
    for n in range(8):
        prompt = f"USER: <image>\nwhat is in image {n}? ASSISTANT:"
        longer = max(answer(text) for text in tiny.ANSWERS[n % 4])
        expected[n] = len(words(prompt)["input_ids"]) + 3 + longer
    assert lengths["longest"] == max(expected.values()) == expected[lengths["longest_row"]]
    assert lengths["median"] == np.median(list(expected.values())) and lengths["image_tokens"] == 4
    assert found["key regions"]["details"]["without_regions"] == []
    images = found["rejected images"]["details"]
    assert images["inside"] > 20 and images["outside"] == 0 and images["with_images"] == 8
    parts = found["LoRA targets"]["details"]["by_part"]
    assert set(parts) == {"language model"} and sum(parts["language model"].values()) == 14
    # A and B of rank 64: q, k, v, o of 32 x 32, and gate, up, down of 32 x 37, in two layers.
    assert found["trainable parameters"]["details"]["trained"] == 2 * 64 * (4 * 64 + 3 * 69)
    assert found["layout"]["details"]["layout"] == "packed row"
    assert "matched" not in found and "trial step" not in found


def test_the_micro_batch_is_that_of_the_collator(checked):
    """Two images: prompt, less one token each, chosen and rejected behind one, chosen behind the other, four times."""
    _, found = checked()
    _, alone = checked("good.parquet", "--prefix_sharing", "off")
    packed, flat = (own["memory"]["details"] for own in (found, alone))
    assert 0 < packed["tokens"] < flat["tokens"]
    # Three rows as long as the longest one.
    assert flat["tokens"] == 4 * 3 * alone["token lengths"]["details"]["longest"]
    assert alone["layout"]["status"] == "ok" and alone["layout"]["details"]["layout"] == "flat"
    words = tiny.tokenizer()
    largest = 0
    for n in range(8):
        prompt = len(words(f"USER: <image>\nwhat is in image {n}? ASSISTANT:")["input_ids"]) + 3
        chosen, rejected = (len(words(f" {text}")["input_ids"]) + 1 for text in tiny.ANSWERS[n % 4])
        largest = max(largest, 2 * (prompt - 1) + 2 * chosen + rejected)
    assert packed["tokens"] == 4 * largest


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "qwen3_vl", "idefics3"])
def test_the_recipes_of_the_other_families(checked, folder, family, monkeypatch):
    """Whose image tokens and modules have other names."""
    recipes = {"llava_next": "llava-1.6", "qwen2_5_vl": "qwen2.5-vl", "qwen3_vl": "qwen3-vl", "idefics3": "smolvlm"}
    recipe = next((ROOT / "recipes" / recipes[family]).glob("*-mfpo-lora.yaml"))
    model, processor = families.FAMILIES[family]()
    model.save_pretrained(folder / family)
    # Those with videos cannot be loaded without torchvision.
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda name, **_: processor)
    fields = ["--model_name_or_path", str(folder / family)]
    status, found = checked("good.parquet", *fields, recipe=str(recipe))
    assert status == 0 and not statuses(found)
    assert set(found["LoRA targets"]["details"]["by_part"]) == {"language model"}
    assert found["token lengths"]["details"]["image_tokens"] > 0
    assert found["layout"]["details"]["layout"] == "packed row"


def test_dpo_makes_no_rejected_images(checked):
    status, found = checked("good.parquet", recipe=DPO)
    assert status == 0 and "the image term has no weight" in found["rejected images"]["value"]
    assert "key regions" not in found


def test_some_rows_are_spread_over_the_data_set(checked):
    assert check_rows.chosen_rows(100, 4) == [0, 33, 66, 99] and check_rows.chosen_rows(3, 4) == [0, 1, 2]
    _, found = checked("good.parquet", "--rows", "3")
    assert found["rows"]["details"]["read"] == 3 and found["rows"]["details"]["rows"] == 8


# Faults of rows


def test_chosen_that_equals_rejected(checked):
    status, found = checked(rows(change=lambda row: row.update(rejected=row["chosen"])))
    assert status == 1 and statuses(found) == {"answers": "problem"}
    assert found["answers"]["details"]["equal"] == [1] and "(row 1)" in found["answers"]["value"]


def own_images(make):
    """Rows that bring their dispreferred images."""
    return rows(
        features={"rejected_images": List(Image())}, rejected_images=lambda n: [make(tiny.picture(n, 40 + n, 32))]
    )


def test_an_image_that_equals_its_rejected_image(checked):
    status, found = checked(own_images(lambda image: image))
    assert status == 1 and statuses(found) == {"rejected images": "problem"}
    images = found["rejected images"]["details"]
    assert images["identical"] == [0, 1, 2, 3] and images["inside"] == images["outside"] == 0
    # Where no term reads them, they do not matter.
    status, found = checked(own_images(lambda image: image), recipe=DPO)
    assert status == 0 and not statuses(found)


def test_an_image_that_changes_outside_of_its_regions(checked):
    """30 brighter everywhere, but for what was near white already."""
    status, found = checked(own_images(lambda image: image.point(lambda value: value // 2)))
    assert status == 0 and statuses(found) == {"rejected images": "warning"}
    images = found["rejected images"]["details"]
    assert images["changed_outside"] == [0, 1, 2, 3]
    pixels = [np.asarray(tiny.picture(n, 40 + n, 32)).astype(int) for n in range(4)]
    masks = [np.zeros(own.shape[:2], dtype=bool) for own in pixels]
    for n, mask in enumerate(masks):
        mask[4:20, 4 + n : 20 + n] = True
    for name, inside in (("inside", True), ("outside", False)):
        expected = [(own - own // 2)[mask == inside].mean() for own, mask in zip(pixels, masks, strict=True)]
        assert images[name] == pytest.approx(np.mean(expected))


def test_the_difference_of_two_pictures():
    one, other = (PILImage.new("RGB", (3, 2), colour) for colour in ((10, 20, 30), (13, 14, 30)))
    assert check_rows.difference(one, other).tolist() == [[3.0] * 3] * 2
    assert check_rows.difference(one, one.resize((9, 9))).max() == 0


def test_rows_without_regions_are_counted(checked):
    status, found = checked(rows(change=lambda row: row.update(key_regions=[])))
    assert status == 0 and statuses(found) == {"key regions": "warning"}
    assert found["key regions"]["details"]["without_regions"] == [1]
    status, found = checked(rows(change=lambda row: row.update(key_regions=[])), "--corruption_region", "key")
    assert status == 1 and found["rows"]["details"]["invalid"][0]["field"] == "key_regions"


def test_rows_without_images(checked):
    status, found = checked(rows(change=lambda row: row.update(images=[])))
    assert status == 0 and found["rejected images"]["details"]["without_images"] == 1
    bare = tiny.dataset(4).remove_columns("images")
    status, found = checked(bare, "--curriculum", "none")
    assert status == 0 and statuses(found) == {"rejected images": "warning"}
    status, found = checked(bare, "--curriculum", "none", "--text_loss_weight", "0", "--anchor_loss_weight", "0")
    assert status == 1 and statuses(found) == {"rejected images": "problem", "trainer": "problem"}
    # Which the recipe's curriculum cannot rank.
    status, found = checked(bare)
    assert status == 1 and statuses(found, "rejected images") == {"curriculum": "problem"}


def test_regions_that_nobody_reads(checked):
    """Training does not look at them where no image is made."""
    outside = {"key_regions": [[100, 100, 120, 120]]}
    status, found = checked(rows(change=lambda row: row.update(outside)), recipe=DPO)
    assert status == 0 and not statuses(found)
    blank = PILImage.new("RGB", (8, 8))
    features = {"rejected_images": List(Image())}
    data = rows(change=lambda row: row.update(outside), features=features, rejected_images=lambda n: [blank])
    status, found = checked(data)
    assert status == 0 and statuses(found) == {"rejected images": "warning"}
    # The row whose region lies outside is compared as a whole.
    assert found["rejected images"]["details"]["changed_outside"] == [0, 2, 3]


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"key_regions": [[100, 100, 120, 120]]}, "key_regions", "outside the image"),
        ({"chosen": []}, "chosen", "is empty"),
        ({"prompt": []}, "prompt", "is empty"),
        ({"prompt": [{"role": "user", "content": "see <image>"}]}, "prompt", "holds a literal '<image>'"),
    ],
)
def test_a_row_that_cannot_be_used(checked, change, field, message):
    status, found = checked(rows(change=lambda row: row.update(change)))
    assert status == 1 and statuses(found) == {"rows": "problem"}
    (bad,) = found["rows"]["details"]["invalid"]
    assert (bad["row"], bad["field"]) == (1, field) and message in bad["error"]
    assert f"row 1{' (prompt' if change.get('prompt') != [] else ''}" in found["rows"]["value"]


def test_a_missing_image(checked, folder):
    """In a file that names its images by path; the other checks see the rows that are left."""
    tiny.picture(0).save(folder / "there.png")
    lines = []
    for n, name in enumerate(["there.png", "gone.png", "there.png", "there.png", "there.png", "there.png"]):
        row = tiny.rows(1)[0] | {"images": [str(folder / name)], "key_regions": [[2, 2, 9, 9]]}
        lines.append(json.dumps(row | {"prompt": [{"role": "user", "content": f"question {n}"}]}))
    (folder / "paths.jsonl").write_text("\n".join(lines))
    status, found = checked("paths.jsonl")
    assert status == 1 and statuses(found) == {"rows": "problem"}
    (bad,) = found["rows"]["details"]["invalid"]
    assert (bad["row"], bad["field"]) == (1, "images") and "gone.png" in bad["error"]
    assert found["rejected images"]["details"]["with_images"] == 5


def test_a_stream(checked):
    """It has no rows to rank, to cache or to count: what training refuses is found, and no more."""
    stream = ["--dataset_streaming"]
    for fields, words in (
        ([], "curriculum='staged' needs a map-style data set"),
        (["--curriculum", "none"], "precompute_ref_log_probs=True needs map-style data sets"),
        (["--precompute_ref_log_probs", "false"], "max_steps has to be specified"),
    ):
        stream += fields
        status, found = checked("good.parquet", *stream)
        assert status == 1 and any(words in own["value"] for own in found.values()), words
    status, found = checked("good.parquet", *stream, "--max_steps", "2")
    assert status == 0 and not statuses(found) and found["rows"]["details"]["rows"] is None


def test_the_stages_of_a_curriculum(checked):
    """Eight rows in thirds, three passes over each, 32 rows a step: one step a stage; over four devices the same."""
    status, found = checked("good.parquet")
    details = found["curriculum"]["details"]
    assert status == 0 and details == {"rows": [3, 3, 2], "steps": [1, 1, 1], "computed": True, "step_rows": 32}
    _, found = checked("good.parquet", "--num-processes", "4", "--gradient_accumulation_steps", "1")
    assert found["curriculum"]["details"]["step_rows"] == 16
    data = tiny.dataset(
        4, {**tiny.BOXES, "difficulty": Value("float32")}, key_regions=tiny.boxes, difficulty=lambda n: n / 2
    )
    status, found = checked(data)
    assert status == 0 and not found["curriculum"]["details"]["computed"]
    assert "Stage 1 of 3: 2 rows, difficulty 0 to 0.5, 3 epoch(s), 1 steps." in found["curriculum"]["value"]


def test_rows_to_evaluate_on(checked, folder):
    """Every fault of theirs, and room for their answers."""
    split = folder / "split"
    split.mkdir(exist_ok=True)
    tiny.dataset(8, tiny.BOXES, key_regions=tiny.boxes).to_parquet(split / "train.parquet")
    rows(change=lambda row: row.update(chosen=[])).to_parquet(split / "test.parquet")
    status, found = checked("split", "--eval_strategy", "epoch")
    assert status == 1 and statuses(found) == {"evaluation rows": "problem"}
    assert [row["row"] for row in found["evaluation rows"]["details"]["invalid"]] == [1]
    rows().to_parquet(split / "test.parquet")
    status, found = checked("split", "--eval_strategy", "epoch")
    assert status == 0 and found["evaluation rows"]["value"] == "4 of 4 read, all valid"
    status, found = checked("split", "--eval_strategy", "epoch", "--max_length", "16")
    assert status == 1 and found["evaluation rows"]["details"]["without_room"] == [0, 1, 2, 3]
    # Nobody reads them.
    status, found = checked("split")
    assert status == 0 and "evaluation rows" not in found


@pytest.mark.parametrize(("name", "right"), [("key_region", "key_regions"), ("rejected_img", "rejected_image")])
def test_a_misspelt_column(checked, folder, name, right):
    data = tiny.dataset(4, {name: tiny.BOXES["key_regions"]}, **{name: tiny.boxes})
    status, found = checked(data)
    assert status == 1 and statuses(found, "key regions") == {"columns": "problem"}
    assert found["columns"]["advice"] == f"column {name!r} is not read; rename it to {right!r}"


def test_columns_that_nobody_reads_are_named(checked):
    status, found = checked(tiny.dataset(4, tiny.BOXES, key_regions=tiny.boxes).add_column("origin", [1] * 4))
    assert status == 0 and found["columns"]["value"].endswith("; not read: origin")
    status, found = checked(tiny.dataset(4).remove_columns("rejected"))
    assert status == 1 and "there is no column 'rejected'" in found["columns"]["advice"]


# Lengths


def test_answers_that_are_cut(checked):
    _, found = checked()
    longest = found["token lengths"]["details"]
    status, cut = checked("good.parquet", "--max_length", str(longest["longest"] - 1))
    assert status == 0 and statuses(cut) == {"token lengths": "warning"}
    assert longest["longest_row"] in cut["token lengths"]["details"]["cut"]
    assert f"raise max_length to at least {longest['longest']}" in cut["token lengths"]["advice"]
    status, enough = checked("good.parquet", "--max_length", str(longest["longest"]))
    assert status == 0 and not statuses(enough)


def test_no_room_for_the_answer_or_the_image(checked):
    """What the collator refuses, and what this calls a problem, are the same rows."""
    status, found = checked("good.parquet", "--max_length", "16")
    assert status == 1 and statuses(found, "memory") == {"token lengths": "problem"}
    assert len(found["token lengths"]["details"]["without_room"]) == 8
    assert "without activations" in found["memory"]["value"]


@pytest.mark.parametrize("more", [0, 1])
def test_the_room_that_the_collator_wants(more):
    processor, row = tiny.processor(tiny.LLAVA_TEMPLATE), tiny.rows(1)[0]
    prompt = len(processor.tokenizer("USER: <image>\nwhat is in image 0? ASSISTANT:")["input_ids"]) + 3
    collator = MFPOCollator(processor, branches=("chosen", "rejected"), max_length=prompt + more)
    with nullcontext() if more else pytest.raises(ValueError, match="max_length"):
        collator([row])
    assert check_rows.Look(0, prompt=prompt).has_room(prompt + more) == bool(more)


def test_begun_answers(checked):
    """Two rows of four have a beginning; their end is not scored, and the words on the seam of one run together."""
    prefix = {"answer_prefix": lambda n: ("", "a dog. ", "a dog.", "")[n]}
    data = rows(features={"answer_prefix": Value("string")}, **prefix)
    status, found = checked(data)
    assert status == 0 and statuses(found) == {"begun answers": "warning"}
    assert found["begun answers"]["details"] == {"begun": [1, 2], "joined": [2]}
    assert "answer_prefix" not in found["columns"]["details"]["not_read"]
    assert "in all 2 rows without an answer_prefix, not in the 2 with one" in found["end of answers"]["value"]
    data = data.map(lambda row: {"answer_prefix": "a dog. "})
    status, found = checked(data)
    assert status == 0 and not statuses(found) and "not scored behind" in found["end of answers"]["value"]


def test_positions_beyond_the_model(checked, folder, tmp_path):
    long = "what is in the image? " * 150
    data = rows(change=lambda row: row.update(prompt=[{"role": "user", "content": long}]))
    status, found = checked(data)
    assert status == 0 and statuses(found) == {"token lengths": "warning"}
    assert "made for 1024 positions" in found["token lengths"]["value"]


def test_the_end_of_answers(checked, folder):
    status, found = checked("good.parquet", "--add_eos", "false")
    assert status == 0 and statuses(found) == {"end of answers": "warning"}
    assert len(found["end of answers"]["details"]["unended"]) == 8
    # A template that ends answers itself.
    tiny.save_pretrained(folder / "ending")
    status, found = checked("good.parquet", "--add_eos", "false", "--model_name_or_path", str(folder / "ending"))
    assert status == 0 and not statuses(found) and "the chat template" in found["end of answers"]["value"]


# Faults of the model and the adapter


@pytest.mark.parametrize(
    ("recipe", "rate", "status"),
    [
        (LORA, "1e-6", "warning"),
        (LORA, "5e-7", "warning"),
        (QLORA, "1e-6", "warning"),
        (LORA, "1.1e-6", None),
        (LORA, None, None),
        (FULL, None, None),
        (FULL, "1e-6", None),
    ],
)
def test_a_rate_that_hardly_moves_an_adapter(checked, recipe, rate, status):
    tiny.allow_four_bits()
    code, found = checked("good.parquet", *([] if rate is None else ["--learning_rate", rate]), recipe=recipe)
    assert code == 0 and found.get("learning rate", {"status": None})["status"] == status
    if status:
        assert f"learning_rate={float(rate):g}" in found["learning rate"]["value"]
        assert found["learning rate"]["value"].endswith("hardly moves an adapter: LoRA usually takes 1e-5 to 1e-4")


def test_targets_that_reach_the_vision_tower(checked):
    status, found = checked("good.parquet", "--lora_target_modules", "q_proj", "v_proj")
    assert status == 0 and statuses(found) == {"LoRA targets": "warning"}
    parts = found["LoRA targets"]["details"]["by_part"]
    assert parts == {"vision tower": {"q_proj": 2, "v_proj": 2}, "language model": {"q_proj": 2, "v_proj": 2}}


@pytest.fixture
def adapter(folder, tmp_path):
    """An adapter of rank 4 on the model, which no recipe would begin: it reaches the vision tower."""
    base = AutoModelForImageTextToText.from_pretrained(folder / "model")
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, r=4)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    "fields",
    [
        ("--precompute_ref_log_probs", "false"),
        ("--precompute_ref_log_probs", "false", "--load_in_4bit", "true", "--use_peft", "false"),
        (),
    ],
    ids=["in whole", "in 4 bits", "cached reference"],
)
def test_an_adapter_that_is_trained_further(fields, checked, folder, adapter):
    """Named in place of a model, as `mfpo train` takes it: its own targets count, and a frozen copy of it is the reference."""
    tiny.allow_four_bits()
    status, found = checked("good.parquet", "--model_name_or_path", str(adapter), "--try-forward", "yes", *fields)
    assert status == 0 and not statuses(found, "LoRA targets", "evaluation rows")
    model = found["model"]
    assert model["value"].startswith(str(folder / "model")) and model["details"]["adapter"] == str(adapter)
    assert set(found["LoRA targets"]["details"]["by_part"]) == {"vision tower", "language model"}
    # Rank 4 on two layers of 32 x 32 in two blocks of each part, and not the recipe's rank.
    assert found["trainable parameters"]["details"]["by_part"] == {"vision tower": 1024, "language model": 1024}
    size = found["memory"]["details"]["precision"]["trained_bytes"] * 2048
    assert found["memory"]["details"]["bytes"]["reference"] == (size if fields else 0)
    assert found["trainer"]["value"] == "can be built with these fields and data"


@pytest.mark.parametrize("use_peft", [True, False])
def test_the_training_trains_all_of_the_adapter(use_peft, folder, adapter, tmp_path):
    """Which parts full fine-tuning freezes is not asked of it: the part in the vision tower is trained too."""
    argv = ["--model_name_or_path", str(adapter), "--dataset_name", str(folder / "good.parquet"), "--use_cpu", "true"]
    argv += ["--output_dir", str(tmp_path / "out"), "--bf16", "false", "--report_to", "none"]
    trained = [
        (parts.part_of(name), value.numel())
        for name, value in build(*parse([*argv, "--use_peft", str(use_peft)])).model.named_parameters()
        if value.requires_grad
    ]
    assert sum(n for part, n in trained if part == "vision tower") == 1024 and sum(n for _, n in trained) == 2048


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"r": 8}, "cannot be put on its model: Error(s) in loading state_dict"),
        ({"base_model_name_or_path": None}, "names no model; write it there as base_model_name_or_path"),
        ({"target_modules": ["nowhere"]}, "cannot be put on its model: Target modules"),
    ],
)
def test_an_adapter_that_cannot_be_trained_further(config, said, checked, folder, adapter, tmp_path, capsys):
    """In the same words as the training, which begins nothing."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    status, found = checked("good.parquet", "--model_name_or_path", str(adapter), "--use_peft", "false")
    assert status == 1 and any(said in own["value"] for own in found.values() if own["status"] == "problem")
    argv = ["--model_name_or_path", str(adapter), "--dataset_name", str(folder / "good.parquet"), "--output_dir"]
    assert train([*argv, str(tmp_path / "out"), "--use_cpu", "true", "--bf16", "false"]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_targets_that_match_nothing(checked):
    status, found = checked("good.parquet", "--lora_target_modules", "query_projection")
    assert status == 1 and statuses(found) == {"adapter": "problem"}
    assert "query_projection" in found["adapter"]["value"] and "not found" in found["adapter"]["value"]
    assert found["layout"]["status"] == "ok"
    status, found = checked("good.parquet", "--lora_target_modules", r".*language_model.*\.q_proj")
    assert status == 0 and found["LoRA targets"]["details"]["by_part"] == {"language model": {"q_proj": 2}}
    status, found = checked("good.parquet", "--lora_target_modules", r"language_model\.q_proj")
    assert status == 1 and "a single target is a regular expression" in found["adapter"]["value"]


def test_an_adapter_on_the_lm_head(checked):
    status, found = checked("good.parquet", "--lora_target_modules", "q_proj", "lm_head")
    assert status == 1 and found["LoRA targets"]["status"] == "problem"


def test_quantised_weights_without_an_adapter(checked):
    status, found = checked("good.parquet", "--load_in_4bit", recipe=FULL)
    assert status == 1 and "set use_peft: true" in found["adapter"]["value"]


def test_a_model_that_cannot_be_loaded(checked):
    """The data are looked at all the same."""
    status, found = checked(
        rows(change=lambda row: row.update(rejected=row["chosen"])), "--model_name_or_path", MISSING
    )
    assert status == 1
    assert statuses(found) == {"processor": "problem", "model": "problem", "answers": "problem"}
    assert all(MISSING in found[name]["value"] for name in ("processor", "model"))
    assert found["rejected images"]["details"]["inside"] > 20


def test_a_folder_that_is_not_there(checked):
    status, found = checked("good.parquet", "--model_name_or_path", "/no/such/folder")
    assert status == 1 and set(statuses(found)) == {"processor", "model"}
    assert found["model"]["value"] == "model_name_or_path is '/no/such/folder', and there is no such folder"


def test_a_model_without_weights(checked, folder):
    """At the size of LLaVA-1.5-7B: no weight is needed to say what it would take, which is what docs/scaling.md says."""
    test_memory.llava_7b().save_pretrained(folder / "7b")
    tiny.processor(tiny.LLAVA_TEMPLATE, image_size=336).save_pretrained(folder / "7b")
    status, found = checked("good.parquet", "--model_name_or_path", str(folder / "7b"))
    assert status == 1 and statuses(found) == {"model": "problem"}
    assert "has no weights" in found["model"]["value"]
    assert found["token lengths"]["details"]["image_tokens"] == 576
    memory = found["memory"]["details"]
    assert memory["geometry"] == vars(LLAVA_7B)
    assert memory["bytes"]["weights"] / GIB == pytest.approx(13.2, abs=0.05)


def test_data_that_cannot_be_loaded(checked):
    status, found = checked("no/such/data.parquet")
    assert status == 1 and set(statuses(found)) == {"data set"} and found["LoRA targets"]["status"] == "ok"
    status, found = checked("good.parquet", "--dataset_train_split", "fit")
    assert status == 1 and "no split 'fit'" in found["data set"]["value"]


def test_a_family_that_stays_flat(checked, folder, monkeypatch):
    """Gemma 3, with its reason."""
    model, processor = families.FAMILIES["gemma3"]()
    model.save_pretrained(folder / "gemma3")
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda name, **_: processor)
    status, found = checked("good.parquet", "--model_name_or_path", str(folder / "gemma3"))
    assert status == 0 and statuses(found) == {"layout": "warning"}
    assert "in both directions" in found["layout"]["value"]


# Memory


def test_a_device_that_is_too_small(checked):
    status, found = checked("good.parquet", "--gpu-memory", "1")
    assert status == 1 and statuses(found) == {"memory": "problem"}
    status, found = checked("good.parquet", "--gpu-memory", "1.6")
    assert status == 0 and statuses(found) == {"memory": "warning"}
    status, found = checked("good.parquet", "--gpu-memory", "80")
    assert status == 0 and not statuses(found)


def test_deepspeed_is_asked_too(checked):
    status, found = checked("good.parquet", "--accelerate-config", "zero2", "--num-processes", "4", recipe=FULL)
    details = found["DeepSpeed"]["details"]
    engine = Engine(4, 1, 2, True)
    total = sum(parameter.numel() for parameter in tiny.model().parameters())
    geometry = test_memory.replace(test_memory.SMALL, total=total)
    assert status == 0 and (details["device_bytes"], details["host_bytes"]) == deepspeed_estimate(geometry, engine)
    frozen = sum(p.numel() for n, p in tiny.model().named_parameters() if parts.part_of(n) == "vision tower")
    assert details["our_device_bytes"] == 2 * total + 14 * (total - frozen) / 4


def test_without_deepspeed_one_line_says_so(checked, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed.runtime.zero.stage3", None)
    status, found = checked("good.parquet", "--accelerate-config", "zero3", recipe=FULL)
    assert status == 0 and statuses(found) == {"DeepSpeed": "warning"}


def test_the_reference_in_memory(checked):
    live = ["--precompute_ref_log_probs", "false"]
    bytes_of = {}
    for recipe in (LORA, FULL):
        for fields in ([], live):
            _, found = checked("good.parquet", *fields, recipe=recipe)
            bytes_of[recipe, bool(fields)] = found["memory"]["details"]["bytes"]["reference"]
    total = sum(parameter.numel() for parameter in tiny.model().parameters())
    assert bytes_of == {(LORA, False): 0, (LORA, True): 0, (FULL, False): 0, (FULL, True): 4 * total}


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("cpu", Engine()),
        ("single_gpu", Engine()),
        ("ddp", Engine(8)),
        ("zero2", Engine(8, 1, 2, True)),
        ("zero3", Engine(8, 1, 3, True)),
        ("zero3_offload", Engine(8, 1, 3, True, True, True)),
        ("fsdp2", Engine(8, 1, 3)),
        ("multi_node", Engine(32, 4, 3, True)),
    ],
)
def test_the_engine_is_read_from_accelerates_configuration(name, engine):
    assert command.engine_of(name, None, None) == engine
    if engine.processes > 1:
        assert command.engine_of(name, None, 2).processes == 2
    else:
        # accelerate would start one all the same.
        with pytest.raises(ValueError, match="is for one process; take --accelerate-config ddp"):
            command.engine_of(name, None, 2)


@pytest.mark.parametrize(("name", "away"), [("zero3", False), ("zero3_offload", True)])
def test_the_engine_is_read_from_deepspeeds_configuration(name, away):
    path = ROOT / "recipes" / "deepspeed" / f"{name}.json"
    assert command.engine_of(None, str(path), 8) == Engine(8, 1, 3, True, away, away)
    assert command.engine_of(None, json.loads(path.read_text()), None) == Engine(1, 1, 3, True, away, away)


# The trial


@pytest.mark.parametrize(("recipe", "rows"), [(LORA, 4), (QLORA, 1)])
def test_a_step_on_the_longest_rows(checked, tmp_path, recipe, rows):
    """Before the first step, policy and reference are the same: each of three terms is log 2."""
    tiny.allow_four_bits()
    status, found = checked("good.parquet", "--try-forward", "yes", recipe=recipe)
    trial = found["trial step"]
    assert status == 0 and trial["status"] == "ok"
    assert trial["details"]["loss"] == pytest.approx(3 * np.log(2), abs=1e-3)
    assert len(set(trial["details"]["rows"])) == rows and trial["details"]["peak_bytes"] is None
    assert not (tmp_path / "out").exists()


def test_a_step_that_fails_is_a_finding(checked, folder):
    """Weights that were cut off while they were written."""
    tiny.save_pretrained(folder / "broken", template=tiny.LLAVA_TEMPLATE)
    weights = folder / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    status, found = checked("good.parquet", "--model_name_or_path", str(folder / "broken"), "--try-forward", "yes")
    assert status == 1 and statuses(found) == {"trial step": "problem"}
    assert "safetensor" in found["trial step"]["value"].lower()


def test_too_little_memory_is_a_finding(checked, monkeypatch):
    def exhausted(*_):
        torch.empty(2**60)

    monkeypatch.setattr(step, "_one_step", exhausted)
    status, found = checked("good.parquet", "--try-forward", "yes")
    assert status == 1 and found["trial step"]["details"]["out_of_memory"]
    assert "lower per_device_train_batch_size" in found["trial step"]["advice"]


def test_what_one_process_cannot_try(checked):
    status, found = checked("good.parquet", "--try-forward", "yes", "--accelerate-config", "zero3", recipe=FULL)
    assert status == 0 and statuses(found) == {"trial step": "warning"}


# The command


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["--config", "no/such/recipe.yaml"], "no/such/recipe.yaml"),
        (["--dataset_name", "x"], "--model_name_or_path is needed"),
        (["--model_name_or_path", "x", "--dataset_name", "y", "--corruption", "difusion"], "did you mean 'diffusion'"),
        (["--rows", "0"], "--rows is 0"),
        (["--gpu-memory", "-3"], "--gpu-memory is -3.0"),
        (["--accelerate-config", "zero4"], "'zero4' is not known"),
        (["--accelerate-config", "zero3", "--num-processes", "two"], "--num-processes is 'two'"),
    ],
)
def test_fields_that_cannot_be_used(fields, message, capsys):
    assert command.main(fields) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("mfpo check: error: ") and message in printed.err and printed.out == ""


def test_the_table():
    found = [
        check_table.Finding("rows", "ok", "4 read"),
        check_table.Finding("answers", "problem", "two\nlines", "mend them"),
    ]
    assert check_table.table(found, 60).splitlines() == [
        "ok       rows     4 read",
        "problem  answers  two",
        "                  lines",
        "                  -> mend them",
        "",
        "1 problem, 0 warnings, 1 ok",
    ]
    assert max(map(len, check_table.table([check_table.Finding("a", "ok", "word " * 50)], 70).splitlines())) <= 70


def test_as_a_process(folder, tmp_path):
    """The JSON stands alone on the standard output, and the same as a table."""
    argv = [
        warm.executable(),
        "-m",
        "mfpo_trl.cli",
        "check",
        "--config",
        LORA,
        "--model_name_or_path",
        str(folder / "model"),
    ]
    argv += ["--dataset_name", str(folder / "good.parquet"), "--rows", "4", "--max_length", "12", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "COLUMNS": "100"})
    assert done.returncode == 1, done.stderr[-2000:]
    assert json.loads(done.stdout)["status"] == "problem" and not list(tmp_path.iterdir())


def test_help_is_light():
    code = (
        "import sys; from mfpo_trl import cli\ntry: cli.main(['check', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'trl', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n") and "--try-forward" in done.stdout and "--config RECIPE" in done.stdout
