"""One tool trains in its own environment, step by step when it is told to.

`peers.py` starts this file with the interpreter of a tool's environment, a specification in JSON and a pipe. It must run
where only that tool is installed, so it imports nothing of this repository but what `Tool.MFPO` trains with. The tool's own
command is called with its own options; between the steps of its own `Trainer.train` the process waits, so that no two
tools ever compute at the same time.
"""

import importlib.machinery
import importlib.metadata
import json
import os
import re
import sys
import time
import types
import zlib
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "ms-swift", "llamafactory", "mfpo_trl")
LANGUAGE_PART = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def reply(**message: Any) -> None:
    """One line to the process that started this one."""
    os.write(int(os.environ["PEERS_REPLY"]), (json.dumps(message) + "\n").encode())


def resident(what: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most; 0 where the system does not say."""
    status = Path("/proc/self/status")
    found = re.search(rf"{what}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


class Turns:
    """Lets a training make one step at a time, and reports each.

    Seconds are those from the order to the end of the step: loading a batch, forward, backward and optimizer.
    """

    def __init__(self, trainer: Any):
        from transformers import TrainerCallback

        self.trainer = trainer
        self.step: dict[str, Any] = {"tokens": 0}
        callback = TrainerCallback()
        callback.on_train_begin, callback.on_step_end, callback.on_log = self.begin, self.end, self.log
        trainer.add_callback(callback)
        # A tool may compute the loss in another method: what a step returns is what it trained on.
        original = trainer.training_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            loss = original(*args, **kwargs)
            self.step["loss"] = float(loss)
            return loss

        trainer.training_step = training_step

    def begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        import torch

        start_adapter(model)
        model.get_input_embeddings().register_forward_hook(self.count)
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        self.cuda = torch.cuda.is_available() and not args.use_cpu
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated() if self.cuda else resident("VmRSS")
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
        except OSError:
            pass
        versions = {name: version for name in PACKAGES if (version := _version(name))}
        reply(ready=True, trained=trained, before=self.before, versions=versions)
        self.wait()

    def wait(self) -> None:
        if not sys.stdin.readline():
            os._exit(1)  # whoever gave the orders is gone
        self.step = {"tokens": 0}
        self.started = time.perf_counter(), time.process_time()

    def count(self, module: Any, inputs: Any, output: Any) -> None:
        self.step["tokens"] += inputs[0].numel()

    def end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        import torch

        if self.cuda:
            torch.cuda.synchronize()
        wall, cpu = (
            now - then for now, then in zip((time.perf_counter(), time.process_time()), self.started, strict=True)
        )
        peak = torch.cuda.max_memory_allocated() if self.cuda else resident("VmHWM")
        reply(seconds=wall, cpu=cpu, peak=peak, **self.step)
        self.wait()

    def log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        logps = {name: logs[name] for name in ("logps/chosen", "logps/rejected") if name in logs}
        if logps:
            reply(logged=logps)


def start_adapter(model: Any) -> None:
    """The same adapter for everybody, drawn by the names of its weights: not 0, so that the first loss is not log 2."""
    import torch

    for name, weight in model.named_parameters():
        place = re.search(r"layers\.\d+\..*lora_[AB]", name)
        if not weight.requires_grad or not place:
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(place[0].encode()))
        values = torch.randn(weight.shape, generator=generator) * (
            0.02 if "lora_B" in name else weight.shape[1] ** -0.5
        )
        with torch.no_grad():
            weight.copy_(values)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def train_trl(spec: dict[str, Any], ours: bool = False) -> None:
    from datasets import Image, List, load_dataset
    from peft import LoraConfig
    from transformers import AutoProcessor

    if ours:
        from mfpo_trl import MFPOConfig as Config
        from mfpo_trl import MFPOTrainer as Trainer
    else:
        from trl import DPOConfig as Config
        from trl import DPOTrainer as Trainer
    rows = load_dataset("json", data_files=spec["data"]["trl"], split="train")
    if spec["options"].get("corruption") != "none" and "rejected_images" in rows.column_names:
        rows = rows.remove_columns("rejected_images")
    for column in {"images", "rejected_images"} & set(rows.column_names):
        rows = rows.cast_column(column, List(Image()))
    options = {"loss_type": spec["loss_type"]} if spec.get("loss_type") else {}
    arguments = Config(
        output_dir=spec["output"],
        max_steps=spec["steps"],
        per_device_train_batch_size=spec["batch"],
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
        beta=spec["beta"],
        max_length=None,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        train_sampling_strategy="sequential",
        use_cpu=not spec["cuda"],
        bf16=spec["cuda"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
        model_init_kwargs={"dtype": spec["dtype"]},
        **options,
        **spec["options"],
    )
    trainer = Trainer(
        model=spec["model"],
        args=arguments,
        train_dataset=rows,
        processing_class=AutoProcessor.from_pretrained(spec["model"], use_fast=True),
        peft_config=LoraConfig(r=spec["rank"], lora_alpha=2 * spec["rank"], target_modules=LANGUAGE_PART),
    )
    trainer.train()


def train_mfpo_trl(spec: dict[str, Any]) -> None:
    train_trl(spec, ours=True)


def train_ms_swift(spec: dict[str, Any]) -> None:
    from swift.pipelines import rlhf_main

    options = {
        "rlhf_type": "dpo",
        "model": spec["model"],
        "model_type": "llava1_5_hf",
        "dataset": spec["data"]["ms-swift"],
        "output_dir": spec["output"],
        "torch_dtype": spec["dtype"],
        "bf16": spec["cuda"],
        "fp16": False,
        "tuner_type": "lora",
        "lora_rank": spec["rank"],
        "lora_alpha": 2 * spec["rank"],
        "lora_dropout": 0,
        "target_modules": "all-linear",
        "max_steps": spec["steps"],
        "per_device_train_batch_size": spec["batch"],
        "gradient_accumulation_steps": 1,
        "learning_rate": spec["learning_rate"],
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0,
        "weight_decay": 0,
        "adam_beta2": 0.999,
        "beta": spec["beta"],
        "rpo_alpha": None,
        "loss_type": spec.get("loss_type"),
        "max_length": 8192,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": '{"use_reentrant": false}',
        "split_dataset_ratio": 0,
        "dataset_shuffle": False,
        "train_dataloader_shuffle": False,
        "dataloader_num_workers": 0,
        "dataset_num_proc": 1,
        "attn_impl": "sdpa",
        "use_cpu": not spec["cuda"],
        "eval_strategy": "no",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        **spec["options"],
    }
    rlhf_main([part for name, value in options.items() if value is not None for part in (f"--{name}", _cli(value))])


def _cli(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def train_llamafactory(spec: dict[str, Any]) -> None:
    if not _version("torchaudio"):
        # Imported with the pictures' code; used for sounds only.
        module = types.ModuleType("torchaudio")
        module.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = module
    from llamafactory.train.tuner import run_exp

    folder = Path(spec["data"]["llamafactory"])
    options = {
        "stage": "dpo",
        "do_train": True,
        "model_name_or_path": spec["model"],
        "dataset_dir": str(folder.parent),
        "dataset": folder.stem,
        "template": "llava",
        # Its template for LLaVA begins without the token that begins a sequence, which all others write.
        "default_system": "<s>",
        "output_dir": spec["output"],
        "finetuning_type": "lora",
        "lora_rank": spec["rank"],
        "lora_alpha": 2 * spec["rank"],
        "lora_dropout": 0.0,
        "lora_target": "all",
        "pref_beta": spec["beta"],
        "cutoff_len": 8192,
        "max_steps": spec["steps"],
        "per_device_train_batch_size": spec["batch"],
        "gradient_accumulation_steps": 1,
        "learning_rate": spec["learning_rate"],
        "lr_scheduler_type": "constant",
        "use_reentrant_gc": False,
        "disable_shuffling": True,
        "preprocessing_num_workers": 1,
        "dataloader_num_workers": 0,
        "use_cpu": not spec["cuda"],
        "bf16": spec["cuda"],
        "flash_attn": "sdpa",
        "overwrite_cache": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "plot_loss": False,
        "disable_tqdm": True,
        **({"pref_loss": spec["loss_type"]} if spec.get("loss_type") else {}),
        **spec["options"],
    }
    run_exp(options)


TOOLS = {
    "trl": train_trl,
    "mfpo_trl": train_mfpo_trl,
    "ms-swift": train_ms_swift,
    "llamafactory": train_llamafactory,
}


def main() -> None:
    spec = json.loads(sys.argv[1])
    from transformers import Trainer

    original = Trainer.train

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        Turns(self)
        return original(self, *args, **kwargs)

    Trainer.train = train
    try:
        TOOLS[spec["tool"]](spec)
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        reply(refused=f"{type(error).__name__}: {text}")
        raise
    os._exit(0)


if __name__ == "__main__":
    main()
