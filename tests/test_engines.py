"""Engines that really run in two processes: 4-bit weights under DDP, ZeRO-3's gathered 16-bit weights, and a rank that is
killed.

`python tests/test_engines.py FOLDER OUTPUT JOB...` is what each process of a launch does: trainings in 4 bits by their names, and "kill".
"""

import json
import os
import re
import shlex
import shutil
import signal
import sys
from importlib.metadata import version
from pathlib import Path

import launches
import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from test_distributed import save_weights, trained
from transformers import BitsAndBytesConfig, TrainerCallback

from mfpo_trl import MFPOConfig, MFPOTrainer, leaving, train
from mfpo_trl.batch.collator import MFPOCollator

NUMBERS = ("loss", "loss/text", "loss/image", "loss/anchor", "rewards/margins", "rewards/image_margins", "grad_norm")
CPU = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
# What is trained in 4 bits: whether their scales are quantised too, and what the weights are stored as.
QUANTISED = {
    "single quantisation": (False, "uint8"),
    "double quantisation": (True, "uint8"),
    "stored in bfloat16": (True, "bfloat16"),
}
FOUR_BIT = [
    ("ddp", "single quantisation"),
    ("ddp", "double quantisation"),
    ("zero3", "double quantisation"),
    ("zero3", "stored in bfloat16"),
]


def save_data(folder: Path) -> None:
    """Weights, rows, and the shipped configuration for DDP with a free port."""
    for name, seed in (("policy", 1), ("reference", 0)):
        tiny.save_pretrained(folder / name, seed=seed, template=tiny.LLAVA_TEMPLATE)
    tiny.dataset(12).to_parquet(folder / "train.parquet")
    (folder / "ddp.yaml").write_text((launches.CONFIGS / "ddp.yaml").read_text() + "main_process_port: 0\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return launches.shared(tmp_path_factory, "engines", save_data)


def assert_same(expected: list[dict], found: list[dict], tolerance: float) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected] and expected
    for one, two in zip(expected, found, strict=True):
        for key in NUMBERS:
            assert two[key] == pytest.approx(one[key], rel=tolerance, abs=tolerance / 10), (key, one["step"])


# 4-bit weights


def four_bit(double: bool, storage: str) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_quant_storage=storage,
    )


def train_four_bit(folder: Path, output: Path, name: str, use_cpu: bool = True) -> tuple[MFPOTrainer, list[dict]]:
    """Three steps of four rows over all processes; the same adapter at the start of every run."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    own = {
        "per_device_train_batch_size": 4 // processes,
        "max_steps": 3,
        "learning_rate": 0.5,
        "beta": 0.5,
        "optim": "sgd",
    }
    own |= CPU | {"use_cpu": use_cpu} | ({"ddp_backend": "gloo"} if processes > 1 else {})
    args = MFPOConfig(str(output), **own, gradient_checkpointing=True, save_strategy="no")
    torch.manual_seed(0)
    trainer = MFPOTrainer(
        model=str(folder / "policy"),
        args=args,
        train_dataset=tiny.dataset(12),
        quantization_config=four_bit(*QUANTISED[name]),
        peft_config=LoraConfig(r=4, target_modules=r".*language_model.*\.(q|v)_proj"),
    )
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            # TRL makes them bfloat16, whose rounding would hide what is compared.
            parameter.data = parameter.data.float()
    trainer.train()
    trainer.save_model()
    return trainer, [line for line in trainer.state.log_history if "loss" in line]


JOBS = {engine: [name for own, name in FOUR_BIT if own == engine] for engine, _ in FOUR_BIT}
JOBS["ddp"].append("kill")


@pytest.fixture
def launched(folder, tmp_path_factory):
    """The folder of what a configuration has done, with how its launcher ended."""

    def fill(output: Path, engine: str) -> None:
        if engine == "zero3":
            launches.build_deepspeed_extension()
        (done,) = launches.run_warm([*launches.accelerate(engine)[0], __file__, folder, output, *JOBS[engine]])
        assert (done.returncode == 0) == ("kill" not in JOBS[engine]), done.stderr[-3000:]
        (output / "ended.json").write_text(json.dumps([done.returncode, done.stderr]))

    return lambda engine: launches.shared(tmp_path_factory, f"engines-{engine}", lambda output: fill(output, engine))


@pytest.mark.parametrize(("engine", "name"), FOUR_BIT)
def test_four_bit_adapters_train_in_two_processes_like_in_one(folder, launched, tmp_path, engine, name):
    """NF4, gradient checkpointing, and DDP or shares of the 4-bit weights; the saved adapter is that of one process and loads on the
    4-bit base."""
    output = launched(engine)
    first, second = launches.reports(output, name)[name]
    alone, history = train_four_bit(folder, tmp_path / "model", name)
    assert first["history"] == second["history"]
    assert_same(history, first["history"], 1e-4)
    assert history[-1]["loss"] < history[0]["loss"] - 0.01
    double, storage = QUANTISED[name]
    for rank in (first, second):
        assert rank["wrapped"] == {"ddp": "DistributedDataParallel", "zero3": "DeepSpeedEngine"}[engine]
        assert rank["gradient_checkpointing"] and rank["quantised"] > 14
        assert rank["nested"] == (rank["quantised"] if double else 0)
        assert rank["stored"] == [f"torch.{storage}"] and rank["share"] == (0.5 if engine == "zero3" else 1.0)
    saved, own = (load_file(path / "adapter_model.safetensors") for path in (output / name, tmp_path / "model"))
    assert set(saved) == set(own) and any(value.any() for key, value in saved.items() if "lora_B" in key)
    base = tiny.LlavaForConditionalGeneration.from_pretrained(
        folder / "policy", quantization_config=four_bit(double, storage)
    )
    # In eval mode bitsandbytes packs weights for CPUs with AVX512-BF16, and fails at layers narrower than its blocks.
    again, own = PeftModel.from_pretrained(base, output / name).train(), alone.model.train()
    batch = MFPOCollator(tiny.processor())(tiny.rows(2))
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values")}
    with torch.no_grad():
        expected = own(**inputs).logits
        torch.testing.assert_close(again(**inputs).logits, expected, rtol=1e-3, atol=1e-3)
        with again.disable_adapter():
            assert not torch.allclose(again(**inputs).logits, expected, atol=1e-2)


# Gathered weights


def test_zero3_gathers_16_bit_weights(tmp_path_factory):
    """What is saved is whole, in bfloat16, and what both processes hold together."""
    folder, case = trained(tmp_path_factory, "zero3"), "flat-adam-bf16-gathered"
    first, second = launches.reports(folder, case)[case]
    assert first["history"] == second["history"]
    output = folder / case
    weights = launches.shared(tmp_path_factory, "weights", save_weights)
    gathered = torch.load(output / "gathered.pt")
    with safe_open(output / "model" / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}
        saved = sum(file.get_tensor(name).numel() for name in file.keys())
    model = tiny.LlavaForConditionalGeneration.from_pretrained(output / "model", dtype="auto")
    start = tiny.LlavaForConditionalGeneration.from_pretrained(weights / "policy", dtype=torch.bfloat16).state_dict()
    assert saved == sum(value.numel() for value in start.values()) == sum(value.numel() for value in gathered.values())
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(gathered)
    for name, value in parameters.items():
        assert value.dtype == torch.bfloat16 and torch.equal(value, gathered[name].to(torch.bfloat16)), name
    assert sum(not torch.equal(value, start[name]) for name, value in parameters.items()) > len(parameters) / 2
    card = (output / "model" / "README.md").read_text()
    assert "- engine: DeepSpeed ZeRO-3" in card and f"- deepspeed: {version('deepspeed')}" in card
    assert f"- trained: {saved:,} parameters of the model" in card and "arithmetic in bfloat16" in card


# What the recipes' page says


def test_documented_launches_train(folder, tmp_path):
    """Each line of the page that launches with accelerate, told what a CPU needs, trains and ends with status 0."""
    page = (launches.ROOT / "recipes" / "README.md").read_text()
    alone, shared_out = re.findall(r"^accelerate launch (.+)$", page, re.M)
    launch = ["-m", "accelerate.commands.launch"]
    cpu = ["--model_name_or_path", folder / "policy", "--dataset_name", folder / "train.parquet", "--max_steps", "2"]
    cpu += ["--bf16", "false", "--report_to", "none", "--per_device_train_batch_size", "1"]
    cpu += ["--gradient_accumulation_steps", "1"]
    commands = [[*launch, *shlex.split(alone), *cpu, "--use_cpu", "--output_dir", tmp_path / "alone"]]
    launches.build_deepspeed_extension()
    for name in ("zero3", "zero3_offload"):
        assert (launches.ROOT / "recipes" / "deepspeed" / f"{name}.json").exists()
    told = shared_out.replace("--num_processes 8", " ".join(launches.OVERRIDES))
    told = told.replace("RECIPE", "recipes/llava-1.5/7b-mfpo-full.yaml")
    commands += [[*launch, *shlex.split(told), *cpu, "--ddp_backend", "gloo", "--output_dir", tmp_path / "zero3"]]
    for done in launches.run_warm(*commands):
        assert done.returncode == 0, done.stderr[-3000:]
    cards = [(tmp_path / name / "README.md").read_text() for name in ("alone", "zero3")]
    assert "- engine:" not in cards[0] and "- engine: DeepSpeed ZeRO-3\n" in cards[1]
    assert "(1 a process x 2 processes x " in cards[1] and ", 2 processes\n" in cards[1]
    assert (tmp_path / "alone" / "adapter_model.safetensors").exists()
    assert (tmp_path / "zero3" / "model.safetensors").exists()


def test_a_file_for_deepspeed_needs_an_accelerator_in_several_processes(monkeypatch):
    """transformers would count one process, and DeepSpeed assert that batch sizes do not agree."""
    own = {"deepspeed": str(launches.ROOT / "recipes" / "deepspeed" / "zero3.json"), "bf16": False}
    monkeypatch.setenv("WORLD_SIZE", "2")
    for use_cpu in (False, True):
        with pytest.raises(
            ValueError, match="zero3.json' in 2 processes needs an accelerator; on a CPU, start them with"
        ):
            MFPOConfig("out", use_cpu=use_cpu, **own)


# A process that is killed


def arguments(folder: Path, output: Path) -> list[str]:
    """Six steps of one epoch, each of two rows over two processes; a checkpoint after every second step."""
    data = ["--model_name_or_path", str(folder / "policy"), "--dataset_name", str(folder / "train.parquet")]
    steps = ["--max_steps", "6", "--save_steps", "2", "--per_device_train_batch_size", "1", "--learning_rate", "0.001"]
    cpu = ["--use_cpu", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true", "--ddp_backend", "gloo"]
    return [*data, *steps, *cpu, "--logging_steps", "1", "--dtype", "float32", "--output_dir", str(output)]


class Kill(TrainerCallback):
    """What the machine's out-of-memory killer does to the second process, at the end of the fifth of six steps."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 5 and args.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def test_the_launcher_ends_when_a_process_is_killed(launched):
    """A run that is not interrupted has been there before, in the same processes."""
    output = launched("ddp")
    status, said = json.loads((output / "ended.json").read_text())
    assert status == 1 and "Signal 9 (SIGKILL)" in said and "local_rank: 1" in said
    found = {path.name for path in (output / "killed").glob("checkpoint-*")}
    assert found == {"checkpoint-2", "checkpoint-4"}
    assert not (output / "killed" / "model.safetensors").exists()
    card = (output / "whole" / "README.md").read_text()
    assert "- engine: DDP (gloo)" in card and ", 2 processes\n" in card
    assert "- steps: 6, each of up to 2 rows (1 a process x 2 processes x 1 accumulated)" in card


def test_a_killed_run_goes_on_as_if_it_had_not_been(launched, folder, tmp_path):
    """The last checkpoint is cut off, as by a kill in mid-write: the same command goes on from the one before it."""
    output = launched("ddp")
    shutil.copytree(output / "killed", tmp_path / "killed")
    cut = tmp_path / "killed" / "checkpoint-4" / "optimizer.pt"
    os.truncate(cut, cut.stat().st_size // 2)
    launcher = ["--accelerate-config", folder / "ddp.yaml", "--num-processes", "2"]
    command = ["-m", "mfpo_trl.cli", "train", *launcher, *arguments(folder, tmp_path / "killed")]
    (done,) = launches.run_warm([*command, "--resume_from_checkpoint", "true"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "checkpoint-4 is not complete (optimizer.pt is cut off): it is skipped" in done.stderr
    assert done.stdout.count("'loss':") == 4  # steps 3 to 6
    whole, again = (
        json.loads((run / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
        for run in (output / "whole", tmp_path / "killed")
    )
    assert_same(whole, again, 1e-5)
    before, after = (load_file(run / "model.safetensors") for run in (output / "whole", tmp_path / "killed"))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-6)


# What two processes do


def train_and_tell(folder: Path, output: Path, name: str) -> MFPOTrainer:
    deepspeed = "ACCELERATE_USE_DEEPSPEED" in os.environ
    trainer, history = train_four_bit(folder, output / name, name, use_cpu=not deepspeed)
    layers = [module for module in trainer.model.modules() if type(module).__name__ == "Linear4bit"]
    weights = [layer.weight for layer in layers]
    kept, whole = ([getattr(weight, own, weight) for weight in weights] for own in ("ds_tensor", "ds_shape"))
    report = {
        "history": history,
        "wrapped": type(trainer.model_wrapped).__name__,
        "gradient_checkpointing": trainer.model.is_gradient_checkpointing,
        "quantised": len(layers),
        "nested": sum(weight.quant_state.nested for weight in weights),
        "stored": sorted({str(weight.dtype) for weight in weights}),
        "share": sum(weight.numel() for weight in kept) / sum(shape.numel() for shape in whole),
    }
    (output / name / f"rank-{trainer.accelerator.process_index}.json").write_text(json.dumps(report))
    return trainer


def train_and_die(folder: Path, output: Path) -> None:
    whole = train.build(*train.parse(arguments(folder, output / "whole")))
    whole.train()
    whole.save_model()
    doomed = train.build(*train.parse(arguments(folder, output / "killed")))
    doomed.add_callback(Kill())
    doomed.train()


def main(folder: Path, output: Path, *jobs: str) -> None:
    for job in jobs:
        if job == "kill":
            train_and_die(folder, output)
        else:
            trainer = train_and_tell(folder, output, job)
    leaving.tear_down(trainer)


if __name__ == "__main__":
    leaving.run(lambda: main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
