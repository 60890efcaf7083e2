"""The grounded phrases of a data set: what may take an object's place, and where an example of it is."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...images import region_mask, regions_per_image, same_size
from ...rows import plain_text, to_rgb
from ..keywords import DETERMINERS, singular
from ..reading import convert, image_bytes, read_masks
from .words import is_counted, is_plural

CHOICES = ("rare", "uniform")
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Example:
    """A region of the data set that shows a phrase: its place, and the share of its image that it covers."""

    row: int
    image: int
    region: int
    share: float


@dataclass
class Pool:
    """What the regions of a data set show.

    Args:
        examples: by phrase.
        counted: the phrases that follow "a" or "an" somewhere.
        rows: in how many rows each phrase is.
        together: in how many rows two phrases are, by both in the order of the alphabet.
    """

    examples: dict[str, list[Example]] = field(default_factory=lambda: defaultdict(list))
    counted: set[str] = field(default_factory=set)
    rows: Counter[str] = field(default_factory=Counter)
    together: Counter[tuple[str, str]] = field(default_factory=Counter)

    @classmethod
    def of(cls, rows: Any, count: int, source: str, roots: Sequence[Path], needed: bool = True) -> "Pool":
        """The phrases of the regions that the rows of a source bring.

        Args:
            rows: as `reading.open_rows` gives them.
            count: how many are read.
            source: their convention.
            roots: where their files may lie.
            needed: whether replacements or their pictures are taken from it.

        Raises:
            ValueError: it is needed, and no row brings a region with a phrase.
        """
        pool = cls()
        for start in range(0, count, ROWS_AT_ONCE):
            for place, raw in enumerate(rows.read(range(start, min(start + ROWS_AT_ONCE, count)))):
                if isinstance(raw, Mapping) and raw.get("key_regions"):
                    pool.add(start + place, raw, source, roots)
        if needed and not pool.examples:
            raise ValueError(
                "--mirror replaces what the rows' key_regions show, and no row brings a region with a phrase; run mfpo build "
                "without --mirror first, and with it on what that built"
            )
        return pool

    def add(self, number: int, raw: Mapping[str, Any], source: str, roots: Sequence[Path]) -> None:
        """Take up what a row of the source shows; one that cannot be read shows nothing, and is rejected when it is built."""
        try:
            row = convert(raw, source)
            found = list(_shown(number, row[0], roots)) if len(row) == 1 else []
        except (ValueError, TypeError, OSError, KeyError):
            return
        names = sorted({phrase for phrase, _ in found})
        for phrase, example in found:
            self.examples[phrase].append(example)
        text = plain_text(row[0]["chosen"]) if row else ""
        self.counted |= {phrase for phrase in names if is_counted(text, phrase)}
        self.rows.update(names)
        self.together.update((one, two) for n, one in enumerate(names) for two in names[n + 1 :])

    def candidates(
        self,
        old: str,
        share: float,
        rest: Sequence[str],
        how: str,
        rng: np.random.Generator,
        only: Sequence[str] | None = None,
        to_show: bool = True,
    ) -> list[str]:
        """Phrases that may take the place of `old`, the preferred ones first: of its number, with an example of its size class, and
        none that the row itself shows.

        Args:
            share: of the image that the object covers.
            rest: what else the row shows.
            how: `rare`, those first that are seldom together with the rest; `uniform`, in any order.
            only: a list in place of the phrases of the data set, of which a singular one must follow "a" or "an" somewhere.
            to_show: whether an example is needed.
        """
        plural = is_plural(old)
        names = sorted(self.examples) if only is None else list({normal(own): bare(own) for own in only}.values())
        fitting = [
            name
            for name in names
            if not any(alike(name, own) for own in (old, *rest))
            and is_plural(name) == plural
            and (only is not None or plural or name in self.counted)
            and (not to_show or self.of_size(name, share))
        ]
        order = rng.permutation(len(fitting)).tolist()
        if how == "rare":
            order.sort(key=lambda place: self.company(fitting[place], rest))
        return [fitting[place] for place in order]

    def of_size(self, phrase: str, share: float) -> list[Example]:
        """Examples of a phrase that are of one size class with a region of this share."""
        return [own for own in self.examples.get(normal(phrase), ()) if same_size(own.share, share)]

    def company(self, phrase: str, rest: Sequence[str]) -> float:
        """How often the phrase is there where another one is, at the mean over the others, in 0..1."""
        phrase, others = normal(phrase), [own for own in map(normal, rest) if self.rows[own]]
        shares = [self.together[min(phrase, own), max(phrase, own)] / self.rows[own] for own in others]
        return float(np.mean(shares)) if shares else 0.0


def bare(phrase: str) -> str:
    """A phrase without a determiner before it."""
    words = phrase.split()
    while len(words) > 1 and words[0].lower() in DETERMINERS:
        words.pop(0)
    return " ".join(words)


def normal(phrase: str) -> str:
    """The same in lower case."""
    return bare(phrase).lower()


def stem(phrase: str) -> str:
    """The same in the singular, by which phrases are told apart."""
    return " ".join(map(singular, normal(phrase).split()))


def alike(one: str, other: str) -> bool:
    """Whether one of two phrases says no more than the other: "car" beside "cars", and beside "red car", which is a car too."""
    first, second = set(stem(one).split()), set(stem(other).split())
    return first <= second or second <= first


def listed(path: Path) -> list[str]:
    """The phrases of a file, one a line.

    Raises:
        ValueError: there is none, or it is not UTF-8.
        OSError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8; expected phrases, one a line") from None
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise ValueError(f"{path} names no phrase; expected one a line")
    return found


def phrase_of(region: Any) -> str:
    """What a region is said to show; empty where nothing is said."""
    phrase = region.get("phrase", region.get("label")) if isinstance(region, Mapping) else None
    return normal(phrase) if isinstance(phrase, str) and phrase.strip() else ""


def _shown(number: int, row: Mapping[str, Any], roots: Sequence[Path]) -> Iterator[tuple[str, Example]]:
    regions = regions_per_image(row.get("key_regions"), len(row["images"]))
    for image, own in enumerate(regions):
        size = None
        for place, region in enumerate(own):
            phrase = phrase_of(region)
            if not phrase:
                continue
            share = _share_of_runs(region)
            if share is None:
                size = size or to_rgb(image_bytes(row["images"][image], roots)["bytes"]).size
                share = float(region_mask([read_masks(region, roots)], size[1], size[0]).mean())
            yield phrase, Example(number, image, place, share)


def _share_of_runs(region: Mapping[str, Any]) -> float | None:
    """The share of its image that an uncompressed run-length encoding covers, without decoding it; None for other forms."""
    rle = region.get("rle")
    if not isinstance(rle, Mapping) or not isinstance(rle.get("counts"), list) or not rle.get("size"):
        return None
    return sum(rle["counts"][1::2]) / max(1, rle["size"][0] * rle["size"][1])
