"""Where the time of a packed step goes, and whether the data loader keeps up with it."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import loader
from llava import GEOMETRIES, build_processor, pairs
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import DataLoader

from device.training import Job, trainer_of
from mfpo_trl import MFPOConfig
from mfpo_trl.batch import build_collator, forward, unwrapped
from mfpo_trl.batch.packing import PACKED_ROW

KINDS = {
    "attention": ("attention", "flash", "fmha", "efficient"),
    "linear layers": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "gemm"),
    "optimizer": ("adam", "foreach", "_fused"),
    "softmax and loss": ("softmax", "logsumexp", "nll", "log_sigmoid"),
    "copies": ("aten::copy_", "memcpy", "memset", "aten::cat", "aten::fill_"),
}
"""Kinds of operations by parts of their names; what is left is elementwise."""


@contextmanager
def ranges(model: Any) -> Iterator[None]:
    """Names for what runs in a forward: both calls of the packed attention, our hooks, the vision tower, the LM head."""

    def named(owner: Any, attribute: str, name: Callable[..., str]) -> Any:
        original = getattr(owner, attribute)

        def run(*args: Any, **kwargs: Any) -> Any:
            with record_function(name(*args, **kwargs)):
                return original(*args, **kwargs)

        return mock.patch.object(owner, attribute, run)

    def call(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> str:
        return "packed attention: causal call" if mask is None else "packed attention: masked call"

    base = unwrapped(model)
    with ExitStack() as stack:
        stack.enter_context(named(forward, "sdpa_attention_forward", call))
        stack.enter_context(named(forward, "attend_by_group", lambda *_, **__: "packed attention: all"))
        stack.enter_context(named(forward, "_packed_arguments", lambda *_, **__: "hooks: mask and positions"))
        stack.enter_context(named(forward, "same_images", lambda *_, **__: "hooks: equal images"))
        tower = base.get_encoder(modality="image")
        stack.enter_context(named(tower, "forward", lambda *_, **__: "vision tower"))
        yield


def profiled(job: Job, steps: int) -> Iterator[tuple[str, Any]]:
    """Milliseconds a step by kind of operation (forward, backward and optimizer), and by part of the forward."""
    cuda = job.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(job, Path(folder), pairs(GEOMETRIES[job.geometry], job.pairs))
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        trainer.model.enable_input_require_grads()
        optimizer = trainer.create_optimizer()
        model = trainer.accelerator.prepare(trainer.model)
        rows = [trainer.train_dataset[n] for n in range(job.pairs)]
        started = time.perf_counter()
        batch = trainer.data_collator(rows)
        yield "collator, ms, pictures of the model's own size", 1000 * (time.perf_counter() - started)

        def step() -> None:
            trainer.training_step(model, dict(batch))
            optimizer.step()
            optimizer.zero_grad()

        step()
        with ranges(trainer.model), profile(activities=activities) as found:
            for _ in range(steps):
                step()
        events = found.key_averages()
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    whole = "device_time_total" if cuda else "cpu_time_total"
    times: Counter[str] = Counter()
    named: Counter[str] = Counter()
    for event in events:
        if event.key.startswith(("packed attention", "hooks", "vision tower")):
            named[event.key] += getattr(event, whole) / 1000 / steps
            continue
        name = event.key.lower()
        # On a GPU the time of a kernel is also that of the operation that started it: operations alone are added up.
        if cuda and not name.startswith("aten::") and "optimizer" not in name:
            continue
        kind = next(
            (kind for kind, words in KINDS.items() if any(word in name for word in words)), "elementwise and rest"
        )
        times[kind] += getattr(event, own) / 1000 / steps
    yield "by kind of operation, ms", dict(times.most_common())
    yield "in the forwards, ms", dict(named)
    masked = named["packed attention: masked call"]
    yield "masked call of all", masked / max(sum(times.values()), 1e-9)


def loading(geometry: str, workers: int, rows: int, needed: float | None) -> Iterator[tuple[str, Any]]:
    """Rows a second that as many workers deliver, from photos of real size."""
    args = MFPOConfig(output_dir="unused", use_cpu=True, bf16=False, max_length=None, report_to="none")
    collate = build_collator(args, build_processor(GEOMETRIES[geometry]), None, PACKED_ROW)
    for name, size in loader.SIZES.items():
        own = loader.rows(size, 8)
        batches = DataLoader(
            [own[n % len(own)] for n in range(rows)], batch_size=4, collate_fn=collate, num_workers=workers
        )
        counted, started = 0, None
        for batch in batches:
            # From the first batch on: workers have started then.
            started = started or time.perf_counter()
            counted += len(batch["pairs"])
        assert started is not None
        seconds = max(time.perf_counter() - started, 1e-9)
        found: dict[str, Any] = {"workers": workers, "rows/s": (counted - 4) / seconds}
        if needed:
            found |= {"rows/s needed": needed, "keeps up": found["rows/s"] >= needed}
        yield f"photos of {name}", found
