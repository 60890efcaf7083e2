"""Engines that really run in two processes: 4-bit weights under DDP, ZeRO-3's gathered 16-bit weights, and a rank that is
killed.

`python tests/test_engines.py CASE FOLDER OUTPUT` runs one of the children at the foot of this file.
"""

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from test_distributed import ENGINES, PROCESSES, launch
from transformers import BitsAndBytesConfig, TrainerCallback

from mfpo_trl import MFPOConfig, MFPOTrainer, leaving, train
from mfpo_trl.collator import MFPOCollator

NUMBERS = ("loss", "loss/text", "loss/image", "loss/anchor", "rewards/margins", "rewards/image_margins", "grad_norm")
CPU = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
DOUBLE = {"single quantisation": False, "double quantisation": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights, rows, and accelerate's configuration for DDP."""
    folder = tmp_path_factory.mktemp("engines")
    for name, seed in (("policy", 1), ("reference", 0)):
        tiny.save_pretrained(folder / name, seed=seed, template=tiny.LLAVA_TEMPLATE)
    tiny.dataset(12).to_parquet(folder / "train.parquet")
    (folder / "ddp.json").write_text(json.dumps({**ENGINES["ddp"], **PROCESSES}))
    return folder


def run(command: list, folder: Path) -> subprocess.CompletedProcess:
    """One launch, from the start of its processes to their end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)


def in_two_processes(folder: Path, case: str, output: Path) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", folder / "ddp.json"]
    return run([*launcher, __file__, case, folder, output], folder)


def assert_same(expected: list[dict], found: list[dict], tolerance: float) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected] and expected
    for one, two in zip(expected, found, strict=True):
        for key in NUMBERS:
            assert two[key] == pytest.approx(one[key], rel=tolerance, abs=tolerance / 10), (key, one["step"])


# 4-bit weights


def four_bit(double: bool) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )


def train_four_bit(folder: Path, output: Path, double: bool) -> tuple[MFPOTrainer, list[dict]]:
    """Three steps of four rows over all processes; the same adapter at the start of every run."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    own = {
        "per_device_train_batch_size": 4 // processes,
        "max_steps": 3,
        "learning_rate": 0.5,
        "beta": 0.5,
        "optim": "sgd",
    }
    backend = {"ddp_backend": "gloo"} if processes > 1 else {}
    args = MFPOConfig(str(output), **CPU, **own, **backend, gradient_checkpointing=True, save_strategy="no")
    torch.manual_seed(0)
    trainer = MFPOTrainer(
        model=str(folder / "policy"),
        args=args,
        train_dataset=tiny.dataset(12),
        quantization_config=four_bit(double),
        peft_config=LoraConfig(r=4, target_modules=r".*language_model.*\.(q|v)_proj"),
    )
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            # TRL makes them bfloat16, whose rounding would hide what is compared.
            parameter.data = parameter.data.float()
    trainer.train()
    trainer.save_model()
    return trainer, [line for line in trainer.state.log_history if "loss" in line]


@pytest.fixture(scope="module")
def four_bit_ranks(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("four-bit")
    done = in_two_processes(folder, "four-bit", output)
    assert done.returncode == 0, done.stderr[-3000:]
    return output, [json.loads((output / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", DOUBLE)
def test_four_bit_adapters_train_in_two_processes_like_in_one(folder, four_bit_ranks, tmp_path, name):
    """NF4, gradient checkpointing and DDP; the saved adapter is that of one process and loads on the 4-bit base."""
    output, (first, second) = four_bit_ranks
    alone, history = train_four_bit(folder, tmp_path / "model", DOUBLE[name])
    assert first[name]["history"] == second[name]["history"]
    assert_same(history, first[name]["history"], 1e-4)
    assert history[-1]["loss"] < history[0]["loss"] - 0.01
    for rank in (first, second):
        assert rank[name]["wrapped"] == "DistributedDataParallel" and rank[name]["gradient_checkpointing"]
        quantised = rank[name]["quantised"]
        assert quantised > 14 and rank[name]["nested"] == (quantised if DOUBLE[name] else 0)
    saved, own = (load_file(path / "adapter_model.safetensors") for path in (output / name, tmp_path / "model"))
    assert set(saved) == set(own) and any(value.any() for key, value in saved.items() if "lora_B" in key)
    base = tiny.LlavaForConditionalGeneration.from_pretrained(
        folder / "policy", quantization_config=four_bit(DOUBLE[name])
    )
    # In eval mode bitsandbytes packs weights for CPUs with AVX512-BF16, and fails at layers narrower than its blocks.
    again, trained = PeftModel.from_pretrained(base, output / name).train(), alone.model.train()
    batch = MFPOCollator(tiny.processor())(tiny.rows(2))
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values")}
    with torch.no_grad():
        expected = trained(**inputs).logits
        torch.testing.assert_close(again(**inputs).logits, expected, rtol=1e-3, atol=1e-3)
        with again.disable_adapter():
            assert not torch.allclose(again(**inputs).logits, expected, atol=1e-2)


# Gathered weights


def test_zero3_gathers_16_bit_weights(folder, tmp_path):
    """What is saved is whole, in bfloat16, and what both processes hold together."""
    first, second = launch(tmp_path, folder, 2, "adam", "bf16", "gathered", engine="zero3")
    assert first["history"] == second["history"]
    output = next(tmp_path.glob("zero3-*"))
    gathered = torch.load(output / "gathered.pt")
    with safe_open(output / "model" / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}
        saved = sum(file.get_tensor(name).numel() for name in file.keys())
    model = tiny.LlavaForConditionalGeneration.from_pretrained(output / "model", dtype="auto")
    start = tiny.LlavaForConditionalGeneration.from_pretrained(folder / "policy", dtype=torch.bfloat16).state_dict()
    assert saved == sum(value.numel() for value in start.values()) == sum(value.numel() for value in gathered.values())
    trained = dict(model.named_parameters())
    assert set(trained) == set(gathered)
    for name, value in trained.items():
        assert value.dtype == torch.bfloat16 and torch.equal(value, gathered[name].to(torch.bfloat16)), name
    assert sum(not torch.equal(value, start[name]) for name, value in trained.items()) > len(trained) / 2
    card = (output / "model" / "README.md").read_text()
    assert "- engine: DeepSpeed ZeRO-3" in card and f"- deepspeed: {version('deepspeed')}" in card
    assert f"- trained: {saved:,} parameters of the model" in card and "arithmetic in bfloat16" in card


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


@pytest.fixture(scope="module")
def killed(folder, tmp_path_factory):
    """An uninterrupted run, then one whose second process is killed; the launcher's end."""
    output = tmp_path_factory.mktemp("killed")
    return output, in_two_processes(folder, "kill", output)


def test_the_launcher_ends_when_a_process_is_killed(killed):
    output, done = killed
    assert done.returncode == 1
    assert "Signal 9 (SIGKILL)" in done.stderr and "local_rank: 1" in done.stderr
    found = {path.name for path in (output / "killed").glob("checkpoint-*")}
    assert found == {"checkpoint-2", "checkpoint-4"}
    assert not (output / "killed" / "model.safetensors").exists()
    card = (output / "whole" / "README.md").read_text()
    assert "- engine: DDP (gloo)" in card and ", 2 processes\n" in card
    assert "- steps: 6, each of up to 2 rows (1 a process x 2 processes x 1 accumulated)" in card


def test_a_killed_run_goes_on_as_if_it_had_not_been(killed, folder):
    """The last checkpoint is cut off, as by a kill in mid-write: the same command goes on from the one before it."""
    output, _ = killed
    cut = output / "killed" / "checkpoint-4" / "optimizer.pt"
    os.truncate(cut, cut.stat().st_size // 2)
    launcher = ["--accelerate-config", folder / "ddp.json", "--num-processes", "2"]
    command = [sys.executable, "-m", "mfpo_trl.cli", "train", *launcher, *arguments(folder, output / "killed")]
    done = run([*command, "--resume_from_checkpoint", "true"], folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "checkpoint-4 is not complete (optimizer.pt is cut off): it is skipped" in done.stderr
    assert done.stdout.count("'loss':") == 4  # steps 3 to 6
    whole, again = (
        json.loads((output / name / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
        for name in ("whole", "killed")
    )
    assert_same(whole, again, 1e-5)
    before, after = (load_file(output / name / "model.safetensors") for name in ("whole", "killed"))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-6)


# Children, each in two processes


def four_bit_child(folder: Path, output: Path) -> None:
    report = {}
    for name, double in DOUBLE.items():
        trainer, history = train_four_bit(folder, output / name, double)
        layers = [module for module in trainer.model.modules() if type(module).__name__ == "Linear4bit"]
        report[name] = {
            "history": history,
            "wrapped": type(trainer.model_wrapped).__name__,
            "gradient_checkpointing": trainer.model.is_gradient_checkpointing,
            "quantised": len(layers),
            "nested": sum(layer.weight.quant_state.nested for layer in layers),
        }
    (output / f"rank-{trainer.accelerator.process_index}.json").write_text(json.dumps(report))
    leaving.tear_down(trainer)


def killed_child(folder: Path, output: Path) -> None:
    whole = train.build(*train.parse(arguments(folder, output / "whole")))
    whole.train()
    whole.save_model()
    doomed = train.build(*train.parse(arguments(folder, output / "killed")))
    doomed.add_callback(Kill())
    doomed.train()


if __name__ == "__main__":
    child = {"four-bit": four_bit_child, "kill": killed_child}[sys.argv[1]]
    leaving.run(lambda: child(*map(Path, sys.argv[2:])))
