"""What a model card tells of a training beside its objective: hardware, engine, precision, adapters, time, versions."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from peft.tuners.tuners_utils import BaseTunerLayer

from .markdown import plain
from .training import Training

PACKAGES = ("mfpo_trl", "trl", "transformers", "torch", "peft", "accelerate", "datasets")

SHOWN_MODULES = 12
"""Names of adapted modules that are listed."""


def describe_training(training: Training) -> str:
    """Lines on what it was trained with and for how long; each fact only where it is known."""
    facts = {
        "hardware": describe_devices(training.accelerator),
        "engine": describe_engine(training.accelerator),
        "precision": describe_precision(training),
        "quantisation": describe_quantisation(training.model),
        "trained": describe_trained(training.model, training.accelerator),
        "steps": describe_steps(training),
        "time": describe_time(training.state.log_history),
    }
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items() if fact)


def describe_devices(accelerator: Any) -> str:
    """The main process's device, and how many processes there were; the others' devices are not asked for."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    memory = (
        f" ({torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB)" if device.type == "cuda" else ""
    )
    kind = "" if device.type in ("cuda", "cpu") else f"{device.type}, "
    count = accelerator.num_processes
    if device.type == "cpu":
        return f"CPU, {plain(name)}, {count} process{'es' if count > 1 else ''}"
    return f"{count} x {kind}{plain(name)}{memory}, a process each"


def _processor() -> str:
    """The processor's name as Linux tells it, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.machine() or "unknown")


def describe_engine(accelerator: Any) -> str:
    """What shares the work out over the processes; empty where there is one without an engine."""
    kind, state = accelerator.distributed_type, accelerator.state
    if kind == DistributedType.DEEPSPEED:
        plugin = state.deepspeed_plugin
        zero = plugin.deepspeed_config.get("zero_optimization", {})
        offloaded = [
            part
            for part in ("param", "optimizer")
            if (zero.get(f"offload_{part}") or {}).get("device", "none") not in ("none", None)
        ]
        more = f", {' and '.join(offloaded)} offloaded" if offloaded else ""
        return f"DeepSpeed ZeRO-{zero.get('stage', plugin.zero_stage)}{more}"
    if kind == DistributedType.FSDP:
        return f"FSDP{getattr(state.fsdp_plugin, 'fsdp_version', 1)}"
    if accelerator.num_processes > 1:
        backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else "unknown backend"
        return f"DDP ({backend})"
    return ""


def describe_precision(training: Training) -> str:
    """The type of the trained weights, and of the arithmetic."""
    weights = sorted(
        {str(own.dtype).removeprefix("torch.") for own in training.model.parameters() if own.requires_grad}
    )
    # Of the accelerator, because its own configuration may ask for more than the arguments do.
    mixed = {"bf16": "bfloat16", "fp16": "float16", "fp8": "float8"}
    arithmetic = mixed.get(str(training.accelerator.mixed_precision), "the type of the weights")
    return f"trained weights in {' and '.join(weights)}, arithmetic in {arithmetic}"


def describe_quantisation(model: Any) -> str:
    """How the frozen weights are stored; empty where they are not quantised."""
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return ""
    config = config if isinstance(config, dict) else config.to_dict()
    if config.get("load_in_4bit"):
        compute = str(config.get("bnb_4bit_compute_dtype", "")).removeprefix("torch.")
        double = "with" if config.get("bnb_4bit_use_double_quant") else "without"
        kind = str(config.get("bnb_4bit_quant_type", "")).upper()
        return f"4-bit {plain(kind)} (bitsandbytes), {double} double quantisation, computed in {plain(compute)}"
    if config.get("load_in_8bit"):
        return "8-bit (bitsandbytes)"
    return plain(str(config.get("quant_method", "of an unknown kind")))


def describe_trained(model: Any, accelerator: Any) -> str:
    """Which parameters were trained: those of an adapter, with its settings, or those of the model."""
    # Under ZeRO-3 a parameter is empty while it is shared out; FSDP1 keeps no count of the whole.
    numbers = [getattr(own, "ds_numel", own.numel()) for own in model.parameters() if own.requires_grad]
    count = "the" if describe_engine(accelerator) == "FSDP1" else f"{sum(numbers):,}"
    config = getattr(model, "peft_config", {}).get(getattr(model, "active_adapter", "default"))
    if config is None:
        return f"{count} parameters of the model"
    kind = str(getattr(config.peft_type, "value", config.peft_type)).replace("LORA", "LoRA")
    settings = [
        f"{words} {getattr(config, name)}"
        for name, words in (("r", "rank"), ("lora_alpha", "alpha"), ("lora_dropout", "dropout"))
        if getattr(config, name, None) is not None
    ]
    # What was wrapped, which is less than the targets where some modules are excluded.
    wrapped = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    settings += [f"on {_modules(wrapped)}"] if wrapped else []
    settings += [f"{_modules(config.modules_to_save)} in full"] if getattr(config, "modules_to_save", None) else []
    return f"{count} parameters of an adapter, {plain(kind)}: {', '.join(settings) or 'no settings'}"


def _modules(names: Any) -> str:
    names = sorted(map(str, names))
    rest = len(names) - SHOWN_MODULES
    return ", ".join(map(plain, names[:SHOWN_MODULES])) + (f" and {rest} more" if rest > 0 else "")


def describe_steps(training: Training) -> str:
    """Steps so far, rows a step, rows seen."""
    args, state = training.args, training.state
    if not state.global_step:
        return ""
    processes = training.accelerator.num_processes
    batch = training.micro_batch_size * args.gradient_accumulation_steps * processes
    # The last batch of an epoch may be smaller.
    return (
        f"{state.global_step:,}, each of up to {batch} rows ({training.micro_batch_size} a process x {processes} "
        f"process{'es' if processes > 1 else ''} x {args.gradient_accumulation_steps} accumulated), "
        f"at most {state.global_step * batch:,} rows seen"
    )


def describe_time(log_history: list[dict[str, Any]]) -> str:
    """Wall-clock time of the last call of `train`, which a training that was resumed is only a part of; empty before its end."""
    times = [entry["train_runtime"] for entry in log_history if "train_runtime" in entry]
    return f"{duration(times[-1])} in the last call of `train`, evaluations included" if times else ""


def duration(seconds: float) -> str:
    """`1 h 2 min 3 s`; under a minute with one decimal."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min {rest} s" if hours else f"{minutes} min {rest} s"


def describe_versions(training: Training) -> str:
    """A line for Python and each package that took part."""
    used = list(PACKAGES)
    quantised = str(getattr(training.model.config, "quantization_config", None) or "")
    used += (
        ["bitsandbytes"]
        if "bitsandbytes" in quantised or "bnb" in quantised or _optimizer_of_bitsandbytes(training)
        else []
    )
    used += ["deepspeed"] if training.is_deepspeed_enabled else []
    lines = {"python": platform.python_version(), **{name: _version(name) for name in used}}
    return "\n".join(f"- {name}: {found}" for name, found in lines.items() if found)


def _optimizer_of_bitsandbytes(training: Training) -> bool:
    return any(word in str(training.args.optim) for word in ("8bit", "bnb"))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
