"""Memory of a training on each device, by arithmetic alone: the formulas that the heads of the recipes and `mfpo check` quote.

Everything is in bytes and counts of parameters. Nothing here knows a model: a `Geometry` holds what the formulas read of it,
`mfpo_trl.check.memory.geometry` counts it. An estimate, not a measurement.
"""

from dataclasses import dataclass, fields

GIB = 2**30

NF4 = {False: 0.5 + 4 / 64, True: 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Bytes of a weight that bitsandbytes holds in 4 bits, without and with double quantisation: half a byte, and for each block
of 64 a scale of 4 bytes, or of 1 byte with 4 more for every 256 scales."""

INT8 = 1.0

CUDA = 1.5 * GIB
"""Of CUDA's context and the allocator's unused pieces; a guess."""


@dataclass(frozen=True)
class Geometry:
    """What the formulas read of a model.

    Args:
        total: parameters without an adapter's, tied ones once.
        linear: those of them that quantisation replaces: the linear layers but the LM head.
        trained: parameters with a gradient, those of an adapter or those of the model.
        hidden, layers, intermediate, vocabulary: of the language part.
    """

    total: int
    linear: int
    trained: int
    hidden: int
    layers: int
    intermediate: int
    vocabulary: int

    @property
    def head(self) -> int:
        """Parameters of the LM head."""
        return self.vocabulary * self.hidden


@dataclass(frozen=True)
class Engine:
    """On how many devices a training runs, and what they share out.

    Args:
        processes, machines: all devices, and over how many machines they are spread.
        stage: of ZeRO: 0 shares nothing, 1 optimizer states, 2 gradients too, 3 weights too. FSDP is 3 without DeepSpeed.
        deepspeed: whether DeepSpeed runs it, which casts the model to 16 bits and keeps a 32-bit copy of what is trained.
        offload_optimizer, offload_weights: whether these lie in the main memory.
    """

    processes: int = 1
    machines: int = 1
    stage: int = 0
    deepspeed: bool = False
    offload_optimizer: bool = False
    offload_weights: bool = False

    def __str__(self) -> str:
        if self.stage == 0:
            kind = "one device" if self.processes == 1 else "a whole copy on each (DDP)"
        else:
            kind = f"ZeRO-{self.stage}" if self.deepspeed else "FSDP"
        away = [
            name
            for name, is_away in (("optimizer", self.offload_optimizer), ("weights", self.offload_weights))
            if is_away
        ]
        offloaded = f", {' and '.join(away)} in main memory" if away else ""
        return f"{kind}, {self.processes} process{'es' if self.processes > 1 else ''}{offloaded}"


@dataclass(frozen=True)
class Training:
    """What is held in which precision.

    Args:
        weight_bytes: of a weight of the model as it is loaded, 2 or 4.
        trained_bytes: of a trained weight: TRL holds the adapter of a 16-bit model in 4, that of a quantised one in 2.
        adapter: whether the trained weights lie beside the model's.
        linear_bytes: of a quantised weight (`NF4`, `INT8`); None where nothing is quantised.
        half: whether the step computes in 16 bits, by `bf16` or `fp16` or because the model is loaded so.
        checkpointing: gradient checkpointing.
        reference: `none` (cached, or the adapter switched off), `model` (a second whole model), `adapter` (a frozen copy of
            the adapter).
    """

    weight_bytes: float = 2
    trained_bytes: float = 4
    adapter: bool = True
    linear_bytes: float | None = None
    half: bool = True
    checkpointing: bool = True
    reference: str = "none"


@dataclass(frozen=True)
class MicroBatch:
    """Tokens of all rows of a micro-batch of one device, padding included, how many of them carry a label, and whether terms read the raw
    logits of those."""

    tokens: int
    labels: int
    logits: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes on each device while the micro-batch's gradients are computed; `host` is that of each machine's main memory."""

    weights: float
    adapter: float
    gradients: float
    optimizer: float
    activations: float
    head: float
    gathered: float
    reference: float
    cuda: float
    host: float = 0.0

    @property
    def states(self) -> float:
        """Weights, gradients and optimizer states: what DeepSpeed's estimators count, but for what is gathered."""
        return self.weights + self.adapter + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """All of it on the device."""
        return sum(value for name, value in self.parts().items() if name != "host")

    def parts(self) -> dict[str, float]:
        """Every part by its name."""
        return {part.name: getattr(self, part.name) for part in fields(self)}


def per_device(geometry: Geometry, training: Training, engine: Engine, batch: MicroBatch) -> Memory:
    """The memory of a training on each device.

    Weights: bytes as loaded, 2 under DeepSpeed in 16 bits; quantised linear layers by `linear_bytes`.
    What is trained: weight + gradient + two states of AdamW in the trained weight's own precision; under DeepSpeed in 16
    bits 2 + 2 and, as optimizer, a 32-bit copy with two states, 12. Plain data parallelism holds the gradients twice, in
    its buckets.
    Activations of `N` tokens in `b` bytes: `b N hidden layers` for the checkpoints and `b N (12 hidden + 6 intermediate)` for
    the layer that is computed again, or as much for every layer without checkpointing.
    LM head: 8 bytes x vocabulary for each label; 32 where terms read raw logits: in 4 bytes each, those of policy and reference, their
    log-softmax, the policy's gradients in both, and what one term makes of them.
    Gathered under stage 3: the LM head's weights in 2 bytes (4 in 32-bit training), and, where they are trained, their
    gradient in 4 before it is shared out.
    """
    cast = engine.deepspeed and training.half
    weight_bytes = 2 if cast else training.weight_bytes
    trained_bytes = 2 if cast else training.trained_bytes
    weights = weights_bytes(geometry, training, weight_bytes)
    adapter = trained_bytes * geometry.trained if training.adapter else 0.0
    buckets = 2 if engine.stage == 0 and engine.processes > 1 else 1
    gradients = trained_bytes * geometry.trained * buckets
    optimizer = (12 if cast else 2 * trained_bytes) * geometry.trained
    reference = {"none": 0.0, "model": weights, "adapter": trained_bytes * geometry.trained}[training.reference]
    activations, head = _activations(geometry, training, batch)

    def shared(value: float, from_stage: int) -> float:
        return value / engine.processes if engine.stage >= from_stage else value

    weights, adapter, reference = (shared(value, 3) for value in (weights, adapter, reference))
    gradients, optimizer = shared(gradients, 2), shared(optimizer, 1)
    host = 0.0
    if engine.offload_weights:
        # Of every weight, as DeepSpeed does under stage 3.
        host, weights, adapter = weights + adapter, 0.0, 0.0
    if engine.offload_optimizer:
        # Gradients are sent there as they come.
        host, gradients, optimizer = host + gradients + optimizer, 0.0, 0.0
    gathered = 0.0
    if engine.stage == 3:
        gathered = ((2 if training.half else 4) + (0 if training.adapter else 4)) * geometry.head
    host *= engine.processes / engine.machines
    return Memory(weights, adapter, gradients, optimizer, activations, head, gathered, reference, CUDA, host)


def weights_bytes(geometry: Geometry, training: Training, weight_bytes: float | None = None) -> float:
    """Bytes of a whole model without its adapter; `weight_bytes` of a weight that is not quantised."""
    each = training.weight_bytes if weight_bytes is None else weight_bytes
    if training.linear_bytes is None:
        return each * geometry.total
    return training.linear_bytes * geometry.linear + each * (geometry.total - geometry.linear)


def _activations(geometry: Geometry, training: Training, batch: MicroBatch) -> tuple[float, float]:
    """Bytes of the language part's activations, and of those at the LM head."""
    each = (2 if training.half else 4) * batch.tokens
    layer = each * (12 * geometry.hidden + 6 * geometry.intermediate)
    checkpoints = each * geometry.hidden * geometry.layers
    inside = checkpoints + layer if training.checkpointing else layer * geometry.layers
    return inside, (32.0 if batch.logits else 8.0) * geometry.vocabulary * batch.labels


def deepspeed_estimate(geometry: Geometry, engine: Engine) -> tuple[float, float] | None:
    """Bytes on each device, and of each machine's main memory, by DeepSpeed's own estimators of ZeRO-2 and ZeRO-3.

    They count every parameter as trained and nothing of activations. None for another engine.

    Raises:
        ImportError: DeepSpeed is not installed.
    """
    if not engine.deepspeed or engine.stage not in (2, 3):
        return None
    devices = {"num_gpus_per_node": engine.processes // engine.machines, "num_nodes": engine.machines}
    if engine.stage == 2:
        from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as estimate

        host, device = estimate(geometry.total, cpu_offload=engine.offload_optimizer, **devices)
        return device, host
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as estimate

    offload = {"cpu_offload": engine.offload_optimizer, "cpu_offload_params": engine.offload_weights}
    host, device, _ = estimate(geometry.total, geometry.head, **offload, **devices)
    return device, host


def summary(memory: Memory) -> str:
    """The sum and its parts, in one line."""
    parts = [
        f"{NAMES.get(name, name)} {sized(value)}" for name, value in memory.parts().items() if value and name != "host"
    ]
    away = f"; {sized(memory.host)} in each machine's main memory" if memory.host else ""
    return f"{sized(memory.total)} a device ({' + '.join(parts)}){away}"


def sized(value: float) -> str:
    """Bytes as GiB, or, below a tenth, as MiB."""
    return f"{value / GIB:.1f} GiB" if value >= 0.1 * GIB or not value else f"{value / 2**20:.1f} MiB"


NAMES = {"optimizer": "AdamW", "head": "LM head", "cuda": "CUDA"}
"""How the table calls the parts that have other names there."""
