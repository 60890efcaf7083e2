"""Evaluation tables on a model card, from the files of `scores/` beside it: those of `mfpo score`, and those of anyone else."""

import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard
from yaml import YAMLError

from .markdown import plain

logger = logging.getLogger(__name__)

FOLDER = "scores"
HEAD = "## Evaluation"
ONLY = "all"
"""The group of a benchmark that has no other."""

TASK = "image-text-to-text"
"""Of a card that does not say it."""


@dataclass(frozen=True)
class Scores:
    """What one file tells of one group of figures.

    Attributes:
        benchmark: its name.
        metrics: the value of each figure by its name.
        group: such as a split; empty where there is only one.
        intervals: of a figure by its name, ends of its 95 % interval and number of items.
        shares: the figures that are fractions of 1, shown in per cent.
        settings: what the figures depend on, such as a judge.
    """

    benchmark: str
    metrics: Mapping[str, float]
    group: str = ""
    intervals: Mapping[str, tuple[float, float, int]] = field(default_factory=dict)
    shares: frozenset[str] = frozenset()
    settings: Mapping[str, str] = field(default_factory=dict)


def read_scores(output_dir: str | Path) -> list[Scores]:
    """The files `scores/*.json`, by their names; one that cannot be used is named in a warning and left out.

    A file holds `{"benchmark": "POPE", "metrics": {"accuracy": 0.86}}`, or what `mfpo score` writes: `{"benchmark": "POPE",
    "random": {"accuracy": {"value": 0.86, "low": 0.84, "high": 0.87, "n": 3000}}}`. What else it holds is not read.
    """
    found = []
    for path in sorted((Path(output_dir) / FOLDER).glob("*.json")):
        try:
            found += _checked(json.loads(path.read_text(encoding="utf-8")), path.stem)
        except (ValueError, OSError, RecursionError) as error:
            logger.warning("%s is left out of the model card: %s", path, error)
    return found


def _checked(content: object, stem: str) -> list[Scores]:
    """Raises ValueError: says which field is not as it must be; a report of `mfpo score` without a name has that of its file."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}; expected an object with 'benchmark' and 'metrics'")
    metrics = content.get("metrics")
    groups = {name: own for name, own in content.items() if _is_group(own)} if metrics is None else {}
    benchmark = content.get("benchmark", stem if groups else None)
    if not isinstance(benchmark, str) or not benchmark.strip():
        raise ValueError(f"'benchmark' is {benchmark!r}; expected a name")
    if groups:
        shares = content["shares"] if isinstance(content.get("shares"), list) else []
        settings = content["settings"] if isinstance(content.get("settings"), dict) else {}
        told = {str(name): str(value) for name, value in settings.items()}
        return [
            _group(benchmark.strip(), name, own, frozenset(map(str, shares)), told) for name, own in groups.items()
        ]
    if not isinstance(metrics, dict) or not metrics:
        raise ValueError(f"'metrics' is {metrics!r}; expected an object of names and numbers")
    for name, value in metrics.items():
        _check_number(name, value)
    return [Scores(benchmark.strip(), metrics)]


def _is_group(content: object) -> bool:
    """Whether it is figures by their names, each with its value."""
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(own, dict) and "value" in own and "test" not in own for own in content.values())
    )


def _group(
    benchmark: str,
    group: str,
    figures: Mapping[str, Mapping[str, Any]],
    shares: frozenset[str],
    settings: Mapping[str, str],
) -> Scores:
    """Figures over nothing, whose value is null, are left out."""
    known = {name: own for name, own in figures.items() if own["value"] is not None}
    for name, own in known.items():
        for part in ("value", "low", "high", "n"):
            _check_number(f"{name} {part}".removesuffix(" value"), own.get(part))
    return Scores(
        benchmark,
        {name: own["value"] for name, own in known.items()},
        "" if group == ONLY else group,
        {name: (own["low"], own["high"], own["n"]) for name, own in known.items()},
        shares,
        settings,
    )


def _check_number(name: str, value: object) -> None:
    """Raises ValueError: infinity and NaN pass Python's JSON reader, and the Hub's refuses them."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"metric {name!r} is {value!r}; expected a finite number")


def describe_scores(scores: Sequence[Scores]) -> str:
    """A section with a line for each metric, and what they depend on; empty where there is none."""
    if not scores:
        return ""
    wide = any(own.intervals for own in scores)
    head = "| benchmark | metric | value |" + (
        " 95 % interval | n |\n|---|---|---|---|---|\n" if wide else "\n|---|---|---|\n"
    )
    lines = [
        f"| {plain(', '.join(filter(None, (own.benchmark, own.group))))} | {plain(name)} | "
        + _cells(own, name, value, wide)
        for own in scores
        for name, value in own.metrics.items()
    ]
    settings = {
        own.benchmark: "; ".join(f"{name}: {value}" for name, value in own.settings.items())
        for own in scores
        if own.settings
    }
    told = "".join(f"- {plain(name)}: {plain(value)}\n" for name, value in settings.items())
    return f"{HEAD}\n\n{head}" + "\n".join(lines) + "\n\n" + (f"{told}\n" if told else "")


def _cells(own: Scores, name: str, value: float, wide: bool) -> str:
    """Value, interval and number of items, the latter two where the table has them."""
    if name not in own.intervals:
        return f"{value:.6g} |" + (" – | – |" if wide else "")
    low, high, n = own.intervals[name]
    if name in own.shares:
        return f"{value:.1%} | {low:.1%} to {high:.1%} | {n:,} |".replace("%", " %")
    return f"{value:.2f} | {low:.2f} to {high:.2f} | {n:,} |"


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
            dataset_config=own.group or None,
            metric_type=_slug(name),
            metric_name=name,
            metric_value=value,
        )
        for own in scores
        for name, value in own.metrics.items()
    ]


def update_card(folder: str | Path) -> Path:
    """Write the scores of a model's folder into the table and the metadata of its README.md; all else there stays as it is.

    Raises:
        ValueError: a folder without a card, or one whose metadata cannot be read.
    """
    path = Path(folder) / "README.md"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no README.md to update; training writes one, and --scores writes the figures without it"
        )
    try:
        card = ModelCard.load(path)
    except (ValueError, YAMLError) as error:
        raise ValueError(f"{path} cannot be updated: {error}") from error
    scores = read_scores(folder)
    data: Any = card.data  # its fields are those that a card has
    data.model_name = data.model_name or Path(folder).resolve().name
    ours = {own.benchmark for own in scores}
    others = [own for own in data.eval_results or () if own.dataset_name not in ours]
    data.eval_results = [*others, *evaluation_results(scores, data.pipeline_tag or TASK)] or None
    card.text = with_section(card.text, describe_scores(scores))
    unfinished = path.with_name("_README.md")
    card.save(unfinished)
    os.replace(unfinished, path)
    return path


def with_section(text: str, section: str) -> str:
    """The text of a card with this section of scores: in place of the one that it has, or before its licence, or at its end."""
    own = re.search(rf"^{HEAD}\s*$.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if own:
        return text[: own.start()] + section + text[own.end() :]
    place = re.search(r"^## Licence\s*$", text, re.MULTILINE)
    if place:
        return text[: place.start()] + section + text[place.start() :]
    return text.rstrip("\n") + "\n\n" + section


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"
