"""The arms, read from `plan.yaml`, and the learning rates that were chosen for them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RATES = (5e-5, 1e-4, 2e-4, 4e-4)
"""Of the search, the same for every arm."""
USUAL = 2e-4
"""Before a choice was made."""


@dataclass(frozen=True)
class Arm:
    """A training.

    Attributes:
        name: of the arm.
        question: which of the laboratory's questions it answers.
        data: what it is trained on, see `material.DATA`.
        train: fields of `mfpo train`.
        rated: the arm whose learning rate it takes.
        headline: of the few that everything is set beside.
        night: only with `--all`.
        rounds: of `mfpo loop` on the base's own pairs, in place of `data`.
    """

    name: str
    question: int
    data: str
    train: Mapping[str, Any]
    rated: str
    headline: bool = False
    night: bool = False
    rounds: int = 0

    @property
    def probed(self) -> bool:
        """Whether its dispreferred images are looked at before training."""
        return not self.rounds and (self.question in (2, 3) or self.name in ("mdpo", "mfpo"))

    @property
    def folder(self) -> str:
        """A name of it for files."""
        return self.name.replace(", ", "--").replace(" ", "-").replace("%", "percent")

    def settings(self, rates: Mapping[str, float]) -> dict[str, Any]:
        """What decides its figures beside seed and base."""
        return {
            "data": self.data,
            "rounds": self.rounds,
            "train": {**self.train, "learning_rate": rates.get(self.rated, USUAL)},
        }


@dataclass(frozen=True)
class Plan:
    """The arms by name, in the order of the file, and what their fields add to."""

    arms: Mapping[str, Arm] = field(default_factory=dict)

    def searched(self) -> list[Arm]:
        """The arms that have a learning rate of their own."""
        return [arm for arm in self.arms.values() if arm.rated == arm.name]


def read_plan(path: Path = HERE / "plan.yaml") -> Plan:
    """The plan of a file.

    Raises:
        ValueError: an arm that names no question or data, or is like one that does not stand before it.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    arms: dict[str, Arm] = {}
    for name, own in content["arms"].items():
        if "like" in own and own["like"] not in arms:
            raise ValueError(f"{path.name}: {name!r} is like {own['like']!r}, which does not stand before it")
        model = arms.get(own.get("like", ""))
        data = own.get("data", model.data if model else None)
        if data is None or "question" not in own:
            raise ValueError(f"{path.name}: {name!r} needs 'question', and 'data' or 'like'")
        arms[name] = Arm(
            name=name,
            question=own["question"],
            data=data,
            train={**(model.train if model else content["shared"]), **own.get("train", {})},
            rated=model.rated if model else name,
            headline=own.get("headline", False),
            night=own.get("night", False),
            rounds=own.get("rounds", 0),
        )
    return Plan(arms)


def read_rates(path: Path = HERE / "choices.json") -> dict[str, float]:
    """The learning rates that were chosen, by arm; none before a choice was made."""
    if not path.exists():
        return {}
    return {name: own["chosen"] for name, own in json.loads(path.read_text(encoding="utf-8"))["arms"].items()}
