"""`mfpo loop`: rounds of pairs, training and score in the demo's world, each from the policy of the one before."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import set_seed

from mfpo_trl.cli import main
from mfpo_trl.demo.held_out import write_held_out
from mfpo_trl.demo.scenes import make_scenes
from mfpo_trl.demo.tiny_model import build_model, build_processor
from mfpo_trl.loop import rounds

sys.path.append(str(Path(__file__).parents[1] / "pairs"))
import world

TRAIN = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "bf16": False, "report_to": "none"}
TRAIN |= {"save_strategy": "no", "logging_steps": 1, "gradient_checkpointing": False, "disable_tqdm": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A captioner that knows nothing, images to make pairs of, and others to score on."""
    root = tmp_path_factory.mktemp("loop")
    set_seed(0)
    processor = build_processor()
    build_model(processor).save_pretrained(root / "base")
    processor.save_pretrained(root / "base")
    get_peft_model(build_model(processor), LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(
        root / "adapter"
    )
    config = json.loads((root / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(root / "base")
    (root / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    world.write_world(root / "world.parquet", 8)
    write_held_out(root / "held-out", make_scenes(4, 77, 0.0))
    for number, scene in enumerate(make_scenes(4, 77, 0.0)):
        scene.image.save(root / "held-out" / f"{number}.png")
    return root


def recipe(folder: Path, output: Path, **changes) -> Path:
    pairs = {"dataset": str(folder / "world.parquet"), "verifier": "world:words_by_hash", "max_new_tokens": 8}
    content = {
        "output": str(output),
        "model": str(folder / "base"),
        "rounds": 2,
        "figure": "chair_s",
        "least_gain": -9,
        "pairs": {**pairs, "samples": 4, "length_ratio": 9},
        "train": {**TRAIN, "learning_rate": 1e-3},
        "score": {"benchmark": "chair", "data": str(folder / "held-out"), "max_new_tokens": 8},
        **changes,
    }
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(content))
    return path


def told(folder: Path, number: int) -> dict:
    return json.loads((folder / f"round-{number}" / "round.json").read_text())


@pytest.fixture(scope="module")
def looped(folder) -> Path:
    assert main(["loop", "--config", str(recipe(folder, folder / "rounds"))]) == 0
    return folder / "rounds"


def test_each_round_goes_on_from_the_one_before(folder, looped):
    first, second = told(looped, 1), told(looped, 2)
    assert first["reference"]["policy"] == str(folder / "base")
    assert second["reference"] == first["policy"] and second["policy"]["weights"] != first["policy"]["weights"]
    assert first["data"]["rows"] > 0 and set(first["data"]["pairs_by_rule"]) and "chair_s" in first["figures"]
    done = json.loads((looped / "loop.json").read_text())
    assert len(done["scores"]) == 3 and done["best"] == second["policy"]["policy"]
    # Other images would be the same draws; another round draws others.
    seeds = [
        json.loads((looped / f"round-{n}" / "pairs" / "build" / "options.json").read_text())["seed"] for n in (1, 2)
    ]
    assert seeds == [1, 2]


@pytest.mark.parametrize(
    "lost", ["round-2/scores.json", "round-2/model", "round-2/pairs/report.json", "round-2", "loop.json"]
)
def test_it_goes_on_wherever_it_was_stopped(lost, folder, looped, tmp_path):
    copy = tmp_path / "rounds"
    shutil.copytree(looped, copy)
    gone = copy / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    path = recipe(folder, copy)
    # The folder has moved: what is remembered names no place of its own.
    assert main(["loop", "--config", str(path)]) == 0
    assert (copy / "loop.json").exists() and json.loads((copy / "loop.json").read_text())["scores"] == json.loads(
        (looped / "loop.json").read_text()
    )["scores"]


def test_an_adapter_stays_the_same_one(folder, tmp_path):
    """The adapter of round 1 is trained further in round 2, from its own state as reference."""
    path = recipe(folder, tmp_path / "rounds", model=str(folder / "adapter"))
    assert main(["loop", "--config", str(path)]) == 0
    second = tmp_path / "rounds" / "round-2" / "model"
    assert json.loads((second / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder / "base")
    states = [
        load_file(own / "adapter_model.safetensors")
        for own in (folder / "adapter", tmp_path / "rounds" / "round-1" / "model", second)
    ]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    assert all(
        (
            states[n]["base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.weight"]
            != states[n + 1]["base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.weight"]
        ).any()
        for n in (0, 1)
    )


def test_an_adapter_is_merged_where_asked(folder, tmp_path):
    train = {**TRAIN, "use_peft": True, "lora_r": 2, "learning_rate": 1e-3}
    path = recipe(folder, tmp_path / "rounds", merge=True, train=train)
    assert main(["loop", "--config", str(path)]) == 0
    second = tmp_path / "rounds" / "round-2"
    assert told(tmp_path / "rounds", 2)["reference"]["policy"].endswith("round-1/merged")
    assert (second / "merged" / "model.safetensors").exists() and (second / "model" / "adapter_config.json").exists()


def test_it_ends_when_the_score_no_longer_improves(folder, tmp_path, capsys):
    path = recipe(folder, tmp_path / "rounds", rounds=3, least_gain=2)
    assert main(["loop", "--config", str(path)]) == 0
    done = json.loads((tmp_path / "rounds" / "loop.json").read_text())
    assert len(done["scores"]) == 2 and done["best"] == str(folder / "base")
    assert "no better: the rounds end" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"figure": "chair_x"}, "chair has chair_s, chair_i"),
        ({"pairs": {"model": "x"}}, "'model' is set by each round"),
        ({"train": {"output_dir": "x"}}, "'output_dir' is set by each round"),
        ({"score": {"benchmark": "chair"}}, "'data' is missing"),
        ({"score": {"benchmark": "chair", "data": "x", "row": 3}}, "unknown key 'row'"),
        ({"pair": {}}, "did you mean 'pairs'"),
        ({"model": None}, "lacks 'model'"),
        ({"train": []}, "'train' is a list"),
        ({"pairs": {"dataset": "x", "sample": 3}}, "did you mean 'samples'"),
    ],
)
def test_recipes_that_make_no_sense(changes, words, folder, tmp_path, capsys):
    assert main(["loop", "--config", str(recipe(folder, tmp_path / "rounds", **changes))]) == 1
    assert words in capsys.readouterr().err


def test_other_options_are_other_rounds(folder, looped, capsys):
    path = recipe(folder, looped, train={**TRAIN, "learning_rate": 1e-2})
    assert main(["loop", "--config", str(path)]) == 1
    assert "other options: train was" in capsys.readouterr().err


def test_fields_on_a_command_line():
    own = {
        "use_peft": True,
        "lora_target_modules": ["a", "b"],
        "corruption_kwargs": {"step": 5},
        "learning_rate": 1e-5,
    }
    assert rounds.arguments(own) == [
        *("--use_peft", "true", "--lora_target_modules", "a", "b"),
        *("--corruption_kwargs", '{"step": 5}', "--learning_rate", "1e-05"),
    ]
