"""The tables of the pages are those of the files that the benchmarks wrote."""

import json
from pathlib import Path
from statistics import mean

import pytest

ROOT = Path(__file__).parents[2]
FIGURES = ("chair_s", "chair_i", "coverage", "words", "f1")


def rows(path: str) -> dict[str, list[dict[str, float]]]:
    """The figures of each student, one of a seed behind the other."""
    content = json.loads((ROOT / "benchmarks" / "results" / path).read_text())
    seeds = [found.get("scores", found) for found in content.values()]
    return {name: [found[name] for found in seeds if name in found] for name in seeds[0]}


def shown(figures: list[dict[str, float]]) -> str:
    """The means over seeds, as the pages print them."""
    scale = {key: 1 if key == "words" else 100 for key in FIGURES}
    return " | ".join(f"{scale[key] * mean(own[key] for own in figures):.1f}" for key in FIGURES)


@pytest.mark.parametrize(
    ("file", "page"),
    [
        ("demo.json", "README.md"),
        ("demo_choices.json", "docs/method.md"),
        ("mirror_rows.json", "docs/data.md"),
    ],
)
def test_every_student_stands_in_the_table_with_its_means(file, page):
    text = (ROOT / page).read_text().replace("**", "")
    missing = {name: shown(figures) for name, figures in rows(file).items() if f"| {shown(figures)} |" not in text}
    assert not missing


def test_what_the_readme_says_of_every_seed_holds_in_every_seed():
    found = rows("demo.json")
    chairs, f1 = (
        {name: [100 * own[key] for own in seeds] for name, seeds in found.items()} for key in ("chair_s", "f1")
    )

    def less(one: str, other: str) -> list[int]:
        return [round(b - a) for a, b in zip(chairs[one], chairs[other], strict=True)]

    assert min(less("base", "DPO + anchor")) > 0
    assert sum(own > 0 for own in less("base", "DPO")) == 2
    assert {*less("MFPO", "DPO + anchor")} <= {14, 15} and {*less("MFPO", "base")} <= {7, 8}
    assert next(iter(f1)) == "base" and all(own[0] > max(own[1:]) for own in zip(*f1.values(), strict=True))
