"""The demo's two pictures: the curves of the trainings, and a sheet of scenes with what the models say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .scenes import COLOURS, SHAPES, Scene, presumed
from .scoring import hallucinated, mentions

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError('the demo draws with matplotlib; install it with: pip install "mfpo_trl[demo]"') from error

Log = list[dict[str, float]]

TINTS = {"base": "#6b6b6b", "DPO": "#c8641b", "DPO + anchor": "#8a4fb0", "MFPO": "#1f6fb2"}
WRONG = "#c00000"
DOTS_PER_INCH = 110
# Width of one letter of DejaVu Sans Mono over its size; the same in bold.
LETTER = 0.602
TEXT_SIZE = 9.5
# Stands for words beyond the sheet's edge.
MORE = "..."
# Inches.
LINE_HEIGHT = 1.5
HEADER_HEIGHT = 0.75


@dataclass(frozen=True)
class Exhibit:
    """One line of the contact sheet: a scene, its corrupted image, and each model's caption by the model's name."""

    scene: Scene
    corrupted: Image.Image
    captions: Mapping[str, str]


def series(log: Log, key: str) -> tuple[list[float], list[float]]:
    """Steps and values at which a trainer logged `key`."""
    entries = [entry for entry in log if key in entry]
    return [entry["step"] for entry in entries], [float(entry[key]) for entry in entries]


def draw_curves(path: Path, logs: Mapping[str, Log]) -> None:
    """Write a PNG with the curves of the trainings.

    Args:
        path: of the PNG.
        logs: the trainers' logs under `seeing`, `presuming` (the two stages of the base), and each method.
    """
    figure = Figure(figsize=(12, 7.4), layout="constrained")
    figure.suptitle("How the base and its students were trained", fontsize=14)
    (base, chosen), (text, image) = figure.subplots(2, 2)

    _panel(base, "Base captioner: loss on true captions", "nats a token")
    steps, losses = series(logs["seeing"], "loss")
    base.plot(steps, losses, color=TINTS["base"], label="everything, mild company")
    later, more = series(logs["presuming"], "loss")
    base.plot([steps[-1] + step for step in later], more, color="black", label="language part alone, full company")

    _panel(chosen, "Reward of the true caption", "beta x log-ratio")
    _panel(text, "Text margin: true caption over hallucinated one", "reward")
    for axes, key in ((chosen, "rewards/chosen"), (text, "rewards/margins")):
        for name in (name for name in TINTS if name in logs):
            axes.plot(*series(logs[name], key), color=TINTS[name], label=name)
    chosen.axhline(0, color="black", linewidth=0.7)

    _panel(image, "MFPO: both modalities", "reward")
    image.plot(*series(logs["MFPO"], "rewards/margins"), color=TINTS["MFPO"], label="text margin")
    image.plot(
        *series(logs["MFPO"], "rewards/image_margins"), color="#2a9d5c", label="image margin: clean over corrupted"
    )
    for axes in (base, chosen, text, image):
        axes.legend(frameon=False)
    _save(figure, path)


def draw_contact_sheet(path: Path, exhibits: Sequence[Exhibit]) -> None:
    """Write a PNG with one line an exhibit: image, key regions, corrupted image, captions."""
    height = LINE_HEIGHT * len(exhibits) + HEADER_HEIGHT
    figure = Figure(figsize=(13.5, height))
    figure.suptitle(
        "Held-out scenes and what the models say of them", x=0.01, y=1 - 0.1 / height, ha="left", fontsize=14
    )
    grid = figure.add_gridspec(
        len(exhibits), 4, width_ratios=(1, 1, 1, 6.3), left=0.01, right=0.995, top=1 - HEADER_HEIGHT / height,
        bottom=0.1 / height, wspace=0.05, hspace=0.08,
    )  # fmt: skip
    for line, exhibit in enumerate(exhibits):
        cells = [figure.add_subplot(grid[line, column]) for column in range(4)]
        if line == 0:
            for axes, title in zip(cells, ("image", "key regions", "corrupted"), strict=False):
                axes.set_title(title, fontsize=11)
            cells[3].set_title(
                "captions; in red: named, but not there; habit: what the base expects beside an object that is there",
                fontsize=11,
                loc="left",
                color=WRONG,
            )
        for axes, picture in zip(cells, (exhibit.scene.image, exhibit.scene.image, exhibit.corrupted), strict=False):
            axes.imshow(picture, interpolation="nearest", extent=(0, picture.width, picture.height, 0))
            axes.set(xticks=[], yticks=[])
        for thing in exhibit.scene.things:
            x0, y0, x1, y1 = thing.box
            cells[1].add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="black", linewidth=1.4))
        _write_captions(cells[3], exhibit)
    _save(figure, path)


def _panel(axes: Any, title: str, unit: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _write_captions(axes: Any, exhibit: Exhibit) -> None:
    """The true caption, what habit adds to it, and each model's caption, one below the other; objects that are not there stand out."""
    axes.axis("off")
    lines = {"truth": exhibit.scene.caption, "habit": _habit(exhibit), **exhibit.captions}
    width = axes.get_position().width * axes.figure.get_size_inches()[0] * 72
    step = TEXT_SIZE * LETTER / width
    indent = max(map(len, lines)) + 2
    room = int(0.98 / step) - len(MORE)
    for position, (name, caption) in enumerate(lines.items()):
        height = 1 - (position + 0.5) / len(lines)
        style = {"fontsize": TEXT_SIZE, "family": "DejaVu Sans Mono", "va": "center", "transform": axes.transAxes}
        style |= {"style": "italic"} if name == "habit" else {}
        axes.text(0.01, height, name, color=TINTS.get(name, "black"), weight="bold", **style)
        wrong = set(hallucinated(caption, exhibit.scene.names))
        at = indent
        for words in _phrases(caption):
            if at + len(words) > room:
                axes.text(0.01 + at * step, height, MORE, **style)
                break
            mark = {"color": WRONG, "weight": "bold", "backgroundcolor": "#fde3e3"} if words in wrong else {}
            axes.text(0.01 + at * step, height, words, **style, **mark)
            at += len(words) + 1


def _habit(exhibit: Exhibit) -> str:
    """The absent objects that the base names, each with what it usually comes with."""
    found = presumed(exhibit.scene, mentions(exhibit.captions["base"]))
    return " , ".join(f"{companion} usually brings {name}" for name, companion in found.items()) or "-"


def _phrases(caption: str) -> list[str]:
    """The caption's words, the two words of an object kept together."""
    words = caption.split()
    phrases: list[str] = []
    for word in words:
        if phrases and phrases[-1] in COLOURS and word in SHAPES:
            phrases[-1] += f" {word}"
        else:
            phrases.append(word)
    return phrases


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white")
