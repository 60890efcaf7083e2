"""Whether a model looks: a model that provably does not, straight-line computations, and TRL's own evaluation."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import load_peft_weights
from PIL import Image
from transformers import AutoModelForImageTextToText

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl._trl import NumberedRows
from mfpo_trl.evaluation import run_reliance
from mfpo_trl.evaluation.reliance.looking import Seen, groups, parsed
from mfpo_trl.evaluation.reliance.page import write_page
from mfpo_trl.evaluation.reliance.variants import Variants, perturbation
from mfpo_trl.images import corrupt

ROWS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, an adapter that does something, a model that cannot look, and rows."""
    folder = tmp_path_factory.mktemp("reliance")
    tiny.save_pretrained(folder / "model")
    base = tiny.model()
    # Without attention, what comes next depends on the last token alone: no image token is ever read.
    with torch.no_grad():
        for name, weight in base.named_parameters():
            if "language_model" in name and "o_proj" in name:
                weight.zero_()
    base.save_pretrained(folder / "blind")
    tiny.processor().save_pretrained(folder / "blind")
    for name in ("model", "blind"):
        adapted = get_peft_model(
            tiny.model() if name == "model" else base,
            LoraConfig(target_modules=r".*language_model.*(gate|up|down)_proj"),
        )
        torch.manual_seed(1)
        with torch.no_grad():
            for own, weight in adapted.named_parameters():
                if "lora_B" in own:
                    weight.normal_(std=0.3)
        adapted.peft_config["default"].base_model_name_or_path = str(folder / name)
        adapted.save_pretrained(folder / f"{name}-adapter")
    rows().to_parquet(folder / "rows.parquet")
    return folder


def rows(count=ROWS) -> Dataset:
    return tiny.dataset(count, tiny.BOXES, key_regions=tiny.boxes)


def looked(capsys, *argv, data=None):
    """The report of a command, and what it printed on standard error."""
    status = run_reliance([*map(str, argv), "--dataset", "x", "--json"], lambda args: data or rows())
    printed = capsys.readouterr()
    assert not status, printed.err
    return json.loads(printed.out), printed.err


def values(report, group):
    return {name: own["value"] for name, own in report[group].items()}


# Proofs


def test_a_model_that_cannot_look(folder, capsys):
    report, _ = looked(capsys, "--model", folder / "blind-adapter", "--max-new-tokens", 8)
    assert values(report, "answers")["answer_change"] == 0
    for group in ("preference", "preference_by_reward"):
        own = values(report, group)
        assert own["visual_gain"] == 0 and own["blind_accuracy"] == own["accuracy"] == own["accuracy_without_image"]
        assert report[group]["visual_gain"]["low"] == -report[group]["visual_gain"]["high"] < 0
    regions = report["key_regions"]
    assert all(
        abs(regions[name][end]) < 1e-4
        for name in ("key_drop", "key_region_reliance")
        for end in ("value", "low", "high")
    )
    assert abs(values(report, "rewards")["image_reward"]) < 1e-4 < abs(values(report, "rewards")["text_reward"])
    assert values(report, "rewards")["balance"] < 1e-4


def straight(model, processor, row, images, answer):
    """Summed log-probability of an answer, from the logits of one row."""
    prompt = f"USER: {'<image>' + chr(10) if images else ''}{row['prompt'][0]['content']} ASSISTANT:"
    ids = processor(images=images or None, text=[prompt], return_tensors="pt", add_special_tokens=False)
    said = processor.tokenizer(f" {answer} </s>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    inputs = {**ids, "input_ids": torch.cat([ids["input_ids"], said], dim=1)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        logps = model(**{k: v for k, v in inputs.items() if k != "token_type_ids"}).logits.log_softmax(-1)
    found = logps[0, ids["input_ids"].shape[1] - 1 : -1].gather(1, said[0][:, None]).sum()
    return float(found), said.shape[1]


def test_every_figure_against_straight_line_arithmetic(folder, capsys):
    """Log-probabilities from plain logits, one row at a time, and means, shares and quotients of them by hand."""
    report, _ = looked(
        capsys, "--model", folder / "model-adapter", "--perturb", "black", "--max-new-tokens", 4, "--batch-size", 4
    )
    model = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(folder / "model"), folder / "model-adapter"
    ).eval()
    processor = tiny.processor()
    numbered = NumberedRows.of(rows())
    data = [numbered.__getitems__([n])[0] for n in range(ROWS)]
    make = Variants(processor, perturbation("black"), data)
    found = []
    for row in data:
        own = make.plain(row)
        shown = {
            "image": own["images"],
            "without": [],
            "wrong": make.wrong(own)["images"],
            "dispreferred": make.dispreferred(own)["images"],
        }
        region = np.zeros((own["images"][0].height, own["images"][0].width), dtype=bool)
        x0, y0, x1, y1 = map(int, row["key_regions"][0])
        region[y0:y1, x0:x1] = True
        black = np.asarray(own["images"][0]).copy()
        black[region] = 0
        others = []
        for (mask,) in make.random_masks(own, [region]):
            assert abs(mask.sum() - region.sum()) <= 0.05 * region.sum() and mask.shape == region.shape
            other = np.asarray(own["images"][0]).copy()
            other[mask] = 0
            others.append(other)
        scores = {}
        for who in ("policy", "reference"):
            with model.disable_adapter() if who == "reference" else torch.no_grad():
                for name, images in shown.items():
                    for answer in ("chosen", "rejected"):
                        scores[who, name, answer] = straight(model, processor, row, images, row[answer][0]["content"])
        chosen = row["chosen"][0]["content"]
        scores["key"] = straight(model, processor, row, [Image.fromarray(black)], chosen)[0]
        scores["random"] = np.mean([straight(model, processor, row, [Image.fromarray(o)], chosen)[0] for o in others])
        found.append(scores)

    def p(own, variant, answer, who="policy"):
        return own[who, variant, answer][0]

    def r(own, variant, answer):
        return p(own, variant, answer) - p(own, variant, answer, "reference")

    def share(value, variant):
        return sum(value(own, variant, "chosen") > value(own, variant, "rejected") for own in found) / ROWS

    for group, value in (("preference", p), ("preference_by_reward", r)):
        own = values(report, group)
        right, without = share(value, "image"), share(value, "without")
        assert own["accuracy"] == pytest.approx(right) and own["accuracy_without_image"] == pytest.approx(without)
        assert own["visual_gain"] == pytest.approx(right - without)
        assert own["blind_accuracy"] == pytest.approx(share(value, "wrong"))
    length = [[own["policy", "image", answer][1] for answer in ("chosen", "rejected")] for own in found]
    text = [r(own, "image", "chosen") - r(own, "image", "rejected") for own in found]
    image = [r(own, "image", "chosen") - r(own, "dispreferred", "chosen") for own in found]
    rewards = values(report, "rewards")
    close = {"abs": 1e-4}
    assert rewards["text_reward"] == pytest.approx(np.mean(text), **close)
    assert rewards["image_reward"] == pytest.approx(np.mean(image), **close)
    a_token = [
        r(own, "image", "chosen") / n - r(own, "image", "rejected") / m
        for own, (n, m) in zip(found, length, strict=True)
    ]
    assert rewards["text_reward_per_token"] == pytest.approx(np.mean(a_token), **close)
    assert rewards["image_reward_per_token"] == pytest.approx(
        np.mean([own / n for own, (n, _) in zip(image, length, strict=True)]), **close
    )
    smaller, larger = sorted((np.mean(text), np.mean(image)))
    assert rewards["balance"] == pytest.approx(smaller / larger if smaller > 0 else 0.0, abs=1e-3)
    key = [p(own, "image", "chosen") - own["key"] for own in found]
    other = [p(own, "image", "chosen") - own["random"] for own in found]
    regions = values(report, "key_regions")
    assert regions["key_drop"] == pytest.approx(np.mean(key), **close)
    assert regions["random_drop"] == pytest.approx(np.mean(other), **close)
    assert regions["key_region_reliance"] == pytest.approx(np.mean(key) - np.mean(other), **close)


def test_rewards_are_those_of_an_evaluation(folder, capsys, tmp_path):
    """`MFPOTrainer.evaluate` on the same rows, whose rewards are ours times beta."""
    report, _ = looked(capsys, "--model", folder / "model-adapter", "--no-answers")
    trainer = MFPOTrainer(
        model=str(folder / "model"),
        peft_config=PeftConfig.from_pretrained(folder / "model-adapter"),
        args=MFPOConfig(
            output_dir=str(tmp_path),
            max_length=None,
            beta=0.1,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows(),
        eval_dataset=rows(),
        processing_class=tiny.processor(),
    )
    # Not given as the model, because TRL would make it the reference too.
    set_peft_model_state_dict(trainer.model, load_peft_weights(str(folder / "model-adapter"), "cpu"))
    logged = trainer.evaluate()
    rewards = values(report, "rewards")
    assert 0.1 * rewards["text_reward"] == pytest.approx(logged["eval_rewards/margins"], abs=1e-5)
    assert 0.1 * rewards["image_reward"] == pytest.approx(logged["eval_rewards/image_margins"], abs=1e-5)
    assert rewards["balance"] == pytest.approx(logged["eval_rewards/modality_balance"], abs=1e-4)
    assert values(report, "preference_by_reward")["accuracy"] == pytest.approx(logged["eval_rewards/accuracies"])
    assert "answers" not in report


# Settings in which a figure is something else, or none


def test_answers_are_parsed():
    same = [
        ("Yes.", "yes, there is a dog", "YES! It is."),
        ("No", "no, there isn't"),
        ("B.", "(B)", "b: the cat", "B"),
        ("A red dog.", "a red  dog", "A RED DOG!"),
    ]
    said = [parsed(own[0]) for own in same]
    assert len(set(said)) == len(same)
    for own, words in zip(same, said, strict=True):
        assert {parsed(text) for text in own} == {words}
    assert parsed("") == () and parsed("not sure") != parsed("no")


def seen(number, **more):
    """One row, whose numbers are as they are given."""
    row = {"images": [Image.new("RGB", (8, 8))], "prompt": "<b>?", "chosen": "yes", "rejected": "<script>no</script>"}
    given = {
        "picture": str(number),
        "row": row,
        "perturbed": row,
        "hidden": row,
        "wrong": None,
        "words": 1,
        "tokens": np.array([1, 2]),
        "logps": {"image": np.array([-1.0, -2.0]), "dispreferred": np.array([-3.0])},
        "reference": {"image": np.array([-2.0, -2.0]), "dispreferred": np.array([-2.0])},
        "key": -4.0,
        "random": -1.5,
        "answers": ("Yes.", "<i>No.</i>"),
        **more,
    }
    return Seen(number=number, **given)


def test_figures_by_hand():
    """Two rows: the second one's answer stays, it is not preferred, and it has no regions."""
    other = seen(
        1,
        logps={"image": np.array([-4.0, -3.0]), "dispreferred": np.array([-4.0])},
        key=np.nan,
        answers=("yes", "Yes!"),
    )
    found = {
        name: {own: one.figure() for own, one in group.all().items()}
        for name, group in groups([seen(0), other]).items()
    }
    assert found["answers"]["answer_change"].value == 0.5
    assert found["preference"]["accuracy"].value == 0.5 and "visual_gain" not in found["preference"]
    assert "blind_accuracy" not in found["preference"]
    # r(chosen): 1 and -2; r(rejected): 0 and -1; r(chosen) under the dispreferred image: -1 and -2.
    assert found["rewards"]["text_reward"].value == (1 + -1) / 2
    assert found["rewards"]["image_reward"].value == (2 + 0) / 2
    assert found["rewards"]["text_reward_per_token"].value == ((1 - 0) + (-2 + 0.5)) / 2
    assert found["rewards"]["balance"].value == 0
    regions = found["key_regions"]
    assert (regions["key_drop"].value, regions["random_drop"].value, regions["key_drop"].n) == (3.0, 0.5, 1)
    assert regions["key_region_reliance"].value == 2.5


def without_regions():
    return tiny.dataset(4)


def plain_prompts():
    made = [
        {
            "image": tiny.picture(n, 40, 32),
            "prompt": "USER: <image>\nwhat is it? ASSISTANT:",
            "chosen": " a dog",
            "rejected": " a cat",
        }
        for n in range(3)
    ]
    return Dataset.from_list(made)


def one_picture():
    return Dataset.from_list([{**own, "images": [tiny.picture(0)]} for own in tiny.rows(3)])


def some_without_image():
    return Dataset.from_list([*tiny.rows(2), {**tiny.rows(1)[0], "images": []}])


def own_rejected():
    made = tiny.rows(
        3, rejected_images=lambda n: [tiny.picture(50 + n)], corruption=lambda n: '{"corruption": "none"}'
    )
    return Dataset.from_list(made)


def several_images():
    made = tiny.rows(2, key_regions=lambda n: [[], [[2, 2, 20, 20]]])
    return Dataset.from_list([{**own, "images": [tiny.picture(n), tiny.picture(9 + n)]} for n, own in enumerate(made)])


SETTINGS = {
    "no regions": (without_regions, "model-adapter", {"key_regions"}, "rows have no key region"),
    "plain prompts": (plain_prompts, "model-adapter", {"key_regions"}, "rows have no key region"),
    "no reference": (rows, "model", {"preference_by_reward", "rewards"}, "no reference, so no rewards"),
    "one picture": (one_picture, "model-adapter", {"key_regions"}, "3 rows have no wrong image"),
    "rows without an image": (some_without_image, "model-adapter", {"key_regions"}, "1 rows have no image"),
    "rejected images": (own_rejected, "model-adapter", {"key_regions"}, "rows have no key region"),
    "several images": (several_images, "model-adapter", set(), ""),
}
GROUPS = {"preference", "preference_by_reward", "rewards", "key_regions"}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(folder, capsys, name):
    make, model, missing, note = SETTINGS[name]
    report, _ = looked(capsys, "--model", folder / model, "--no-answers", data=make())
    assert GROUPS & set(report) == GROUPS - missing
    assert note in " ".join(report["notes"])
    assert ("blind_accuracy" in report["preference"]) == (name != "one picture")
    assert values(report, "preference")["visual_gain"] is not None


def test_perturbations_fall_where_they_should(folder):
    """The whole image for answers, the key region alone for hiding; the same whenever asked."""
    data = [NumberedRows.of(rows()).__getitems__([n])[0] for n in range(ROWS)]
    for how in ("diffusion:500", "black", "swap", "crop", "blur:0.2"):
        make = Variants(tiny.processor(), perturbation(how), data)
        row = make.plain(data[1])
        image, mask = np.asarray(row["images"][0]), make.masks(row)[0]
        whole, hidden = (np.asarray(own["images"][0]) for own in (make.perturbed(row), make.hidden(row, [mask])))
        assert (whole != image).any(axis=-1).mean() > 0.5
        changed = (hidden != image).any(axis=-1)
        assert changed.any() and not changed[~mask].any()
        assert np.array_equal(hidden, np.asarray(make.hidden(row, [mask])["images"][0]))
    black = corrupt(image, mask, np.random.default_rng(0), "black")
    assert not black[mask].any() and black[~mask].any()


BAD = {
    "--perturb diffusion:5000": "noise step",
    "--perturb black:3": "black takes no value",
    "--perturb fog": "unknown corruption 'fog'",
    "--perturb diffusion:much": "is no number",
    "--perturb none": "perturbs nothing",
    "--num-rows 0": "--num-rows is 0",
    "--output page.pdf": "expected a page, .html",
    "--adapter {folder}/model": "is no adapter",
}


@pytest.mark.parametrize("options", BAD)
def test_what_cannot_be_done_is_said_before_anything_is_loaded(folder, capsys, options):
    argv = ["--model", str(folder / "model"), *options.format(folder=folder).split()]
    assert run_reliance([*argv, "--dataset", "x"], lambda args: rows()) == 1
    assert BAD[options] in capsys.readouterr().err


def test_rows_that_cannot_be_looked_at(folder, capsys):
    texts = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    for data, words in (
        (texts, "no row of the data set has an image"),
        (rows().to_iterable_dataset(), "IterableDataset"),
    ):
        assert run_reliance(["--model", str(folder / "model"), "--dataset", "x"], lambda args, data=data: data) == 1
        assert words in capsys.readouterr().err


# What is written


def test_files(folder, tmp_path, capsys):
    argv = [
        "--model",
        folder / "model",
        "--adapter",
        folder / "model-adapter",
        "--dataset",
        "x",
        "--max-new-tokens",
        4,
    ]
    argv += ["--output", tmp_path / "looked", "--json", tmp_path / "report.json", "--scores", tmp_path / "model"]
    argv += ["--num-rows", 3]
    assert run_reliance(list(map(str, argv)), lambda args: rows()) == 0
    printed = capsys.readouterr().out
    assert re.search(r"answers +answer_change +[\d.]+ ", printed) and "3 of 6 rows" in printed
    reports = [tmp_path / own for own in ("report.json", "looked/reliance.json", "model/scores/reliance.json")]
    assert len({own.read_text() for own in reports}) == 1
    report = json.loads(reports[0].read_text())
    assert report["answers"]["answer_change"]["n"] == 3 and "visual_gain" in report["shares"]
    page = (tmp_path / "looked" / "reliance.html").read_text()
    assert page.count("<article>") == 3 and page.count("<img") == 12 and 'src="data:image/png' in page
    from mfpo_trl.card.scores import read_scores

    assert "visual_gain" in {name for own in read_scores(tmp_path / "model") for name in own.metrics}


def test_the_page_is_escaped():
    page = write_page("<me>", "a < b", [seen(n) for n in range(20)], 8)
    assert page.count("<article>") == 8 and "<script>" not in page and "<i>" not in page and "<b>" not in page
    assert "&lt;me&gt;" in page and "The answer changes." in page and "default-src 'none'" in page


def test_the_door_of_the_command(monkeypatch):
    """`mfpo reliance` reads rows as a training reads them."""
    from mfpo_trl import cli, evaluation

    called = []
    monkeypatch.setattr(evaluation, "run_reliance", lambda argv, read: called.append((argv, read)) or 7, raising=False)
    assert cli.main(["reliance", "--model", "m"]) == 7 and called[0][0] == ["--model", "m"]
    options = SimpleNamespace(dataset="nowhere.parquet", split="train", source="auto", image_root=None)
    with pytest.raises(ValueError, match="there is no such folder or file"):
        called[0][1](options)
