"""The parts of `benchmarks/gpu.py`, most valuable first; each hands out its results one by one."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from device.comparison import compared
from device.profiling import loading, profiled
from device.training import WAYS, Job, measured

Results = Iterator[tuple[str, Any]]


@dataclass(frozen=True)
class Settings:
    """Sizes of a run.

    Args:
        device: cuda, or cpu for a rehearsal.
        small, usual, large: geometries, names in `llava.GEOMETRIES`.
        steps: counted, behind two that warm up.
        known: results of earlier parts, by part and name.
    """

    device: str
    small: str
    usual: str
    large: str
    steps: int
    pairs: int
    sizes: tuple[int, ...]
    workers: int
    rows: int
    grounders: str
    compiler: str
    optimizer: str
    known: Mapping[str, Any]

    @classmethod
    def of(cls, rehearse: bool, known: Mapping[str, Any]) -> "Settings":
        """On the device, or on a CPU in small."""
        if rehearse:
            return cls("cpu", *3 * ("rehearsal",), 1, 2, (1, 2), 0, 8, "tiny", "eager", "adamw_torch", known)
        sizes = (1, 2, 8, 16, 32, 64)
        return cls(
            "cuda",
            "wide",
            "llava-1.5-7b",
            "llava-1.5-13b",
            8,
            4,
            sizes,
            8,
            256,
            "full",
            "inductor",
            "adamw_8bit",
            known,
        )


def _tried(job: Job, steps: int) -> dict[str, Any]:
    """What a training takes; that it does not fit, or not run here, is a result, and the next one is tried."""
    try:
        return measured(job, steps)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def lora(settings: Settings) -> Results:
    """LoRA in bfloat16: DPOTrainer, MFPO flat, packed, packed and cached."""
    for name, way in WAYS.items():
        job = Job(settings.usual, way, settings.device, pairs=settings.pairs)
        yield name, _tried(job, settings.steps)


def parity(settings: Settings) -> Results:
    """Losses and gradients beside flat rows."""
    yield from compared(settings.small, settings.device, settings.compiler)


def profiles(settings: Settings) -> Results:
    """One packed step by kind of operation; the loader beside what the step needs."""
    job = Job(settings.usual, WAYS["MFPO packed"], settings.device, pairs=settings.pairs)
    yield from profiled(job, 2)
    best = settings.known.get("lora", {}).get("MFPO packed + cached", {})
    needed = best["pairs"] / best["seconds"]["median"] if "seconds" in best else None
    yield from loading(settings.usual, settings.workers, settings.rows, needed)


def qlora(settings: Settings) -> Results:
    """The same in 4 bits."""
    for name, way in WAYS.items():
        job = Job(settings.usual, way, settings.device, bits=4, pairs=settings.pairs)
        yield name, _tried(job, settings.steps)


def full(settings: Settings) -> Results:
    """Full fine-tuning of the language part with a cached reference and AdamW in 8 bits."""
    options = {"optim": settings.optimizer}
    job = Job(settings.usual, WAYS["MFPO packed + cached"], settings.device, full=True, pairs=settings.pairs)
    yield "MFPO packed + cached", _tried(replace(job, options=options), settings.steps)


def build(settings: Settings) -> Results:
    """`mfpo build` with Grounding DINO and SAM, and SAM 3 where torchvision is."""
    from building.source import make_source, save_models
    from building.stages import measure_stages, options_of

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = make_source(folder / "source", settings.rows // 2)
        options = save_models(folder, settings.grounders)
        found = measure_stages(options_of(folder / "built", dataset, options, settings.device, materialize=False))
        yield "Grounding DINO and SAM", {name: found[name] for name in ("rows_per_second", "stages", "regions")}
        yield "SAM 3", sam3(folder, settings)


def sam3(folder: Path, settings: Settings) -> dict[str, Any]:
    """Masks for two phrases by SAM 3 with random weights, through this package's own class; or why not."""
    if not find_spec("torchvision"):
        return {"failed": "torchvision is not installed"}
    try:
        from PIL import Image
        from transformers import Sam3Config, Sam3Model

        from mfpo_trl.data.grounding.segmenters import Sam3

        Sam3Model(Sam3Config()).save_pretrained(folder / "sam3")
        from transformers import CLIPTokenizerFast, Sam3ImageProcessor, Sam3Processor

        tokenizer = CLIPTokenizerFast(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}, merges=[])
        Sam3Processor(Sam3ImageProcessor(), tokenizer).save_pretrained(folder / "sam3")
        model = Sam3(str(folder / "sam3"), settings.device, 1, 0.5)
        found = model.masks([Image.new("RGB", (640, 480), "gray")], [["a", "a a"]])
        return {"phrases": len(found[0])}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def large(settings: Settings) -> Results:
    """13B: LoRA and QLoRA."""
    for name, bits in (("LoRA", 16), ("QLoRA", 4)):
        job = Job(settings.large, WAYS["MFPO packed + cached"], settings.device, bits=bits, pairs=settings.pairs)
        yield name, _tried(job, max(settings.steps // 2, 1))


def sizes(settings: Settings) -> Results:
    """LoRA with ever larger micro-batches, until memory ends."""
    for pairs in settings.sizes:
        job = Job(settings.usual, WAYS["MFPO packed + cached"], settings.device, pairs=pairs)
        found = _tried(job, max(settings.steps // 2, 1))
        yield f"{pairs} pairs", found
        if "failed" in found:
            return


PARTS: dict[str, tuple[float, Callable[[Settings], Results]]] = {
    "lora": (110, lora),
    "parity": (90, parity),
    "profile": (60, profiles),
    "qlora": (80, qlora),
    "build": (30, build),
    "full": (30, full),
    "large": (50, large),
    "sizes": (30, sizes),
}
"""Seconds of a run of eight minutes, and what is run; what a part leaves over goes to those behind it."""
