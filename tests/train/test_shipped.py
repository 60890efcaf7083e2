"""The recipes and launch configurations that come with the package: found by name, listed, shown, copied, and in the wheel."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mfpo_trl import cli, train
from mfpo_trl.check import command as check
from mfpo_trl.recipes import accelerate_file, recipe_file, shipped_files

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
LORA = RECIPES / "llava-1.5" / "7b-mfpo-lora.yaml"
ZERO = RECIPES / "accelerate" / "zero3.yaml"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory without recipes."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = cli.main(["recipes", *map(str, arguments)])
    return (status, *capsys.readouterr())


# Names


def test_every_file_has_a_name():
    files = [path for path in RECIPES.rglob("*") if path.is_file() and path.name != "README.md"]
    assert sorted(shipped_files().values()) == sorted(files) and len(files) > 50
    assert all(str(path).removesuffix(".yaml") == str(RECIPES / name) for name, path in shipped_files().items())


@pytest.mark.parametrize("before", ["", "recipes/"])
@pytest.mark.parametrize("behind", ["", ".yaml"])
def test_recipes_and_configurations_are_found_by_name(before, behind, elsewhere):
    assert recipe_file(f"{before}llava-1.5/7b-mfpo-lora{behind}") == LORA
    assert accelerate_file(f"{before}accelerate/zero3{behind}") == accelerate_file(f"zero3{behind}") == ZERO


def test_every_name_that_is_listed_is_found(elsewhere):
    for name, path in shipped_files().items():
        if name.startswith("accelerate/"):
            assert path.suffix == ".slurm" or accelerate_file(name) == path
        elif not name.startswith("deepspeed/"):
            assert recipe_file(name) == path


def test_a_file_wins(elsewhere):
    for name in ("llava-1.5/7b-mfpo-lora", "zero3"):
        (elsewhere / name).parent.mkdir(exist_ok=True)
        (elsewhere / name).write_text("beta: 0.7")
    assert train.with_recipe(["--config", "llava-1.5/7b-mfpo-lora"]) == ([], {"beta": 0.7})
    assert accelerate_file("zero3") == Path("zero3")
    assert recipe_file("llava-1.5/7b-mfpo-lora.yaml") == LORA


def test_a_configuration_of_the_working_directory_comes_first(elsewhere):
    (elsewhere / "recipes" / "accelerate").mkdir(parents=True)
    own = shutil.copy(ZERO, elsewhere / "recipes" / "accelerate" / "zero3.yaml")
    shutil.copy(ZERO, elsewhere / "recipes" / "outside.yaml")
    assert accelerate_file("zero3") == Path(own)
    with pytest.raises(ValueError, match="is not known"):
        accelerate_file("../outside")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("llava-1.5/7b-mfpo-lroa", "llava-1.5/7b-mfpo-lora"),
        ("llava-1.5/7b-mfpo-lroa.yaml", "llava-1.5/7b-mfpo-lora"),
        ("recipes/qwen3/8b-mfpo-lora.yaml", "qwen3-vl/8b-mfpo-lora"),
        ("mfpo", "methods/mfpo"),
        # What is listed, but holds no fields.
        ("accelerate/zero3", None),
        ("deepspeed/zero3.json", None),
        ("../recipes/methods/mfpo", None),
        ("methods/../methods/mfpo", None),
        ("methods", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("command", [train.main, check.main], ids=["train", "check"])
def test_an_unknown_name_gets_the_nearest_one(name, meant, command, elsewhere, capsys):
    assert command(["--config", name]) == 2
    (line,) = [own for own in capsys.readouterr().err.splitlines() if "error: " in own]
    assert f"--config {name!r} is no file, and no recipe" in line
    if meant:
        assert line.endswith(f"did you mean {meant!r}?")


def test_both_commands_read_a_recipe_by_its_name(elsewhere, capsys):
    for command in (train.main, check.main):
        assert command(["--config", "methods/mfpo"]) == 2
        assert "--model_name_or_path is needed" in capsys.readouterr().err
    _, training, model = train.parse(["--config=llava-1.5/7b-mfpo-lora", "--use_cpu", "--bf16", "false"])
    assert training.learning_rate == 1e-5 and model.lora_r == 64


def test_one_recipe_a_training(capsys):
    assert train.main(["--config", "methods/mfpo", "--config", "methods/dpo"]) == 2
    assert "--config is given twice" in capsys.readouterr().err


def test_a_build_has_options_of_its_own(elsewhere, capsys):
    assert cli.main(["build", "--config", "methods/mfpo"]) == 1
    assert (
        "methods/mfpo is a recipe of mfpo train; mfpo build reads a file of its own options" in capsys.readouterr().err
    )


# mfpo recipes


def test_the_list_says_what_each_is(elsewhere, capsys):
    status, printed, _ = run(capsys)
    assert run(capsys, "list") == (0, printed, "")
    lines = dict(line.split(maxsplit=1) for line in printed.splitlines() if line.startswith("  "))
    assert status == 0 and set(lines) == set(shipped_files())
    # What to train comes before how to launch it.
    launching = [name.startswith(("accelerate/", "deepspeed/")) for name in lines]
    assert launching == sorted(launching)
    assert lines["llava-1.5/7b-mfpo-lora"] == "MFPO on LLaVA-1.5-7B, LoRA"
    assert lines["accelerate/single_gpu"] == "One GPU"
    assert all(own and "\n" not in own and len(own) < 150 for own in lines.values())


@pytest.mark.parametrize("name", ["methods/mfpo", "accelerate/multi_node.slurm", "deepspeed/zero3.json"])
def test_one_is_shown_and_copied_as_it_is(name, elsewhere, capsys):
    source = shipped_files()[name]
    assert run(capsys, "show", name) == (0, source.read_text(), "")
    assert run(capsys, "copy", name)[0] == run(capsys, "copy", name, "new/folder")[0] == 0
    assert run(capsys, "copy", name, f"mine{source.suffix}")[0] == 0
    for copied in (source.name, f"new/folder/{source.name}", f"mine{source.suffix}"):
        assert Path(copied).read_bytes() == source.read_bytes()


def test_nothing_is_overwritten(elsewhere, capsys):
    Path("mfpo.yaml").write_text("mine")
    status, _, error = run(capsys, "copy", "methods/mfpo")
    assert status == 2 and "mfpo.yaml is there already, and nothing is overwritten" in error
    assert Path("mfpo.yaml").read_text() == "mine"
    Path("dangling.yaml").symlink_to("nowhere.yaml")
    assert run(capsys, "copy", "methods/mfpo", "dangling.yaml")[0] == 2 and not Path("nowhere.yaml").exists()


@pytest.mark.parametrize("deed", ["show", "copy"])
@pytest.mark.parametrize("name", ["../setup.cfg", "/etc/passwd", "methods/../../setup.cfg", "README.md", "mfop"])
def test_nothing_else_is_shown_or_copied(deed, name, elsewhere, capsys):
    status, printed, error = run(capsys, deed, name)
    assert (
        status == 2 and printed == "" and error.startswith(f"mfpo recipes {deed}: error: there is no {name!r} among")
    )
    assert list(elsewhere.iterdir()) == []


# Installed


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What a wheel has, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return folder


def test_an_installed_package_has_every_file(installed):
    inside = installed / "mfpo_trl" / "recipes" / "files"
    ours = {path.relative_to(RECIPES): path.read_bytes() for path in RECIPES.rglob("*") if path.is_file()}
    assert ours == {path.relative_to(inside): path.read_bytes() for path in inside.rglob("*") if path.is_file()}


def test_an_installed_package_finds_its_own(installed, elsewhere):
    code = (
        "from mfpo_trl.recipes import accelerate_file, recipe_file; from mfpo_trl import cli; "
        "print(recipe_file('recipes/methods/mfpo.yaml'), accelerate_file('zero3')); cli.main(['recipes'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    found, *listed = done.stdout.splitlines()
    files = installed / "mfpo_trl" / "recipes" / "files"
    assert found.split() == [str(files / "methods" / "mfpo.yaml"), str(files / "accelerate" / "zero3.yaml")]
    assert len([line for line in listed if line.startswith("  ")]) == len(shipped_files())
