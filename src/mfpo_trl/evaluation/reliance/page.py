"""Some rows on one page (HTML): what a model answers and prefers with the image, and with what was made of it."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ...rows import plain_text
from ..likelihood import spread
from .looking import Seen, log_ratios

WIDEST = 340
"""Of a picture, in pixels."""

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #595959; --paper: #fff; --rule: #ccc; --good: #176b35; --bad: #a8231b; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eee; --soft: #aaa; --paper: #161616; --rule: #444; --good: #6fd08c; --bad: #ff938a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 100rem; background: var(--paper); color: var(--ink); font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.3rem; overflow-wrap: anywhere; }
h2 { font-size: .95rem; font-weight: 500; color: var(--soft); margin: 0 0 .6rem; }
pre { overflow-x: auto; font-size: .85rem; }
article { border-top: 1px solid var(--rule); padding: 1rem 0; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; margin-bottom: 1rem; }
figure { margin: 0; max-width: 340px; }
img { max-width: 100%; border: 1px solid var(--rule); }
figcaption, dt, table { font-size: .85rem; }
figcaption, dt, th { color: var(--soft); font-weight: 400; }
figcaption, dd { overflow-wrap: anywhere; white-space: pre-wrap; }
dl { margin: 0; }
dd { margin: 0 0 .6rem; }
th, td { text-align: right; padding: .1rem .8rem .1rem 0; }
th:first-child { text-align: left; }
.good { color: var(--good); }
.bad { color: var(--bad); }
"""

NAMES = {
    "image": "with the image",
    "without": "without an image",
    "wrong": "with a wrong image",
    "dispreferred": "with the dispreferred image",
}


def write_page(title: str, figures: str, seen: Sequence[Seen], count: int) -> str:
    """A page that needs no other file: the figures, and `count` rows that are spread evenly.

    Args:
        title: what was looked at.
        figures: lines of a table.
        seen: what was seen of each row.
    """
    name = html.escape(f"Does {title} look?")
    shown = [seen[n] for n in spread(len(seen), count)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{name}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n"
        f"<pre>{html.escape(figures)}</pre>\n{''.join(map(_article, shown))}</body>\n</html>\n"
    )


def _article(own: Seen) -> str:
    answers = [f"answer: {text}" for text in own.answers] or ["", ""]
    pictures = [("image", own.row, answers[0]), ("perturbed image", own.perturbed, answers[1])]
    pictures += [("key region hidden", own.hidden, ""), ("wrong image", own.wrong, "")]
    shown = "".join(_figure(label, row["images"][0], said) for label, row, said in pictures if row is not None)
    told = ""
    if own.answers:
        told = '<p class="good">The answer changes.</p>' if own.changed else '<p class="bad">The answer stays.</p>'
    texts = "".join(
        f'<dt>{name}</dt><dd dir="auto">{html.escape(plain_text(own.row[name]))}</dd>\n'
        for name in ("prompt", "chosen", "rejected")
    )
    return (
        f'<article>\n<h2>row {own.number}</h2>\n<div class="pictures">\n{shown}</div>\n{told}\n<dl>\n{texts}</dl>\n'
        f"{_numbers(own)}{_regions(own)}</article>\n"
    )


def _numbers(own: Seen) -> str:
    """A table of log-probabilities and, where there is a reference, rewards before beta."""
    rewards = log_ratios(own) if own.reference else {}
    head = "<tr><th></th><th>log p(chosen)</th><th>log p(rejected)</th>"
    head += "<th>reward(chosen)</th><th>reward(rejected)</th></tr>\n" if rewards else "</tr>\n"
    lines = ""
    for name, label in NAMES.items():
        if name in own.logps:
            values = [*_two(own.logps[name]), *(_two(rewards[name]) if rewards else [])]
            lines += f"<tr><th>{label}</th>{''.join(f'<td>{value}</td>' for value in values)}</tr>\n"
    return f"<table>\n{head}{lines}</table>\n"


def _two(values: np.ndarray) -> list[str]:
    return [f"{value:.2f}" for value in values] + [""] * (2 - len(values))


def _regions(own: Seen) -> str:
    if np.isnan(own.key):
        return "<p>No key region.</p>\n"
    key, random = own.logps["image"][0] - own.key, own.logps["image"][0] - own.random
    return f"<p>log p(chosen) falls by {key:.2f} with the key region hidden, by {random:.2f} with random regions hidden.</p>\n"


def _figure(label: str, picture: Image.Image, said: str) -> str:
    size = f"{picture.width} x {picture.height} px"
    picture = picture.copy()
    picture.thumbnail((WIDEST, WIDEST))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    caption = f"{label}, {size}" + (f"\n{said}" if said else "")
    return (
        f'<figure><img width="{picture.width}" alt="{html.escape(label)}" src="data:image/png;base64,{data}">'
        f'<figcaption dir="auto">{html.escape(caption)}</figcaption></figure>\n'
    )
