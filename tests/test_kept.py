"""What an earlier state of this package has written is still read: a checkpoint is gone on from, a reference cache is used.

`python tests/test_kept.py` writes `tests/kept` anew, which is for a change that means to break with it.
"""

import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
import tiny
from datasets import Value, load_from_disk
from peft import LoraConfig

from mfpo_trl import MFPOConfig, MFPOTrainer

KEPT = Path(__file__).parent / "kept"
WRITTEN = ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt")
"""Of a checkpoint, beside the trainer's state."""


def trainer(folder: Path) -> MFPOTrainer:
    args = MFPOConfig(
        str(folder / "trained"),
        max_steps=4,
        save_steps=2,
        logging_steps=1,
        per_device_train_batch_size=2,
        learning_rate=0.1,
        beta=0.5,
        curriculum="staged",
        precompute_ref_log_probs=True,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    return MFPOTrainer(
        tiny.model(),
        args=args,
        train_dataset=load_from_disk(folder / "rows"),
        processing_class=tiny.processor(),
        peft_config=LoraConfig(target_modules=["q_proj"], r=2),
    )


def losses(state: dict) -> list[float]:
    return [line["loss"] for line in state["log_history"] if "loss" in line]


def test_a_training_goes_on_from_what_was_kept(tmp_path, caplog):
    shutil.copytree(KEPT, tmp_path, dirs_exist_ok=True)
    with caplog.at_level(logging.INFO, "mfpo_trl"):
        own = trainer(tmp_path)
    assert "The reference of train_dataset is taken from" in caplog.text and "computed again" not in caplog.text
    own.train(resume_from_checkpoint=str(tmp_path / "trained" / "checkpoint-2"))
    whole = json.loads((KEPT / "whole.json").read_text())
    assert losses(vars(own.state)) == pytest.approx(losses(whole), rel=1e-3) and len(losses(whole)) == 4


def write() -> None:
    shutil.rmtree(KEPT, ignore_errors=True)
    features = tiny.BOXES | {"difficulty": Value("float32")}
    difficult = tiny.dataset(8, features, difficulty=float, key_regions=tiny.boxes)
    difficult.save_to_disk(KEPT / "rows")
    own = trainer(KEPT)
    own.train()
    own.state.save_to_json(KEPT / "whole.json")
    for path in (KEPT / "trained").glob("[!c]*"):
        path.unlink()
    shutil.rmtree(KEPT / "trained" / "checkpoint-4")
    for path in (KEPT / "trained" / "checkpoint-2").iterdir():
        if path.name not in (*WRITTEN, "trainer_state.json"):
            path.unlink()


if __name__ == "__main__":
    sys.exit(write())
