"""What the curriculum's tests launch in two processes: the rows that this rank sees in each optimizer step, case by case.

two_processes_staged.py OUTPUT
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import datasets
from test_staged import losses, trainer_of

from mfpo_trl import leaving


def main(output: Path) -> None:
    rank = int(os.environ["RANK"])
    datasets.config.HF_DATASETS_CACHE = output / "cache"
    common = {"per_device_train_batch_size": 1, "ddp_backend": "gloo"}
    report = {}
    for accumulation in (1, 2):
        for drop_last in (False, True):
            own = {"gradient_accumulation_steps": accumulation, "dataloader_drop_last": drop_last}
            trainer = trainer_of(output / "plain", **common, **own)
            trainer.train()
            report[f"{accumulation}-{drop_last}"] = trainer.seen
    # A second pass over the second stage begins inside of it; the reference changes between stages.
    saving = {
        "save_strategy": "steps",
        "save_steps": 1,
        "curriculum_epochs": [1, 2, 1],
        "curriculum_reference": "stage",
    }
    whole = trainer_of(output / "saved", lora=True, precompute_ref_log_probs=True, **common, **saving)
    whole.train()
    report |= {"whole": whole.seen, "losses": losses(whole)}
    for step in (1, 3, 6):
        again = trainer_of(output / "saved", lora=True, precompute_ref_log_probs=True, **common, **saving)
        again.train(resume_from_checkpoint=str(output / "saved" / f"checkpoint-{step}"))
        report |= {f"resumed-{step}": again.seen, f"losses-{step}": losses(again)}
    (output / f"rank-{rank}.json").write_text(json.dumps(report))
    leaving.tear_down(again)


if __name__ == "__main__":
    leaving.run(lambda: main(Path(sys.argv[1])))
