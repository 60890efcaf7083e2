"""What `mfpo check` finds about the model: built from its configuration without weights, adapted and laid out."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from ..batch import FLAT, Layout, choose_layout, reads_rows, unwrapped
from ..config import MFPOConfig
from ..evaluation.models import place_of
from ..train import (
    TrainModelConfig,
    adapter_folder,
    check_name,
    freeze_parts,
    model_options,
    part_of,
    peft_config,
    put_on,
)
from ..weights import refuse_pickles
from .table import OK, PROBLEM, WARNING, Finding

WEIGHTS = "*.safetensors"


@dataclass
class Model:
    """A model without weights, as training would adapt it.

    Args:
        model: on the meta device, inside of an adapter where one is trained.
        adapter: whether there is one.
        targets: the modules that it wraps.
        goes_on: whether it has been trained before, so that a frozen copy of it is the reference.
    """

    model: nn.Module
    adapter: bool
    targets: list[str]
    goes_on: bool = False


def base_of(settings: TrainModelConfig) -> str:
    """The model, or the one that an adapter named in its place lies on.

    Raises:
        ValueError: there is no such folder, or the adapter names no model.
    """
    check_name(settings)
    adapter = adapter_folder(settings)
    return settings.model_name_or_path if adapter is None else place_of(adapter).base


def processor_of(settings: TrainModelConfig, training: MFPOConfig) -> Any:
    """The model's processor, as the trainer loads it.

    Raises:
        ValueError: it is a tokenizer only.
        Exception: it cannot be loaded.
    """
    name = base_of(settings)
    processor = AutoProcessor.from_pretrained(
        name,
        revision=settings.model_revision,
        trust_remote_code=training.trust_remote_code,
    )
    if not isinstance(processor, ProcessorMixin):
        raise ValueError(f"{name} has a {type(processor).__name__} and no processor of images")
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


class Weightless:
    """Stands for the class of a model: the same model on the meta device, with every name, shape and type and no weight."""

    @staticmethod
    def from_pretrained(name: str, **options: Any) -> PreTrainedModel:
        """The model from its configuration.

        Raises:
            ValueError: its weights are pickles only.
            Exception: there is no such configuration, or it is not that of a vision-language model.
        """
        refuse_pickles(name, options)
        remote = bool(options.get("trust_remote_code"))
        config = AutoConfig.from_pretrained(name, revision=options.get("revision"), trust_remote_code=remote)
        dtype, kernel = options.get("dtype"), options.get("attn_implementation")
        if dtype in (None, "auto"):
            dtype = config.dtype or torch.float32
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(
                config,
                dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype,
                trust_remote_code=remote,
                **({"attn_implementation": kernel} if kernel else {}),
            )


def skeleton(settings: TrainModelConfig, training: MFPOConfig) -> PreTrainedModel:
    """The model of a training without weights and memory.

    Raises:
        Exception: there is no such configuration, or it is not that of a vision-language model.
    """
    options = {"trust_remote_code": training.trust_remote_code, **model_options(settings, training)}
    return Weightless.from_pretrained(base_of(settings), **options)


def adapted(model: PreTrainedModel, settings: TrainModelConfig) -> Model:
    """The same model with its adapter, or with what full fine-tuning leaves as it is switched off.

    Raises:
        ValueError: targets that match nothing, a part that is not there, quantised weights without an adapter, one to go on with
            that does not fit.
    """
    config = peft_config(settings)
    if adapter := adapter_folder(settings):
        wrapped = put_on(model, adapter)
        return Model(wrapped, True, _wrapped_by(wrapped), goes_on=True)
    if config is None:
        freeze_parts(model, settings)
        return Model(model, False, [])
    try:
        wrapped = get_peft_model(model, config, low_cpu_mem_usage=True)
    except ValueError as error:
        named = config.target_modules
        if isinstance(named, str) and named != "all-linear":
            # TRL takes a list of one for its only entry, and PEFT a string for an expression.
            hint = f"a single target is a regular expression of the whole name: write .*{named}, or name several"
            raise ValueError(f"{error} ({hint})") from error
        raise
    return Model(wrapped, True, _wrapped_by(wrapped))


def _wrapped_by(model: nn.Module) -> list[str]:
    prefix = "base_model.model."
    return [name.removeprefix(prefix) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def available(settings: TrainModelConfig, model: PreTrainedModel) -> Finding:
    """That the model could be built, and that a local folder has weights."""
    name, adapter = base_of(settings), adapter_folder(settings)
    count = sum(parameter.numel() for parameter in model.parameters())
    value = f"{name}: {type(model).__name__}, {count:,} parameters"
    details = {"parameters": count, "class": type(model).__name__, "dtype": str(model.dtype).removeprefix("torch.")}
    if adapter is not None:
        value += f", with the adapter {adapter}, which is trained further: its own configuration counts"
        details["adapter"] = adapter
    folder = Path(name)
    if folder.is_dir() and not any(folder.glob(WEIGHTS)):
        return Finding("model", PROBLEM, f"{value}; the folder has no weights", "download or save them there", details)
    return Finding("model", OK, value, details=details)


def targets(found: Model) -> Finding | None:
    """What the adapter wraps, by part of the model and by kind of layer; None for full fine-tuning."""
    if not found.adapter:
        return None
    parts: dict[str, Counter[str]] = {}
    for name in found.targets:
        parts.setdefault(part_of(name), Counter())[name.rsplit(".", 1)[-1]] += 1
    lines = [
        f"{part}: {sum(kinds.values())} ({', '.join(f'{kind} {count}' for kind, count in sorted(kinds.items()))})"
        for part, kinds in parts.items()
    ]
    details = {"modules": found.targets, "by_part": {part: dict(kinds) for part, kinds in parts.items()}}
    value = "\n".join(lines)
    head = unwrapped(found.model).get_output_embeddings()
    if isinstance(head, BaseTunerLayer):
        advice = (
            "the LM head's weights are read directly, so that an adapter on it is refused; leave it out of the targets"
        )
        return Finding("LoRA targets", PROBLEM, value, advice, details)
    if "vision tower" in parts:
        advice = (
            "the adapter reaches the vision tower, which the published recipes leave as it is; without lora_target_modules "
            "it stays on the language model"
        )
        return Finding("LoRA targets", WARNING, value, advice, details)
    return Finding("LoRA targets", OK, value, details=details)


def trainable(found: Model) -> Finding:
    """How many parameters are trained, of which parts."""
    parts: Counter[str] = Counter()
    everything = 0
    for name, parameter in found.model.named_parameters():
        everything += parameter.numel()
        parts[part_of(name)] += parameter.numel() if parameter.requires_grad else 0
    trained = sum(parts.values())
    details = {
        "trained": trained,
        "all": everything,
        "by_part": {part: count for part, count in parts.items() if count},
    }
    said = ", ".join(f"{part} {count:,}" for part, count in parts.items() if count)
    value = f"{trained:,} of {everything:,} ({trained / max(everything, 1):.2%}): {said or 'none'}"
    if not trained:
        return Finding("trainable parameters", PROBLEM, value, "nothing is trained; unfreeze a part", details)
    return Finding("trainable parameters", OK, value, details=details)


def laid_out(found: Model, training: MFPOConfig) -> tuple[Layout, Finding]:
    """The layout that would run, and why.

    Raises:
        ValueError: `prefix_sharing="on"` where it is not possible.
    """
    text = unwrapped(found.model).config.get_text_config()
    coefficient = training.router_aux_loss_coef
    coefficient = getattr(text, "router_aux_loss_coef", 0.0) if coefficient is None else coefficient
    router_loss = hasattr(text, "output_router_logits") and coefficient != 0.0
    layout = choose_layout(found.model, training.prefix_sharing, None, reads_rows(training, router_loss))
    value, details = f"{layout.name}: {layout.reason}", {"layout": layout.name, "reason": layout.reason}
    if layout.name == FLAT and training.prefix_sharing == "auto":
        advice = "every branch has a row of its own, with its image and prompt again: slower, the same numbers"
        return layout, Finding("layout", WARNING, value, advice, details)
    if not layout.proven:
        value += "; training compares it with flat rows on its first batch, and stops where they differ"
    return layout, Finding("layout", OK, value, details=details)


def positions(found: Model) -> int | None:
    """How many positions the language part was made for, where its configuration says so."""
    config: Any = found.model.config
    return getattr(config.get_text_config(), "max_position_embeddings", None)
