"""Figures of arms and seeds: how they are kept, and the tables of them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from .plan import Plan

Figures = Mapping[str, Mapping[str, float]]

QUESTIONS = {
    1: "Objectives, on the same pairs",
    2: "Dispreferred images",
    3: "How much noise",
    4: "Terms and weights",
    5: "The order of the rows",
    6: "Rewards, and whether the image is looked at",
    7: "Mirror rows",
    8: "How it grows",
}
BESIDE = {
    2: ("dpo+anchor", "mdpo", "mfpo"),
    3: ("mfpo",),
    4: ("dpo+anchor", "mfpo"),
    6: ("dpo", "dpo+anchor", "mdpo", "mfpo", "symmpo", "mfpo-sym", "dpo+anchor, mirror", "mfpo, mirror"),
    7: ("sft", "dpo", "dpo+anchor", "mfpo", "svco", "symmpo", "icvco", "mfpo-sym"),
    8: ("dpo+anchor", "mfpo"),
}
"""Arms of other questions that a table begins with."""

COLUMNS = {
    "CHAIRs": ("captions", "chair_s", 100),
    "CHAIRi": ("captions", "chair_i", 100),
    "cover": ("captions", "coverage", 100),
    "F1": ("captions", "f1", 100),
    "words": ("captions", "words", 1),
    "yes/no": ("objects", "accuracy", 100),
    "sizes": ("sizes", "accuracy", 100),
}
"""Heading: group, figure and factor."""

LOOKING = {
    "changed": ("reliance", "answer_change", 100),
    "accuracy": ("reliance", "accuracy", 100),
    "without": ("reliance", "accuracy_without_image", 100),
    "blind": ("reliance", "blind_accuracy", 100),
    "text": ("reliance", "text_reward", 1),
    "image": ("reliance", "image_reward", 1),
    "balance": ("reliance", "balance", 1),
    "key": ("reliance", "key_region_reliance", 1),
}

MORE_COLUMNS = {
    3: {
        "probe": ("probe", "area", 1),
        "drop": ("probe", "drop_per_key_word_token", 1),
        "text margin": ("training", "rewards/margins", 1),
        "image margin": ("training", "rewards/image_margins", 1),
        "image loss": ("training", "loss/image", 1),
    },
}
MORE_COLUMNS[2] = MORE_COLUMNS[3]
"""Of some questions."""
EVERY_COLUMN = COLUMNS | LOOKING | MORE_COLUMNS[3]

T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""Of Student's t, by degrees of freedom."""


@dataclass
class Results:
    """What is known of arms, by name and seed."""

    kept: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Of a file; none where there is none."""
        return cls(json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})

    def write(self, path: Path) -> None:
        """All of it, at once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = path.with_suffix(".begun")
        begun.write_text(json.dumps(self.kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        begun.replace(path)

    def add(self, name: str, seed: int, found: Mapping[str, Any]) -> None:
        """What was found of an arm in a seed, in place of what was known."""
        self.kept.setdefault(name, {})[str(seed)] = _rounded(found)

    def get(self, name: str, seed: int) -> dict[str, Any] | None:
        """What is known of an arm in a seed."""
        return self.kept.get(name, {}).get(str(seed))

    def has(self, name: str, seed: int, settings: Mapping[str, Any], base: str) -> bool:
        """Whether the figures of an arm are there, with these settings and of this base."""
        own = self.get(name, seed)
        return own is not None and own["settings"] == settings and own["base"] == base

    def figures(self, name: str) -> dict[int, Figures]:
        """Of an arm, by seed."""
        return {int(seed): own["figures"] for seed, own in sorted(self.kept.get(name, {}).items())}


def _rounded(found: Any) -> Any:
    if isinstance(found, float):
        return None if math.isnan(found) else float(f"{found:.5g}")
    if isinstance(found, Mapping):
        return {key: _rounded(own) for key, own in found.items()}
    return found


def values(figures: Mapping[int, Figures], heading: str, seeds: Sequence[int] | None = None) -> list[float]:
    """A column of an arm, a number a seed."""
    group, name, factor = EVERY_COLUMN[heading]
    found = [own.get(group, {}).get(name) for seed, own in figures.items() if seeds is None or seed in seeds]
    return [factor * own for own in found if own is not None]


def half_width(numbers: Sequence[float]) -> float | None:
    """Half of the 95 % interval of a mean over seeds, by Student's t; None for fewer than two."""
    if len(numbers) < 2:
        return None
    return T_95[len(numbers) - 1] * stdev(numbers) / len(numbers) ** 0.5


def cell(numbers: Sequence[float], digits: int = 1) -> str:
    """The mean, and half of its interval where there are several seeds."""
    if not numbers:
        return ""
    half = half_width(numbers)
    return f"{mean(numbers):.{digits}f}" + ("" if half is None else f" ±{half:.{digits}f}")


def shown(figures: Mapping[int, Figures], heading: str) -> str:
    """The cell of a column: shares in per cent and words with one digit, others with two."""
    return cell(values(figures, heading), 1 if EVERY_COLUMN[heading][2] == 100 or heading == "words" else 2)


def gain(results: Results, name: str, other: str, heading: str) -> list[float]:
    """What an arm has more than another one, paired by seed."""
    ours, theirs = results.figures(name), results.figures(other)
    both = sorted(ours.keys() & theirs.keys())
    pairs = [(values({seed: ours[seed]}, heading), values({seed: theirs[seed]}, heading)) for seed in both]
    return [one[0] - other[0] for one, other in pairs if one and other]


def arms_of(plan: Plan, results: Results, question: int) -> list[str]:
    """The arms of a table that have figures, those of other questions first."""
    own = [name for name, arm in plan.arms.items() if arm.question == question]
    return [name for name in ("base", *BESIDE.get(question, ()), *own) if name in results.kept]


def content_of(results: Results, plan: Plan, question: int) -> list[list[str]]:
    """Head and rows of the table of a question; empty where none of its arms has figures."""
    names = arms_of(plan, results, question)
    own = {name for name, arm in plan.arms.items() if arm.question == question} or {*BESIDE[question]}
    if not own & {*names}:
        return []
    columns = [*LOOKING] if question == 6 else [*COLUMNS, *MORE_COLUMNS.get(question, ())]
    rows = []
    for name in names:
        figures = results.figures(name)
        above = "" if name == "base" else cell(gain(results, name, "base", "F1"))
        rows.append([name, str(len(figures)), above, *(shown(figures, heading) for heading in columns)])
    return [["arm", "seeds", "F1 - base", *columns], *rows]


def tables(results: Results, plan: Plan) -> list[Table]:
    """One a question that has figures."""
    found = []
    for question, title in QUESTIONS.items():
        if content := content_of(results, plan, question):
            table = Table(
                title=f"{question}. {title}; means over seeds, ± half of the 95 % interval", title_justify="left"
            )
            for place, heading in enumerate(content[0]):
                table.add_column(heading, justify="right" if place else "left", no_wrap=True)
            for row in content[1:]:
                table.add_row(*row)
            found.append(table)
    return found


def markdown(content: Sequence[Sequence[str]]) -> str:
    """A table of head and rows."""
    head, *rows = [f"| {' | '.join(row)} |" for row in content]
    return "\n".join([head, f"|{'---|' * len(content[0])}", *rows])


def choice_table(content: Mapping[str, Any]) -> Table:
    """What each rate came to, and which was chosen."""
    table = Table(title=f"{content['figure']} % by learning rate, seed {content['seed']}, scenes to choose on")
    table.add_column("arm")
    rates = list(dict.fromkeys(rate for own in content["arms"].values() for rate in own["tried"]))
    for heading in (*rates, "chosen"):
        table.add_column(heading, justify="right")
    for name, own in content["arms"].items():
        tried = [f"{100 * own['tried'][rate]['f1']:.1f}" if rate in own["tried"] else "" for rate in rates]
        table.add_row(name, *tried, f"{own['chosen']:g}")
    return table
