"""What the distributed tests launch: two steps of training, and the dispreferred images as this rank makes them.

two_processes.py WEIGHTS OUTPUT [cached] [lora] [adam] [packed] [checkpointing] [bf16] [gathered] [deepspeed] [fsdp]
"""

import hashlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import tiny
import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from datasets import Dataset
from peft import LoraConfig
from transformers import training_args

from mfpo_trl import MFPOConfig, MFPOTrainer, leaving
from mfpo_trl.card_facts import describe_engine


class InOrder(MFPOTrainer):
    """Rows as they stand, so that two ranks together see what one process sees."""

    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def main(weights: Path, output: Path, flags: set[str]) -> None:
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if "bf16" in flags:
        # DeepSpeed computes in bfloat16 on a CPU; transformers would look for a GPU.
        training_args.is_torch_bf16_gpu_available = lambda: True
    if "fsdp" in flags:
        shard_on_cpu()
    images = {"images": lambda n: [] if n % 4 == 3 else [tiny.picture(n, 40 + n)]}
    data = Dataset.from_list(tiny.rows(8, **images), features=tiny.dataset(1).features)
    args = MFPOConfig(
        output_dir=str(output / "model"),
        # With it, transformers would not hand the model to DeepSpeed.
        use_cpu="deepspeed" not in flags,
        bf16="bf16" in flags,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        max_steps=2,
        per_device_train_batch_size=4 // world_size,
        learning_rate=1e-2,
        optim="adamw_torch" if "adam" in flags else "sgd",
        beta=0.5,
        precompute_ref_log_probs="cached" in flags,
        prefix_sharing="on" if "packed" in flags else "auto",
        gradient_checkpointing="checkpointing" in flags,
        ddp_backend="gloo" if world_size > 1 else None,
    )

    def load(name: str) -> tiny.LlavaForConditionalGeneration:
        return tiny.LlavaForConditionalGeneration.from_pretrained(weights / name, dtype=torch.float32)

    policy, lora = load("policy"), "lora" in flags
    reference = None if lora else load("reference")
    torch.manual_seed(0)
    trainer = InOrder(
        model=policy,
        ref_model=reference,
        args=args,
        train_dataset=data,
        processing_class=tiny.processor(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if lora else None,
    )
    trainer.train()
    rows = tiny.rows(8)
    dispreferred = trainer.data_collator.dispreferred
    digests = {
        n: hashlib.sha256(dispreferred(row, row["images"])[0].tobytes()).hexdigest() for n, row in enumerate(rows)
    }
    report = {
        "world_size": trainer.accelerator.num_processes,
        "layout": trainer.layout.name,
        "history": [line for line in trainer.state.log_history if "loss" in line],
        "images": digests,
        "model": args.output_dir,
        "engine": describe_engine(trainer.accelerator),
        "wrapped": type(trainer.model_wrapped).__name__,
    }
    (output / f"rank-{trainer.accelerator.process_index}.json").write_text(json.dumps(report))
    trainer.save_model()
    if "gathered" in flags:
        keep_gathered(trainer, output / "gathered.pt")
        trainer.create_model_card()
    leaving.tear_down(trainer)


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


leaving.run(lambda: main(Path(sys.argv[1]), Path(sys.argv[2]), set(sys.argv[3:])))
