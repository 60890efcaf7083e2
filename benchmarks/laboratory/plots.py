"""Two pictures of the results: the headline arms, and how figures move with noise, pairs and mirror rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mfpo_trl.images import DispreferredImages

from .material import redraw
from .plan import Plan
from .tables import Results, half_width, values
from .world import COMPANIONS, DESCRIBE, OBJECTS, SIZE, make_scenes

PLAIN, MIRRORED, BASE = "#1f6fb2", "#c8641b", "#6b6b6b"
DOTS_PER_INCH = 110

MADE = (
    ("noise, linear step 500,\nin the key regions", "diffusion", {"step": 500, "schedule": "linear"}, "key"),
    ("noise, vcd_sigmoid step 500,\nin the key regions", "diffusion", {"step": 500, "schedule": "vcd_sigmoid"}, "key"),
    ("crop of the whole image", "crop", {}, "global"),
    ("one region inpainted", "inpaint", {}, "partial"),
    ("all regions inpainted", "inpaint", {}, "key"),
)
"""Dispreferred images of the picture of the world: title, corruption, options, region."""

LINES: Mapping[str, Mapping[str, Mapping[float, str]]] = {
    "noise in the key regions, step": {
        "linear": {100: "linear 100", 300: "linear 300", 500: "mfpo", 700: "linear 700", 900: "linear 900"},
        "vcd_sigmoid": {100: "vcd 100", 300: "vcd 300", 500: "vcd 500", 700: "vcd 700", 900: "vcd 900"},
    },
    "mirrored rows beside 400 pairs": {
        "dpo+anchor": {
            0: "dpo+anchor",
            50: "dpo+anchor, 50 mirrored",
            100: "dpo+anchor, 100 mirrored",
            200: "dpo+anchor, 200 mirrored",
            400: "dpo+anchor, mirror",
        }
    },
    "pairs": {
        objective: {400: objective, **{n: f"{objective}, {n} pairs" for n in (100, 200, 800, 1600)}}
        for objective in ("dpo+anchor", "mfpo")
    },
}
"""Titles of panels, lines, and the arms at their points."""


def draw_world(path: Path) -> None:
    """Scenes with and without habits, one with its captions, dispreferred images and its twin."""
    figure = Figure(figsize=(12.5, 4.6), layout="constrained")
    panels = figure.subplots(2, 6)
    for line, (title, company) in zip(panels, (("with habits", 1.0), ("without habits", 0.0)), strict=True):
        for axes, scene in zip(line[:3], make_scenes(3, 8, company), strict=True):
            _show(axes, scene.image, ",\n".join(scene.names))
        line[0].set_ylabel(title)
    scene = make_scenes(3, 8, 1.0)[0]
    boxes = [list(thing.box) for thing in scene.things]
    row = {"id": "shown", "prompt": DESCRIBE, "chosen": "", "key_regions": boxes}
    for axes, (title, corruption, kwargs, region) in zip([*panels[0][3:], *panels[1][3:5]], MADE, strict=True):
        making = DispreferredImages(corruption, kwargs, region, 0, lambda height, width: SIZE)
        _show(axes, making(row, [scene.image])[0], title)
    thing, region = scene.things[0], np.zeros((SIZE, SIZE), dtype=bool)
    region[thing.box[1] : thing.box[3], thing.box[0] : thing.box[2]] = True
    new = next(name for name in OBJECTS if name not in scene.names and not COMPANIONS[name] & set(scene.names))
    edited, _ = redraw(scene.image, region, thing.name, new, np.random.default_rng(0))
    _show(panels[1][5], edited, f"the twin: {thing.name}\nbecomes {new}")
    _save(figure, (), path)


def _show(axes: Any, image: Any, title: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)


def draw_headline(path: Path, results: Results, plan: Plan) -> None:
    """Coverage against CHAIRs of the headline arms, and their F1, with 95 % intervals over seeds."""
    names = ["base", *(name for name, arm in plan.arms.items() if arm.headline)]
    names = [name for name in names if name in results.kept]
    figure = Figure(figsize=(12.5, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in names:
        x, y = (values(results.figures(name), heading) for heading in ("CHAIRs", "cover"))
        left.errorbar(
            mean(x),
            mean(y),
            xerr=half_width(x),
            yerr=half_width(y),
            fmt="o",
            color=_tint(name, plan),
            capsize=2,
            alpha=0.8,
        )
        left.annotate(name, (mean(x), mean(y)), xytext=(5, 4), textcoords="offset points", fontsize=9)
    left.set(xlabel="CHAIRs %, captions that name something absent", ylabel="coverage %, objects that are named")
    left.set_title("better is up and to the left", fontsize=11)
    ordered = sorted(names, key=lambda name: mean(values(results.figures(name), "F1")))
    for place, name in enumerate(ordered):
        numbers = values(results.figures(name), "F1")
        right.errorbar(mean(numbers), place, xerr=half_width(numbers), fmt="o", color=_tint(name, plan), capsize=3)
    right.set_yticks(range(len(ordered)), ordered)
    right.axvline(mean(values(results.figures("base"), "F1")), color=BASE, linewidth=0.8, linestyle=":")
    right.set_xlabel("F1 of objects, %")
    right.set_title("orange: trained with mirror rows", fontsize=11, color=MIRRORED)
    _save(figure, (left, right), path)


def _tint(name: str, plan: Plan) -> str:
    if name not in plan.arms:
        return BASE
    return MIRRORED if plan.arms[name].data in ("mirror", "noisy", "transplanted") else PLAIN


def draw_questions(path: Path, results: Results, plan: Plan) -> None:
    """F1 along steps of noise, mirrored rows and pairs, with 95 % intervals over seeds."""
    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    panels = figure.subplots(1, len(LINES))
    for axes, (title, lines) in zip(panels, LINES.items(), strict=True):
        for (label, points), tint in zip(lines.items(), (PLAIN, MIRRORED), strict=False):
            known = {
                x: values(results.figures(name), "F1") for x, name in sorted(points.items()) if name in results.kept
            }
            if known:
                _line(axes, known, label, tint)
        axes.axhline(
            mean(values(results.figures("base"), "F1")), color=BASE, linewidth=0.8, linestyle=":", label="base"
        )
        axes.set(xlabel=title, ylabel="F1 of objects, %")
        axes.legend(frameon=False, fontsize=9)
    _save(figure, panels, path)


def _line(axes: Any, known: Mapping[float, Sequence[float]], label: str, tint: str) -> None:
    heights = [half_width(own) or 0.0 for own in known.values()]
    axes.errorbar(
        list(known), [mean(own) for own in known.values()], yerr=heights, label=label, color=tint, fmt="o-", capsize=3
    )


def _save(figure: Figure, panels: Any, path: Path) -> None:
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white")
