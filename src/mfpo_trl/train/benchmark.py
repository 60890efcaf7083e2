"""`--eval_benchmark`: a benchmark that is asked and scored at each evaluation."""

import difflib
import json
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from accelerate.utils import gather_object
from transformers import TrainerCallback
from trl import ScriptArguments

from .. import _trl
from ..config import MFPOConfig
from ..evaluation import During, Scored

logger = get_logger(__name__)

LOGGED = 32
"""Answers in the table that goes to the reporters."""


class BenchmarkCallback(TrainerCallback):
    """Has the policy answer a benchmark's questions at each evaluation, scores them, and adds the figures to its metrics, where
    `metric_for_best_model`, early stopping and the log find them: `eval_chair_s`.

    All processes share the questions. The answers of each evaluation are kept in `eval_answers` under the output folder, as
    `mfpo score` reads them. Of several evaluation sets, the first one's evaluation asks.

    Args:
        benchmark: its questions and scorer.
        trainer: that evaluates; may be set later.
    """

    def __init__(self, benchmark: During, trainer: Any = None):
        self.benchmark, self.trainer = benchmark, trainer

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Called when an evaluation is done, with its metrics."""
        prefix = self._prefix(metrics)
        if prefix is None:
            return
        scored = self._scored()
        named = {f"{prefix}_{name}": value for name, value in scored.figures.items()}
        metrics.update(named)
        self.trainer.log(dict(named))
        if self.trainer.is_world_process_zero():
            self._keep(scored)

    def _prefix(self, metrics: dict[str, float]) -> str | None:
        """What the figures of this evaluation begin with; None where another one of the same moment asks."""
        own = next((name.removesuffix("_runtime") for name in metrics if name.endswith("_runtime")), "eval")
        several = self.trainer.eval_dataset
        names = [f"eval_{name}" for name in several] if isinstance(several, dict) else []
        if own in names:
            return "eval" if own == names[0] else None
        return own

    def _scored(self) -> Scored:
        trainer, benchmark = self.trainer, self.benchmark
        accelerator, size = trainer.accelerator, trainer.args.per_device_eval_batch_size
        with _trl.generating(trainer) as (model, options):
            own = benchmark.answer(
                model,
                trainer.processing_class,
                size,
                accelerator.process_index,
                accelerator.num_processes,
                **options,
            )
        # Each scores all, which takes less than waiting for one that does.
        return benchmark.scored(gather_object(own))

    def _keep(self, scored: Scored) -> None:
        trainer, name = self.trainer, self.benchmark.name
        path = Path(trainer.args.output_dir, "eval_answers", f"{name}-{trainer.state.global_step:06d}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.benchmark.write(scored.texts, path)
        first = list(zip(scored.prompts, scored.texts, strict=True))[:LOGGED]
        table = {
            "prompt": [prompt.text for prompt, _ in first],
            "completion": [text for _, text in first],
            "id": [json.dumps(dict(prompt.row)) for prompt, _ in first],
        }
        _trl.log_answers(trainer, f"{name}_answers", table)


def benchmark_of(script: ScriptArguments, training: MFPOConfig) -> During | None:
    """The benchmark that the fields of a training name, if they name one; its figures decide what `greater_is_better` means.

    Raises:
        ValueError: fields that do not go together, or what of the benchmark is missing.
    """
    given: Any = script
    if given.eval_benchmark == "none":
        if given.eval_benchmark_data is not None:
            raise ValueError(
                "eval_benchmark_data is the folder of a benchmark, and eval_benchmark names none; set both or none"
            )
        return None
    if given.eval_benchmark_data is None:
        raise ValueError(
            f"eval_benchmark={given.eval_benchmark} needs eval_benchmark_data, the folder of its files and pictures"
        )
    if given.eval_benchmark_rows < 1:
        raise ValueError(f"eval_benchmark_rows is {given.eval_benchmark_rows}; expected at least 1")
    if training.eval_strategy == "no" and not training.eval_on_start:
        raise ValueError(
            f"eval_benchmark={given.eval_benchmark} is asked at each evaluation, and eval_strategy is 'no'; set eval_strategy to epoch "
            "or steps"
        )
    benchmark = During(
        given.eval_benchmark,
        Path(given.eval_benchmark_data),
        given.eval_benchmark_rows,
        given.eval_benchmark_max_new_tokens,
    )
    set_direction(training, benchmark)
    return benchmark


def set_direction(training: MFPOConfig, benchmark: During) -> None:
    """Whether a higher `metric_for_best_model` is better: a figure of the benchmark says it itself. None in `greater_is_better`
    means that nobody has said it; the rule of transformers takes every metric but a loss for one to be raised.

    Raises:
        ValueError: no such figure, or one that is to be driven the wrong way.
    """
    metric, better = (training.metric_for_best_model or "").removeprefix("eval_"), benchmark.better
    if metric.startswith(f"{benchmark.name}_") and metric not in better:
        close = difflib.get_close_matches(metric, better, 1)
        meant = f"; did you mean eval_{close[0]}?" if close else ""
        raise ValueError(
            f"metric_for_best_model is {training.metric_for_best_model!r}, and {benchmark.name} has no such figure, only "
            f"{', '.join(f'eval_{name}' for name in better)}{meant}"
        )
    direction = better.get(metric)
    if training.greater_is_better is None:
        training.greater_is_better = (
            (not metric.endswith("loss") if direction is None else direction) if metric else None
        )
    elif direction not in (None, training.greater_is_better):
        raise ValueError(
            f"greater_is_better={training.greater_is_better} would keep the worst checkpoint: a "
            f"{'higher' if direction else 'lower'} eval_{metric} is better; leave it out"
        )
