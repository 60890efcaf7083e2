"""Two real processes that talk through gloo: the same dispreferred images, and the same numbers as one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from mfpo_trl.collator import MFPOCollator

SCRIPT = Path(__file__).parent / "two_processes.py"


def launch(tmp_path, processes: int, *arguments: str) -> list[dict]:
    """Run the script; every rank writes a JSON file."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    output = tmp_path / "-".join([f"ranks-{processes}", *arguments])
    output.mkdir()
    done = subprocess.run(
        [*command, str(SCRIPT), str(output), *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(path.read_text()) for path in sorted(output.glob("rank-*.json"))]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {processes: launch(folder, processes) for processes in (1, 2)}


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


def test_two_processes_fill_one_reference_cache(runs, tmp_path):
    """Each scores its share once, both get all of it, and training goes on as with a live reference."""
    together = launch(tmp_path, 2, "cached")
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
