"""Evaluation tables on a model card, from the files of `scores/` beside it."""

import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult

from .markdown import plain

logger = logging.getLogger(__name__)

FOLDER = "scores"


@dataclass(frozen=True)
class Scores:
    """What one file tells: a benchmark, and the value of each metric by its name."""

    benchmark: str
    metrics: dict[str, float]


def read_scores(output_dir: str | Path) -> list[Scores]:
    """The files `scores/*.json`, by their names; one that cannot be used is named in a warning and left out.

    A file holds `{"benchmark": "POPE", "metrics": {"accuracy": 0.86}}`; what else it holds is not read.
    """
    found = []
    for path in sorted((Path(output_dir) / FOLDER).glob("*.json")):
        try:
            found.append(_checked(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, OSError, RecursionError) as error:
            logger.warning("%s is left out of the model card: %s", path, error)
    return found


def _checked(content: object) -> Scores:
    """Raises ValueError: says which field is not as it must be."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}; expected an object with 'benchmark' and 'metrics'")
    benchmark, metrics = content.get("benchmark"), content.get("metrics")
    if not isinstance(benchmark, str) or not benchmark.strip():
        raise ValueError(f"'benchmark' is {benchmark!r}; expected a name")
    if not isinstance(metrics, dict) or not metrics:
        raise ValueError(f"'metrics' is {metrics!r}; expected an object of names and numbers")
    for name, value in metrics.items():
        # Infinity and NaN pass Python's JSON reader, and the Hub's refuses them.
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"metric {name!r} is {value!r}; expected a finite number")
    return Scores(benchmark.strip(), metrics)


def describe_scores(scores: Sequence[Scores]) -> str:
    """A section with a line for each metric; empty where there is none."""
    if not scores:
        return ""
    lines = [
        f"| {plain(own.benchmark)} | {plain(name)} | {value:.6g} |"
        for own in scores
        for name, value in own.metrics.items()
    ]
    return "## Evaluation\n\n| benchmark | metric | value |\n|---|---|---|\n" + "\n".join(lines) + "\n\n"


def evaluation_results(scores: list[Scores], task: str) -> list[EvalResult]:
    """The same for the card's metadata, which the Hub shows beside the model.

    Args:
        scores: of the files.
        task: the model's, such as `image-text-to-text`.
    """
    return [
        EvalResult(
            task_type=task,
            dataset_type=_slug(own.benchmark),
            dataset_name=own.benchmark,
            metric_type=_slug(name),
            metric_name=name,
            metric_value=value,
        )
        for own in scores
        for name, value in own.metrics.items()
    ]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"
