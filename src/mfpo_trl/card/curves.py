"""The picture on a model card: how loss, margins and modality balance went over the steps."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FILE = "training_curves.png"

PANELS = (
    ("Loss, and its terms before they are weighted", ("loss", "loss/text", "loss/image", "loss/anchor"), 1.4),
    ("Margins of the rewards (beta x log-ratio)", ("rewards/margins", "rewards/image_margins"), 1.4),
    (
        "Modality balance: the smaller margin over the larger, 0 where one is not positive",
        ("rewards/modality_balance",),
        1.0,
    ),
)
"""Title of a panel, what is drawn there by the names in the trainer's log, height against the other panels."""

CURVES = {
    "loss": ("loss (weighted sum)", "#222222"),
    "loss/text": ("text", "#c8641b"),
    "loss/image": ("image", "#1f6fb2"),
    "loss/anchor": ("anchor", "#8a4fb0"),
    "rewards/margins": ("text: chosen over rejected answer", "#c8641b"),
    "rewards/image_margins": ("image: clean over corrupted", "#1f6fb2"),
    "rewards/modality_balance": ("balance", "#2a8a52"),
}
"""Name in the log -> words in the legend, colour."""

MARKS = "osD^v"
"""Of the evaluation data sets, one after the other."""

# Inches; the second is of a panel whose height is 1, with its title and its words.
WIDTH, PANEL = 8.0, 2.3
DOTS_PER_INCH = 100

Series = tuple[list[int], list[float]]


def series(log_history: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Series]:
    """What is drawn, from a trainer's log.

    Returns:
        (`train`, or the prefix of an evaluation such as `eval` or `eval_pope`; a name in `CURVES`) -> steps and values, in
        the order of the steps. A step that was logged twice, as after resuming, counts as it was logged last. Values that
        are not finite are NaN.
    """
    found: dict[tuple[str, str], dict[int, float]] = {}
    for entry in log_history:
        for key, value in entry.items():
            source, name = _source(key)
            if name in CURVES and "step" in entry and isinstance(value, int | float):
                value = float(value) if math.isfinite(value) else math.nan
                found.setdefault((source, name), {})[int(entry["step"])] = value
    return {key: (sorted(values), [values[step] for step in sorted(values)]) for key, values in found.items()}


def _source(key: str) -> tuple[str, str]:
    """`eval_pope_loss/text` -> (`eval_pope`, `loss/text`); what is logged in training has no prefix."""
    if not key.startswith("eval_"):
        return "train", key
    # The longest name first: `eval_rewards/margins` must not be taken for a data set `rewards/...`.
    for name in sorted(CURVES, key=len, reverse=True):
        if key.endswith(f"_{name}"):
            return key.removesuffix(f"_{name}"), name
    return "eval", key


def write_curves(folder: str | Path, log_history: Sequence[Mapping[str, Any]]) -> str | None:
    """Draw the curves beside a card.

    Args:
        folder: of the card.
        log_history: the trainer's log.

    Returns:
        The name of the PNG; None where nothing was logged, matplotlib is missing or the file cannot be written, the last two
        of which are said in the log.
    """
    curves = series(log_history)
    if not any(source == "train" for source, _ in curves):
        return None
    if not _can_draw():
        return None
    # Under a name that no push takes: a checkpoint may be on its way up while the next one is drawn.
    draft = Path(folder) / f"_{FILE}"
    try:
        draw(draft, curves)
        os.replace(draft, Path(folder) / FILE)
    except OSError as error:
        logger.warning("The training curves could not be written to %s: %s", Path(folder) / FILE, error)
        return None
    return FILE


@cache
def _can_draw() -> bool:
    """Whether matplotlib is there. Most trainings are run without, and every one of them would say so: it is a detail of the log."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        logger.debug(
            'No training curves on the model card: matplotlib is missing; install it with: pip install "mfpo_trl[demo]"'
        )
        return False
    return True


def draw(path: str | Path, curves: Mapping[tuple[str, str], Series]) -> None:
    """Write a PNG with a panel for each of `PANELS` that has a curve; nothing of matplotlib's own state is touched.

    Args:
        path: of the PNG.
        curves: from `series`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = {name for _, name in curves}
    panels = [panel for panel in PANELS if names & set(panel[1])]
    heights = [height for *_, height in panels]
    height = PANEL * sum(heights)
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    # A fixed frame: a computed one takes longer than the drawing.
    figure.subplots_adjust(left=0.09, right=0.98, top=1 - 0.55 / height, bottom=0.75 / height, hspace=0.45)
    rows = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    sources = ["train", *sorted({source for source, _ in curves} - {"train"})]
    for (axes,), (title, own, _) in zip(rows, panels, strict=True):
        drawn = {key: values for key, values in curves.items() if key[1] in own}
        _panel(axes, title, drawn, sources)
    rows[-1][0].set_xlabel("step", fontsize=9)
    if len(sources) > 1:
        evaluations = [_line("#666666", source, sources, label=_short(source)) for source in sources[1:]]
        figure.legend(handles=evaluations, loc="lower left", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, format="png", facecolor="white")


def _panel(axes: Any, title: str, curves: Mapping[tuple[str, str], Series], sources: Sequence[str]) -> None:
    """One panel: colours say what, marks say on which data."""
    from matplotlib.ticker import MaxNLocator

    for (source, name), (steps, values) in curves.items():
        line = _line(CURVES[name][1], source, sources)
        line.set_data(steps, values)
        if len(steps) == 1:
            line.set_marker(line.get_marker() if source != "train" else ".")
        axes.add_line(line)
    axes.autoscale_view()
    places = {step for own, _ in curves.values() for step in own}
    if len(places) == 1:
        axes.set_xlim(min(places) - 1, max(places) + 1)
    missing = sum(math.isnan(value) for _, values in curves.values() for value in values)
    axes.set_title(
        f"{title} (not finite and left out: {missing})" if missing else title,
        fontsize=10,
        loc="left",
        pad=20,
    )
    shown = dict.fromkeys(name for name in CURVES if any(name == own for _, own in curves))
    words = [_line(CURVES[name][1], "train", sources, label=CURVES[name][0]) for name in shown]
    # Above the curves, where it hides none of them.
    axes.legend(handles=words, loc="lower left", bbox_to_anchor=(-0.01, 0.98), ncols=4, fontsize=8, frameon=False)
    if all(name.startswith("rewards/") for name in shown):
        axes.axhline(0, color="black", linewidth=0.6)
    if set(shown) == {"rewards/modality_balance"}:
        axes.set_ylim(-0.03, 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.tick_params(labelsize=8)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4), useOffset=False)
    # The power of ten, which would stand in the words on the left.
    axes.yaxis.get_offset_text().set(x=1.0, ha="right", fontsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _line(colour: str, source: str, sources: Sequence[str], label: str | None = None) -> Any:
    from matplotlib.lines import Line2D

    number = sources.index(source)
    own: dict[str, Any] = {}
    if source != "train":
        own = {"marker": MARKS[(number - 1) % len(MARKS)], "markersize": 5, "linestyle": "--"}
    return Line2D([], [], color=colour, linewidth=1.3 if source == "train" else 0.8, label=label, **own)


def _short(source: str) -> str:
    """`eval_pope` -> `evaluation: pope`; `$` would begin a formula."""
    name = source.removeprefix("eval").strip("_")[:24].replace("$", r"\$")
    return f"evaluation: {name}" if name else "evaluation"
