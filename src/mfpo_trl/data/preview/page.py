"""Exhibits on one page (HTML)."""

import base64
import html
import io
from collections.abc import Iterable, Mapping

from PIL import Image

from ...rows import VERDICTS
from .exhibit import SIGNS, Exhibit, Pair
from .samples import marked

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #595959; --paper: #fff; --rule: #ccc; --good: #176b35; --bad: #a8231b; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eee; --soft: #aaa; --paper: #161616; --rule: #444; --good: #6fd08c; --bad: #ff938a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 100rem; background: var(--paper); color: var(--ink); font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.3rem; overflow-wrap: anywhere; }
h2 { font-size: .95rem; font-weight: 500; color: var(--soft); margin: 0 0 .6rem; overflow-wrap: anywhere; }
article { border-top: 1px solid var(--rule); padding: 1rem 0; }
.line { display: grid; gap: 1rem 1.5rem; grid-template-columns: minmax(0, 1fr); }
.pair { display: grid; gap: .6rem; grid-template-columns: repeat(2, minmax(0, 340px)); margin-bottom: 1rem; }
figure { margin: 0; }
img { max-width: 100%; border: 1px solid var(--rule); }
figcaption, ul, dt { font-size: .85rem; }
figcaption, dt { color: var(--soft); }
ul { list-style: none; margin: .3rem 0 0; padding: 0; overflow-wrap: anywhere; }
li span { display: inline-block; width: .8em; height: .8em; border: 1px solid #000; margin-inline-end: .5em; }
dl { margin: 0; min-width: 0; }
dd { margin: 0 0 .6rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.chosen { color: var(--good); }
.rejected { color: var(--bad); }
mark { background: none; color: inherit; font-weight: 600; text-decoration: underline 2px; }
mark.present { color: var(--good); }
mark.absent { color: var(--bad); text-decoration-style: wavy; }
mark.uncertain { color: var(--soft); text-decoration-style: dotted; }
@media (min-width: 60rem) { .line { grid-template-columns: minmax(0, 43rem) minmax(0, 1fr); } }
"""


def write_page(title: str, exhibits: Iterable[Exhibit]) -> bytes:
    """An HTML page, UTF-8, that needs no other file: one article an exhibit, images as data URIs, texts in full."""
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<h1 dir="auto">{html.escape(title)}</h1>\n'
    ]
    parts += [_article(shown) for shown in exhibits]
    return "".join([*parts, "</body>\n</html>\n"]).encode()


def _article(shown: Exhibit) -> str:
    pairs = "".join(_figures(n, pair) for n, pair in enumerate(shown.pairs, start=1)) or "<p>no image</p>"
    texts = []
    for label, text in shown.texts.items():
        kind, sign = (f' class="{label}"', f"{SIGNS[label]} ") if label in SIGNS else ("", "")
        body = _marked(text, shown.marks[label]) if label in shown.marks else html.escape(text)
        texts.append(f'<dt{kind}>{sign}{html.escape(label)}</dt><dd dir="auto"{kind}>{body}</dd>\n')
    return (
        f'<article>\n<h2 dir="auto">{html.escape(shown.name)}</h2>\n<div class="line">\n<div>{pairs}</div>\n'
        f"<dl>\n{''.join(texts)}</dl>\n</div>\n</article>\n"
    )


def _marked(text: str, claims: Mapping[str, str]) -> str:
    pieces = []
    for piece, verdict in marked(text, claims):
        words = html.escape(piece)
        pieces.append(
            words if verdict not in VERDICTS else f'<mark class="{verdict}" title="{verdict}">{words}</mark>'
        )
    return "".join(pieces)


def _figures(number: int, pair: Pair) -> str:
    words = "; ".join(words for _, words in pair.legend)
    legend = ""
    for colour, line in pair.legend:
        sign = f'<span style="background:{colour}"></span>' if colour else ""
        legend += f'<li dir="auto">{sign}{html.escape(line)}</li>'
    if pair.dispreferred is None:
        return f'<div class="pair">\n{_figure(pair.image, f"image {number}", "")}</div>\n'
    clean, other = pair.sizes
    return (
        f'<div class="pair">\n{_figure(pair.image, f"image {number}, {clean}; regions: {words}", clean)}'
        f"{_figure(pair.dispreferred, f'dispreferred image {number}, {other}', f'dispreferred, {other}')}</div>\n"
        f"<ul>{legend}</ul>\n"
    )


def _figure(picture: Image.Image, alt: str, caption: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure><img width="{picture.width}" alt="{html.escape(alt)}" '
        f'src="data:image/png;base64,{data}"><figcaption>{html.escape(caption)}</figcaption></figure>\n'
    )
