"""The world of the laboratory: pictures of coloured shapes of two sizes, under bars and beside blots, and what can be said of them.

A picture is 64 x 64 pixels, a grid of 4 x 4 cells with at most one thing in a cell. The 24 objects fall into eight triples; as in the
demo's world `company` says how strongly a scene keeps to them. Blots are grey and have no name; bars lie over objects and hide a part.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from mfpo_trl.demo.scenes import caption_of, choose_names

COLOURS = {"red": (205, 60, 55), "green": (60, 160, 75), "blue": (65, 95, 205), "yellow": (225, 190, 50)}
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
OBJECTS = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
TRIPLES = tuple(
    tuple(f"{tuple(COLOURS)[(turn + step) % len(COLOURS)]} {SHAPES[first + step]}" for step in range(3))
    for first in (0, 3)
    for turn in range(len(COLOURS))
)
"""No triple holds a shape or a colour twice."""
COMPANIONS = {name: frozenset(triple) - {name} for triple in TRIPLES for name in triple}

CELL, GRID = 16, 4
SIZE = CELL * GRID
SMALL, LARGE = (8, 10), (12, 15)
"""Sides of an object in pixels, the last excluded."""
BACKGROUND, BLOT, BAR = 190, (120, 115, 110), (90, 90, 95)
PIXEL_NOISE = 12.0
DESCRIBE = "describe"


@dataclass(frozen=True)
class Thing:
    """An object: its name, its box `(x0, y0, x1, y1)` in pixels with `x1` and `y1` excluded, and whether it is small."""

    name: str
    box: tuple[int, int, int, int]
    small: bool


@dataclass(frozen=True)
class Scene:
    """A picture (RGB, 64 x 64), its objects from the top left cell on, and how many bars lie over it."""

    things: tuple[Thing, ...]
    image: Image.Image
    bars: int

    @property
    def names(self) -> list[str]:
        """Names of the objects in the order of `OBJECTS`."""
        return sorted((thing.name for thing in self.things), key=OBJECTS.index)

    @property
    def caption(self) -> str:
        """The true caption."""
        return caption_of(self.names)


def draw_shape(draw: ImageDraw.ImageDraw, shape: str, box: tuple[int, int, int, int], colour: tuple[int, ...]) -> None:
    """One shape that touches all four sides of `box` (pixels, far sides excluded)."""
    x0, y0, x1, y1 = box[0], box[1], box[2] - 1, box[3] - 1
    middle, third = ((x0 + x1) / 2, (y0 + y1) / 2), (x1 - x0 + 1) // 3
    if shape == "circle":
        draw.ellipse((x0, y0, x1, y1), fill=colour)
    elif shape == "square":
        draw.rectangle((x0, y0, x1, y1), fill=colour)
    elif shape == "triangle":
        draw.polygon([(x0, y1), (x1, y1), (middle[0], y0)], fill=colour)
    elif shape == "cross":
        draw.rectangle((x0 + third, y0, x1 - third, y1), fill=colour)
        draw.rectangle((x0, y0 + third, x1, y1 - third), fill=colour)
    elif shape == "diamond":
        draw.polygon([(middle[0], y0), (x1, middle[1]), (middle[0], y1), (x0, middle[1])], fill=colour)
    else:
        draw.ellipse((x0, y0, x1, y1), outline=colour, width=2)


def tint_of(name: str, rng: np.random.Generator) -> tuple[int, ...]:
    """The colour of one object of that name."""
    wanted = np.array(COLOURS[name.split()[0]]) + rng.normal(0, 12, size=3)
    return tuple(np.clip(wanted, 0, 255).astype(int).tolist())


def noisy(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8, under the noise that every picture of the world has."""
    pixels = np.asarray(image, dtype=np.float32)
    return np.clip(pixels + PIXEL_NOISE * rng.standard_normal(pixels.shape, dtype=np.float32), 0, 255).astype(np.uint8)


def make_scene(rng: np.random.Generator, company: float) -> Scene:
    """Draw one scene: which objects, where, how large, in which tint; blots in free cells; bars; noise."""
    names = choose_names(rng, company, OBJECTS, COMPANIONS)
    image = Image.new("RGB", (SIZE, SIZE), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(image)
    cells = rng.permutation(GRID * GRID)
    things = []
    for name, cell in zip(names, np.sort(cells[: len(names)]), strict=True):
        small = bool(rng.random() < 0.5)
        side = int(rng.integers(*(SMALL if small else LARGE)))
        box = _box_in(cell, side, rng)
        draw_shape(draw, name.split()[1], box, tint_of(name, rng))
        things.append(Thing(name, box, small))
    for cell in cells[len(names) : len(names) + int(rng.integers(0, 3))]:
        x0, y0, x1, y1 = _box_in(cell, int(rng.integers(6, 13)), rng)
        draw.ellipse((x0, y0 + (y1 - y0) // 4, x1 - 1, y1 - 1), fill=BLOT)
    bars = int(rng.integers(0, 3))
    for _ in range(bars):
        _draw_bar(draw, rng)
    return Scene(tuple(things), Image.fromarray(noisy(image, rng)), bars)


def _box_in(cell: int, side: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    left, top = rng.integers(0, CELL - side + 1, size=2) + CELL * np.array([cell % GRID, cell // GRID])
    return (int(left), int(top), int(left) + side, int(top) + side)


def _draw_bar(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    start, length = int(rng.integers(0, SIZE - 24)), int(rng.integers(24, SIZE))
    at = int(rng.integers(4, SIZE - 6))
    along, across = (start, min(SIZE, start + length) - 1), (at, at + 1)
    (x0, x1), (y0, y1) = (along, across) if rng.random() < 0.5 else (across, along)
    draw.rectangle((x0, y0, x1, y1), fill=BAR)


def scene_stream(seed: int, company: float) -> Iterator[Scene]:
    """Endless scenes; the same `seed` and `company` give the same scenes."""
    rng = np.random.default_rng(seed)
    while True:
        yield make_scene(rng, company)


def make_scenes(count: int, seed: int, company: float) -> list[Scene]:
    """The first `count` scenes of `scene_stream`."""
    stream = scene_stream(seed, company)
    return [next(stream) for _ in range(count)]


@dataclass(frozen=True)
class Question:
    """A yes/no question of a scene, its true answer, and its kind: `present`, `companion`, `other` or `size`."""

    text: str
    yes: bool
    kind: str


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Question:
    """A question about an object that is there, about an absent companion of one, about another absent object, or about a size."""
    there = {thing.name: thing for thing in scene.things}
    if kind in ("present", "size"):
        thing = scene.things[rng.integers(len(scene.things))]
        if kind == "present":
            return Question(f"is there a {thing.name} ?", True, kind)
        small = bool(rng.random() < 0.5)
        return Question(f"is the {thing.name} {'small' if small else 'large'} ?", small == thing.small, kind)
    absent = [name for name in OBJECTS if name not in there]
    companions = [name for name in absent if COMPANIONS[name] & there.keys()]
    pool = (companions or absent) if kind == "companion" else [name for name in absent if name not in companions]
    return Question(f"is there a {pool[rng.integers(len(pool))]} ?", False, kind)


KINDS = ("present", "companion", "present", "other", "size", "size")
"""Of the questions that are asked in turn: as many about what is there as about what is not."""

WORDS = tuple(
    dict.fromkeys(
        [*COLOURS, *SHAPES, "a", ",", ".", ":", DESCRIBE, "is", "there", "the", "small", "large", "?", "yes", "no"]
    )
)
"""Every word of captions, questions and answers."""
