"""Trainings of any size on the device, and what a step of them takes."""

import gc
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import scaling
import torch
from comparing.worker import LANGUAGE_PART
from datasets import Dataset, load_from_disk
from llava import GEOMETRIES, build_model, build_processor, pairs
from peft import LoraConfig, PeftModel
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration, TrainerCallback
from trl import DPOConfig, DPOTrainer

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl.check.formulas import NF4, Engine, MicroBatch, Training, per_device
from mfpo_trl.check.memory import geometry as counted
from mfpo_trl.check.model import Model

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12}
"""FLOP/s in bfloat16 by the data sheets, without sparsity, by what a card's name holds."""

WAYS: dict[str, dict[str, Any]] = {
    "DPOTrainer": {"trl": True},
    "MFPO flat": {"prefix_sharing": "off"},
    "MFPO packed": {"prefix_sharing": "on"},
    "MFPO packed + cached": {"prefix_sharing": "on", "precompute_ref_log_probs": True},
}


@dataclass(frozen=True)
class Job:
    """A training.

    Args:
        geometry: a name in `llava.GEOMETRIES`.
        way: options of the trainer, a value of `WAYS`.
        bits: 4 for NF4 weights.
        full: train the language part itself and not an adapter.
        pairs: of a micro-batch.
        kernel: of attention.
    """

    geometry: str
    way: dict[str, Any]
    device: str
    dtype: torch.dtype = torch.bfloat16
    bits: int = 16
    full: bool = False
    pairs: int = 4
    rank: int = 64
    kernel: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def model_of(job: Job, folder: Path) -> LlavaForConditionalGeneration:
    """Random weights on the device; in 4 bits by way of files, as a user's come."""
    geometry = GEOMETRIES[job.geometry]
    if job.bits == 16:
        return build_model(geometry, job.device, job.dtype, job.kernel)
    # A folder in main memory where there is one: 14 GB are written and read again.
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else folder) as path:
        build_model(geometry, job.device, job.dtype).save_pretrained(path)
        _free()
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=job.dtype,
        )
        model = LlavaForConditionalGeneration.from_pretrained(
            path, quantization_config=quantization, dtype=job.dtype, device_map={"": job.device}, use_safetensors=True
        )
    for module in model.modules():
        # On a CPU with AVX-512 in bfloat16, bitsandbytes 0.50 packs weights in the first pass without gradients, such as that
        # for a cached reference, and cannot train with them behind it.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def trainer_of(job: Job, folder: Path, rows: list[dict[str, Any]]) -> Any:
    """The trainer of a job on rows."""
    way = dict(job.way)
    trl = way.pop("trl", False)
    cuda = job.device == "cuda"
    half = job.dtype == torch.bfloat16
    fields: dict[str, Any] = {
        "output_dir": str(folder / "output"),
        "per_device_train_batch_size": job.pairs,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "max_length": None,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "use_cpu": not cuda,
        "bf16": half,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **({} if trl else {"corruption": "none", **way}),
        **job.options,
    }
    model = model_of(job, folder)
    if job.full:
        model.requires_grad_(False)
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    adapter = LoraConfig(r=job.rank, lora_alpha=2 * job.rank, target_modules=LANGUAGE_PART)
    return (DPOTrainer if trl else MFPOTrainer)(
        model=model,
        args=(DPOConfig if trl else MFPOConfig)(**fields),
        train_dataset=stored(rows, folder),
        processing_class=build_processor(GEOMETRIES[job.geometry]),
        peft_config=None if job.full else adapter,
    )


def stored(rows: list[dict[str, Any]], folder: Path) -> Dataset:
    """The rows as a data set in a folder of its own, where its reference cache lies too."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "rows"
    Dataset.from_list(rows).save_to_disk(path)
    return load_from_disk(path)


class Clock(TrainerCallback):
    """Times the steps of a training and counts the tokens that go through its language part."""

    def __init__(self, cuda: bool):
        self.cuda = cuda
        self.seconds: list[float] = []
        self.tokens = {"policy": 0, "reference": 0}
        self.peak: int | None = None
        self._last = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.get_input_embeddings().register_forward_hook(self._count)
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        self._last = self._now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = self._now()
        self.seconds.append(now - self._last)
        self._last = now
        if self.cuda:
            self.peak = torch.cuda.max_memory_allocated()

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _count(self, module: Any, inputs: Any, output: Any) -> None:
        self.tokens["policy" if torch.is_grad_enabled() else "reference"] += inputs[0].numel()


def measured(job: Job, steps: int, warm: int = 2) -> dict[str, Any]:
    """Seconds, tokens, peak memory, its estimate and the utilisation of a training's step.

    "utilisation" counts operations as docs/scaling.md does, with the forward that gradient checkpointing repeats; "mfu"
    leaves that out. Both count a live reference's forward, and no attention between tokens.
    """
    geometry = GEOMETRIES[job.geometry]
    with tempfile.TemporaryDirectory() as name:
        trainer = trainer_of(
            replace(job, options={"max_steps": warm + steps, **job.options}),
            Path(name),
            pairs(geometry, job.pairs * (warm + steps)),
        )
        clock = Clock(job.device == "cuda")
        trainer.add_callback(clock)
        loss = trainer.train().training_loss
        times = clock.seconds[warm:]
        median = statistics.median(times)
        tokens = {name: count / (warm + steps) for name, count in clock.tokens.items()}
        model = trainer.accelerator.unwrap_model(trainer.model)
        sizes = counted(Model(model, isinstance(model, PeftModel), []))
        training = Training(
            weight_bytes=job.dtype.itemsize,
            trained_bytes=job.dtype.itemsize if job.full else 2 if job.bits == 4 else 4,
            adapter=not job.full,
            linear_bytes=NF4[True] if job.bits == 4 else None,
        )
        found: dict[str, Any] = {
            "pairs": job.pairs,
            "seconds": {"median": median, "min": min(times), "max": max(times)},
            "tokens": tokens,
            "tokens/s": sum(tokens.values()) / median,
            "loss": loss,
            "peak": clock.peak,
        }
        flops = scaling.step_flops(sizes, training, tokens["policy"]) + 2.0 * sizes.total * tokens["reference"]
        again = 2.0 * sizes.total * tokens["policy"]
        if peak := peak_flops(job.device):
            found |= {"utilisation": flops / median / peak, "mfu": (flops - again) / median / peak}
        if not job.way.get("trl"):
            labels = job.pairs * (2 * geometry.chosen + geometry.rejected)
            estimate = per_device(sizes, training, Engine(), MicroBatch(int(tokens["policy"]), labels))
            found |= {"estimate": estimate.total - estimate.cuda, "parts": estimate.parts()}
            if clock.peak:
                found["estimate error"] = found["estimate"] / clock.peak - 1
    del trainer, model, clock
    _free()
    return found


def peak_flops(device: str) -> float | None:
    """FLOP/s of the card by its data sheet; None where it is not known here."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((value for part, value in PEAKS.items() if part in name), None)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
