"""Which layout a model's batches get, and why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from peft import PeftModel, PeftType
from torch import nn

from .._trl import Replay, attention_kernel, on_device
from ..objective import split_batch
from .collator import MFPOCollator
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


ADAPTERS = {
    PeftType[name]
    for name in (
        "LORA ADALORA BOFT IA3 BEFT LOHA LOKR OFT LN_TUNING VERA FROD FOURIERFT GLORA HRA VBLORA UNILORA MISS RANDLORA ROAD "
        "TRAINABLE_TOKENS HIRA SHIRA C3A WAVEFT OSF DELORA GRALORA TINYLORA PSOFT PEANUT SUPERTUNING DEFT"
    ).split()
    if name in PeftType.__members__
}
"""Adapters that do the same to a token whatever else its row holds, tested on packed rows against flat ones."""

LORA_VARIANTS = ("Dora", "QALora", "MiCA", "Kasa")
"""Variants of LoRA of which the same is true, by the beginning of their class in PEFT; plain LoRA has none."""

PACKING_TOLERANCE = {True: 1e-4, False: 1e-2}
"""How far packed and flat log-probabilities of an untested family may lie apart, in float32 and below, relative to them."""


@dataclass(frozen=True)
class Layout:
    """`flat` (a row a branch), `packed rows` or `packed row`, and the reason in words."""

    name: str
    reason: str
    proven: bool = True


OTHERS_LAYOUT = Layout(FLAT, "rows are laid out by another collator than MFPOCollator")


def choose_layout(
    model: nn.Module,
    prefix_sharing: str,
    reference: nn.Module | None = None,
    rows_read: Sequence[str] = (),
) -> Layout:
    """The layout for a model.

    Args:
        model: the policy, perhaps inside of an adapter.
        prefix_sharing: `auto`, `on` or `off`.
        reference: the reference model, which reads the same batches, where there is one beside the policy.
        rows_read: what in the training takes a row for one sequence, in words (`reads_rows`).

    Raises:
        ValueError: `on`, and the models cannot read packed rows; the message says why.
    """
    if prefix_sharing == "off":
        return Layout(FLAT, "prefix_sharing='off'")
    base = unwrapped(model)
    kernel = attention_kernel(base.config.get_text_config())
    obstacle = next(_obstacles(model, reference, rows_read), None)
    known = all(unwrapped(own).config.model_type in PACKED_FAMILIES for own in (model, reference) if own is not None)
    if obstacle is None and (known or prefix_sharing == "on"):
        return Layout(KERNELS[kernel], f"{base.config.model_type} with {kernel} attention", known)
    if obstacle is None:
        obstacle = f"{base.config.model_type} is not tested with packed rows; prefix_sharing='on' tries it"
    elif prefix_sharing == "on":
        raise ValueError(f"prefix_sharing='on' is not possible: {obstacle}; use 'auto' or 'off'")
    return Layout(FLAT, obstacle)


def given_layout(
    collator: Any, prefix_sharing: str, model: nn.Module, reference: nn.Module | None, rows_read: Sequence[str]
) -> Layout:
    """The layout of a collator that the trainer has not made.

    Args:
        collator: the caller's, or TRL's.
        prefix_sharing, model, reference, rows_read: as in `choose_layout`.

    Raises:
        ValueError: packed, and the models cannot read packed rows; or `on` with a collator that does not pack. The message says why.
    """
    if not isinstance(collator, MFPOCollator):
        if prefix_sharing == "on":
            raise ValueError(f"prefix_sharing='on' is not possible: {OTHERS_LAYOUT.reason}; use 'auto' or 'off'")
        return OTHERS_LAYOUT
    name, reason = collator.layout, "as the data_collator says"
    if name == FLAT:
        return Layout(FLAT, reason)
    if obstacle := next(_obstacles(model, reference, rows_read), None):
        raise ValueError(f"the data_collator has layout={name!r}, which is not possible: {obstacle}; use 'flat'")
    return Layout(name, reason, choose_layout(model, "auto", reference, rows_read).name != FLAT)


def reads_rows(training: Any, router_loss: bool = False, compute_metrics: Any = None) -> list[str]:
    """What in a training takes a row for one sequence, in words; empty where nothing does.

    Args:
        training: the arguments of the trainer.
        router_loss: whether the load-balancing loss of a mixture of experts is trained.
        compute_metrics: the caller's function of logits, if any.
    """
    reasons = {
        "the load-balancing loss of its experts counts every token of a row": router_loss,
        "the noise of neftune_noise_alpha depends on the length of a row": training.neftune_noise_alpha is not None,
        "compute_metrics reads the logits of one answer a row": compute_metrics is not None,
    }
    return [reason for reason, asked in reasons.items() if asked]


def _obstacles(model: nn.Module, reference: nn.Module | None, rows_read: Sequence[str]) -> Iterator[str]:
    if obstacle := _obstacle(model):
        yield obstacle
    if reference is not None and (obstacle := _obstacle(reference)):
        yield f"of the reference model, {obstacle}"
    yield from rows_read


def _obstacle(model: nn.Module) -> str | None:
    base = unwrapped(model)
    text = base.config.get_text_config()
    if adapter := _adapter_that_reads_rows(model):
        return adapter
    if base.config.model_type in FLAT_FAMILIES:
        return FLAT_FAMILIES[base.config.model_type]
    mixing = sorted({kind for kind in getattr(text, "layer_types", None) or [] if kind != "full_attention"})
    if mixing:
        return f"its language part has layers of {', '.join(mixing)}, where a branch would see its sister or lose its prompt"
    if getattr(base, "_is_stateful", False) or _recurs(base):
        return "its language part has recurrent or convolutional layers, where a branch would see its sister"
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        return f"its attention slides over a window of {text.sliding_window} tokens"
    if attention_kernel(text) not in KERNELS:
        return f"{attention_kernel(text)} takes no mask that keeps branches apart; eager, sdpa and flex_attention do"
    return None


def _adapter_that_reads_rows(model: nn.Module) -> str | None:
    """Why the adapters of a model, active or not, cannot read packed rows; None where they can, or there are none."""
    for config in getattr(model, "peft_config", {}).values():
        if config.is_prompt_learning:
            return "a prompt-learning adapter puts tokens of its own before every row"
        if getattr(config, "alora_invocation_tokens", None):
            return "an activated LoRA is switched on once a row, by its invocation tokens"
        if config.peft_type not in ADAPTERS:
            return f"an adapter of type {config.peft_type.value} may mix the tokens of a row, or is not tested with packed ones"
    for module in model.modules() if isinstance(model, PeftModel) else ():
        for variant in getattr(module, "lora_variant", {}).values():
            if not type(variant).__name__.startswith(LORA_VARIANTS):
                return (
                    f"{type(variant).__name__} of LoRA may mix the tokens of a row, or is not tested with packed ones"
                )
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
            batch = on_device(trainer, replace(collator, layout=name)(rows))
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
