"""What a training step costs: TRL's DPO, and MFPO in its layouts, on the same pairs in one run.

    python benchmarks/step_cost.py --geometry llava-1.5-7b    # operations, counted on the meta device
    python benchmarks/step_cost.py --geometry wide            # wall time on a CPU, a language part that dominates
    python benchmarks/step_cost.py --geometry tiny            # both, in seconds
    python benchmarks/step_cost.py --geometry llava-1.5-7b --device cuda    # measured for real, random weights

A step is the policy's forward and backward and, where it is live, the reference's forward, of a LoRA on the language part
with gradient checkpointing. Losses are left out: they cost nothing beside it. DPO's rows are those of `DPOTrainer`: each
image and prompt twice. Operations are those that PyTorch's FlopCounterMode counts, with the LM head on labelled positions
only for everybody.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from trl.trainer.utils import add_fused_lm_head

from mfpo_trl import forward
from mfpo_trl._trl import Replay
from mfpo_trl.collator import LAYOUTS, Branch, EncodedPrompt
from mfpo_trl.packing import FLAT, PACKED_ROW


@dataclass(frozen=True)
class Geometry:
    """Sizes of a LLaVA and of a preference pair; the image's tokens are among the prompt's."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    vision_hidden: int
    vision_layers: int
    image_size: int
    prompt: int
    chosen: int
    rejected: int

    @property
    def image_tokens(self) -> int:
        return (self.image_size // 14) ** 2


GEOMETRIES = {
    "tiny": Geometry(64, 172, 2, 4, 320, 32, 2, 56, 40, 12, 9),
    "wide": Geometry(512, 1376, 6, 8, 2000, 64, 2, 336, 636, 90, 80),
    "llava-1.5-7b": Geometry(4096, 11008, 32, 32, 32064, 1024, 24, 336, 636, 90, 80),
}

IMAGE_TOKEN = 4


def build(geometry: Geometry, device: str, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """A LoRA on the language part of a LLaVA with random weights; only on the meta device it has none."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=geometry.image_size,
            patch_size=14,
            hidden_size=geometry.vision_hidden,
            intermediate_size=4 * geometry.vision_hidden,
            num_hidden_layers=geometry.vision_layers,
            num_attention_heads=max(geometry.vision_hidden // 64, 1),
            projection_dim=geometry.vision_hidden,
        ),
        text_config=LlamaConfig(
            vocab_size=geometry.vocabulary,
            hidden_size=geometry.hidden,
            intermediate_size=geometry.intermediate,
            num_hidden_layers=geometry.layers,
            num_attention_heads=geometry.heads,
            max_position_embeddings=4096,
        ),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=geometry.image_tokens,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
    )
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    with torch.device(device):
        model = LlavaForConditionalGeneration(config).to(dtype)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    lora = LoraConfig(
        r=16, target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    )
    with torch.device(device):
        model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": device != "meta"})
    model.enable_input_require_grads()
    return model.train()


Sample = dict[str, Branch]


def samples(geometry: Geometry, pairs: int) -> list[Sample]:
    """Pairs on images and prompts of their own."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> Tensor:
        return torch.randint(10, geometry.vocabulary, (count,), generator=generator)

    def prompt(text: Tensor) -> EncodedPrompt:
        tokens = torch.cat([torch.full((geometry.image_tokens,), IMAGE_TOKEN), text])
        pixels = torch.randn(1, 3, geometry.image_size, geometry.image_size, generator=generator)
        return EncodedPrompt({"input_ids": tokens}, {"pixel_values": pixels})

    found = []
    for _ in range(pairs):
        text = ids(geometry.prompt - geometry.image_tokens)
        clean, corrupted = prompt(text), prompt(text)
        chosen, rejected = ids(geometry.chosen).tolist(), ids(geometry.rejected).tolist()
        found.append(
            {
                "chosen": Branch(clean, chosen),
                "rejected": Branch(clean, rejected),
                "corrupted": Branch(corrupted, chosen),
            }
        )
    return found


def six_pairs(geometry: Geometry, own_images: bool) -> list[Sample]:
    """Four responses to one image and prompt, ranked into six pairs; each chosen one with a dispreferred image of its own
    or all with the same."""
    several = samples(geometry, 4)
    clean, text = several[0]["chosen"].prompt, several[0]["chosen"].prompt.tokens
    answers = [sample["chosen"].completion[: geometry.chosen - 3 * n] for n, sample in enumerate(several)]
    images = [EncodedPrompt(text, sample["corrupted"].prompt.vision) for sample in several]
    return [
        {
            "chosen": Branch(clean, answers[i]),
            "rejected": Branch(clean, answers[j]),
            "corrupted": Branch(images[i if own_images else 0], answers[i]),
        }
        for i in range(4)
        for j in range(i + 1, 4)
    ]


def laid(data: list[Sample], names: tuple[str, ...], layout: str) -> dict[str, Tensor]:
    """The batch of these branches; packed rows hold each distinct branch once."""
    branches: list[Branch] = []
    known = set()
    for name in names:
        for sample in data:
            same = (sample[name].prompt.identity, tuple(sample[name].completion))
            if layout == FLAT or same not in known:
                branches.append(sample[name])
            known.add(same)
    return LAYOUTS[layout](branches, 0)


class Step:
    """One way to make a step from the same pairs."""

    def __init__(self, model, batch: dict[str, Tensor], live: bool, device: str, dtype: torch.dtype, once: bool):
        self.model, self.live, self.meta = model, live, device == "meta"
        tables = {name: batch.pop(name) for name in ("branches", "prefixes") if name in batch}
        labels = {name: batch.pop(name) for name in ("labels", "shift_labels") if name in batch}
        pixels = batch["pixel_values"]
        self.same = forward.same_images(pixels, [1] * len(pixels)) if once else list(range(len(pixels)))
        batch["pixel_values"] = pixels.to(dtype)
        if device == "meta":
            # A mask of a meta tensor cannot be derived from its values; the size decides what attention costs.
            rows, width = batch["input_ids"].shape
            batch["attention_mask"] = torch.ones(rows, 1, width, width, dtype=torch.bool)
        inputs = {name: value.to(device) for name, value in batch.items()} | labels
        if "prefixes" in tables:
            inputs |= tables
        if device == "cuda":
            inputs = {name: value.to(device) for name, value in inputs.items()}
            tables = {name: value.to(device) for name, value in tables.items()}
        self.inputs, self.branches = inputs, tables["branches"]

    def score(self) -> Tensor:
        replay = Replay(self.model, self.inputs, self.branches, None)
        # Meta tensors have no values to compare, and autocast knows no such device.
        autocast = mock.patch.object(torch, "is_autocast_enabled", lambda *_: False)
        with mock.patch.object(forward, "same_images", lambda *_: self.same):
            with autocast if self.meta else nullcontext():
                replay.score()
        return replay.logps

    def __call__(self) -> None:
        self.score().sum().backward()
        if self.live:
            with torch.no_grad(), self.model.disable_adapter():
                self.score()


def steps(geometry: Geometry, data: list[Sample], device: str, dtype: torch.dtype) -> dict[str, Step]:
    """The rows of the table."""
    model = build(geometry, device, dtype)
    forward.prepare(model, packed=True)
    if device == "meta":
        # Comparing the number of image tokens with the number of features needs values.
        backbone = model.get_base_model().model
        backbone.get_placeholder_mask = lambda ids, inputs_embeds, image_features: (ids == IMAGE_TOKEN).unsqueeze(-1)
    text, every = ("chosen", "rejected"), ("chosen", "rejected", "corrupted")
    plan = {
        "TRL DPOTrainer": (text, FLAT, True, False),
        "MFPO flat": (every, FLAT, True, True),
        "MFPO packed": (every, PACKED_ROW, True, True),
        "MFPO packed + cache": (every, PACKED_ROW, False, True),
        "text only, packed + cache": (text, PACKED_ROW, False, True),
    }
    return {
        name: Step(model, laid(data, branches, layout), live, device, dtype, once)
        for name, (branches, layout, live, once) in plan.items()
    }


def operations(step: Callable[[], None]) -> int:
    """What FlopCounterMode counts."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def seconds(ways: dict[str, Step], repeats: int) -> dict[str, float]:
    """The median of each way's times, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(repeats + 1):
        for name, step in ways.items():
            start = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name] += [time.perf_counter() - start] if round_ else []
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(step: Callable[[], None]) -> int:
    """Bytes that a step holds at most on the GPU."""
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pairs", type=int, default=1, help="pairs in a micro-batch")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--output", type=Path, help="write the table as JSON")
    args = parser.parse_args()
    geometry = GEOMETRIES[args.geometry]
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    counted = steps(geometry, samples(geometry, args.pairs), "meta", torch.float32)
    report = {name: {"operations": operations(step) / args.pairs} for name, step in counted.items()}
    measured = args.geometry != "llava-1.5-7b" or args.device == "cuda"
    if measured:
        ways = steps(geometry, samples(geometry, args.pairs), args.device, dtype)
        for name, value in seconds(ways, args.repeats).items():
            report[name]["seconds"] = value / args.pairs
        if args.device == "cuda":
            for name, step in ways.items():
                report[name]["memory"] = peak_memory(step)
    show(f"{args.geometry}, {args.pairs} pair(s), {args.device}", report, "TRL DPOTrainer")
    for title, own in (("one dispreferred image", False), ("one for each chosen response", True)):
        ways = steps(geometry, six_pairs(geometry, own), "meta", torch.float32)
        names = ("TRL DPOTrainer", "MFPO packed + cache")
        six = {name: {"operations": operations(ways[name]) / 6} for name in names}
        show(f"six pairs from four responses, {title}", six, "TRL DPOTrainer")
        report[f"six pairs, {title}"] = six
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def show(title: str, report: dict[str, dict[str, float]], base: str) -> None:
    """One table: each figure and its ratio to the base."""
    table = Table(title=title)
    columns = [name for name in ("operations", "seconds", "memory") if name in report[base]]
    table.add_column("a pair")
    for column in ("operations", "seconds", "memory"):
        table.add_column(column if column in columns else f"{column}: not measured", justify="right")
    for name, values in report.items():
        cells = [
            f"{values[c]:.4g} ({values[c] / report[base][c]:.3f})" if c in columns else "-"
            for c in ("operations", "seconds", "memory")
        ]
        table.add_row(name, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
