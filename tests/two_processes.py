"""What the distributed tests launch: for each case two steps of training, and the dispreferred images as this rank makes them.

two_processes.py WEIGHTS OUTPUT ENGINE CASE...

ENGINE is plain, deepspeed or fsdp. A case is words with hyphens between them: flat, packed, cached, lora, adam, checkpointing, bf16,
gathered, logits. The last case ends as `mfpo train` does.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import datasets
import tiny
import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from peft import LoraConfig
from transformers import training_args
from trl import ScriptArguments

from mfpo_trl import MFPOConfig, MFPOTrainer, leaving
from mfpo_trl.card import model_card
from mfpo_trl.card.facts import describe_engine
from mfpo_trl.train import command as train

LOGITS = {"text": 1.0, "image": 1.0, "anchor": 1.0, "token_divergence": 0.5}
"""An objective that reads raw logits."""


class InOrder(MFPOTrainer):
    """Rows as they stand, so that two ranks together see what one process sees."""

    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def main(weights: Path, output: Path, engine: str, *cases: str) -> None:
    model_card.write_curves = lambda folder, log_history: None
    destroyed = watch_engines() if engine == "deepspeed" else []
    if engine == "fsdp":
        shard_on_cpu()
    for case in cases:
        folder = output / case
        folder.mkdir(exist_ok=True)
        # A rank's own cache is empty at the start of each case.
        datasets.config.HF_DATASETS_CACHE = folder / "cache"
        trainer = build(weights, folder, engine, set(case.split("-")))
        report = {"engine": describe_engine(trainer.accelerator)}
        if case == cases[-1]:
            train.train(trainer, ScriptArguments(dataset_name="rows"))
        else:
            trainer.train()
            trainer.save_model()
        if "gathered" in case:
            keep_gathered(trainer, folder / "gathered.pt")
            trainer.create_model_card()
        report |= told(trainer) | {"group": torch.distributed.is_initialized(), "engines": ended(trainer, destroyed)}
        (folder / f"rank-{trainer.accelerator.process_index}.json").write_text(json.dumps(report))


def build(weights: Path, folder: Path, engine: str, words: set[str]) -> MFPOTrainer:
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if "bf16" in words:
        # DeepSpeed computes in bfloat16 on a CPU; transformers would look for a GPU.
        training_args.is_torch_bf16_gpu_available = lambda: True
    args = MFPOConfig(
        output_dir=str(folder / "model"),
        # With it, transformers would not hand the model to DeepSpeed.
        use_cpu=engine != "deepspeed",
        bf16="bf16" in words,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        max_steps=2,
        per_device_train_batch_size=4 // world_size,
        learning_rate=1e-2,
        optim="adamw_torch" if "adam" in words else "sgd",
        beta=0.5,
        objective_terms=LOGITS if "logits" in words else None,
        precompute_ref_log_probs="cached" in words,
        prefix_sharing="on" if "packed" in words else "auto",
        gradient_checkpointing="checkpointing" in words,
        ddp_backend="gloo" if world_size > 1 else None,
    )
    images = {"images": lambda n: [] if n % 4 == 3 else [tiny.picture(n, 40 + n)]}
    data = datasets.Dataset.from_list(tiny.rows(8, **images), features=tiny.dataset(1).features)

    def load(name: str) -> tiny.LlavaForConditionalGeneration:
        return tiny.LlavaForConditionalGeneration.from_pretrained(weights / name, dtype=torch.float32)

    policy, lora = load("policy"), "lora" in words
    reference = None if lora else load("reference")
    torch.manual_seed(0)
    return InOrder(
        model=policy,
        ref_model=reference,
        args=args,
        train_dataset=data,
        processing_class=tiny.processor(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if lora else None,
    )


def told(trainer: MFPOTrainer) -> dict:
    rows, dispreferred = tiny.rows(8), trainer.data_collator.dispreferred
    return {
        "world_size": trainer.accelerator.num_processes,
        "layout": trainer.layout.name,
        "history": [line for line in trainer.state.log_history if "loss" in line],
        "images": {
            n: hashlib.sha256(dispreferred(row, row["images"])[0].tobytes()).hexdigest() for n, row in enumerate(rows)
        },
        "model": trainer.args.output_dir,
        "wrapped": type(trainer.model_wrapped).__name__,
    }


def watch_engines() -> list[int]:
    """The engines of DeepSpeed that are destroyed from now on, by their `id`."""
    from deepspeed import DeepSpeedEngine

    destroyed, destroy = [], DeepSpeedEngine.destroy

    def destroy_and_tell(self):
        destroyed.append(id(self))
        destroy(self)

    DeepSpeedEngine.destroy = destroy_and_tell
    return destroyed


def ended(trainer: MFPOTrainer, destroyed: list[int]) -> list[bool]:
    """Whether each engine of a trainer is destroyed."""
    models = [model for model in (trainer.model_wrapped, trainer.ref_model) if "DeepSpeed" in type(model).__name__]
    return [id(model) in destroyed for model in models]


def shard_on_cpu() -> None:
    """Without this, accelerate takes FSDP's settings on a CPU and trains with DDP: it reads them for accelerators only."""
    read = AcceleratorState.__init__

    def read_and_keep(self, *args, fsdp_plugin=None, **options):
        read(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = read_and_keep


def keep_gathered(trainer: MFPOTrainer, path: Path) -> None:
    """The whole weights of ZeRO-3, as DeepSpeed itself puts them together."""
    import deepspeed

    parameters = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        if trainer.is_world_process_zero():
            torch.save({name: value.detach().clone() for name, value in parameters.items()}, path)


if __name__ == "__main__":
    leaving.run(lambda: main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
