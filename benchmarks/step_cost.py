"""What a training step costs: TRL's DPO, and MFPO in its layouts, on the same pairs in one run.

    python benchmarks/step_cost.py --geometry llava-1.5-7b    # operations, counted on the meta device
    python benchmarks/step_cost.py --geometry wide            # wall time and memory on a CPU; a language part that dominates
    python benchmarks/step_cost.py --geometry tiny            # the same in seconds
    python benchmarks/step_cost.py --geometry llava-1.5-7b --device cuda [--bits 4]    # measured for real
    python benchmarks/step_cost.py --geometry llava-1.5-7b --methods    # a line for each objective that `mfpo methods` lists

Everybody trains a LoRA on the language part with gradient checkpointing. Wall time and memory are those of the trainers'
own `training_step` on batches of their own collators. Operations are those that PyTorch's FlopCounterMode counts in the
policy's forward and backward and, where it is live, the reference's forward, with the LM head on labelled positions only
for everybody; they need no weights, so any size is counted on any machine.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import Dataset, load_from_disk
from llava import (
    GEOMETRIES,
    LANGUAGE_PART,
    SPECIAL,
    Geometry,
    build_model,
    build_processor,
    pairs,
    six_pairs,
    whole_pairs,
)
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl._trl import Replay
from mfpo_trl.batch import forward
from mfpo_trl.batch.collator import MFPOCollator
from mfpo_trl.batch.packing import FLAT, PACKED_ROW
from mfpo_trl.images.dispreferred import DispreferredImages
from mfpo_trl.objective import PRESETS, BranchName, terms_of
from mfpo_trl.objective.branches import split_batch
from mfpo_trl.objective.terms import branches_read, reads_tokens


@dataclass(frozen=True)
class Way:
    """One way to make a step from pairs: a line of the table."""

    objective: str = "mfpo"
    layout: str = PACKED_ROW
    cached: bool = False
    trl: bool = False

    @property
    def branches(self) -> tuple[BranchName, ...]:
        return branches_read(terms_of(self.objective, None, {}))


BASE, BEST = "TRL DPOTrainer", "MFPO packed + cache"
WAYS = {
    BASE: Way("dpo", layout=FLAT, trl=True),
    "MFPO flat": Way(layout=FLAT),
    "MFPO packed": Way(),
    BEST: Way(cached=True),
    "text only, packed + cache": Way("dpo", cached=True),
}
METHODS = {name: Way(name, cached=not reads_tokens(terms_of(name, None, {}))) for name in PRESETS}
"""A line for each objective as its recipe has it: packed, and with a cached reference where it can have one."""
SIX = (("the same dispreferred image", False), ("a dispreferred image for each chosen one", True))
UNITS = {"operations": ("operations", 1.0), "seconds": ("seconds", 1.0), "memory": ("peak memory, MiB", 2.0**-20)}
LORA = LoraConfig(r=16, lora_alpha=32, target_modules=LANGUAGE_PART)


# Counted without weights


def meta_model(geometry: Geometry) -> Any:
    """The policy on the meta device."""
    model = build_model(geometry, "meta", torch.float32)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    with torch.device("meta"):
        model = get_peft_model(model, LORA, autocast_adapter_dtype=False)
    model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    model.enable_input_require_grads()
    forward.prepare(model, PACKED_ROW)
    # Comparing the number of image tokens with the number of features needs values.
    backbone = model.get_base_model().model
    backbone.get_placeholder_mask = lambda ids, **_: (ids == SPECIAL["<image>"]).unsqueeze(-1)
    return model.train()


def operations(model: Any, way: Way, geometry: Geometry, rows: list[dict[str, Any]]) -> int:
    """Operations of a step on rows."""
    collator = MFPOCollator(
        build_processor(geometry), way.branches, DispreferredImages(corruption="none", kwargs={}), layout=way.layout
    )
    inputs, branches, pairs_ = split_batch(collator(rows))
    pixels = inputs["pixel_values"]
    # TRL encodes the image of chosen and rejected twice.
    same = list(range(len(pixels))) if way.trl else forward.same_images(pixels, [1] * len(pixels))
    # A mask of a meta tensor cannot be derived from its values; its size decides what attention costs.
    height, width = inputs["input_ids"].shape
    inputs["attention_mask"] = torch.ones(height, 1, width, width, dtype=torch.bool)
    kept = ("labels", "shift_labels", "branches", "prefixes")
    inputs = {name: value if name in kept else value.to("meta") for name, value in inputs.items()}
    replay = [Replay(model, inputs, branches, pairs_) for _ in range(2)]
    with (
        FlopCounterMode(display=False) as counter,
        mock.patch.object(forward, "same_images", lambda *_: same),
        # Autocast knows no meta device.
        mock.patch.object(torch, "is_autocast_enabled", lambda *_: False),
    ):
        replay[0].score()
        replay[0].logps.sum().backward()
        if not way.cached:
            with torch.no_grad(), model.disable_adapter():
                replay[1].score()
    return counter.get_total_flops()


# Measured


class Measured:
    """A trainer and a batch of its own collator."""

    def __init__(self, way: Way, model: LlavaForConditionalGeneration, geometry: Geometry, rows: list, folder: Path):
        cuda = model.device.type == "cuda"
        settings = {
            "output_dir": str(folder),
            "per_device_train_batch_size": len(rows),
            "max_length": None,
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
            "use_cpu": not cuda,
            "bf16": cuda,
            "report_to": "none",
            "disable_tqdm": True,
        }
        own = {
            "objective": way.objective,
            "corruption": "none",
            "precompute_ref_log_probs": way.cached,
        }
        own["prefix_sharing"] = "off" if way.layout == FLAT else "on"
        trainer, config = (DPOTrainer, DPOConfig) if way.trl else (MFPOTrainer, MFPOConfig)
        self.trainer = trainer(
            model=model,
            args=config(**settings, **({} if way.trl else own)),
            train_dataset=stored(rows, folder),
            processing_class=build_processor(geometry),
            peft_config=LORA,
        )
        # What `train` does before its first step.
        self.trainer.current_gradient_accumulation_steps = 1
        self.trainer.model.activation_checkpointing_enable(settings["gradient_checkpointing_kwargs"])
        self.batch = next(iter(self.trainer.get_train_dataloader()))

    def __call__(self) -> None:
        self.trainer.training_step(self.trainer.model, dict(self.batch))
        self.trainer.model.zero_grad()

    def seconds(self) -> float:
        start = time.perf_counter()
        self()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def memory(self) -> int:
        """Bytes that a step holds at most beside what lay there before it, the weights and the batch."""
        if self.trainer.model.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self()
            return torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self()
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            profiler.export_chrome_trace(file.name)
            events = json.loads(Path(file.name).read_text(encoding="utf-8"))["traceEvents"]
        events = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
        return max(accumulate(event["args"]["Bytes"] for event in events))


def stored(rows: list, folder: Path) -> Dataset:
    """The rows as a data set in a folder of its own, where its reference cache lies too."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "rows"
    Dataset.from_list(rows).save_to_disk(path)
    return load_from_disk(path)


def measured(
    asked: dict[str, Way], geometry: Geometry, rows: list, device: str, bits: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds, the median of rounds in which the ways take turns, and peak memory of a step, by way."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:

        def model() -> LlavaForConditionalGeneration:
            return _model(geometry, device, bits, Path(folder))

        ways = {name: Measured(way, model(), geometry, rows, Path(folder)) for name, way in asked.items()}
        rounds = [{name: way.seconds() for name, way in ways.items()} for _ in range(repeats + 1)][1:]
        for name in ways:
            found[name] = {"seconds": statistics.median(times[name] for times in rounds)}
        for name, way in ways.items():
            found[name]["memory"] = way.memory()
    return found


def _model(geometry: Geometry, device: str, bits: int, folder: Path) -> LlavaForConditionalGeneration:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if bits == 16:
        return build_model(geometry, device, dtype)
    path = folder / "weights"
    if not path.exists():
        build_model(geometry, device, dtype).save_pretrained(path)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return LlavaForConditionalGeneration.from_pretrained(
        path, quantization_config=quantization, dtype=dtype, device_map={"": device}, use_safetensors=True
    )


# Shown


def show(title: str, report: dict[str, dict[str, float]], bases: Sequence[str] = (BASE,)) -> None:
    """One table: each figure and its ratio to those of `bases`, in their order."""
    table = Table(title=title)
    columns = [name for name in UNITS if name in report[bases[0]]]
    table.add_column("a pair" if len(bases) == 1 else f"a pair (ratio to {', to '.join(bases)})")
    for column, (heading, _) in UNITS.items():
        table.add_column(heading if column in columns else f"{heading}: not measured", justify="right")
    for name, values in report.items():
        cells = ["-" for _ in UNITS]
        for place, (column, (_, unit)) in enumerate(UNITS.items()):
            if column in columns:
                ratios = ", ".join(f"{values[column] / report[base][column]:.3f}" for base in bases)
                cells[place] = f"{values[column] * unit:.4g} ({ratios})"
        table.add_row(name, *cells)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bits", type=int, choices=(16, 4), default=16, help="4: weights in NF4 (bitsandbytes)")
    parser.add_argument("--pairs", type=int, default=1, help="pairs in a micro-batch")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument(
        "--methods", action="store_true", help="a line for each objective in place of the ways to make a step"
    )
    parser.add_argument("--output", type=Path, help="write the tables as JSON")
    args = parser.parse_args()
    geometry = GEOMETRIES[args.geometry]
    asked, make = (METHODS, whole_pairs) if args.methods else (WAYS, pairs)
    model, rows = meta_model(geometry), make(geometry, args.pairs)
    report = {name: {"operations": operations(model, way, geometry, rows)} for name, way in asked.items()}
    if not args.geometry.startswith("llava") or args.device == "cuda":
        for name, values in measured(asked, geometry, rows, args.device, args.bits, args.repeats).items():
            report[name] |= values
    for values in report.values():
        values |= {name: values[name] / args.pairs for name in ("operations", "seconds") if name in values}
    title = f"{args.geometry}, {args.pairs} pair(s) a step, {args.device}"
    tables = {title: report} if not args.methods else {f"objectives, packed, {title}": report}
    for title, own in SIX if not args.methods else ():
        six = six_pairs(geometry, own)
        tables[f"six pairs from four responses, {title}"] = {
            name: {"operations": operations(model, WAYS[name], geometry, six) / 6} for name in (BASE, BEST)
        }
    for title, table in tables.items():
        show(title, table, ("dpo", "mfpo") if args.methods else (BASE,))
    if args.output:
        args.output.write_text(json.dumps(tables, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
