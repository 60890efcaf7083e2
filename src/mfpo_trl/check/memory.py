"""What `mfpo check` says of memory: a model counted for the formulas of `mfpo_trl.check.formulas`, and what they give."""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..batch import build_collator, unwrapped
from ..config import MFPOConfig
from ..objective import IGNORED_LABEL, shifted_labels
from ..objective.terms import reads_logits
from ..train import TrainModelConfig
from .formulas import (
    GIB,
    INT8,
    NF4,
    Engine,
    Geometry,
    Memory,
    MicroBatch,
    Training,
    deepspeed_estimate,
    per_device,
    sized,
    summary,
)
from .model import Model
from .table import OK, PROBLEM, WARNING, Finding

LARGE = 0.9
"""Share of a device's memory from which on an estimate leaves too little room for its own error."""


def micro_batch(row: Mapping[str, Any], training: MFPOConfig, processor: Any, dataset: Any, layout: str) -> MicroBatch:
    """Tokens and labels of a micro-batch of one device, each of whose rows is as long as this one."""
    batch = build_collator(training, processor, dataset, layout)([dict(row)])
    labels = int((shifted_labels(batch) != IGNORED_LABEL).sum())
    size = training.per_device_train_batch_size
    return MicroBatch(batch["input_ids"].numel() * size, labels * size, reads_logits(training.terms))


def geometry(found: Model) -> Geometry:
    """What the formulas of `mfpo_trl.check.formulas` read of a model."""
    base = unwrapped(found.model)
    own = {name: value for name, value in found.model.named_parameters() if not _of_adapter(name)}
    head = base.get_output_embeddings()
    kept = {id(head), id(getattr(head, "base_layer", None))}
    linear = sum(
        module.weight.numel()
        for name, module in found.model.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in kept and not _of_adapter(name)
    )
    text = base.config.get_text_config()
    return Geometry(
        total=sum(value.numel() for value in own.values()),
        linear=linear,
        trained=sum(value.numel() for value in found.model.parameters() if value.requires_grad),
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocabulary=text.vocab_size,
    )


def _of_adapter(name: str) -> bool:
    return bool(re.search(r"\.(lora_|modules_to_save\.)", f".{name}"))


def precision(found: Model, settings: TrainModelConfig, training: MFPOConfig) -> Training:
    """What is held in which precision."""
    weight = unwrapped(found.model).dtype.itemsize
    quantised = settings.load_in_4bit or settings.load_in_8bit
    linear = NF4[settings.use_bnb_nested_quant] if settings.load_in_4bit else INT8 if settings.load_in_8bit else None
    reference = "none"
    if not training.precompute_ref_log_probs:
        staged = training.curriculum != "none" and training.curriculum_reference == "stage"
        reference = ("adapter" if staged or found.goes_on else "none") if found.adapter else "model"
    return Training(
        weight_bytes=weight,
        # PEFT holds the adapter of 16-bit weights in 32 bits, and TRL that of quantised ones in 16.
        trained_bytes=2 if quantised else 4 if found.adapter else weight,
        adapter=found.adapter,
        linear_bytes=linear,
        half=bool(training.bf16 or training.fp16) or weight == 2,
        checkpointing=training.gradient_checkpointing,
        reference=reference,
    )


def memory(
    found: Model,
    settings: TrainModelConfig,
    training: MFPOConfig,
    engine: Engine,
    batch: MicroBatch | None,
    limit: float | None,
) -> list[Finding]:
    """Memory of each device by our formulas, and by DeepSpeed's own.

    Args:
        batch: the largest micro-batch; None where no row could be read.
        limit: bytes of a device's memory, where known.
    """
    counted, held = geometry(found), precision(found, settings, training)
    estimate = per_device(counted, held, engine, batch or MicroBatch(0, 0))
    value = f"{engine}: {summary(estimate)}"
    value += (
        f"; micro-batch of {training.per_device_train_batch_size} x the longest row, {batch.tokens} tokens"
        if batch
        else "; without activations, because no row was read"
    )
    details = {
        "bytes": {**estimate.parts(), "total": estimate.total},
        "geometry": vars(counted),
        "precision": vars(held),
        "engine": vars(engine),
        "tokens": batch and batch.tokens,
        "labels": batch and batch.labels,
        "limit": limit,
    }
    return [_fits(estimate, limit, value, details), *_by_deepspeed(counted, estimate, engine)]


def _fits(estimate: Memory, limit: float | None, value: str, details: dict[str, Any]) -> Finding:
    if limit is None:
        return Finding("memory", OK, f"{value}. No device to compare it with (--gpu-memory)", details=details)
    value += f". A device has {limit / GIB:.0f} GiB"
    advice = (
        "lower per_device_train_batch_size, set gradient_checkpointing: true, quantise (load_in_4bit), or share more out "
        "(--accelerate-config zero3)"
    )
    if estimate.total > limit:
        return Finding("memory", PROBLEM, value, advice, details)
    if estimate.total > LARGE * limit:
        return Finding("memory", WARNING, f"{value}, and the estimate may be as far off", advice, details)
    return Finding("memory", OK, value, details=details)


def _by_deepspeed(counted: Geometry, estimate: Memory, engine: Engine) -> list[Finding]:
    if not engine.deepspeed:
        return []
    try:
        theirs = deepspeed_estimate(counted, engine)
    except ImportError:
        advice = 'pip install "mfpo_trl[deepspeed]"'
        return [
            Finding(
                "DeepSpeed", WARNING, "is not installed, which this engine needs; its estimators are not asked", advice
            )
        ]
    if theirs is None:
        return []
    device, host = theirs
    value = (
        f"its own estimator says {sized(device)} a device and {sized(host)} of each machine's main memory for weights, "
        f"gradients and optimizer states, as if every weight were trained; ours says {sized(estimate.states)} a device"
    )
    details = {"device_bytes": device, "host_bytes": host, "our_device_bytes": estimate.states}
    return [Finding("DeepSpeed", OK, value, details=details)]
