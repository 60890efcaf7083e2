"""What `test_distributed.py` launches: two steps of training, and the dispreferred images as this rank makes them."""

import hashlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import tiny
import torch
from datasets import Dataset

from mfpo_trl import MFPOConfig, MFPOTrainer


class InOrder(MFPOTrainer):
    """Rows as they stand, so that two ranks together see what one process sees."""

    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def main(output: Path, cached: bool) -> None:
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    images = {"images": lambda n: [] if n % 4 == 3 else [tiny.picture(n, 40 + n)]}
    data = Dataset.from_list(tiny.rows(8, **images), features=tiny.dataset(1).features)
    args = MFPOConfig(
        output_dir=str(output / "model"),
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        max_steps=2,
        per_device_train_batch_size=4 // world_size,
        learning_rate=1e-2,
        optim="sgd",
        beta=0.5,
        precompute_ref_log_probs=cached,
        ddp_backend="gloo" if world_size > 1 else None,
    )
    policy = tiny.model(1)
    trainer = InOrder(
        model=policy, ref_model=tiny.model(), args=args, train_dataset=data, processing_class=tiny.processor()
    )
    trainer.train()
    rows = tiny.rows(8)
    dispreferred = trainer.data_collator.dispreferred
    digests = {
        n: hashlib.sha256(dispreferred(row, row["images"])[0].tobytes()).hexdigest() for n, row in enumerate(rows)
    }
    report = {
        "world_size": trainer.accelerator.num_processes,
        "history": [line for line in trainer.state.log_history if "loss" in line],
        "images": digests,
    }
    (output / f"rank-{trainer.accelerator.process_index}.json").write_text(json.dumps(report))


main(Path(sys.argv[1]), cached="cached" in sys.argv)
