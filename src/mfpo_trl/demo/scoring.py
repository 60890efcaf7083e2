"""How true a caption is: CHAIRs, CHAIRi, coverage and F1 of objects, length, and how sure one can be of a share."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .scenes import COLOURS, SHAPES

_MENTION = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")


@dataclass(frozen=True)
class CaptionScores:
    """Figures over `n` captions; shares lie between 0 and 1.

    Attributes:
        n: captions scored.
        chair_s: share of captions that name at least one object that is not there.
        chair_s_low: lower end of the 95 % interval of `chair_s`.
        chair_s_high: upper end of it.
        chair_i: share of the named objects that are not there, repeats counted.
        coverage: share of the objects in the pictures that are named.
        f1: harmonic mean of the named objects' precision, `1 - chair_i`, and their `coverage`: naming less lowers `chair_s`,
            and does not raise this.
        words: mean length in words; punctuation does not count.
    """

    n: int
    chair_s: float
    chair_s_low: float
    chair_s_high: float
    chair_i: float
    coverage: float
    f1: float
    words: float


def mentions(caption: str) -> list[str]:
    """Objects that `caption` names, in its order, repeats kept."""
    return [f"{colour} {shape}" for colour, shape in _MENTION.findall(caption)]


def hallucinated(caption: str, truth: Sequence[str]) -> list[str]:
    """Objects that `caption` names and that are not in `truth`, in its order, repeats kept."""
    return [name for name in mentions(caption) if name not in truth]


def wilson_interval(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of the share `hits / n`; 95 % by default.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def score_captions(captions: Sequence[str], truths: Sequence[Sequence[str]]) -> CaptionScores:
    """Score `captions`, one a picture, against the names of the objects in each picture.

    Raises:
        ValueError: there are no captions, or not as many as pictures.
    """
    if not captions or len(captions) != len(truths):
        raise ValueError(f"found {len(captions)} captions for {len(truths)} pictures; give one caption a picture")
    wrong = [hallucinated(caption, truth) for caption, truth in zip(captions, truths, strict=True)]
    named = [mentions(caption) for caption in captions]
    covered = sum(len(set(names) & set(truth)) for names, truth in zip(named, truths, strict=True))
    liars = sum(bool(names) for names in wrong)
    low, high = wilson_interval(liars, len(captions))
    chair_i = sum(map(len, wrong)) / max(1, sum(map(len, named)))
    coverage = covered / max(1, sum(len(set(truth)) for truth in truths))
    return CaptionScores(
        n=len(captions),
        chair_s=liars / len(captions),
        chair_s_low=low,
        chair_s_high=high,
        chair_i=chair_i,
        coverage=coverage,
        f1=2 * (1 - chair_i) * coverage / (1 - chair_i + coverage) if coverage else 0.0,
        words=sum(len(re.findall(r"[a-z]+", caption)) for caption in captions) / len(captions),
    )
