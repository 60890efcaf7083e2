"""Every recipe, trained for two steps with its model swapped for the tiny one of its family; accelerate's configurations."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import families
import psutil
import pytest
import tiny
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoProcessor
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from mfpo_trl import train
from mfpo_trl.check import command as check
from mfpo_trl.train import launch, parts

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
FAMILIES = {
    "llava-1.5": "llava",
    "llava-1.6": "llava_next",
    "qwen2.5-vl": "qwen2_5_vl",
    "qwen3-vl": "qwen3_vl",
    "smolvlm": "idefics3",  # SmolVLM-Instruct is published as an Idefics3
}
PATHS = sorted(path for folder in FAMILIES for path in (RECIPES / folder).glob("*.yaml"))
NAMES = [str(path.relative_to(RECIPES)) for path in PATHS]
CONFIGS = sorted((RECIPES / "accelerate").glob("*.yaml"))
# What a CPU can't honour, or what would only take time: the size of the global batch, the number of steps.
CPU = [
    "--use_cpu",
    "--max_steps",
    "2",
    "--gradient_accumulation_steps",
    "1",
    "--report_to",
    "none",
    "--disable_tqdm",
    "true",
]
every_recipe = pytest.mark.parametrize("path", PATHS, ids=NAMES)


def kind(path: Path) -> tuple[str, str]:
    """Method and way of training by the name of a recipe."""
    method, how = path.stem.split("-")[-2:]
    return method, how


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with weights and one with rows; the processors as objects."""
    tiny.allow_four_bits()
    folder = tmp_path_factory.mktemp("models")
    processors = {}
    for family in set(FAMILIES.values()):
        model, processors[family] = families.FAMILIES[family]()
        model.save_pretrained(folder / family)
    tiny.dataset(4, tiny.BOXES, key_regions=tiny.boxes).to_parquet(folder / "train.parquet")
    return folder, processors


@pytest.fixture
def swapped(models, monkeypatch):
    """The arguments that swap model and data; processors with videos cannot be loaded without torchvision."""
    folder, processors = models
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda name, **_: processors[Path(name).name])

    def arguments(path: Path, output: Path, *more: str) -> list[str]:
        model = folder / FAMILIES[path.parent.name]
        argv = ["--config", str(path), "--model_name_or_path", str(model), "--output_dir", str(output), *CPU, *more]
        return [*argv, "--dataset_name", str(folder / "train.parquet")]

    return arguments


def base_weights(models, path: Path) -> dict[str, torch.Tensor]:
    return load_file(models[0] / FAMILIES[path.parent.name] / "model.safetensors")


@every_recipe
def test_every_recipe_trains(path, models, swapped, tmp_path):
    assert train.main(swapped(path, tmp_path)) == 0
    method, how = kind(path)
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert (
        state["global_step"] == 2
        and state["train_batch_size"] == yaml.safe_load(path.read_text())["per_device_train_batch_size"]
    )
    start = base_weights(models, path)
    if how == "full":
        end = load_file(tmp_path / "model.safetensors")
        moved = {parts.part_of(name) for name, value in start.items() if not torch.equal(value, end[name])}
        assert moved == {"language model", "projector"}
    else:
        end = load_file(tmp_path / "adapter_model.safetensors")
        assert {parts.part_of(name) for name in end} == {"language model"}
        assert any(value.any() for name, value in end.items() if "lora_B" in name)
    card = (tmp_path / "README.md").read_text()
    assert {"dpo": "the image term has no weight", "mdpo": "crop", "mfpo": "diffusion"}[method] in card


@every_recipe
def test_every_recipe_is_what_its_name_and_head_say(path):
    text, name = path.read_text(), path.relative_to(ROOT)
    head = text.split("\n\n")[0].splitlines()
    method, how = kind(path)
    settings = yaml.safe_load(text)
    assert all(line.startswith("#") for line in head) and max(map(len, text.splitlines())) < 170
    (launched,) = re.findall(rf"Launch: +mfpo train --config {name} --accelerate-config (\w+)$", text, re.M)
    assert RECIPES / "accelerate" / f"{launched}.yaml" in CONFIGS
    assert f"--config_file recipes/accelerate/{launched}.yaml examples/train_mfpo.py --config {name}" in text
    assert "# Hardware: " in text and "# Expected metrics: " in text
    assert re.search(r"# Peak memory: about \d+ GiB a GPU \(weights .*;\n#   estimate .*, not measured\.", text)
    numbers = [
        float(n) for n in re.findall(r"[\d.]+", re.search(r"Peak memory: (.*?)\)", text)[1].replace("fp32", ""))
    ]
    assert numbers[0] == pytest.approx(sum(numbers[1:]), abs=0.7)
    command = "mfpo build" if method == "mfpo" or how == "qlora" else "from the Hub"
    assert any(line.startswith("# Data: ") and command in line for line in head)
    assert settings.get("use_peft", False) == (how != "full") and settings.get("load_in_4bit", False) == (
        how == "qlora"
    )
    assert "lora_target_modules" not in settings
    assert (settings["dtype"] == "float32") == (how == "full")
    gpus = 8 if launched.startswith("zero") else 1
    assert settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] * gpus == 32
    _, training, model = train.parse(["--config", str(path), "--use_cpu"])
    assert model.freeze_vision_tower and training.output_dir == f"outputs/{path.parent.name}-{path.stem}"


@every_recipe
def test_every_recipe_has_the_objective_of_its_method(path):
    settings = yaml.safe_load(path.read_text())
    method = yaml.safe_load((RECIPES / "methods" / f"{kind(path)[0]}.yaml").read_text())
    # The rate of a method is LoRA's, whatever the model.
    rate = method.pop("learning_rate")
    assert (settings["learning_rate"] == rate) == (kind(path)[1] == "lora")
    assert {name: settings.get(name, "absent") for name in method} == method
    objective = {
        name
        for name in settings
        if re.search("loss_weight|anchor|corruption|beta|max_length|ref_log|curriculum", name)
    }
    assert objective == set(method)


@pytest.mark.parametrize(
    "path", [path for path in PATHS if re.search(r"\b[78]b-mfpo-qlora", path.stem)], ids=lambda path: path.stem
)
def test_one_card_of_24_gb_can_compare_the_methods(path):
    """Beside MFPO's QLoRA recipe of each model of 7B or 8B lie DPO's and mDPO's, which differ in the method alone."""
    methods = {own.stem: yaml.safe_load(own.read_text()) for own in (RECIPES / "methods").glob("m*po.yaml")}
    objective = (set().union(*methods.values()) | {"output_dir"}) - {"learning_rate"}
    ours = yaml.safe_load(path.read_text())
    for method in ("dpo", "mdpo"):
        theirs = yaml.safe_load(path.with_stem(path.stem.replace("mfpo", method)).read_text())
        assert {key: ours[key] for key in ours if key not in objective} == {
            key: theirs[key] for key in theirs if key not in objective
        }


def test_there_is_a_recipe_for_every_family_and_method():
    found = {(path.parent.name, *kind(path)) for path in PATHS}
    assert {(family, method, "lora") for family in FAMILIES for method in ("dpo", "mdpo", "mfpo")} <= found
    assert {(family, "mfpo", "qlora") for family in FAMILIES} <= found
    assert {("llava-1.5", "mfpo", "full"), ("smolvlm", "mfpo", "full")} <= found
    readme = (RECIPES / "README.md").read_text()
    for path in PATHS:
        peak = re.search(r"Peak memory: about (\d+) GiB", path.read_text())[1]
        assert re.search(rf"\| `{path.relative_to(RECIPES)}` \|.*\| {peak} \|", readme), path


@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_adapters_land_on_the_language_model_only(family):
    """On all linear layers of it but the head."""
    model, _ = families.FAMILIES[family]()
    _, _, settings = train.parse(["--model_name_or_path", "x", "--dataset_name", "x", "--use_peft", "--use_cpu"])
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n}
    adapted = PeftModel(model, parts.peft_config(settings))
    found = {
        name.split(".lora_A")[0].removeprefix("base_model.model.")
        for name, _ in adapted.named_parameters()
        if "lora_A" in name
    }
    assert found == {name for name in linear if parts.part_of(name) == "language model"}
    assert len(found) == 14  # two layers of q, k, v, o, gate, up, down


@pytest.mark.parametrize(("given", "count"), [(["q_proj"], 2), (["q_proj", "v_proj"], 4), ([r".*\.0\..*q_proj"], 1)])
def test_adapters_land_where_they_are_told(given, count):
    """One name, several names, and a pattern."""
    argv = [
        "--model_name_or_path",
        "x",
        "--dataset_name",
        "x",
        "--use_peft",
        "--use_cpu",
        "--lora_target_modules",
        *given,
    ]
    adapted = PeftModel(tiny.model().model.language_model, parts.peft_config(train.parse(argv)[2]))
    assert sum("lora_A" in name for name, _ in adapted.named_parameters()) == count


@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_parts_are_told_by_their_names(family):
    """The tower is what the configuration of vision describes; the projector is the rest beside the language model."""
    model, _ = families.FAMILIES[family]()
    tower = (
        model.model.visual
        if hasattr(model.model, "visual")
        else getattr(model.model, "vision_tower", None) or model.model.vision_model
    )
    language = {id(p) for p in (*model.get_decoder().parameters(), *model.lm_head.parameters())}
    for name, parameter in model.named_parameters():
        inside = id(parameter) in {id(p) for p in tower.parameters()}
        expected = "language model" if id(parameter) in language else "vision tower" if inside else "projector"
        if inside and "merger" in name:
            expected = "projector"
        assert parts.part_of(name) == expected, name


@pytest.mark.parametrize(
    ("fields", "trained"),
    [
        (["--freeze_projector"], {"language model"}),
        (["--freeze_vision_tower", "false"], {"language model", "projector", "vision tower"}),
    ],
)
def test_what_full_training_freezes_is_a_choice(fields, trained, models, swapped, tmp_path):
    path = RECIPES / "smolvlm" / "2b-mfpo-full.yaml"
    assert train.main(swapped(path, tmp_path, *fields)) == 0
    end = load_file(tmp_path / "model.safetensors")
    start = base_weights(models, path)
    assert {parts.part_of(name) for name, value in start.items() if not torch.equal(value, end[name])} == trained


def test_a_part_that_is_not_there_cannot_be_frozen():
    model = torch.nn.ModuleDict({"language_model": torch.nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="ModuleDict has no parameters that are named like a vision tower"):
        parts.freeze(model, ["vision tower"])


@pytest.mark.parametrize("family", ["llava-1.6", "qwen3-vl", "smolvlm"])
def test_the_projector_beside_an_adapter_is_a_choice(family, models, swapped, tmp_path):
    """As the comment in the recipe says."""
    path = next(path for path in PATHS if path.parent.name == family and kind(path) == ("mfpo", "lora"))
    (module,) = re.findall(r"lora_modules_to_save: \[(\w+)\]", path.read_text())
    assert train.main(swapped(path, tmp_path, "--lora_modules_to_save", module, "--learning_rate", "0.01")) == 0
    end = load_file(tmp_path / "adapter_model.safetensors")
    start = {name: value.float() for name, value in base_weights(models, path).items()}
    projector = {name: value for name, value in end.items() if parts.part_of(name) == "projector"}
    assert projector and not any("lora_" in name for name in projector)
    assert not any(
        torch.equal(value.float(), own)
        for value in projector.values()
        for own in start.values()
        if own.shape == value.shape
    )


def test_a_vision_tower_is_not_trained_silently_beside_an_adapter(swapped, tmp_path, capsys):
    path = RECIPES / "llava-1.5" / "7b-mfpo-lora.yaml"
    assert train.main(swapped(path, tmp_path, "--freeze_vision_tower", "false")) == 2
    assert "freeze_vision_tower=False is of full fine-tuning" in capsys.readouterr().err


def test_pickled_weights_are_refused(models, swapped, tmp_path, capsys):
    folder = Path(tiny.save_pretrained(tmp_path / "llava"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    argv = swapped(RECIPES / "llava-1.5" / "7b-mfpo-lora.yaml", tmp_path / "out", "--model_name_or_path", str(folder))
    assert train.main(argv) == 2
    assert "are pickles only (pytorch_model.bin), which can run code" in capsys.readouterr().err


# Launching


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path):
    config = load_config_from_file(str(path))
    assert path.read_text().startswith("# ")
    expected = {"cpu": 1, "single_gpu": 1, "multi_node": 32}.get(path.stem, 8)
    assert config.num_processes == expected and config.num_machines == (4 if path.stem == "multi_node" else 1)
    stage = re.search(r"zero(\d)", path.stem)
    if stage:
        assert config.deepspeed_config["zero_stage"] == int(stage[1])
        assert (config.deepspeed_config["offload_param_device"] == "cpu") == ("offload" in path.stem)


def test_fsdp_wraps_layers_that_are_there():
    names = yaml.safe_load((RECIPES / "accelerate" / "fsdp2.yaml").read_text())["fsdp_config"]
    found = {type(module).__name__ for module in tiny.model().modules()}
    assert set(names["fsdp_transformer_layer_cls_to_wrap"].split(",")) <= found


def test_the_configurations_that_were_promised_exist():
    promised = {"cpu", "single_gpu", "ddp", "zero2", "zero3", "zero3_offload", "fsdp2", "multi_node"}
    assert {path.stem for path in CONFIGS} == promised


@pytest.mark.parametrize("path", sorted((RECIPES / "deepspeed").glob("*.json")), ids=lambda path: path.stem)
def test_deepspeed_files_are_filled_from_a_recipe(path):
    _, training, _ = train.parse(["--config", str(RECIPES / "llava-1.5" / "7b-mfpo-full.yaml"), "--use_cpu"])
    config = HfTrainerDeepSpeedConfig(str(path))
    config.trainer_config_process(training)
    assert config.is_zero3() and config.config["train_micro_batch_size_per_gpu"] == 4
    assert config.config["bf16"]["enabled"] is True and config.config["gradient_clipping"] == 1.0
    assert config.is_offload() == ("offload" in path.stem)


def test_the_slurm_script_is_a_shell_script():
    script = RECIPES / "accelerate" / "multi_node.slurm"
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_slurm_starts_one_launcher_a_node(tmp_path):
    """With `srun`, `scontrol` and `accelerate` that only write down what they are given."""
    for name, body in {
        "scontrol": "echo node-a; echo node-b",
        "srun": 'while [[ $1 == --* ]]; do shift; done; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
        "accelerate": 'printf "%s\\n" "$*"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_ID": "123456", "SLURM_NNODES": "2"}
    done = subprocess.run(
        ["bash", str(RECIPES / "accelerate" / "multi_node.slurm"), "r.yaml", "--seed", "a b"],
        env={**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert (
        "--num_machines 2 --num_processes 16 --machine_rank 0 --main_process_ip node-a --main_process_port 23456"
        in first
    )
    assert first.endswith("-m mfpo_trl.train --resume_from_checkpoint true --config r.yaml --seed a b")
    assert second == first.replace("--machine_rank 0", "--machine_rank 1")


def test_the_command_that_is_launched():
    argv = ["--config", "r.yaml", "--accelerate-config", "zero2", "--num_processes=4", "--beta", "0.2"]
    launcher = ["--config_file", str(RECIPES / "accelerate" / "zero2.yaml"), "--num_processes", "4"]
    assert launch.command(argv) == ([*launcher, "-m", "mfpo_trl.train"], ["--config", "r.yaml", "--beta", "0.2"])
    assert launch.command(["--config", "r.yaml"]) is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--accelerate-config", "zero4"], "'zero4' is not known: expected a path, or one of cpu, ddp, fsdp2"),
        (["--accelerate-config"], "--accelerate-config needs a value"),
        (["--accelerate-config", "--config", "r.yaml"], "--accelerate-config needs a value"),
        (["--num-processes", "2"], "--num-processes needs --accelerate-config"),
        (
            ["--accelerate-config", "single_gpu", "--num-processes", "2"],
            "is for one process; take --accelerate-config ddp",
        ),
        (["--model_name_or_path", "x", "--dataset_name", "y", "--use_cpu", "--learning_rat", "1"], "--learning_rat"),
    ],
)
def test_what_cannot_be_launched(argv, message, capsys):
    assert train.main(argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", [train.main, check.main], ids=["train", "check"])
def test_a_mistake_is_told_without_the_token(command, monkeypatch, capsys):
    token = f"hf_{'a' * 34}"
    argv = ["--model_name_or_path", "x", "--dataset_name", "y", "--use_cpu", "--hub_tokn", token]
    monkeypatch.setattr(sys, "argv", ["mfpo", "train", *argv])
    assert command(argv) == 2
    said = capsys.readouterr()
    assert said.err.endswith("error: unknown option --hub_tokn; did you mean --hub_token?\n")
    assert token not in said.err + said.out
    if command is train.main:
        # Trackers of experiments write it down.
        assert sys.argv == ["mfpo", "train", *argv[:-1], "<token>"]


def watched(command: list[str], output: Path) -> tuple[int, str, set[str]]:
    """The exit status of a command, what it said, and the command lines of every process that it started."""
    shown, deadline = set(), time.monotonic() + 300
    with output.open("w") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        running = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        while running.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(running.pid).children(recursive=True)
                shown |= {" ".join(child.cmdline()) for child in children}
            time.sleep(0.1)
        running.terminate()
    return running.wait(), output.read_text(), shown


def test_two_processes_through_accelerate(models, tmp_path):
    """`ddp` as it is, with a free port: every process trains, one writes."""
    ddp = (RECIPES / "accelerate" / "ddp.yaml").read_text()
    (tmp_path / "ddp.yaml").write_text(f"{ddp}main_process_port: 0\n")
    model = tiny.save_pretrained(tmp_path / "model", template=tiny.LLAVA_TEMPLATE)
    swap = ["--model_name_or_path", model, "--dataset_name", str(models[0] / "train.parquet")]
    launched = ["--accelerate-config", str(tmp_path / "ddp.yaml"), "--num-processes", "2"]
    recipe = ["--config", str(RECIPES / "llava-1.5" / "7b-mfpo-lora.yaml"), "--ddp_backend", "gloo"]
    token = f"hf_{'a' * 34}"
    command = [sys.executable, "-m", "mfpo_trl.cli", "train", *launched, *recipe, *CPU, *swap, "--hub_token", token]
    command += ["--output_dir", str(tmp_path / "out"), "--per_device_train_batch_size", "1"]
    command += ["--model_init_kwargs", json.dumps({"token": token})]
    status, said, shown = watched(command, tmp_path / "said.txt")
    assert status == 0, said[-3000:]
    assert {"mfpo_trl.train.launch", "mfpo_trl.train"} <= {part for line in shown for part in line.split()}
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) > 20 and not any(token.encode() in own for own in [*written, *map(str.encode, [*shown, said])])
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert {path.name for path in checkpoint.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    # Stages of 2, 1 and 1 rows, three passes each, two rows a step over both processes: 3 + 2 + 2 steps are an epoch.
    assert state["epoch"] == pytest.approx(2 / 7)
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


# Examples


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert len(Path(spec.origin).read_text().splitlines()) < 60
    return module


SMALL = {"use_cpu": True, "max_steps": 2, "report_to": "none", "gradient_accumulation_steps": 1}


def test_train_mfpo_does_what_mfpo_train_does(swapped, tmp_path):
    example("train_mfpo").main(swapped(RECIPES / "llava-1.5" / "7b-mfpo-lora.yaml", tmp_path))
    assert (tmp_path / "adapter_model.safetensors").exists() and (tmp_path / "README.md").exists()


def test_qlora_single_gpu(models, monkeypatch, tmp_path):
    model = tiny.save_pretrained(tmp_path / "model", template=tiny.LLAVA_TEMPLATE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(models[0] / "train.parquet", tmp_path / "data")
    example("qlora_single_gpu").main(model, str(tmp_path / "data"), **SMALL)
    adapter = load_file(tmp_path / "llava-mfpo-qlora" / "adapter_model.safetensors")
    assert {parts.part_of(name) for name in adapter} == {"language model"}


def test_build_and_train(models, tmp_path):
    """Built and trained, then found built and finished."""
    model = tiny.save_pretrained(tmp_path / "model", template=tiny.LLAVA_TEMPLATE)
    build = {"grounder": "random", "difficulty": "mask-area", "progress": False}
    for _ in range(2):
        example("build_and_train").main(
            model, str(models[0] / "train.parquet"), tmp_path / "built", tmp_path / "out", build, **SMALL
        )
    assert (tmp_path / "built" / "report.json").exists()
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
