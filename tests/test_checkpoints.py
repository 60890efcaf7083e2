"""Checkpoints that were cut off are told from whole ones, by cutting off real ones."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from mfpo_trl import train
from mfpo_trl.checkpoints import last_complete_checkpoint, resume_point, what_is_missing

CPU = ["--use_cpu", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true", "--save_steps", "1"]


def arguments(folder: Path, output: Path, *more: str) -> list[str]:
    data = ["--model_name_or_path", str(folder / "model"), "--dataset_name", str(folder / "train.parquet")]
    settings = ["--max_steps", "3", "--per_device_train_batch_size", "2", "--learning_rate", "0.001"]
    return [*data, "--output_dir", str(output), "--use_peft", *settings, *CPU, *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny.save_pretrained(folder / "model", template=tiny.LLAVA_TEMPLATE)
    tiny.dataset(8).to_parquet(folder / "train.parquet")
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    """Three steps, a checkpoint after each."""
    assert train.main(arguments(folder, folder / "run")) == 0
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy to spoil."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_a_finished_run_is_complete(run):
    assert [what_is_missing(run / f"checkpoint-{step}") for step in (1, 2, 3)] == [None] * 3
    assert last_complete_checkpoint(run) == run / "checkpoint-3"


FILES = (
    "trainer_state.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "training_args.bin",
)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_off_file_is_seen(run, name, caplog):
    halve(run / "checkpoint-3" / name)
    assert what_is_missing(run / "checkpoint-3") == f"{name} is cut off"
    with caplog.at_level(logging.WARNING):
        assert last_complete_checkpoint(run) == run / "checkpoint-2"
    assert "checkpoint-3 is not complete" in caplog.text and "checkpoint-2" not in caplog.text


@pytest.mark.parametrize("name", FILES[:4])
def test_a_missing_file_is_seen(run, name):
    (run / "checkpoint-3" / name).unlink()
    assert name in what_is_missing(run / "checkpoint-3")
    assert last_complete_checkpoint(run) == run / "checkpoint-2"


@pytest.mark.parametrize("kept", [0, 7, 8, 60, -1])
def test_every_length_of_safetensors_but_the_whole_is_cut_off(run, kept):
    path = run / "checkpoint-3" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert what_is_missing(run / "checkpoint-3") == "adapter_model.safetensors is cut off"


def test_steps_count_as_numbers(run):
    (run / "checkpoint-3").rename(run / "checkpoint-10")
    shutil.copytree(run / "checkpoint-1", run / "checkpoint-9")
    (run / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(run) == run / "checkpoint-10"


def test_nothing_to_go_on_from(tmp_path, run):
    assert last_complete_checkpoint(tmp_path / "nowhere") is None
    for step in (1, 2, 3):
        (run / f"checkpoint-{step}" / "trainer_state.json").unlink()
    assert last_complete_checkpoint(run) is None


def test_optimizer_and_scheduler_may_be_left_out_on_purpose(run):
    for name in ("optimizer.pt", "scheduler.pt"):
        (run / "checkpoint-3" / name).unlink()
    assert last_complete_checkpoint(run, save_only_model=True) == run / "checkpoint-3"
    assert last_complete_checkpoint(run) == run / "checkpoint-2"


def test_weights_in_several_files(run):
    checkpoint = run / "checkpoint-3"
    (checkpoint / "adapter_model.safetensors").unlink()
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for shard in shards:
        save_file({shard: torch.ones(3)}, checkpoint / shard)
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {s: s for s in shards}}))
    assert what_is_missing(checkpoint) is None
    (checkpoint / shards[1]).unlink()
    assert what_is_missing(checkpoint) == f"{shards[1]} is missing"


def test_deepspeed_checkpoints(run):
    """DeepSpeed writes `latest` when all processes have written their states."""
    checkpoint = run / "checkpoint-3"
    (checkpoint / "optimizer.pt").unlink()
    states = checkpoint / "global_step3"
    states.mkdir()
    assert what_is_missing(checkpoint) == "DeepSpeed's file 'latest' is missing"
    (checkpoint / "latest").write_text("global_step3")
    assert "has no optimizer states" in what_is_missing(checkpoint)
    for rank in (0, 1):
        torch.save({"a": torch.ones(9)}, states / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    assert what_is_missing(checkpoint) is None
    halve(states / "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    assert "zero_pp_rank_1_mp_rank_00_optim_states.pt is cut off" in what_is_missing(checkpoint)


def test_fsdp_checkpoints(run):
    """Whole states in one file, or sharded ones with `.metadata`, which is written last."""
    checkpoint = run / "checkpoint-3"
    (checkpoint / "optimizer.pt").unlink()
    torch.save({"a": torch.ones(9)}, checkpoint / "pytorch_model_fsdp.bin")
    assert "optimizer.bin is missing" in what_is_missing(checkpoint)
    (checkpoint / "optimizer_0").mkdir()
    assert "optimizer_0/.metadata too" in what_is_missing(checkpoint)
    (checkpoint / "optimizer_0" / ".metadata").write_bytes(b"done")
    assert what_is_missing(checkpoint) is None
    halve(checkpoint / "pytorch_model_fsdp.bin")
    assert "pytorch_model_fsdp.bin is cut off" in what_is_missing(checkpoint)


@pytest.mark.parametrize("value", [None, False, "false", "None"])
def test_no_resuming(run, value, tmp_path, caplog):
    assert resume_point(value, tmp_path) is None and not caplog.text
    assert resume_point(value, run) is None
    assert "has checkpoints of an earlier training. This one begins anew" in caplog.text


def test_what_resuming_may_be_told(run, tmp_path, caplog):
    assert resume_point(True, run) == resume_point("true", run) == str(run / "checkpoint-3")
    assert resume_point(str(run / "checkpoint-1"), run) == str(run / "checkpoint-1")
    with caplog.at_level(logging.WARNING):
        assert resume_point("true", tmp_path / "new") is None
    assert "training starts from the beginning" in caplog.text
    halve(run / "checkpoint-1" / "optimizer.pt")
    with pytest.raises(ValueError, match="optimizer.pt is cut off"):
        resume_point(str(run / "checkpoint-1"), run)


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(run, folder, finished, capsys):
    """Killed while step 3 was written: the same command goes on after step 2 and comes to the same weights."""
    halve(run / "checkpoint-3" / "optimizer.pt")
    (run / "adapter_model.safetensors").unlink()
    assert train.main(arguments(folder, run, "--resume_from_checkpoint", "true")) == 0
    state = json.loads((run / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    again, before = (load_file(path / "adapter_model.safetensors") for path in (run, finished))
    assert all(torch.equal(again[name], value) for name, value in before.items())
    assert what_is_missing(run / "checkpoint-3") is None


def test_a_checkpoint_that_cannot_be_used_is_one_line(run, folder, capsys):
    (run / "checkpoint-2" / "trainer_state.json").unlink()
    argv = arguments(folder, run, "--resume_from_checkpoint", str(run / "checkpoint-2"))
    assert train.main(argv) == 2
    assert "trainer_state.json is missing; give a complete checkpoint" in capsys.readouterr().err
