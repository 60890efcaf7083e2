"""What `mfpo check` finds of a benchmark's pictures in the data: the same files, and copies that were resized or stored again."""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from .. import _trl
from ..rows import image_list, is_stored, rows_with_images
from .table import OK, WARNING, Finding, some

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}

GRID = 8
BITS = 10
"""Of 128 that copies may differ in. Copies of a picture with the spectrum of photographs, down to a quarter of its size or stored as
JPEG of quality 30, differ in 4 at most; the nearest of 80,000 pairs of different ones in 35."""

TOLD = 32
"""Differences between neighbours, of 128, that a picture must have to be known again: a blank page is like every other."""

AT_ONCE = 256


def fingerprint(picture: Image.Image) -> np.ndarray | None:
    """A difference hash: where a picture of 9 x 9 grey cells grows brighter to the right, and where downwards, (2,) uint64.

    None for a picture with too little on it to be known again. The package `imagehash` has a like one, and brings SciPy and
    PyWavelets for those that are not used here.
    """
    cells = picture.convert("L").resize((GRID + 1, GRID + 1), Image.Resampling.LANCZOS)
    grey = np.asarray(cells, dtype=np.int16)
    right, down = grey[:-1, 1:] - grey[:-1, :-1], grey[1:, :-1] - grey[:-1, :-1]
    if np.count_nonzero(right) + np.count_nonzero(down) < TOLD:
        return None
    return np.packbits([right > 0, down > 0]).view(np.uint64)


def alike(ours: np.ndarray, theirs: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of pictures whose fingerprints differ in few bits: of (N, 2) and (M, 2) the places in both."""
    for start in range(0, len(ours), AT_ONCE):
        part = ours[start : start + AT_ONCE, None] ^ theirs[None]
        for one, other in zip(*np.nonzero(np.bitwise_count(part).sum(axis=-1) <= BITS), strict=True):
            yield start + int(one), int(other)


@dataclass
class Pictures:
    """Pictures by their bytes.

    Attributes:
        names: of each different picture, those of the rows or files that hold it.
        prints: fingerprint of each, where it has one.
        unreadable: names of those that cannot be read.
    """

    names: dict[bytes, list[Any]] = field(default_factory=dict)
    prints: dict[bytes, np.ndarray] = field(default_factory=dict)
    unreadable: list[Any] = field(default_factory=list)

    def add(self, name: Any, value: Any) -> None:
        """Take in a picture: the bytes of a file, a path, or a picture that is decoded."""
        try:
            own = _bytes(value)
            known = hashlib.blake2b(own, digest_size=16).digest()
            if known not in self.names:
                found = fingerprint(_opened(own) if not isinstance(value, Image.Image) else value)
                if found is not None:
                    self.prints[known] = found
            self.names.setdefault(known, []).append(name)
        except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError):
            self.unreadable.append(name)

    def also_in(self, other: "Pictures") -> tuple[dict[bytes, Any], dict[bytes, Any]]:
        """Those with the same bytes, and those that are alike, each with the name of one of the other's."""
        exact = {own: other.names[own][0] for own in self.names if own in other.names}
        ours, theirs = list(self.prints), list(other.prints)
        near: dict[bytes, Any] = {}
        if ours and theirs:
            tables = [
                np.stack([own[key] for key in keys]) for own, keys in ((self.prints, ours), (other.prints, theirs))
            ]
            for one, two in alike(*tables):
                if ours[one] not in exact:
                    near.setdefault(ours[one], other.names[theirs[two]][0])
        return exact, near


def _bytes(value: Any) -> bytes:
    if isinstance(value, Mapping):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, Image.Image):
        return repr((value.size, value.mode)).encode() + value.tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    return value if isinstance(value, bytes) else Path(value).read_bytes()


def _opened(content: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(content))
    # A JPEG is decoded at an eighth of its size where that is enough, in a tenth of the time.
    picture.draft("L", (GRID * 16, GRID * 16))
    return ImageOps.exif_transpose(picture)


def of_folder(folder: Path) -> Pictures:
    """The pictures in a folder and in those below it, by their paths inside of it.

    Raises:
        ValueError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise ValueError(f"--benchmark-images {folder}: there is no such folder")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise ValueError(f"--benchmark-images {folder}: holds no picture ({', '.join(sorted(SUFFIXES))})")
    found = Pictures()
    for path in tqdm(paths, desc=f"Pictures of {folder.name}", disable=None):
        found.add(path.relative_to(folder).as_posix(), path)
    return found


def of_rows(dataset: Any, most: int) -> Pictures:
    """The images of a data set, by the numbers of their rows; of a stream those of the first rows.

    Args:
        most: rows of a stream.
    """
    found = Pictures()
    for number, row in tqdm(_rows(dataset, most), desc="Images of the rows", disable=None):
        for value in image_list(row, "image") or ():
            found.add(number, value)
    return found


def _rows(dataset: Any, most: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if not isinstance(dataset, Dataset):
        yield from enumerate(islice(iter(_trl.undecoded(dataset)), most))
        return
    columns = [own for own in ("image", "images") if own in dataset.column_names]
    if not is_stored(dataset):
        yield from enumerate(dataset)
        return
    if not columns:
        return
    shown = rows_with_images(dataset)
    # As they are stored, because decoding them here would take most of the time.
    batches = dataset.select_columns(columns).select(shown).with_format("arrow").iter(64)
    rows = (row for batch in batches for row in batch.to_pylist())
    yield from zip(shown.tolist(), rows, strict=True)


def overlap(dataset: Any, folders: Sequence[Path], most: int) -> Finding:
    """How many images of the data are also in benchmarks.

    Args:
        dataset: of the training.
        folders: of benchmarks' pictures.
        most: rows of a stream that are looked at.

    Raises:
        ValueError: a folder without pictures.
    """
    benchmarks = {folder: of_folder(folder) for folder in folders}
    ours = of_rows(dataset, most)
    found = {folder: _shared(ours, theirs) for folder, theirs in benchmarks.items()}
    rows = sorted({number for own in found.values() for number in own["rows"]})
    lines = [_line(folder, own) for folder, own in found.items()]
    details = {"rows": rows, "benchmarks": {str(folder): own for folder, own in found.items()}}
    bare = len(ours.names) - len(ours.prints)
    if bare:
        lines.append(f"{bare:,} images with too little on them to be known again are compared as files only")
    if ours.unreadable:
        lines.append(f"{len(ours.unreadable):,} images cannot be read")
    if not rows:
        return Finding("benchmark images", OK, "\n".join(lines), details=details)
    advice = f"figures on it are not of unseen images: leave these {len(rows):,} rows out (--json names them all), or say so beside them"
    return Finding("benchmark images", WARNING, "\n".join(lines), advice, details)


def _shared(ours: Pictures, theirs: Pictures) -> dict[str, Any]:
    exact, near = ours.also_in(theirs)
    both = {**exact, **near}
    return {
        "benchmark_images": len(theirs.names),
        "images": len(ours.names),
        "exact": len(exact),
        "alike": len(near),
        "rows": sorted({number for own in both for number in ours.names[own]}),
        "pairs": [{"row": ours.names[own][0], "file": name} for own, name in both.items()],
        "unreadable": theirs.unreadable,
    }


def _line(folder: Path, own: Mapping[str, Any]) -> str:
    line = (
        f"{folder.name}: {own['exact'] + own['alike']:,} of {own['images']:,} training images are among its "
        f"{own['benchmark_images']:,} ({own['exact']:,} the same files, {own['alike']:,} resized or stored again)"
    )
    if own["unreadable"]:
        line += f"; {len(own['unreadable']):,} of its files cannot be read"
    shown = [f"row {pair['row']} is {pair['file']}" for pair in own["pairs"]]
    return "\n".join(filter(None, [line, some(shown)]))
