"""The world: small pictures of coloured shapes, and what can be truly said about them.

A picture is 48 x 48 pixels, a grid of 3 x 3 cells with at most one object in a cell. The twelve objects fall into
four triples. How strongly a scene keeps to its triples is its `company`: at 0 every object comes independently of the
others, at 1 an object brings the rest of its triple along. A captioner that learns from scenes with much company
learns to name what usually comes along, whether it is there or not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (205, 60, 55), "green": (60, 160, 75), "blue": (65, 95, 205)}
SHAPES = ("circle", "square", "triangle", "cross")
OBJECTS = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
# Each triple holds one object of every colour, and no shape twice.
TRIPLES = tuple(
    tuple(f"{colour} {SHAPES[(first + step) % len(SHAPES)]}" for step, colour in enumerate(COLOURS))
    for first in range(len(SHAPES))
)
QUESTION = "describe"

CELL = 16
GRID = 3
SIZE = CELL * GRID
COUNTS = (2, 3, 4, 5)
BACKGROUND = 190
PIXEL_NOISE = 12.0

_COMPANIONS = {name: frozenset(triple) for triple in TRIPLES for name in triple}


@dataclass(frozen=True)
class Thing:
    """One object in a picture: its name and its box `(x0, y0, x1, y1)` in pixels, `x1` and `y1` excluded."""

    name: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """A picture (RGB, 48 x 48) and its objects from the top left cell to the bottom right one."""

    things: tuple[Thing, ...]
    image: Image.Image

    @property
    def names(self) -> list[str]:
        """Names of the objects in the order of `OBJECTS`, no name twice."""
        return sorted((thing.name for thing in self.things), key=OBJECTS.index)

    @property
    def caption(self) -> str:
        """The true caption."""
        return caption_of(self.names)


def caption_of(names: Sequence[str]) -> str:
    """Caption that names `names` in their order: `a red circle , a blue square .`"""
    return " , ".join(f"a {name}" for name in names) + " ."


def choose_names(
    rng: np.random.Generator,
    company: float,
    objects: tuple[str, ...] = OBJECTS,
    companions_of: Mapping[str, Collection[str]] = _COMPANIONS,
) -> list[str]:
    """Two to five different objects; each after the first is, with probability `company`, a companion of one before."""
    count = int(rng.choice(COUNTS))
    chosen = [objects[rng.integers(len(objects))]]
    while len(chosen) < count:
        absent = [name for name in objects if name not in chosen]
        companions = [name for name in absent if any(name in companions_of[other] for other in chosen)]
        pool = companions if companions and rng.random() < company else absent
        chosen.append(pool[rng.integers(len(pool))])
    return chosen


def presumed(scene: Scene, named: Sequence[str]) -> dict[str, str]:
    """Of the objects that are `named`, those that are absent but whose company is there: each with the companion that is."""
    return {
        name: companion
        for name in named
        if name not in scene.names
        for companion in scene.names
        if companion in _COMPANIONS[name]
    }


def draw_shape(draw: ImageDraw.ImageDraw, shape: str, box: tuple[int, int, int, int], colour: tuple[int, ...]) -> None:
    """Draw one filled shape that touches all four sides of `box` (pixels, far sides excluded)."""
    x0, y0, x1, y1 = box[0], box[1], box[2] - 1, box[3] - 1
    if shape == "circle":
        draw.ellipse((x0, y0, x1, y1), fill=colour)
    elif shape == "square":
        draw.rectangle((x0, y0, x1, y1), fill=colour)
    elif shape == "triangle":
        draw.polygon([(x0, y1), (x1, y1), ((x0 + x1) // 2, y0)], fill=colour)
    else:
        across, down = (x1 - x0 + 1) // 3, (y1 - y0 + 1) // 3
        draw.rectangle((x0 + across, y0, x1 - across, y1), fill=colour)
        draw.rectangle((x0, y0 + down, x1, y1 - down), fill=colour)


def make_scene(rng: np.random.Generator, company: float) -> Scene:
    """Draw one scene: which objects, in which cells, where in the cell, how large, in which tint, under which noise."""
    names = choose_names(rng, company)
    image = Image.new("RGB", (SIZE, SIZE), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(image)
    things = []
    for name, cell in zip(names, np.sort(rng.permutation(GRID * GRID)[: len(names)]), strict=True):
        colour, shape = name.split()
        side = int(rng.integers(10, 14))
        left, top = rng.integers(0, CELL - side + 1, size=2) + CELL * np.array([cell % GRID, cell // GRID])
        box = (int(left), int(top), int(left) + side, int(top) + side)
        tint = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 12, size=3), 0, 255).astype(int)
        draw_shape(draw, shape, box, tuple(tint.tolist()))
        things.append(Thing(name, box))
    pixels = np.asarray(image, dtype=np.float32)
    pixels = pixels + PIXEL_NOISE * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Scene(tuple(things), Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))


def scene_stream(seed: int, company: float) -> Iterator[Scene]:
    """Endless scenes; the same `seed` and `company` give the same scenes."""
    rng = np.random.default_rng(seed)
    while True:
        yield make_scene(rng, company)


def make_scenes(count: int, seed: int, company: float) -> list[Scene]:
    """The first `count` scenes of `scene_stream`."""
    stream = scene_stream(seed, company)
    return [next(stream) for _ in range(count)]
