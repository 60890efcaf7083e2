"""What the demo shows while it works: one bar a training, and little else."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.utils import logging


class ProgressBar(TrainerCallback):
    """A bar named `label` that counts steps and shows the last logged loss."""

    def __init__(self, label: str):
        self.label = label
        self.bar: Any = None  # until training begins

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, desc=self.label, unit="step", ncols=88)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def show_bar(trainer: Trainer, label: str) -> None:
    """Give `trainer` a `ProgressBar` instead of the callbacks that print every log."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(ProgressBar(label))


@contextmanager
def only_our_bars() -> Iterator[None]:
    """Inside, transformers and datasets show no bars of their own, and TRL's use of an old name for checkpointing goes unsaid."""
    shown, hidden = logging.is_progress_bar_enabled(), datasets.utils.are_progress_bars_disabled()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning
            )
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
        if not hidden:
            datasets.enable_progress_bars()
