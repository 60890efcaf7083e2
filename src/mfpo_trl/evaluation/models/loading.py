"""A model to look at, with its adapter as it was trained: unmerged, on the weights that it was trained on."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...weights import refuse_pickles, safetensors_only

ADAPTER_CONFIG = "adapter_config.json"
TOLD = re.compile(
    r"^- quantisation: (?:4-bit (?P<kind>NF4|FP4) \(bitsandbytes\), (?P<double>with|without) double quantisation, "
    r"computed in (?P<dtype>\w+)|(?P<eight>8-bit) \(bitsandbytes\))$",
    re.MULTILINE,
)
"""The line of a card of ours on how the base's weights were stored in the training (`card/facts.py`)."""


@dataclass(frozen=True)
class Place:
    """Where a model is.

    Attributes:
        base: folder or id of the model.
        adapter: folder or id of the adapter on it; None for a model without.
    """

    base: str
    adapter: str | None = None

    @property
    def name(self) -> str:
        """The adapter, or the model where there is none."""
        return self.adapter or self.base


@dataclass(frozen=True)
class Quantisation:
    """How bitsandbytes stores the weights of linear layers.

    Attributes:
        kind: "nf4", "fp4" or "int8".
        double: whether the scales of 4-bit weights are quantised as well.
    """

    kind: str = "nf4"
    double: bool = False

    def __str__(self) -> str:
        if self.kind == "int8":
            return "8 bits"
        return f"4 bits ({self.kind.upper()}{', scales quantised as well' if self.double else ''})"

    def config(self, dtype: Any) -> Any:
        """For `from_pretrained`, with arithmetic in this type."""
        from transformers import BitsAndBytesConfig

        if self.kind == "int8":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.kind,
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=dtype,
        )


def place_of(model: str, adapter: str | None = None, base: str | None = None) -> Place:
    """The model, and the adapter on it.

    Args:
        model: folder or id of a model, or of an adapter, whose base its configuration names.
        adapter: of a model that is none itself.
        base: in place of the one that the adapter's configuration names.

    Raises:
        ValueError: an adapter on an adapter, or one that names no base.
    """
    inner = adapter_settings(model)
    if adapter is not None:
        if inner is not None:
            raise ValueError(
                f"{model} is an adapter itself; merge it into its model first (mfpo merge {model} --output FOLDER)"
            )
        if adapter_settings(adapter) is None:
            raise ValueError(f"{adapter} is no adapter: it has no {ADAPTER_CONFIG}")
        return Place(model, adapter)
    if inner is None:
        return Place(model)
    named = base or inner.get("base_model_name_or_path")
    if not named:
        raise ValueError(
            f"{model} is an adapter whose {ADAPTER_CONFIG} names no model; write it there as base_model_name_or_path, or name it with --base of mfpo merge"
        )
    if adapter_settings(named) is not None:
        raise ValueError(
            f"the model of the adapter {model} is {named}, an adapter itself; merge that one first (mfpo merge {named} "
            f"--output FOLDER), and name what comes of it with --base FOLDER"
        )
    return Place(str(named), model)


def adapter_settings(name: str) -> dict[str, Any] | None:
    """The configuration of an adapter in a folder or on the Hub; None where there is no adapter.

    Raises:
        ValueError: it cannot be read.
    """
    if Path(name).is_dir():
        path = Path(name, ADAPTER_CONFIG)
    else:
        from huggingface_hub.errors import HFValidationError
        from transformers.utils import cached_file

        quiet = {
            f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "gated_repo", "connection_errors")
        }
        try:
            found = cached_file(name, ADAPTER_CONFIG, **quiet)
        except (OSError, HFValidationError) as error:
            raise ValueError(f"there is no folder {name!r} here, nor such a model on the Hub ({error})") from error
        path = Path(found or "")
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def quantisation_told(adapter: str) -> tuple[Quantisation, str | None] | None:
    """How the base's weights were stored while this adapter was trained, and the type of the arithmetic, as the card beside it
    tells; None where it tells nothing of the kind."""
    card = Path(adapter, "README.md")
    found = TOLD.search(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    if found is None:
        return None
    if found["eight"]:
        return Quantisation("int8"), None
    return Quantisation(found["kind"].lower(), found["double"] == "with"), found["dtype"]


def load_base(
    name: str,
    dtype: str = "auto",
    quantisation: Quantisation | None = None,
    scored: bool = True,
    device: str | None = None,
    revision: str | None = None,
) -> Any:
    """A vision-language model without gradients, on the accelerator where there is one.

    Args:
        name: folder or id.
        dtype: of its weights and of its arithmetic, by PyTorch's name; "auto": that which it was saved in.
        quantisation: of its linear layers, where it is not quantised already.
        scored: with the LM head that `likelihood.Answers` scores with, which has to come before an adapter.
        device: in place of the accelerator.
        revision: of an id on the Hub.

    Raises:
        ValueError: it cannot be loaded.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from ... import _trl

    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        if dtype == "auto":
            dtype = str(AutoConfig.from_pretrained(name, **options).dtype or torch.float32).removeprefix("torch.")
        if quantisation is not None:
            options["quantization_config"] = quantisation.config(dtype)
        with safetensors_only(name, options):
            model = AutoModelForImageTextToText.from_pretrained(
                name, dtype=getattr(torch, dtype), device_map={"": device or there}, use_safetensors=True, **options
            )
    except (OSError, ImportError) as error:
        raise ValueError(f"{name} cannot be loaded: {error}") from error
    model = model.eval().requires_grad_(False)
    return _trl.scored(model, ("log_probs",)) if scored else model


def with_adapter(base: Any, adapter: str) -> Any:
    """The model with the adapter on it, unmerged.

    Raises:
        ValueError: its weights are pickles only, or do not fit the model.
    """
    from peft import PeftModel

    refuse_pickles(adapter)
    try:
        return PeftModel.from_pretrained(base, adapter, is_trainable=False).eval()
    except (OSError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"the adapter {adapter} cannot be put on its model: {said[:600]}") from error


def load(place: Place, dtype: str = "auto", quantisation: Quantisation | None = None) -> Any:
    """The model at this place, with its adapter unmerged.

    Raises:
        ValueError: it cannot be loaded.
    """
    base = load_base(place.base, dtype, quantisation)
    return base if place.adapter is None else with_adapter(base, place.adapter)


def load_processor(place: Place) -> Any:
    """The processor beside the adapter, which the training saved there, or that of the model.

    Raises:
        ValueError: it cannot be loaded, or is a tokenizer only.
    """
    from transformers import AutoProcessor, ProcessorMixin

    names = [place.base]
    if place.adapter is not None and _has_processor(place.adapter):
        names.insert(0, place.adapter)
    try:
        processor = AutoProcessor.from_pretrained(names[0])
    except (OSError, ValueError) as error:
        raise ValueError(f"the processor of {names[0]} cannot be loaded: {error}") from error
    if not isinstance(processor, ProcessorMixin):
        raise ValueError(f"{names[0]} has a {type(processor).__name__} and no processor of images")
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def _has_processor(name: str) -> bool:
    from transformers.utils.hub import has_file

    try:
        return any(has_file(name, own) for own in ("processor_config.json", "preprocessor_config.json"))
    except (OSError, ValueError):
        return False


def dequantised(model: Any, dtype: Any) -> Any:
    """The model with weights of this type in place of quantised ones, as it computes with them.

    Raises:
        ValueError: weights of a kind that cannot be brought back.
    """
    from ... import _trl

    if getattr(model, "hf_quantizer", None) is None:
        return model
    try:
        model.dequantize(dtype=dtype)
    except (NotImplementedError, AttributeError) as error:
        kind = getattr(model.hf_quantizer.quantization_config, "quant_method", "of an unknown kind")
        raise ValueError(
            f"the weights of the model are quantised ({kind}) and cannot be brought back; name the same model without "
            "quantisation with --base"
        ) from error
    _trl.savable(model)
    return model
