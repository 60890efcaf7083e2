"""Exhibits on one picture (PNG)."""

import functools
import io
import unicodedata
from collections.abc import Iterable

from PIL import Image, ImageDraw, ImageFont

from .exhibit import SIGNS, Exhibit, Pair
from .outlines import PICTURE, typeface
from .samples import marked

# All in pixels.
MARGIN, GAP = 24, 20
LABEL, TEXT = 92, 560
LEFT, MIDDLE, RIGHT = MARGIN, MARGIN + PICTURE[0] + GAP, MARGIN + 2 * (PICTURE[0] + GAP)
"""Where the columns begin: images, dispreferred images, texts."""
WIDTH = RIGHT + LABEL + TEXT + MARGIN
HEADER = 84
TALLEST = 60_000
# Lines a text may take on the sheet.
MOST_LINES = {"prompt": 5, "chosen": 8, "rejected": 8, "of the other": 8, "key words": 3}
MOST_REGIONS = 8

INK, GREY, RULE = "#1a1a1a", "#6b6b6b", "#d0d0d0"
CLAIMED = {"present": "#1b7a3d", "absent": "#b3261e", "uncertain": "#8a6d00"}
MARKED = {"chosen": "#1b7a3d", "rejected": "#b3261e"}
PUNCTUATION = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "−": "-", "\u00a0": " "})
LACKING = (
    "Some letters are missing from this picture's font; they appear without accents or as boxes. "
    "A sheet written to an .html file shows them."
)


@functools.lru_cache(maxsize=4096)
def _in_font(letter: str) -> bool:
    # A noncharacter, for which every font draws its sign for a missing letter.
    return bytes(typeface(15).getmask(letter)) != bytes(typeface(15).getmask("\uffff"))


def drawable(text: str) -> str:
    """The text with typographic punctuation in ASCII, and without the accents of letters that the font lacks."""

    def letter(sign: str) -> str:
        if sign == "\n" or _in_font(sign):
            return sign
        plain = "".join(c for c in unicodedata.normalize("NFKD", sign) if not unicodedata.combining(c))
        return plain if plain and all(map(_in_font, plain)) else sign

    return "".join(map(letter, text.translate(PUNCTUATION)))


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """The text in at most `most` lines of `width` pixels; the last one ends with an ellipsis where text is left out.

    Lines break at blanks, and inside of words that are longer than a line. Empty lines are dropped.
    """
    lines: list[str] = []
    for paragraph in text.splitlines():
        rest = paragraph.strip()
        while rest and len(lines) <= most:
            end = _fitting(rest, font, width)
            if end < len(rest):
                blank = rest.rfind(" ", 0, end + 1)
                end = blank if blank > 0 else end
            lines.append(rest[:end].rstrip())
            rest = rest[end:].lstrip()
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*lines[: most - 1], last.rstrip() + "…"]


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> int:
    """How many of the first letters fit in the width; 1 at least."""
    low, high = 1, min(len(text), width)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low


def draw_sheet(title: str, exhibits: Iterable[Exhibit]) -> bytes:
    """A PNG with one line an exhibit: images with their regions, dispreferred images, texts.

    Raises:
        ValueError: more rows than fit on a picture that viewers open.
    """
    strips, height, lacking, samples = [], HEADER, False, False
    for shown in exhibits:
        samples |= bool(shown.marks)
        strip, lacks = _strip(shown)
        strips.append(strip)
        lacking |= lacks
        height += strip.height
        if height > TALLEST:
            raise ValueError(
                f"{len(strips)} rows already make a picture of {height} pixels in height, {TALLEST} are the most; "
                "show fewer rows, or write an .html file"
            )
    sheet = Image.new("RGB", (WIDTH, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text(
        (MARGIN, 14), wrapped(drawable(title), typeface(22), WIDTH - 2 * MARGIN, 1)[0], fill=INK, font=typeface(22)
    )
    _head(draw, samples)
    if lacking:
        draw.text((WIDTH - MARGIN, 40), LACKING, fill=GREY, font=typeface(13), anchor="ra")
    y = HEADER
    for strip in strips:
        sheet.paste(strip, (0, y))
        y += strip.height
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _head(draw: ImageDraw.ImageDraw, samples: bool) -> None:
    """What stands in which column; of answers with their claims, what the colours mean."""
    if not samples:
        for x, words in ((LEFT, "image and its regions"), (MIDDLE, "dispreferred image"), (RIGHT, "texts")):
            draw.text((x, 58), words, fill=GREY, font=typeface(15))
        return
    draw.text((LEFT, 58), "image", fill=GREY, font=typeface(15))
    at = float(MIDDLE)
    for words, colour in (("answers; what they claim is ", GREY), *((f"{own}  ", CLAIMED[own]) for own in CLAIMED)):
        draw.text((at, 58), words, fill=colour, font=typeface(15))
        at += typeface(15).getlength(words)


def _strip(shown: Exhibit) -> tuple[Image.Image, bool]:
    """An exhibit's line of the sheet, and whether letters of it are missing from the font."""
    # Tall enough for anything, cut to what is used.
    room = 60 + len(shown.pairs) * (PICTURE[1] + 60 + 20 * (MOST_REGIONS + 1)) + (32 + 9 * len(shown.marks)) * 20
    strip = Image.new("RGB", (WIDTH, room), "white")
    draw = ImageDraw.Draw(strip)
    draw.line((MARGIN, 0, WIDTH - MARGIN - 1, 0), fill=RULE)
    y = 14
    for pair in shown.pairs:
        y = _draw_pair(strip, draw, pair, y)
    if not shown.pairs:
        draw.text((LEFT, y), "no image", fill=GREY, font=typeface(15))
    used, y = y, 12
    lines, left = {"": shown.name, **shown.texts}, MIDDLE if shown.marks else RIGHT
    for label, text in lines.items():
        named = f"{SIGNS[label]} {label}" if label in SIGNS else label
        draw.text((left, y), named, fill=MARKED.get(label, GREY), font=typeface(15))
        x, colour = (left + LABEL, MARKED.get(label, INK)) if label else (left, GREY)
        most = MOST_LINES.get(label, 2 if label else 1) if label not in shown.marks else MOST_LINES["chosen"]
        for line in wrapped(drawable(text), typeface(15), WIDTH - MARGIN - x, most):
            start = float(x)
            for piece, verdict in marked(line, shown.marks.get(label, {})):
                draw.text((start, y), piece, fill=CLAIMED.get(verdict or "", colour), font=typeface(15))
                start += typeface(15).getlength(piece)
            y += 20
        y += 6
    # The loss of typographic punctuation needs no remark.
    every = "".join([*lines.values(), *(words for pair in shown.pairs for _, words in pair.legend)])
    lacking = not all(map(_in_font, {*every.translate(PUNCTUATION)} - {"\n"}))
    return strip.crop((0, 0, WIDTH, max(used, y, 60) + 14)), lacking


def _draw_pair(strip: Image.Image, draw: ImageDraw.ImageDraw, pair: Pair, y: int) -> int:
    """Draws the pair below `y`; returns where it ends."""
    pictures = [own for own in (pair.image, pair.dispreferred) if own is not None]
    lowest = max(picture.height for picture in pictures)
    for x, picture, size in zip((LEFT, MIDDLE), pictures, pair.sizes, strict=False):
        draw.rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline=RULE)
        strip.paste(picture, (x, y))
        below = y + lowest + 5
        draw.text((x, below), size, fill=GREY, font=typeface(13))
    y = below + 22
    for colour, words in pair.legend[:MOST_REGIONS]:
        indent = 0
        if colour:
            draw.rectangle((LEFT, y + 1, LEFT + 12, y + 13), fill=colour, outline="black")
            indent = 20
        line = wrapped(drawable(words), typeface(14), PICTURE[0] - indent, 1)[0]
        draw.text((LEFT + indent, y), line, fill=INK, font=typeface(14))
        y += 20
    if len(pair.legend) > MOST_REGIONS:
        draw.text((LEFT, y), f"and {len(pair.legend) - MOST_REGIONS} more", fill=INK, font=typeface(14))
        y += 20
    return y + 10
