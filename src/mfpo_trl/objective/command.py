"""`mfpo methods`: the objectives by name, and one of them whole."""

import argparse
import difflib
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from .papers import papers_in
from .presets import PRESETS, Preset

NOTATION = (
    "l(z) = -log sigma(beta z), e(z) = exp(beta z). r is the log-probability of an answer under the policy minus that under the reference: "
    "r_w of the chosen, r_l of the rejected answer, r_y of the one that is true of the dispreferred image (rejected_image_chosen), r_w2 of "
    "chosen_2; r' under the dispreferred image, r'2, r'3, ... under further ones, r0 without an image; rb and rb' under both images in "
    "one prompt that asks about the row's, or about the dispreferred one. d(z, t): where sigma(beta t) is above 1/2 and above sigma(beta z), the "
    "cross-entropy of sigma(beta z) against it."
)


def add_methods(commands: Any) -> None:
    """Add `methods` to the commands of a parser."""
    parser = commands.add_parser(
        "methods",
        help="list the objectives of the literature by name, or show one whole",
        description="List the objectives that --objective NAME takes: loss, what rows need, paper, published figures, and what a "
        "step costs. With NAME, show one whole.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="of one, to show it whole")
    parser.set_defaults(run=_methods)


def _methods(args: argparse.Namespace) -> int:
    if args.name is None:
        return _told(listed())
    if args.name not in PRESETS:
        near = difflib.get_close_matches(args.name, PRESETS, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else f"; expected {', '.join(PRESETS)}"
        print(f"mfpo methods: error: there is no objective {args.name!r}{meant}", file=sys.stderr)
        return 2
    return _told(shown(args.name))


def _told(text: str) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # A pager has read enough; what is left would be written again where the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def listed() -> str:
    """All of them, as a table for a terminal."""
    names = max(map(len, PRESETS))
    lines = [
        f"{'objective':{names}}  x dpo  loss; what rows need beside prompt, image and two answers; paper; published figures"
    ]
    for name, preset in PRESETS.items():
        lines.append(f"\n{name:{names}}  {_cost(preset):>5}  {preset.formula}")
        needs = f"rows need {preset.needs}" if preset.needs else ""
        lines += [_filled(own, " " * (names + 9)) for own in (needs, _short(preset), preset.published) if own]
    behind = (
        NOTATION,
        "x dpo: operations of a step over those of dpo, counted on packed rows of LLaVA-1.5-7B's geometry, with a cached "
        "reference where it can have one.",
        "mfpo methods NAME shows one whole. mfpo train --config methods/NAME trains with it.",
    )
    return "\n".join([*lines, "", *map(_filled, behind)])


def shown(name: str) -> str:
    """One of them whole, for a terminal."""
    return "\n".join(_lines(name, PRESETS[name]))


def _lines(name: str, preset: Preset) -> Iterator[str]:
    from .chosen import terms_of

    titles = [paper.title for paper in papers_in(preset.paper)]
    yield _filled(f"{name}: {'; '.join([*titles, _short(preset)])}")
    terms = [_term(own) for own in terms_of(name, None, {})]
    widths = [max(map(len, column)) for column in zip(*terms, strict=True)]
    yield "\nweight, term, its loss with b for beta, and what it reads:"
    for own in terms:
        yield "  " + "  ".join(f"{part:{width}}" for part, width in zip(own, widths, strict=True)).rstrip()
    yield ""
    for key, value in _facts(name, preset).items():
        if value:
            yield _filled(value, f"{key:12}")
    yield f"\n{_filled(NOTATION)}"
    for paper in papers_in(preset.paper):
        yield f"\n{paper.bibtex}"


def _facts(name: str, preset: Preset) -> dict[str, str]:
    options = f" {json.dumps(dict(preset.corruption_kwargs))}" if preset.corruption_kwargs else ""
    settings = {"beta": preset.beta, "learning rate": preset.learning_rate, "epochs": preset.epochs}
    read = ", ".join(f"{key} {number(value)}" for key, value in settings.items())
    return {
        "whole": preset.formula,
        "rows need": preset.needs or "nothing beside prompt, image and two answers",
        "corruption": f"{preset.corruption}{options}" if preset.corruption else "the row's own recipe, else diffusion",
        "settings": f"{read}{f': {preset.settings}' if preset.settings else ''}",
        "published": preset.published or "no figures were read",
        "a step": f"{_cost(preset)} x the operations of dpo" if preset.cost else "not counted",
        "notes": preset.says,
        "released": f"objective_terms: {json.dumps(dict(preset.released))}" if preset.released else "",
        "recipe": f"methods/{name}",
    }


def number(value: float | None) -> str:
    """A setting as it is written in recipes: `1e-6`, or that none is public."""
    return "not public" if value is None else f"{value:g}".replace("e-0", "e-")


def _term(own: Any) -> tuple[str, ...]:
    read = [*map(str, own.term.reads), *(f"column {column}" for column in own.term.columns)]
    return f"{own.weight:g}", own.term.name, own.term.formula, ", ".join(read)


def _cost(preset: Preset) -> str:
    return "-" if preset.cost is None else f"{preset.cost:.2f}"


def _short(preset: Preset) -> str:
    found = [f"{paper.name}, arXiv {paper.arxiv}" for paper in papers_in(preset.paper)]
    return "; ".join(found) or "of this package"


def _filled(text: str, beginning: str = "") -> str:
    width = shutil.get_terminal_size((120, 24)).columns
    behind = " " * (len(beginning) + (2 if beginning.isspace() else 0))
    return textwrap.fill(text, width, initial_indent=beginning, subsequent_indent=behind, break_on_hyphens=False)
