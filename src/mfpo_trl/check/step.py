"""`mfpo check`'s trial: one real step on the longest row, with the model loaded as training would load it."""

import gc
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from ..rows import ROW_NUMBER, is_stored
from ..train import build, parse
from .formulas import GIB
from .table import OK, PROBLEM, Finding

ONE_STEP = {
    "max_steps": 1,
    "gradient_accumulation_steps": 1,
    "dataset_streaming": False,
    "source": "auto",
    "image_root": "/",
    "eval_split_ratio": 0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "push_to_hub": False,
    "load_best_model_at_end": False,
    "disable_tqdm": True,
    "curriculum": "none",
    "group_by_prompt": False,
}
"""What the trial asks for in place of the recipe's: a step and nothing around it, which changes no tensor of it."""


def tried(
    argv: Sequence[str], dataset: Any, longest: Sequence[tuple[int, Mapping[str, Any]]], size: int, cuda: bool
) -> Finding:
    """Train one step on a micro-batch of the longest rows; weights, caches and output go with a folder of their own.

    Args:
        argv: the fields of `mfpo train`.
        dataset: that the rows are of.
        longest: rows with their numbers there, the longest first.
        size: rows of a micro-batch; where there are fewer, they come again.
        cuda: whether it runs on a CUDA device, whose peak memory is measured.
    """
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    what = f"the longest row{'s' * (len(longest) > 1)} ({', '.join(str(number) for number, _ in longest[:8])})"
    details: dict[str, Any] = {"rows": [number for number, _ in longest], "size": size, "out_of_memory": False}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mfpo-check-") as folder:
        try:
            loss = _one_step(argv, _rows(dataset, longest, size), Path(folder))
        except Exception as error:
            # Whatever it is, training would meet it too.
            return _failed(what, error, details)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if cuda else None
    value = f"forward, backward and optimizer on {what} in {seconds:.1f} s with loading; loss {loss:.4f}; "
    value += f"peak {peak / GIB:.1f} GiB allocated" if peak is not None else "peak memory is not measured on a CPU"
    details |= {"seconds": seconds, "loss": loss, "peak_bytes": peak}
    if not math.isfinite(loss):
        return Finding("trial step", PROBLEM, value, "the loss is no number; try dtype: bfloat16 or float32", details)
    return Finding("trial step", OK, value, details=details)


def _rows(dataset: Any, longest: Sequence[tuple[int, Mapping[str, Any]]], size: int) -> Dataset:
    places = [longest[n % len(longest)] for n in range(size)]
    if is_stored(dataset):
        return dataset.select([number for number, _ in places])
    return Dataset.from_list([{name: value for name, value in row.items() if name != ROW_NUMBER} for _, row in places])


def _one_step(argv: Sequence[str], rows: Dataset, folder: Path) -> float:
    rows.save_to_disk(folder / "rows")
    fields = ONE_STEP | {"dataset_name": folder / "rows", "output_dir": folder / "output"}
    script, training, model = parse(
        [*argv, *(part for name, value in fields.items() for part in (f"--{name}", str(value)))]
    )
    training.resume_from_checkpoint = None
    trainer = build(script, training, model)
    try:
        return trainer.train().training_loss
    finally:
        trainer.accelerator.free_memory()
        del trainer
        gc.collect()


def _failed(what: str, error: Exception, details: dict[str, Any]) -> Finding:
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        advice = "lower per_device_train_batch_size, set gradient_checkpointing: true, or quantise (load_in_4bit)"
        value = f"a step on {what} does not fit into the device's memory: {_line(error)}"
        return Finding("trial step", PROBLEM, value, advice, {**details, "out_of_memory": True})
    value = f"a step on {what} failed: {type(error).__name__}: {_line(error)}"
    return Finding("trial step", PROBLEM, value, "training would stop here; mend this first", details)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:300] + ("…" if len(text) > 300 else "")
