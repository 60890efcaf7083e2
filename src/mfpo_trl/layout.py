"""Which layout a model's batches get, and why."""

from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from ._trl import Replay
from .branches import split_batch
from .forward import PACKED_SDPA, unwrapped
from .packing import FLAT, PACKED_ROW, PACKED_ROWS

PACKED_FAMILIES = (
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "idefics3",
    "smolvlm",
    "internvl",
)
"""Model types whose packed rows are tested against their flat ones."""

FLAT_FAMILIES = {
    "gemma3": "the image tokens of Gemma 3 see each other in both directions, which no packed mask of ours says",
    "paligemma": "the prompt tokens of PaliGemma see each other in both directions, which no packed mask of ours says",
}

KERNELS = {"eager": PACKED_ROWS, "sdpa": PACKED_ROW, PACKED_SDPA: PACKED_ROW, "flex_attention": PACKED_ROW}
"""Attention kernels that can read packed rows: eager attention with one mask a row, the others with all groups in one row,
where nothing is padding and nothing is computed between groups."""


PACKING_TOLERANCE = {True: 1e-4, False: 1e-2}
"""How far packed and flat log-probabilities of an untested family may lie apart, in float32 and below, relative to them."""


@dataclass(frozen=True)
class Layout:
    """`flat` (a row a branch), `packed rows` or `packed row`, and the reason in words."""

    name: str
    reason: str
    proven: bool = True


def choose_layout(model: nn.Module, prefix_sharing: str, router_loss: bool = False) -> Layout:
    """The layout for a model.

    Args:
        model: the policy, perhaps inside of an adapter.
        prefix_sharing: `auto`, `on` or `off`.
        router_loss: whether the load-balancing loss of a mixture of experts is trained, which counts every token.

    Raises:
        ValueError: `on`, and the model cannot read packed rows; the message says why.
    """
    if prefix_sharing == "off":
        return Layout(FLAT, "prefix_sharing='off'")
    base = unwrapped(model)
    kernel = base.config.get_text_config()._attn_implementation
    obstacle = _obstacle(model, base, kernel, router_loss)
    known = base.config.model_type in PACKED_FAMILIES
    if obstacle is None and (known or prefix_sharing == "on"):
        return Layout(KERNELS[kernel], f"{base.config.model_type} with {kernel} attention", known)
    if obstacle is None:
        obstacle = f"{base.config.model_type} is not tested with packed rows; prefix_sharing='on' tries it"
    elif prefix_sharing == "on":
        raise ValueError(f"prefix_sharing='on' is not possible: {obstacle}; use 'auto' or 'off'")
    return Layout(FLAT, obstacle)


def _obstacle(model: nn.Module, base: Any, kernel: str, router_loss: bool) -> str | None:
    text = base.config.get_text_config()
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return "a prompt-learning adapter puts tokens of its own before every row"
    if base.config.model_type in FLAT_FAMILIES:
        return FLAT_FAMILIES[base.config.model_type]
    mixing = sorted({kind for kind in getattr(text, "layer_types", None) or [] if kind != "full_attention"})
    if mixing:
        return f"its language part has layers of {', '.join(mixing)}, where a branch would see its sister or lose its prompt"
    if getattr(base, "_is_stateful", False) or _recurs(base):
        return "its language part has recurrent or convolutional layers, where a branch would see its sister"
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        return f"its attention slides over a window of {text.sliding_window} tokens"
    if router_loss:
        return "the load-balancing loss of its experts counts every token of a row"
    if kernel not in KERNELS:
        return f"{kernel} takes no mask that keeps branches apart; eager, sdpa and flex_attention do"
    return None


def _recurs(base: Any) -> bool:
    """Whether the language part mixes tokens by convolution, as state-space and hybrid models do."""
    tower = base.get_encoder(modality="image")
    seen = set() if tower is base else {id(module) for module in tower.modules()}
    return any(isinstance(module, nn.Conv1d | nn.RNNBase) and id(module) not in seen for module in base.modules())


def proven(layout: Layout, trainer: Any, model: Any) -> Layout:
    """Compare packed with flat rows on the first rows of a trainer's data, for a family whose packed rows no test has seen.

    Args:
        layout: a packed one.
        trainer: has the data, the collator and the precision.
        model: what to run.

    Returns:
        The layout, marked as proven.

    Raises:
        ValueError: they differ by more than rounding.
    """
    collator, dtype = trainer.data_collator, trainer.model.dtype
    rows = list(islice(iter(trainer.train_dataset), trainer.args.per_device_train_batch_size))
    found, training = [], model.training
    model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        for name in (FLAT, layout.name):
            batch = trainer._prepare_inputs(replace(collator, layout=name)(rows))
            replay = Replay(model, *split_batch(batch))
            replay.score()
            there = replay.pairs >= 0
            found.append(replay.logps[replay.pairs.clamp(min=0)][there].float())
    model.train(training)
    flat, packed = found
    exact = dtype == torch.float32 and trainer.accelerator.mixed_precision == "no"
    difference = float(((packed - flat).abs() / flat.abs().clamp(min=1)).max())
    if difference > PACKING_TOLERANCE[exact]:
        raise ValueError(
            f"prefix_sharing='on' is not possible: on the first rows, log-probabilities of packed and flat rows differ "
            f"by {difference:.2g} of their size ({layout.reason}); use 'auto' or 'off'"
        )
    return replace(layout, proven=True)
