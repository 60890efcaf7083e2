"""Two real processes that talk through gloo: the same dispreferred images, and the same numbers as one process.

They are launched with the shipped configurations of `recipes/accelerate`, each once for all of its cases.
"""

from pathlib import Path

import launches
import pytest
import tiny
import torch
from peft import PeftModel
from safetensors.torch import load_file

from mfpo_trl.batch.collator import MFPOCollator

FULL = "packed-adam"
FULL_CACHED = "packed-adam-cached"
LOGITS = "packed-adam-logits"
LORA = "packed-adam-lora-cached-checkpointing"
# TRL's fused LM head gathers FSDP2's sharded weight with `full_tensor()`, whose gradient counts as the same in every process:
# each keeps its shard of its own gradient, and the head is trained on a part of the batch. An adapter leaves the head alone.
CASES = {
    "cpu": ["flat", FULL, FULL_CACHED, LOGITS, LORA],
    "ddp": ["flat", "flat-cached", LOGITS, FULL, LORA],
    "zero2": [LORA, FULL],
    "zero3": ["flat-adam-bf16-gathered", LORA, FULL_CACHED, LOGITS, FULL],
    "multi_node": [LORA],
    "fsdp2": [FULL, FULL_CACHED, LOGITS, LORA],
}
"""What each configuration trains; offloading would compile DeepSpeed's AdamW for minutes."""

RUNS_AS = {
    "ddp": ("DDP (gloo)", "DistributedDataParallel"),
    "zero2": ("DeepSpeed ZeRO-2", "DeepSpeedEngine"),
    "zero3": ("DeepSpeed ZeRO-3", "DeepSpeedEngine"),
    "multi_node": ("DeepSpeed ZeRO-3", "DeepSpeedEngine"),
    "fsdp2": ("FSDP2", "FSDP"),
}


def save_weights(folder: Path) -> None:
    tiny.save_pretrained(folder / "policy", seed=1)
    tiny.save_pretrained(folder / "reference")


def trained(tmp_path_factory, name: str) -> Path:
    """The folder of what a configuration has trained, case by case."""
    weights = launches.shared(tmp_path_factory, "weights", save_weights)
    return launches.shared(tmp_path_factory, name, lambda folder: launches.train(name, weights, folder, *CASES[name]))


@pytest.fixture
def ranks(tmp_path_factory):
    """What each rank wrote down, by configuration and case."""
    return lambda name, case: launches.reports(trained(tmp_path_factory, name), case)[case]


def test_two_processes_train_like_one(ranks):
    """The same global batch of four rows, one of them without an image: the same losses and metrics, on every rank."""
    (alone,), together = ranks("cpu", "flat"), ranks("ddp", "flat")
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


def test_two_processes_fill_one_reference_cache(ranks, tmp_path_factory):
    """Each scores its share once, both get all of it, and training goes on as with a live reference."""
    together = ranks("ddp", "flat-cached")
    parts = list((trained(tmp_path_factory, "ddp") / "flat-cached" / "cache").rglob("part-*.parquet"))
    assert len(parts) == 1 and len(together) == 2
    for live, cached in zip(ranks("ddp", "flat")[0]["history"], together[0]["history"], strict=True):
        for key in ("loss", "loss/text", "loss/image", "loss/anchor", "rewards/margins", "grad_norm"):
            assert cached[key] == pytest.approx(live[key], rel=1e-4, abs=1e-5), key


def test_images_are_the_same_in_every_process(ranks):
    digests = ranks("cpu", "flat")[0]["images"]
    assert len(set(digests.values())) == len(digests) == 8
    for rank in ranks("ddp", "flat"):
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


SHARED_OUT = [(name, case) for name in CASES if name != "cpu" for case in CASES[name] if case.startswith("packed")]


@pytest.mark.parametrize(("name", "case"), SHARED_OUT)
def test_sharded_engines_train_like_one_process(ranks, tmp_path_factory, name, case):
    """Packed rows under DDP, DeepSpeed and FSDP2, with a live and with a cached reference; what is saved loads, and is what one
    process saves."""
    (alone,), together = ranks("cpu", case), ranks(name, case)
    weights = launches.shared(tmp_path_factory, "weights", save_weights)
    assert len(together) == 2 and {rank["layout"] for rank in together} == {"packed row"}
    engine, wrapped = RUNS_AS[name]
    assert all(rank["engine"] == engine and rank["wrapped"].startswith(wrapped) for rank in together)
    for one, two in zip(alone["history"], together[0]["history"], strict=True):
        of_logits = ["loss/token_divergence"] if case == LOGITS else []
        for key in (
            "loss",
            "loss/text",
            "loss/image",
            "loss/anchor",
            "rewards/margins",
            "rewards/image_margins",
            *of_logits,
        ):
            assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-5), key
    if "lora" in case:
        base = tiny.LlavaForConditionalGeneration.from_pretrained(weights / "policy")
        loaded = PeftModel.from_pretrained(base, together[0]["model"]).state_dict()
        saved, expected = (
            load_file(Path(rank["model"]) / "adapter_model.safetensors") for rank in (together[0], alone)
        )
        assert any(value.any() for name, value in loaded.items() if "lora_B" in name)
    else:
        # From files: processes that share weights out write them under other names than one process does.
        saved, expected, start = (
            tiny.LlavaForConditionalGeneration.from_pretrained(path).state_dict()
            for path in (together[0]["model"], alone["model"], weights / "policy")
        )
        assert any(not torch.allclose(value, start[name], atol=5e-3) for name, value in saved.items())
    assert set(saved) == set(expected)
    for at, value in expected.items():
        # A tenth of what Adam moves a weight by in one step.
        torch.testing.assert_close(saved[at], value, rtol=0, atol=1e-3, msg=lambda message, at=at: f"{at}: {message}")


@pytest.mark.parametrize("name", CASES)
def test_no_group_and_no_engine_is_left_behind_a_training(ranks, name):
    """When `mfpo_trl.train.command.train` has returned; a launcher that ends with status 0 has seen all of its processes do so."""
    for rank in ranks(name, CASES[name][-1]):
        # The policy's, and the reference's where it is a model.
        models = 2 if CASES[name][-1] == FULL else 1
        assert rank["group"] is False and rank["engines"] == [True] * (models if "DeepSpeed" in rank["engine"] else 0)
