"""The command line, as a user types it."""

import json
import math
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from mfpo_trl import train
from mfpo_trl.cli import main

ROOT = Path(__file__).parents[1]
BOTH = ["--model_name_or_path", "x", "--dataset_name", "y"]
CPU = ["--use_cpu", "--bf16", "false", "--report_to", "none", "--max_steps", "2", "--per_device_train_batch_size", "2"]


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "mfpo_trl.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )


def processor_seconds() -> float:
    """Of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_quick_and_names_the_commands():
    start = processor_seconds()
    done = run("--help")
    assert processor_seconds() - start < 5  # well under a second; a busy machine would stretch the time on the clock
    assert done.returncode == 0 and "demo" in done.stdout and "train" in done.stdout
    assert "--output-dir" in run("demo", "--help").stdout
    assert run("--version").stdout.startswith("mfpo_trl 0.")


@pytest.mark.parametrize(
    "error",
    [
        ImportError('the demo draws with matplotlib; install it with: pip install "mfpo_trl[demo]"'),
        OSError(28, "No space left on device"),
    ],
)
def test_a_demo_that_cannot_run_says_so(error, monkeypatch, tmp_path, capsys):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("mfpo_trl.demo.run", fail)
    assert main(["demo", "--output-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"mfpo demo: error: {error}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    tiny.save_pretrained(folder / "model", template=tiny.LLAVA_TEMPLATE)
    tiny.dataset(8, tiny.BOXES, key_regions=tiny.boxes).to_parquet(folder / "train.parquet")
    return folder


@pytest.mark.parametrize("method", ["mfpo", "mdpo", "dpo"])
def test_train_with_a_recipe(folder, tmp_path, method, recipes):
    argv = ["--config", str(recipes / "methods" / f"{method}.yaml"), "--model_name_or_path", str(folder / "model")]
    argv += ["--dataset_name", str(folder / "train.parquet"), "--output_dir", str(tmp_path), *CPU]
    status = train.main(argv)
    assert status == 0
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "processor_config.json").exists()
    card = (tmp_path / "README.md").read_text()
    expected = {"mfpo": "diffusion", "mdpo": "crop", "dpo": "the image term has no weight"}[method]
    assert expected in card and "2410.15334" in card and str(folder) not in card


def test_train_as_a_process_with_lora(folder, tmp_path):
    done = run(
        *["train", "--config", str(ROOT / "recipes/methods/mfpo.yaml"), "--model_name_or_path", str(folder / "model")],
        *["--dataset_name", str(folder / "train.parquet"), "--output_dir", str(tmp_path), "--use_peft", *CPU],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    import safetensors

    with safetensors.safe_open(tmp_path / "adapter_model.safetensors", "pt") as weights:
        names = set(weights.keys())
    # Two layers of seven linear maps, each with its A and B.
    assert len(names) == 28 and all("language_model.layers" in name for name in names)


@pytest.mark.parametrize(("rate", "moves"), [([], True), (["--learning_rate", "1e-6"], False)])
def test_the_first_command_of_the_readme_moves_the_loss_in_18_steps(folder, tmp_path, rate, moves):
    """As it stands there, in float32, where the loss of a model this small can be told from 3 log 2, with which it begins."""
    (line,) = re.findall(
        r"^mfpo (train --config recipes/methods/.*?(?:\\\n.*?)*)$", (ROOT / "README.md").read_text(), re.M
    )
    swapped = {"llava-hf/llava-1.5-7b-hf": folder / "model", "DATA": folder / "train.parquet", "llava-mfpo": tmp_path}
    argv = [str(swapped.get(word, word)) for word in shlex.split(line.replace("\\\n", " "))[1:]]
    argv += ["--dtype", "float32", *CPU, "--curriculum", "none", "--max_steps", "18", "--logging_steps", "1", *rate]
    assert train.main([*argv, "--save_steps", "18"]) == 0
    history = json.loads((tmp_path / "checkpoint-18" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 18 and losses[0] == pytest.approx(3 * math.log(2), abs=1e-5)
    assert (max(losses[-6:]) < losses[0] - 1e-3) == moves and (moves or min(losses) > losses[0] - 1e-3)


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("image_loss_wieght: 1", [], "unknown key 'image_loss_wieght'; did you mean 'image_loss_weight'?"),
        ("- a\n- b", [], "must hold a YAML mapping"),
        ("corruption: difusion", BOTH, "did you mean 'diffusion'"),
        ("image_loss_weight: -1", BOTH, "image_loss_weight is -1"),
        ("beta: 0.1", [], "--model_name_or_path is needed"),
        ("beta: 0.1", ["--model_name_or_path", "x"], "--dataset_name is needed"),
    ],
)
def test_bad_fields(tmp_path, capsys, recipe, arguments, message):
    (tmp_path / "recipe.yaml").write_text(recipe)
    argv = ["--config", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false"]
    assert train.main([*argv, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mfpo train: error: ") and message in error and "Traceback" not in error


def test_missing_recipe(capsys):
    assert train.main(["--config", "no/such/recipe.yaml"]) == 2
    assert "no/such/recipe.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--dataset_train_split", "fit"], "the data set has no split 'fit', only ['train']"),
        (["--dataset_name", "no/such/data.parquet"], "no/such/data.parquet"),
        (["--dataset_name", "not-yet-built"], "`mfpo build --output not-yet-built` makes one"),
        (["--max_length", "9"], "'prompt': max_length=9 would cut"),
        (["--model_name_or_path", "not-there"], "not-there: We couldn't connect"),
    ],
)
def test_mistakes_that_show_later_are_one_line_too(folder, tmp_path, capsys, change, message):
    argv = ["--model_name_or_path", str(folder / "model"), "--dataset_name", str(folder / "train.parquet"), *CPU]
    assert train.main([*argv, "--output_dir", str(tmp_path), *change]) == 2
    lines = capsys.readouterr().err.splitlines()
    (error,) = (line for line in lines if "mfpo train: error: " in line)
    assert message in error and not any("Traceback" in line for line in lines)


def test_rdpo_needs_the_data_sets_own_images(folder, tmp_path, capsys, recipes):
    argv = ["--config", str(recipes / "methods" / "rdpo.yaml"), "--model_name_or_path", str(folder / "model"), *CPU]
    argv += ["--dataset_name", str(folder / "train.parquet"), "--output_dir", str(tmp_path)]
    assert train.main(argv) == 2
    assert "'rejected_images': is missing, and corruption='none' makes none" in capsys.readouterr().err
