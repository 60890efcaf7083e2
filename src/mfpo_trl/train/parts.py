"""What of a model is trained: an adapter, or all but the parts that full fine-tuning leaves as they are."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from torch import nn
from trl import ModelConfig, get_peft_config

from ..evaluation.models import place_of
from ..requirements import check_quantised
from ..weights import refuse_pickles, safetensors_only

logger = get_logger(__name__)

PROJECTOR = r"projector|connector|merger|aligner|image_newline"
VISION_TOWER = r"vision|visual|image"
NOT_LANGUAGE = rf".*({VISION_TOWER}|{PROJECTOR}).*"
"""Modules that LoRA leaves alone unless its targets are named: the vision tower and the projector, which `all-linear` would
wrap as well and LLaVA's own recipes leave out."""


@dataclass
class TrainModelConfig(ModelConfig):
    """TRL's fields of the model, and what full fine-tuning leaves as it is; LoRA trains what it targets.

    Args:
        freeze_vision_tower, freeze_projector: keep these weights in full fine-tuning. Merger, connector and aligner are other
            families' words for the projector.
    """

    freeze_vision_tower: bool = field(
        default=True, metadata={"help": "Keep the vision tower as it is in full fine-tuning."}
    )
    freeze_projector: bool = field(
        default=False, metadata={"help": "Keep the projector as it is in full fine-tuning."}
    )


def peft_config(model: TrainModelConfig) -> Any:
    """TRL's adapter configuration, on the language part's linear layers where no target is named; None where none is begun.

    Raises:
        ValueError: an adapter, and a vision tower that is to be trained in full; quantised weights without one.
        ImportError: bitsandbytes, which quantised weights need, is not installed.
    """
    check_quantised(model, trains_adapter(model))
    if trains_adapter(model) and not model.freeze_vision_tower:
        raise ValueError(
            "freeze_vision_tower=False is of full fine-tuning; with use_peft, name the tower's modules in "
            "lora_target_modules or lora_modules_to_save"
        )
    if adapter_folder(model):
        return None
    config = get_peft_config(model)
    if config is not None and model.lora_target_modules is None:
        config.target_modules, config.exclude_modules = "all-linear", NOT_LANGUAGE
        logger.info("LoRA on the linear layers of the language model; set --lora_target_modules to change it")
    elif config is not None and str(config.target_modules).isidentifier():
        # TRL makes a text of a list of one, and PEFT takes a text for the pattern of a whole path.
        config.target_modules = [config.target_modules]
    return config


def adapter_folder(model: TrainModelConfig) -> str | None:
    """The folder of an adapter that is named in place of a model, to be trained further; None where there is none."""
    name = model.model_name_or_path or ""
    return name if Path(name, "adapter_config.json").is_file() else None


def trains_adapter(model: TrainModelConfig) -> bool:
    """Whether an adapter is trained, a new one or one that is named in place of a model."""
    return bool(model.use_peft or adapter_folder(model))


def going_on(model: TrainModelConfig, given: Mapping[str, Any], architecture: Any = None) -> dict[str, Any]:
    """What a trainer is built with, with the adapter that is named in place of a model on the one that it names.

    Args:
        given: the same with the name.
        architecture: whose `from_pretrained` makes the model that the adapter lies on; transformers' by default.

    Raises:
        ValueError: an adapter that names no model or does not fit it, or weights that are pickles.
    """
    adapter = adapter_folder(model)
    if adapter is None:
        return dict(given)
    logger.info(f"Going on with the adapter {adapter}, whose state now is the reference; its own configuration counts")
    return {**given, "model": _load_adapter(adapter, given, architecture), "quantization_config": None}


def put_on(base: Any, adapter: str) -> Any:
    """The adapter on this model, to be trained further.

    Raises:
        ValueError: its weights are pickles, or do not fit the model.
    """
    from peft import PeftModel

    refuse_pickles(adapter)
    try:
        return PeftModel.from_pretrained(
            base, adapter, is_trainable=True, low_cpu_mem_usage=base.device.type == "meta"
        )
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"the adapter {adapter} cannot be put on its model: {said[:600]}") from error


def _load_adapter(adapter: str, given: Mapping[str, Any], architecture: Any) -> Any:
    from transformers import AutoModelForImageTextToText

    place, training = place_of(adapter), given["args"]
    options = {**(training.model_init_kwargs or {}), "quantization_config": given["quantization_config"]}
    # TRL would say that they are ignored.
    training.model_init_kwargs = None
    if options["quantization_config"] is not None:
        options.setdefault("device_map", {"": training.device})
    with safetensors_only(place.base):
        architecture = architecture or AutoModelForImageTextToText
        base = architecture.from_pretrained(place.base, use_safetensors=True, **options)
    return put_on(base, adapter)


def freeze_parts(model: nn.Module, settings: TrainModelConfig) -> None:
    """Switch off the gradients of what full fine-tuning leaves as it is; nothing beside an adapter.

    Raises:
        ValueError: the model has no such part.
    """
    if not trains_adapter(settings):
        # The optimizer is made, and the model sharded, when training begins.
        parts = ("vision tower", "projector")
        freeze(model, [part for part in parts if getattr(settings, f"freeze_{part.replace(' ', '_')}")])


def part_of(name: str) -> str:
    """The part of a vision-language model that a parameter belongs to by its name: vision tower, projector or language model."""
    if re.search(PROJECTOR, name):
        return "projector"
    return "vision tower" if re.search(VISION_TOWER, name) else "language model"


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Switch off the gradients of these parts.

    Raises:
        ValueError: the model has no parameter of a part, by its names.
    """
    found: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if (part := part_of(name)) in parts:
            parameter.requires_grad_(False)
            found[part] += 1
    for part in parts:
        if not found[part]:
            raise ValueError(
                f"{type(model).__name__} has no parameters that are named like a {part}; "
                f"set freeze_{part.replace(' ', '_')} to false"
            )
    logger.info(f"Frozen: {', '.join(parts) or 'nothing'}")
