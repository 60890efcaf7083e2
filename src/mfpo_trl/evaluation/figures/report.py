"""What a scorer found: groups of measures -> a table for the terminal, and JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from .figures import Difference, Figure, Measure, compare

WORDS = "words"
"""The measure of every group that says what its figures cost: mean answer length."""


@dataclass(frozen=True)
class Group:
    """Measures over the same items.

    Attributes:
        ids: of the items, one a row of each measure's counts.
        measures: in the order of the table.
        words: length of each item's answer, (items,); NaN where there is no answer.
        clusters: what items share, such as a picture, (items,); None where each stands alone.
    """

    ids: Sequence[str]
    measures: Sequence[Measure]
    words: Sequence[float]
    clusters: Sequence[str] | None = None

    def all(self) -> dict[str, Measure]:
        """The measures by name, with the mean answer length last."""
        words = np.asarray(self.words, dtype=np.float64)
        said = ~np.isnan(words)
        counts = np.stack([np.where(said, words, 0.0), said], axis=-1)
        length = Measure(WORDS, counts, kind="mean", higher_is_better=None)
        own = None if self.clusters is None else np.unique(np.asarray(self.clusters), return_inverse=True)[1]
        return {one.name: replace(one, clusters=own) for one in (*self.measures, length)}

    def common(self, other: "Group") -> list[tuple[int, int]]:
        """Rows of both with the same item."""
        places = {own: row for row, own in enumerate(other.ids)}
        return [(row, places[own]) for row, own in enumerate(self.ids) if own in places]


@dataclass(frozen=True)
class Result:
    """What scoring a file of answers found.

    Attributes:
        benchmark: its name, such as "CHAIR".
        groups: by name, such as `all` or `adversarial`.
        settings: what the figures depend on, such as extractor, protocol or judge.
        notes: sentences on what was missing, empty or left out.
    """

    benchmark: str
    groups: Mapping[str, Group]
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def figures(self) -> dict[str, dict[str, Figure]]:
        """Of each group, by name."""
        return {name: {own: one.figure() for own, one in group.all().items()} for name, group in self.groups.items()}


def differences(one: Result, other: Result) -> dict[str, dict[str, Difference]]:
    """`one` less `other`, over the items of each group that both have."""
    found = {}
    for name in one.groups.keys() & other.groups.keys():
        ours, theirs = one.groups[name], other.groups[name]
        common = ours.common(theirs)
        mine, their = [row for row, _ in common], [row for _, row in common]
        them = theirs.all()
        found[name] = {
            own: compare(measure.taken(mine), them[own].taken(their))
            for own, measure in ours.all().items()
            if own in them
        }
    return {name: found[name] for name in one.groups if name in found}


def as_json(
    result: Result, compared: Mapping[str, Mapping[str, Difference]] | None = None, **more: Any
) -> dict[str, Any]:
    """Groups as keys, each figure {"value", "low", "high", "n"}; beside them `benchmark`, `shares` (the figures that are fractions of 1),
    `settings`, `notes` and `differences`."""
    groups = {
        group: {name: asdict(figure) for name, figure in figures.items()}
        for group, figures in result.figures().items()
    }
    measures = [one for group in result.groups.values() for one in group.all().values()]
    shares = list(dict.fromkeys(one.name for one in measures if one.kind != "mean"))
    told = {"shares": shares, "settings": dict(result.settings), "notes": list(result.notes), **more}
    if compared is not None:
        told["differences"] = {
            group: {name: asdict(own) for name, own in figures.items()} for group, figures in compared.items()
        }
    assert not groups.keys() & {"benchmark", "shares", "settings", "notes", "differences", "published"}
    return _finite({"benchmark": result.benchmark, **groups, **told})


def as_text(content: Mapping[str, Any]) -> str:
    """The JSON of a report; NaN, which JSON does not know, as null."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def table(result: Result, compared: Mapping[str, Mapping[str, Difference]] | None = None, against: str = "") -> str:
    """The report as lines for a terminal: rates in per cent, and the mean answer length beside every figure."""
    figures = result.figures()
    lines = [f"{result.benchmark}  " + "; ".join(f"{name}: {value}" for name, value in result.settings.items())]
    rows = []
    for group, measures in ((name, own.all()) for name, own in result.groups.items()):
        length = figures[group][WORDS]
        for name, measure in measures.items():
            if name != WORDS:
                shown = figures[group][name]
                rows.append([group, name, *_cells(shown, measure), f"{shown.n:,}", _number(length.value, 1)])
    lines += aligned(["group", "figure", "value", "95 % interval", "n", "words"], rows)
    if compared is not None:
        rows = []
        for group, own in compared.items():
            for name, one in own.items():
                rows.append(
                    [group, name, *_cells(one, result.groups[group].all()[name], sign="+"), f"{one.n:,}", _p(one)]
                )
        lines += [
            "",
            f"Difference to {against}, same items",
            *aligned(["group", "figure", "difference", "95 % interval", "n", "p"], rows),
        ]
    return "\n".join([*(line.rstrip() for line in lines), *(f"Note: {note}." for note in result.notes)]) + "\n"


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> list[str]:
    """Lines of a table: the first `left` columns flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if n < left else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]


def _cells(figure: Figure | Difference, measure: Measure, sign: str = "") -> list[str]:
    """Value and interval, in per cent but for means."""
    factor, digits = (1, 2) if measure.kind == "mean" else (100, 1)
    value, low, high = (_number(one * factor, digits, sign) for one in (figure.value, figure.low, figure.high))
    return [value, f"{low} to {high}"]


def _number(value: float, digits: int, sign: str = "") -> str:
    return "–" if math.isnan(value) else f"{value:{sign}.{digits}f}"


def _p(one: Difference) -> str:
    if math.isnan(one.p):
        return "–"
    return f"{'<0.001' if one.p < 0.001 else f'{one.p:.3f}'} ({one.test})"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(own) for name, own in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
