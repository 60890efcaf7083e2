"""The tables of docs/scaling.md: memory, step time and traffic of LLaVA-1.5 on paper.

    python benchmarks/scaling.py     # prints them

Every figure follows from `mfpo_trl.check.formulas` and the formulas below. None has been measured on a GPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mfpo_trl.check.formulas import GIB, NF4, Engine, Geometry, MicroBatch, Training, per_device, weights_bytes

LLAVA_7B = Geometry(
    total=7_063_427_072,
    linear=6_798_966_784,
    trained=159_907_840,
    hidden=4096,
    layers=32,
    intermediate=11_008,
    vocabulary=32_064,
)
"""LLaVA-1.5-7B with LoRA of rank 64 on the language part's linear layers."""

LLAVA_13B = Geometry(
    total=13_351_494_656,
    linear=13_021_216_768,
    trained=250_347_520,
    hidden=5120,
    layers=40,
    intermediate=13_824,
    vocabulary=32_064,
)
"""LLaVA-1.5-13B, the same."""

VISION_TOWER = 303_507_456
"""Parameters of CLIP-L/14 at 336 pixels, which full fine-tuning leaves as they are."""

MODELS = {"7B": LLAVA_7B, "13B": LLAVA_13B}

IMAGE, PROMPT, CHOSEN, REJECTED = 576, 60, 90, 80
"""Tokens of a row that the estimates of the recipes are made for."""

LORA = Training()
QLORA = Training(trained_bytes=2, linear_bytes=NF4[True])
FULL = Training(weight_bytes=4, trained_bytes=4, adapter=False)
WAYS = {"LoRA": (LORA, 4), "QLoRA": (QLORA, 1), "full": (FULL, 4)}
"""How the recipes train, and with how many pairs in a micro-batch."""

DEVICES = (1, 8, 32)


def pairs(count: int, rows: int = 2) -> MicroBatch:
    """A micro-batch of `count` pairs, as the heads of the recipes count it: every packed row as long as the one with two
    answers; 1 row a pair without the dispreferred image, 2 with it."""
    length = IMAGE + PROMPT + CHOSEN + REJECTED
    return MicroBatch(count * rows * length, count * (CHOSEN + REJECTED + (CHOSEN if rows == 2 else 0)))


def trained_in(geometry: Geometry, training: Training) -> Geometry:
    """The geometry with what this training trains: the adapter, or everything but the vision tower."""
    return geometry if training.adapter else replace(geometry, trained=geometry.total - VISION_TOWER)


@dataclass(frozen=True)
class Device:
    """A GPU as a data sheet has it, and the share of its peak that training is assumed to reach."""

    flops: float = 989e12
    utilisation: float = 0.4


def step_flops(geometry: Geometry, training: Training, tokens: int) -> float:
    """Floating-point operations of forward and backward over `tokens`.

    2 for each parameter and token in the forward, 2 for the gradients of the activations, 2 for those of the weights, which
    frozen weights do without, and 2 for the forward of gradient checkpointing again. All parameters are counted for every
    token of the language part, which about pays for the vision tower; attention between tokens (about 2 % of it at 800
    tokens) and the adapter are left out.
    """
    passes = 4 if training.adapter else 6
    return (passes + (2 if training.checkpointing else 0)) * float(geometry.total) * tokens


def compute_seconds(geometry: Geometry, training: Training, tokens: int, device: Device | None = None) -> float:
    """Seconds of a micro-batch on one device, without any communication."""
    device = device or Device()
    return step_flops(geometry, training, tokens) / (device.flops * device.utilisation)


def sent_bytes(geometry: Geometry, training: Training, engine: Engine, micro_batches: int = 1) -> float:
    """Bytes that each device sends in an optimizer step of `micro_batches`, by ring algorithms.

    Data parallelism sums the gradients once a step (there and back). ZeRO-2 hands gradients to their owner after every
    micro-batch, and the new weights back once a step. ZeRO-3 and FSDP fetch all weights in the forward and again in the
    backward of every micro-batch, and hand the gradients to their owner.
    """
    half = engine.deepspeed and training.half
    gradients = (2 if half else training.trained_bytes) * geometry.trained
    if engine.stage < 2:
        whole = 2 * gradients
    elif engine.stage == 2:
        whole = micro_batches * gradients + gradients
    else:
        whole = micro_batches * (2 * weights_bytes(geometry, training, 2 if half else None) + gradients)
    return whole * (engine.processes - 1) / engine.processes


def engines() -> Iterator[tuple[str, int]]:
    """The stages of the tables by their names."""
    yield from (("DDP", 0), ("ZeRO-2", 2), ("ZeRO-3", 3))


def engine(stage: int, devices: int) -> Engine:
    """An engine of the tables: machines of 8 devices."""
    return Engine(devices, max(1, devices // 8), stage, deepspeed=stage > 0)


def memory_table() -> str:
    """GiB on each device, a line a way of training and a column a number of devices."""
    lines = [_line("model", "training", "pairs", "engine", *(_gpus(n) for n in DEVICES)), _rule(4, len(DEVICES))]
    for model, way, training, count, geometry in _cases():
        for name, stage in engines():
            cells = [
                f"{per_device(geometry, training, engine(stage, devices), pairs(count)).total / GIB:.1f}"
                for devices in DEVICES
            ]
            lines.append(_line(model, way, count, name, *cells))
    return "\n".join(lines)


def time_table() -> str:
    """Seconds of a micro-batch, pairs a second, and what each device has to send in that time to hide the traffic."""
    columns = [f"{name}, 8 GPUs: GB, GB/s" for name, _ in engines()]
    heads = ["model", "training", "pairs", "PFLOP", "seconds", *(f"pairs/s, {_gpus(n)}" for n in DEVICES), *columns]
    lines = [_line(*heads), _rule(2, len(heads) - 2)]
    for model, way, training, count, geometry in _cases():
        tokens = pairs(count).tokens
        seconds = compute_seconds(geometry, training, tokens)
        rates = [f"{devices * count / seconds:.1f}" for devices in DEVICES]
        sent = [sent_bytes(geometry, training, engine(stage, 8)) for _, stage in engines()]
        traffic = [f"{value / 1e9:.1f}, {value / 1e9 / seconds:.0f}" for value in sent]
        flops = step_flops(geometry, training, tokens)
        lines.append(_line(model, way, count, f"{flops / 1e15:.2f}", f"{seconds:.2f}", *rates, *traffic))
    return "\n".join(lines)


def _cases() -> Iterator[tuple[str, str, Training, int, Geometry]]:
    for model, geometry in MODELS.items():
        for way, (training, count) in WAYS.items():
            yield model, way, training, count, trained_in(geometry, training)


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' if count > 1 else ''}"


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _rule(left: int, right: int) -> str:
    return "|" + "---|" * left + "---:|" * right


if __name__ == "__main__":
    print(memory_table(), time_table(), sep="\n\n")
