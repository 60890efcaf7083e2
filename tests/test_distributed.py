"""Two real processes that talk through gloo: the same dispreferred images, and the same numbers as one process."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import tiny
import torch
from peft import PeftModel
from safetensors.torch import load_file

from mfpo_trl.collator import MFPOCollator

SCRIPT = Path(__file__).parent / "two_processes.py"
# Each launch takes a free port: two that begin at once would both find the usual one free, and meet there.
PROCESSES = {
    "num_processes": 2,
    "num_machines": 1,
    "mixed_precision": "no",
    "use_cpu": True,
    "main_process_port": 0,
}
ENGINES = {
    "ddp": {"distributed_type": "MULTI_GPU"},
    "zero2": {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2}},
    "zero3": {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"zero_stage": 3, "zero3_init_flag": True, "zero3_save_16bit_model": True},
    },
    "fsdp2": {
        "distributed_type": "FSDP",
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_reshard_after_forward": True,
            "fsdp_state_dict_type": "FULL_STATE_DICT",
            # accelerate would look for every class that CLIP must not be split at, and a LLaVA has no CLIPTextEmbeddings.
            "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer,CLIPEncoderLayer",
        },
    },
}

RUNS_AS = {
    "ddp": ("DDP (gloo)", "DistributedDataParallel"),
    "zero2": ("DeepSpeed ZeRO-2", "DeepSpeedEngine"),
    "zero3": ("DeepSpeed ZeRO-3", "DeepSpeedEngine"),
    "fsdp2": ("FSDP2", "FSDP"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    tiny.save_pretrained(folder / "policy", seed=1)
    tiny.save_pretrained(folder / "reference")
    return folder


@cache
def build_deepspeed_extension() -> None:
    """DeepSpeed compiles its communication at the first start; here before two processes ask for it at once. Minutes the
    first time, nothing more than an import later."""
    code = "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder; ShareMemCommBuilder().load(verbose=False)"
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def launch(folder, weights, processes: int, *flags: str, engine: str | None = None) -> list[dict]:
    """Run the script; every rank writes a JSON file."""
    command = [sys.executable]
    if engine:
        if "zero" in engine:
            build_deepspeed_extension()
        config = folder / f"{engine}.json"
        config.write_text(json.dumps({**ENGINES[engine], **PROCESSES}))
        command += ["-m", "accelerate.commands.launch", "--config_file", str(config)]
    elif processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "HF_DATASETS_CACHE": str(folder / "cache"),
    }
    output = folder / "-".join([engine or f"ranks-{processes}", *flags])
    own = {"zero2": ["deepspeed"], "zero3": ["deepspeed"], "fsdp2": ["fsdp"]}.get(engine, [])
    output.mkdir()
    command += [str(SCRIPT), str(weights), str(output), *flags, *own]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(path.read_text()) for path in sorted(output.glob("rank-*.json"))]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, weights):
    folder = tmp_path_factory.mktemp("runs")
    return {processes: launch(folder, weights, processes) for processes in (1, 2)}


def test_two_processes_train_like_one(runs):
    """The same global batch of four rows, one of them without an image: the same losses and metrics, on every rank."""
    (alone,), together = runs[1], runs[2]
    assert len(together) == 2 and together[0]["world_size"] == 2 and alone["world_size"] == 1
    assert together[0]["history"] == together[1]["history"]
    for one, two in zip(alone["history"], together[0]["history"], strict=True):
        for key in (
            "loss",
            "loss/text",
            "loss/image",
            "loss/anchor",
            "rewards/margins",
            "rewards/image_margins",
            "grad_norm",
        ):
            assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-5), key


def test_two_processes_fill_one_reference_cache(runs, tmp_path, weights):
    """Each scores its share once, both get all of it, and training goes on as with a live reference."""
    together = launch(tmp_path, weights, 2, "cached")
    parts = list((tmp_path / "cache").rglob("part-*.parquet"))
    assert len(parts) == 1 and len(together) == 2
    for live, cached in zip(runs[2][0]["history"], together[0]["history"], strict=True):
        for key in ("loss", "loss/text", "loss/image", "loss/anchor", "rewards/margins", "grad_norm"):
            assert cached[key] == pytest.approx(live[key], rel=1e-4, abs=1e-5), key


def test_images_are_the_same_in_every_process(runs):
    digests = runs[1][0]["images"]
    assert len(set(digests.values())) == len(digests) == 8
    for rank in runs[2]:
        assert rank["images"] == digests


def test_images_are_the_same_with_and_without_workers():
    rows, collator = tiny.rows(8), MFPOCollator(tiny.processor())
    batches = [
        [
            batch["pixel_values"]
            for batch in torch.utils.data.DataLoader(rows, 2, collate_fn=collator, num_workers=workers)
        ]
        for workers in (0, 2)
    ]
    assert all(torch.equal(one, two) for one, two in zip(*batches, strict=True))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, weights):
    folder = tmp_path_factory.mktemp("alone")
    return {flags: launch(folder, weights, 1, *flags) for flags in (FULL, FULL_CACHED, LORA)}


FULL = ("adam", "packed")
FULL_CACHED = (*FULL, "cached")
LORA = (*FULL, "lora", "cached", "checkpointing")
# TRL's fused LM head gathers FSDP2's sharded weight with `full_tensor()`, whose gradient counts as the same in every process:
# each keeps its shard of its own gradient, and the head is trained on a part of the batch. An adapter leaves the head alone.
CASES = [
    *((engine, flags) for engine in ENGINES for flags in (FULL, LORA)),
    ("zero3", FULL_CACHED),
    ("fsdp2", FULL_CACHED),
]


@pytest.mark.parametrize(("engine", "flags"), CASES, ids=lambda value: value if value in ENGINES else "-".join(value))
def test_sharded_engines_train_like_one_process(alone, tmp_path, weights, engine, flags):
    """Packed rows under DDP, DeepSpeed and FSDP2, with a live and with a cached reference; what is saved loads, and is what one
    process saves."""
    together = launch(tmp_path, weights, 2, *flags, engine=engine)
    assert len(together) == 2 and {rank["layout"] for rank in together} == {"packed row"}
    engine_name, wrapped = RUNS_AS[engine]
    assert all(rank["engine"] == engine_name and rank["wrapped"].startswith(wrapped) for rank in together)
    for one, two in zip(alone[flags][0]["history"], together[0]["history"], strict=True):
        for key in ("loss", "loss/text", "loss/image", "loss/anchor", "rewards/margins", "rewards/image_margins"):
            assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-5), key
    if "lora" in flags:
        base = tiny.LlavaForConditionalGeneration.from_pretrained(weights / "policy")
        loaded = PeftModel.from_pretrained(base, together[0]["model"]).state_dict()
        saved, expected = (
            load_file(Path(rank["model"]) / "adapter_model.safetensors") for rank in (together[0], alone[flags][0])
        )
        assert any(value.any() for name, value in loaded.items() if "lora_B" in name)
    else:
        # From files: processes that share weights out write them under other names than one process does.
        saved, expected, start = (
            tiny.LlavaForConditionalGeneration.from_pretrained(path).state_dict()
            for path in (together[0]["model"], alone[flags][0]["model"], weights / "policy")
        )
        assert any(not torch.allclose(value, start[name], atol=5e-3) for name, value in saved.items())
    assert set(saved) == set(expected)
    for name, value in expected.items():
        # A tenth of what Adam moves a weight by in one step.
        torch.testing.assert_close(
            saved[name], value, rtol=0, atol=1e-3, msg=lambda message, at=name: f"{at}: {message}"
        )
