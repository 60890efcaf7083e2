"""What the card says, and what it must not say."""

import json
import logging
import math
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from datasets import DatasetInfo
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from peft import LoraConfig
from PIL import Image
from transformers import BitsAndBytesConfig
from trl import DPOTrainer

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl.card import curves as card_curves
from mfpo_trl.card import model_card
from mfpo_trl.card.curves import series, write_curves
from mfpo_trl.card.facts import describe_devices, describe_engine, describe_time, duration
from mfpo_trl.card.markdown import hub_id, plain
from mfpo_trl.card.model_card import describe_dataset, hub_dataset
from mfpo_trl.card.scores import Scores, evaluation_results, read_scores
from mfpo_trl.hub.files import MODEL_FILES, files_to_push

DRAWS = True


def written(folder: Path, kind: type[MFPOTrainer] = MFPOTrainer) -> str:
    """The card that a trainer of that class writes."""
    args = MFPOConfig(
        output_dir=str(folder / "my-model"),
        use_cpu=True,
        bf16=False,
        report_to="none",
        image_loss_weight=0.5,
        image_beta=0.2,
        corruption_kwargs={"step": 700},
        hub_token="hf_secret",
    )
    model = tiny.model()
    model.config._name_or_path = "llava-hf/llava-1.5-7b-hf"
    data = tiny.dataset(4)
    data.info.download_checksums = {"hf://datasets/openbmb/RLHF-V-Dataset@abc/data.parquet": {}}
    trainer = kind(
        model=model, ref_model=tiny.model(), args=args, train_dataset=data, processing_class=tiny.processor()
    )
    trainer.create_model_card(model_name="My model", tags="extra")
    return (folder / "my-model" / "README.md").read_text()


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return written(tmp_path_factory.mktemp("card"))


def test_metadata(card):
    data = ModelCard(card).data
    assert {"mfpo", "dpo", "trl", "extra"} <= set(data.tags)
    assert data.base_model == "llava-hf/llava-1.5-7b-hf" and data.datasets == ["openbmb/RLHF-V-Dataset"]
    assert data.library_name == "transformers" and data.pipeline_tag == "image-text-to-text"


@pytest.mark.parametrize(
    "words",
    [
        "# My model",
        "[llava-hf/llava-1.5-7b-hf](https://huggingface.co/llava-hf/llava-1.5-7b-hf)",
        "[openbmb/RLHF-V-Dataset](https://huggingface.co/datasets/openbmb/RLHF-V-Dataset) (4 rows)",
        "| image | 0.5 |",
        "`beta` is 0.1 in the text term and 0.2 in the image and anchor terms",
        "`diffusion`, step = 700, schedule = vcd_sigmoid, inside the row's key regions, or the whole image",
        "- trl: 1.16.0",
        "- mfpo_trl: 0.1.0",
        "Modality-Fair Preference Optimization for Trustworthy MLLM Alignment",
        "mDPO: Conditional Preference Optimization",
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        "vonwerra2020trl",
    ],
)
def test_the_card_tells(card, words):
    assert words in card


def test_the_card_keeps_secrets_and_is_whole(card, tmp_path_factory):
    assert "hf_secret" not in card and str(tmp_path_factory.getbasetemp()) not in card
    assert "{" not in card.split("```")[0]


def test_a_push_in_the_background_finds_a_whole_card_or_none(tmp_path, monkeypatch):
    """Nothing of TRL's own card is there while ours is being written."""
    seen = []
    monkeypatch.setattr(model_card, "write_curves", lambda folder, log: seen.append(sorted(os.listdir(folder))))
    found = written(tmp_path)
    assert "## Objective" in found and len(seen) == 1 and "README.md" not in seen[0]
    assert "_README.md" not in os.listdir(tmp_path / "my-model")


def test_a_local_data_set_and_terms_that_were_not_trained(tmp_path):
    (tmp_path / "secret.parquet").touch()
    args = MFPOConfig(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none", loss_type="ipo")
    data = tiny.dataset(4).remove_columns("images")
    trainer = MFPOTrainer(
        model=tiny.model(), ref_model=tiny.model(), args=args, train_dataset=data, processing_class=tiny.processor()
    )
    trainer.create_model_card(dataset_name=str(tmp_path / "secret.parquet"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "secret" not in card
    assert "| image | 0 |" in card and "None: the image term has no weight, or the data set no image." in card
    assert "| text (DPO, `ipo`) | 1.0 | TRL's loss of that name |" in card


def test_data_sets_without_a_name():
    data = tiny.dataset(3)
    assert hub_dataset(data) is None and hub_dataset(object()) is None
    assert describe_dataset(data, None) == "a data set without a name (3 rows)"
    assert describe_dataset(type("D", (), {"info": DatasetInfo(dataset_name="own")})(), None) == "own"


# Trained ones


def trained(
    folder, name: str, steps: int = 3, card: dict | None = None, kind: type[MFPOTrainer] = MFPOTrainer, **options
) -> tuple[MFPOTrainer, str]:
    """A short training whose checkpoint writes a card, and its end another one."""
    args = MFPOConfig(
        output_dir=str(folder / name),
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        max_steps=steps,
        save_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        hub_token="hf_secret",
    )
    data = tiny.dataset(8, tiny.BOXES, key_regions=tiny.boxes)
    trainer = kind(model=str(folder / "base"), args=args, train_dataset=data, **options)
    trainer.train()
    trainer.create_model_card(**(card or {}))
    card = (folder / name / "README.md").read_text()
    assert "hf_secret" not in card and str(folder) not in card
    return trainer, card


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    tiny.save_pretrained(folder / "base")
    return folder


@pytest.fixture(scope="module")
def full(folder):
    """With an evaluation, scores of two benchmarks and a file of scores that is cut off."""
    scores = folder / "full" / "scores"
    scores.mkdir(parents=True)
    (scores / "a.json").write_text(json.dumps({"benchmark": "POPE", "metrics": {"accuracy": 0.86123456, "F1": 1}}))
    (scores / "b.json").write_text('{"benchmark": "AMBER", "metr')
    (scores / "c.json").write_text(json.dumps({"benchmark": HOSTILE, "metrics": {HOSTILE: -2.5}, "more": []}))
    return trained(folder, "full", card={"model_name": HOSTILE, "tags": ["license:apache-2.0"]})


HOSTILE = "<script>a|b</script> `x` [l](https://e.org) *n* _o_ https://e.org\n# T <img src=x onerror=y>"


def facts(card: str) -> dict[str, str]:
    """The lines of the section on training."""
    section = card.split("## Training\n\n")[1].split("\n\n")[0]
    return dict(line.removeprefix("- ").split(": ", 1) for line in section.splitlines())


def test_facts_of_full_training(full):
    trainer, card = full
    numbers = sum(own.numel() for own in tiny.model().parameters())
    found = facts(card)
    assert set(found) == {"hardware", "precision", "trained", "steps", "time"}
    assert found["hardware"].startswith("CPU, ") and found["hardware"].endswith(", 1 process")
    assert found["precision"] == "trained weights in float32, arithmetic in the type of the weights"
    assert found["trained"] == f"{numbers:,} parameters of the model"
    assert found["steps"] == (
        "3, each of up to 4 rows (2 a process x 1 process x 2 accumulated), at most 12 rows seen"
    )
    seconds = trainer.state.log_history[-1]["train_runtime"]
    assert found["time"] == f"{duration(seconds)} in the last call of `train`, evaluations included"
    assert f"- python: {platform.python_version()}\n" in card
    assert "- bitsandbytes" not in card and "- deepspeed" not in card


def test_facts_of_an_adapter(folder):
    lora = LoraConfig(r=4, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj"])
    _, card = trained(folder, "lora", steps=1, peft_config=lora)
    # Four layers (tower and language model), two projections each, and two matrices of 4 x 32.
    assert facts(card)["trained"] == (
        f"{4 * 2 * 2 * 4 * 32:,} parameters of an adapter, LoRA: rank 4, alpha 16, dropout 0.0, on q\\_proj, v\\_proj"
    )
    assert "quantisation" not in facts(card) and ModelCard(card).data.library_name == "peft"


def test_facts_of_four_bit_training(folder):
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    lora = LoraConfig(r=4, target_modules=r".*language_model.*q_proj", modules_to_save=["lm_head"])
    _, card = trained(folder, "four-bit", steps=1, peft_config=lora, quantization_config=four_bit)
    found = facts(card)
    assert found["quantisation"] == "4-bit NF4 (bitsandbytes), with double quantisation, computed in float32"
    assert found["precision"].startswith("trained weights in bfloat16")
    assert found["trained"].startswith(f"{2 * 2 * 4 * 32 + 320 * 32:,} parameters of an adapter, LoRA: rank 4, ")
    assert found["trained"].endswith("lm\\_head in full")
    assert f"- bitsandbytes: {version('bitsandbytes')}\n" in card


def test_engines_and_devices_by_name():
    """What has no such machine here; DDP and ZeRO-3 are in test_engines.py."""
    config = {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}, "offload_optimizer": None}}
    plugin = SimpleNamespace(deepspeed_config=config, zero_stage=2)
    state = SimpleNamespace(deepspeed_plugin=plugin, fsdp_plugin=SimpleNamespace(fsdp_version=2))
    for kind, expected in (("DEEPSPEED", "DeepSpeed ZeRO-3, param offloaded"), ("FSDP", "FSDP2"), ("NO", "")):
        assert describe_engine(SimpleNamespace(distributed_type=kind, state=state, num_processes=1)) == expected
    mps = SimpleNamespace(device=torch.device("mps"), num_processes=1)
    assert describe_devices(mps).startswith("1 x mps, ")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (59.96, "1 min 0 s"), (3599.7, "1 h 0 min 0 s"), (93784.2, "26 h 3 min 4 s")],
)
def test_durations(seconds, expected):
    assert duration(seconds) == expected
    assert describe_time([{"loss": 1}]) == ""


# Scores


def test_scores_are_shown(full, caplog):
    trainer, card = full
    assert "| POPE | accuracy | 0.861235 |\n| POPE | F1 | 1 |\n" in card and "AMBER" not in card
    (name, dataset), *others = {(own.metric_name, own.dataset_name) for own in ModelCard(card).data.eval_results} - {
        ("accuracy", "POPE"),
        ("F1", "POPE"),
    }
    assert (name, dataset, others) == (HOSTILE, HOSTILE, [])
    with caplog.at_level(logging.WARNING):
        assert len(read_scores(trainer.args.output_dir)) == 2
    assert len(caplog.records) == 1 and "b.json is left out of the model card" in caplog.text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[1]", "it holds list; expected an object"),
        ('{"metrics": {"a": 1}}', "'benchmark' is None"),
        ('{"benchmark": "B", "metrics": {}}', "'metrics' is {}"),
        ('{"benchmark": "B", "metrics": {"a": "1"}}', "metric 'a' is '1'; expected a finite number"),
        ('{"benchmark": "B", "metrics": {"a": true}}', "metric 'a' is True"),
        ('{"benchmark": "B", "metrics": {"a": NaN}}', "metric 'a' is nan"),
        ("[" * 100_000, "recursion"),
        ("\udcff", "left out"),
    ],
)
def test_scores_that_cannot_be_used(tmp_path, caplog, content, problem):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "own.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert read_scores(tmp_path) == []
    assert len(caplog.records) == 1 and "own.json is left out" in caplog.text and problem in caplog.text


def test_scores_in_the_metadata():
    (result,) = evaluation_results([Scores("MMHal-Bench (96)", {"Hal. rate": 0.5})], "image-text-to-text")
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("mmhal-bench-96", "hal-rate", 0.5)


# Subclasses


class Mixin:
    """Of a user, beside the trainer."""


class Plain(MFPOTrainer):
    """Changes something else than the card."""


SILENT = {
    "plain": Plain,
    "of a subclass": type("Deep", (Plain,), {}),
    "mixin first": type("First", (Mixin, MFPOTrainer), {}),
    "mixin last": type("Last", (MFPOTrainer, Mixin), {}),
    "mixins on two levels": type("Two", (type("Other", (), {}), type("Between", (Mixin, Plain), {})), {}),
    "beside a subclass of DPO": type("Diamond", (Plain, type("OfDPO", (DPOTrainer,), {})), {}),
}
"""Subclasses that say nothing of themselves; all but the first two with another class than DPOTrainer behind them."""

PAPER = {"title": "A [new] paper", "id": "2601.00001", "citation": "@misc{mine,\n    title = {{A paper}}\n}"}
TOLD = {
    "all": (
        {"_name": "My_own", "_paper": PAPER, "_tag_names": ["trl", "mine"]},
        "**My\\_own** ([A \\[new\\] paper](https://",
    ),
    "paper": (
        {"_paper": PAPER},
        "**MFPO** ([A \\[new\\] paper](https://huggingface.co/papers/2601.00001)), built on **Mod",
    ),
    "name": ({"_name": "My_own"}, "trained with **My\\_own**, built on **Modality-Fair"),
    "no citation": (
        {"_name": "My_own", "_paper": {"title": "A", "id": "2601.00001"}},
        "/2601.00001)), built on **Mod",
    ),
    "no paper": ({"_name": "My_own", "_paper": {}}, "trained with **My\\_own**, built on **Modality-Fair"),
    "tags": ({"_tag_names": ["trl", "mine"]}, "trained with **Modality-Fair"),
}
"""What a subclass may say of itself, and how its card begins."""


@pytest.mark.parametrize("kind", SILENT.values(), ids=SILENT)
def test_a_subclass_writes_the_same_card(card, tmp_path, kind):
    assert written(tmp_path, kind) == card


@pytest.mark.parametrize(("attributes", "beginning"), TOLD.values(), ids=TOLD)
def test_a_subclass_adds_what_it_says_of_itself(card, tmp_path, attributes, beginning):
    """Beside everything that the card of its parent says: taken away, that card is left."""
    found = written(tmp_path, type("Own", (Mixin, MFPOTrainer), attributes))
    assert beginning in found
    assert set(ModelCard(found).data.tags) == {
        "generated_from_trainer",
        "extra",
        *attributes.get("_tag_names", MFPOTrainer._tag_names),
    }
    citation = attributes.get("_paper", {}).get("citation")
    assert (f"{plain(attributes.get('_name', 'MFPO'))}:\n\n```bibtex\n{citation}\n```\n\nMFPO:\n" in found) == bool(
        citation
    )
    body = ModelCard(found).text.replace(f"```bibtex\n{citation}\n```\n\n", "")
    lines = set(ModelCard(card).text.splitlines()) - set(body.splitlines())
    assert len(lines) <= 1 and all(" trained with " in line for line in lines)


def test_a_training_of_a_subclass_ends_with_its_card(folder):
    """Checkpoints and the end of a training write it too."""
    kind = type("Own", (Mixin, MFPOTrainer), {"_name": "My_own"})
    trainer, card = trained(folder, "subclass", kind=kind)
    checkpoints = sorted(Path(trainer.args.output_dir).glob("checkpoint-*"))
    assert checkpoints and "trained with **My\\_own**, built on" in card and "rafailov2023direct" in card


# What is whose


def test_a_licence_is_the_users_to_name(full, card):
    assert ModelCard(full[1]).data.license == "apache-2.0" and "## Licence\n\n`apache-2.0`" in full[1]
    assert ModelCard(card).data.license is None and "None was named." in card


def test_words_of_others_are_only_words(full):
    """Rendered as Markdown, nothing of them is a tag, a link, an image or code."""
    html = MarkdownIt("commonmark").enable("table").render(full[1].split("---\n", 2)[2])
    assert (
        "<script>" not in html
        and "<img src=x" not in html
        and "e.org</a>" not in html
        and 'href="https://e' not in html
    )
    row = html.split("<td>F1</td>")[1].split("</tbody>")[0]
    shown = " ".join(HOSTILE.split()).replace("<", "&lt;").replace(">", "&gt;")
    assert row.count(f"<td>{shown}</td>") == 2 and row.count("<td>") == 4
    assert f"<h1>{shown}</h1>" in html and ModelCard(full[1]).data.model_name == HOSTILE
    assert plain("a\\|b\n\nc") == "a\\\\\\|b c"


@pytest.mark.parametrize("name", [None, "", "/data/model", "./model", "../m", "a/b/c", "~/m", "C:\\m", "a b", "tests"])
def test_what_is_no_id_on_the_hub(name, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert hub_id(name) is None
    assert hub_id("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf" and hub_id("gpt2") == "gpt2"


# The picture


def test_series_by_hand():
    log = [
        {"loss": 3.0, "loss/text": 1.0, "learning_rate": 1.0, "step": 1},
        {"loss": 2.0, "loss/text": float("inf"), "step": 2},
        {"eval_loss": 2.5, "eval_rewards/margins": 0.1, "eval_runtime": 9.0, "step": 2},
        {"eval_own_set_loss/image": 0.7, "eval_own_set_rewards/image_margins": 0.2, "step": 2},
        {"loss": 1.0, "rewards/modality_balance": 0.5, "step": 4},
        # Resumed after step 2.
        {"loss": 1.5, "step": 3},
        {"loss": 1.25, "step": 4},
        {"train_loss": 1.0, "train_runtime": 3.0, "step": 4},
        {"loss": "broken", "step": 5},
    ]
    found = series(log)
    assert math.isnan(found["train", "loss/text"][1].pop())
    assert found == {
        ("train", "loss"): ([1, 2, 3, 4], [3.0, 2.0, 1.5, 1.25]),
        ("train", "loss/text"): ([1, 2], [1.0]),
        ("train", "rewards/modality_balance"): ([4], [0.5]),
        ("eval", "loss"): ([2], [2.5]),
        ("eval", "rewards/margins"): ([2], [0.1]),
        ("eval_own_set", "loss/image"): ([2], [0.7]),
        ("eval_own_set", "rewards/image_margins"): ([2], [0.2]),
    }


def test_the_card_shows_the_picture_and_a_push_takes_it(full):
    trainer, card = full
    output = trainer.args.output_dir
    assert card.count("](training_curves.png)") == 1 and "![Training curves over the steps" in card
    assert {"README.md", "training_curves.png"} <= set(files_to_push(Path(output), MODEL_FILES))
    assert not os.path.exists(os.path.join(output, "_training_curves.png"))
    pixels = np.asarray(Image.open(os.path.join(output, "training_curves.png")).convert("RGB")).astype(int)
    assert pixels.shape[1] == 800 and pixels.shape[0] > 800
    for name, (_, colour) in card_curves.CURVES.items():
        own = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
        assert (abs(pixels - own).sum(axis=2) < 12).sum() > 50, name


def test_drawing_is_quick_and_touches_no_global_state(tmp_path):
    import matplotlib
    from matplotlib._pylab_helpers import Gcf

    settings = dict(matplotlib.rcParams)
    log = [{"step": n, "loss": 1.0 + n % 3, "rewards/margins": n * 0.1, "eval_loss": 1.0} for n in range(5000)]
    write_curves(tmp_path, log)
    start = time.process_time()
    assert write_curves(tmp_path, log) == card_curves.FILE
    assert time.process_time() - start < 2  # about 0.2 s of this process, whoever else uses the processors
    assert dict(matplotlib.rcParams) == settings and not Gcf.figs


@pytest.mark.parametrize("log", [[], [{"eval_loss": 1.0, "step": 1}], [{"train_runtime": 1.0, "step": 1}]])
def test_nothing_to_draw(tmp_path, log):
    assert write_curves(tmp_path, log) is None and not list(tmp_path.iterdir())


def test_a_name_of_a_data_set_is_no_formula(tmp_path):
    assert write_curves(tmp_path, [{"step": 1, "loss": 1.0, "eval_$x_{y_loss": 2.0, "eval__loss": 1.0}])


def test_a_picture_that_cannot_be_written_does_not_end_a_training(tmp_path, caplog):
    (tmp_path / card_curves.FILE).mkdir()
    (tmp_path / card_curves.FILE / "own").touch()
    assert write_curves(tmp_path, [{"step": 1, "loss": 1.0}]) is None
    assert "could not be written" in caplog.text


def test_without_matplotlib_one_line_says_what_to_install(tmp_path, monkeypatch, caplog):
    card_curves._can_draw.cache_clear()
    for name in [own for own in sys.modules if own.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with caplog.at_level(logging.DEBUG, "mfpo_trl"):
        assert [write_curves(tmp_path, [{"step": 1, "loss": 1.0}]) for _ in range(2)] == [None, None]
    card_curves._can_draw.cache_clear()
    assert [own.levelno for own in caplog.records] == [logging.DEBUG] and 'pip install "mfpo_trl[demo]"' in caplog.text
    assert not list(tmp_path.iterdir())
