"""Images and key phrases -> masks of the key regions (`build_grounder`).

| name | how a phrase is found | `box_threshold` | `text_threshold` |
|---|---|---|---|
| `grounding-dino-sam` | boxes by Grounding DINO, masks by SAM; the recommended one | 0.35, of a box | 0.25, of a phrase |
| `owlv2-sam` | boxes by OWLv2, masks by SAM | 0.2, of a box | - |
| `grounding-dino` | boxes by Grounding DINO, as they are | 0.35, of a box | 0.25, of a phrase |
| `owlv2` | boxes by OWLv2, as they are | 0.2, of a box | - |
| `clipseg` | a heat map by CLIPSeg | 0.5, of a pixel | - |
| `sam3` | instances by SAM 3 (needs torchvision) | 0.5, of an instance | - |
| `random` | not at all: a random rectangle of 20 % of each image | - | - |
| `none` | not at all: no region | - | - |
| `package.module:callable` | by a function of yours | - | - |

The thresholds are those at which a phrase counts as found, with their defaults; a dash says that the grounder reads none.

A function of yours gets `(images, phrases)`, a list of RGB images and for each a non-empty list of phrases, and returns one
list an image of `Grounded` or of `(mask, phrase, score)`, where the mask is an array (H, W) of bools or whole numbers, of the
image's own size, everything above 0 counting; phrase and score may be None, and an empty mask says "not found".
"""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ...images import random_region
from ...rows import enlarged, row_digest, row_generator, to_rgb
from ..plugin import plugged
from .detectors import Detector, GroundingDino, Owlv2
from .segmenters import BoxesThenMasks, ClipSeg, Masker, Rectangles, Sam, Sam3

SEGMENTER = "facebook/sam-vit-base"
"""The SAM that turns boxes into masks where no other is named."""

LONGEST_RATIO = 16
"""Of an image's sides: a longer one is stretched for the models, whose resizing would leave nothing of its short side."""


@dataclass(frozen=True)
class Grounded:
    """A phrase's place in an image: `mask` (H, W) bool of the image's size with at least one True; `phrase` as it was asked
    for, or None for a region that belongs to none; `score` the grounder's confidence, or None."""

    mask: np.ndarray
    phrase: str | None
    score: float | None


class Grounder(Protocol):
    """Finds key phrases in images."""

    def ground(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[list[Grounded]]:
        """One list an image, in the order of its phrases, without those that were not found.

        Args:
            images: of any size; as a viewer shows them (`rows.to_rgb`).
            phrases: for each image, none or more.

        Raises:
            ValueError: not one list of phrases an image.
        """
        ...


@dataclass(frozen=True)
class Settings:
    """What `build_grounder` was asked for; None stands for the grounder's own default."""

    model: str | None
    segmenter: str | None
    device: str | None
    batch_size: int
    box_threshold: float | None
    text_threshold: float | None
    seed: int


class ModelGrounder:
    """Grounds with a model: shows it pictures of a size that it can read, and brings its masks back to the images' sizes."""

    def __init__(self, model: Masker):
        self.model = model

    @property
    def words(self) -> tuple[Any, Any]:
        """The embedding of the model's text encoder and its tokenizer, which tell which phrases are alike."""
        return self.model.words

    def ground(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[list[Grounded]]:
        """See `Grounder`; a phrase without a letter or digit names nothing and is not asked for.

        Raises:
            ValueError: not one list of phrases an image.
        """
        _check(images, phrases)
        asked = [[phrase for phrase in own if any(map(str.isalnum, phrase))] for own in phrases]
        busy = [n for n, own in enumerate(asked) if own]
        found: list[list[Grounded]] = [[] for _ in images]
        if not busy:
            return found
        shown = [_readable(to_rgb(images[n])) for n in busy]
        answers = self.model.masks([picture for picture, _, _ in shown], [asked[n] for n in busy])
        for n, (_, down, across), answer in zip(busy, shown, answers, strict=True):
            for phrase, (mask, score) in zip(asked[n], answer, strict=True):
                if mask.any():
                    found[n].append(Grounded(_shrunk(mask, down, across), phrase, score))
        return found


class RandomRegions:
    """A random rectangle of 20 % of each image, whatever the phrases: the control of the key regions.

    It depends on the image's pixels and the seed, never on the image's place. Source: MFPO (arXiv 2410.15334), ablation.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def ground(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[list[Grounded]]:
        """One region an image, with neither phrase nor score; see `Grounder`.

        Raises:
            ValueError: not one list of phrases an image.
        """
        _check(images, phrases)
        return [[Grounded(self._region(to_rgb(image)), None, None)] for image in images]

    def _region(self, image: Image.Image) -> np.ndarray:
        generator = row_generator(row_digest(None, [image]), self.seed, "random region")
        return random_region(image.height, image.width, generator, area=0.2)


class NoRegions:
    """No region for any image, on purpose."""

    def ground(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[list[Grounded]]:
        """An empty list an image; see `Grounder`.

        Raises:
            ValueError: not one list of phrases an image.
        """
        _check(images, phrases)
        return [[] for _ in images]


class Plugged:
    """A function from outside of this package, called as `function(images, phrases)`; the module's docstring says what it
    may return.

    Raises:
        ValueError: there is no such function.
    """

    def __init__(self, name: str):
        self.function = plugged(name, "grounder", "package.module:callable")
        self.name = name

    def ground(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[list[Grounded]]:
        """See `Grounder`.

        Raises:
            ValueError: what the function returned has not the promised form.
        """
        _check(images, phrases)
        found: list[list[Grounded]] = [[] for _ in images]
        busy = [n for n, own in enumerate(phrases) if own]
        if not busy:
            return found
        shown = [to_rgb(images[n]) for n in busy]
        answers = self.function(shown, [list(phrases[n]) for n in busy])
        if not isinstance(answers, Sequence) or len(answers) != len(busy):
            count = f" of {len(answers)}" if isinstance(answers, Sequence) else ""
            raise ValueError(
                f"{self.name} returned a {type(answers).__name__}{count} for {len(busy)} image(s); expected one list an image"
            )
        for n, image, answer in zip(busy, shown, answers, strict=True):
            if isinstance(answer, str | np.ndarray) or not isinstance(answer, Sequence):
                raise self._wrong(
                    n, f"a {type(answer).__name__}; expected a list of Grounded or (mask, phrase, score)"
                )
            regions = [self._region(n, image, region) for region in answer]
            found[n] = [region for region in regions if region.mask.any()]
        return found

    def _region(self, n: int, image: Image.Image, region: Any) -> Grounded:
        if isinstance(region, Grounded):
            region = (region.mask, region.phrase, region.score)
        if not isinstance(region, tuple) or len(region) != 3:
            raise self._wrong(n, f"a {type(region).__name__}; expected Grounded or (mask, phrase, score)")
        mask, phrase, score = np.asarray(region[0]), *region[1:]
        if mask.shape != (image.height, image.width):
            raise self._wrong(n, f"a mask of shape {mask.shape}; the image is (H, W) = {(image.height, image.width)}")
        if mask.dtype.kind not in "bui":
            raise self._wrong(n, f"a mask of {mask.dtype}; expected bools or whole numbers, cut at your threshold")
        if not (phrase is None or isinstance(phrase, str)):
            raise self._wrong(n, f"a phrase of type {type(phrase).__name__}; expected a text or None")
        if not (score is None or (isinstance(score, Real) and math.isfinite(score))):
            raise self._wrong(n, f"the score {score!r}; expected a number or None")
        return Grounded(mask > 0, phrase, None if score is None else float(score))

    def _wrong(self, n: int, what: str) -> ValueError:
        return ValueError(f"{self.name} returned for image {n} {what}")


def build_grounder(
    name: str,
    *,
    model: str | None = None,
    segmenter: str | None = None,
    device: str | None = None,
    batch_size: int = 8,
    box_threshold: float | None = None,
    text_threshold: float | None = None,
    seed: int = 0,
) -> Grounder:
    """The grounder of that name, its models loaded.

    Args:
        name: a key of `GROUNDERS`, or "package.module:callable".
        model, segmenter: a model id or folder in place of the default one; `segmenter` is the SAM behind a detector.
        device: by default a GPU if there is one; models run in bfloat16 there, in float32 on a CPU.
        batch_size: pictures, or pairs of picture and phrase, in one forward pass.
        box_threshold, text_threshold: in [0, 1]; the module's docstring says what each grounder makes of them.
        seed: of the random regions.

    Raises:
        ValueError: an unknown name or a setting out of its range.
        ImportError: a library that the grounder needs is missing.
    """
    if name not in GROUNDERS and ":" not in name:
        nearest = difflib.get_close_matches(name, GROUNDERS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown grounder {name!r}; did you mean {nearest!r}? Known: {', '.join(GROUNDERS)}, or a function of your "
            "own as 'package.module:callable'"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
    for field, value in (("box_threshold", box_threshold), ("text_threshold", text_threshold)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{field} is {value}; scores are in [0, 1]")
    settings = Settings(model, segmenter, device, batch_size, box_threshold, text_threshold, seed)
    return GROUNDERS[name](settings) if name in GROUNDERS else Plugged(name)


def _check(images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> None:
    if len(images) != len(phrases):
        raise ValueError(f"found {len(images)} images and {len(phrases)} lists of phrases; give one list an image")
    for n, own in enumerate(phrases):
        if isinstance(own, str) or not all(isinstance(phrase, str) for phrase in own):
            raise ValueError(f"the phrases of image {n} are {own!r:.60}; expected a list of texts")


def _readable(image: Image.Image) -> tuple[Image.Image, int, int]:
    """A picture that every image processor can read, and by how many pixels down and across it shows each of its own."""
    factor = enlarged(image).width // image.width
    down = factor * math.ceil(image.width / (LONGEST_RATIO * image.height))
    across = factor * math.ceil(image.height / (LONGEST_RATIO * image.width))
    if down == across == 1:
        return image, 1, 1
    return image.resize((image.width * across, image.height * down), Image.Resampling.NEAREST), down, across


def _shrunk(mask: np.ndarray, down: int, across: int) -> np.ndarray:
    """The mask of the image itself: a pixel counts when any of its copies does."""
    height, width = mask.shape
    copies = mask.reshape(height // down, down, width // across, across)
    return np.logical_or.reduce(copies, axis=(1, 3))


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _grounding_dino(settings: Settings) -> Detector:
    return GroundingDino(
        settings.model or "IDEA-Research/grounding-dino-tiny",
        settings.device,
        settings.batch_size,
        _or(settings.box_threshold, 0.35),
        _or(settings.text_threshold, 0.25),
    )


def _owlv2(settings: Settings) -> Detector:
    model = settings.model or "google/owlv2-base-patch16-ensemble"
    return Owlv2(model, settings.device, settings.batch_size, _or(settings.box_threshold, 0.2))


def _with_sam(detector: Callable[[Settings], Detector], settings: Settings) -> Grounder:
    boxes = detector(settings)
    return ModelGrounder(
        BoxesThenMasks(boxes, Sam(settings.segmenter or SEGMENTER, settings.device, settings.batch_size))
    )


def _boxes(detector: Callable[[Settings], Detector], settings: Settings) -> Grounder:
    return ModelGrounder(BoxesThenMasks(detector(settings), Rectangles()))


def _pair_masker(kind: type[ClipSeg | Sam3], model: str, settings: Settings) -> Grounder:
    threshold = _or(settings.box_threshold, 0.5)
    return ModelGrounder(kind(settings.model or model, settings.device, settings.batch_size, threshold))


GROUNDERS: dict[str, Callable[..., Grounder]] = {
    "grounding-dino-sam": partial(_with_sam, _grounding_dino),
    "owlv2-sam": partial(_with_sam, _owlv2),
    "grounding-dino": partial(_boxes, _grounding_dino),
    "owlv2": partial(_boxes, _owlv2),
    "clipseg": partial(_pair_masker, ClipSeg, "CIDAS/clipseg-rd64-refined"),
    "sam3": partial(_pair_masker, Sam3, "facebook/sam3"),
    "random": lambda settings: RandomRegions(settings.seed),
    "none": lambda settings: NoRegions(),
}
