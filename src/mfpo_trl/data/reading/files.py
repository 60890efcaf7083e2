"""Where source rows come from: the Hub, a folder, parquet, JSON or JSON lines; and the bytes of their images."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

JSON_SUFFIXES = (".json", ".jsonl")
DATA_SUFFIXES = (*JSON_SUFFIXES, ".parquet", ".csv", ".arrow", ".txt", ".zip")

OPTIONAL = ("id", "rejected_image", "rejected_images", "answer_prefix")


class MissingFileError(ValueError):
    """A path of a row that leads to no file inside of the roots."""


class JsonRows:
    """The rows of a JSON file, a list or one object a line, by position.

    Lines are parsed when they are asked for, so that a broken one costs itself and no other, and no memory.

    Args:
        path: the file; with `.jsonl` one object a line, otherwise a list of objects.

    Raises:
        ValueError: a `.json` file that is no list of objects.
    """

    def __init__(self, path: Path):
        self.path = path
        self._rows: list[Any] | None = None
        # Columns that only some rows may have, but that decide something for all.
        self.optional: set[str] = set()
        stat = path.stat()
        self.identity = f"{stat.st_size} bytes of {stat.st_mtime_ns}"
        if path.suffix == ".jsonl":
            with path.open("rb") as file:
                # A line without content counts below 0.
                lengths = np.array([self._indexed(line) for line in file], dtype=np.int64)
            ends = np.cumsum(abs(lengths))
            self._spans = np.stack([ends - lengths, ends], axis=1)[lengths > 0]
            return
        try:
            self._rows = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}; name it .jsonl if it holds one object a line") from error
        if not isinstance(self._rows, list):
            raise ValueError(f"{path} holds a {type(self._rows).__name__}; expected a list of objects")

        self.optional = {name for name in OPTIONAL for row in self._rows if isinstance(row, Mapping) and name in row}

    def _indexed(self, line: bytes) -> int:
        self.optional |= {name for name in OPTIONAL if f'"{name}"'.encode() in line}
        return len(line) if line.strip() else -len(line)

    def __len__(self) -> int:
        return len(self._spans if self._rows is None else self._rows)

    def read(self, rows: range) -> list[Any]:
        """These rows; in place of one that does not parse, the ValueError that says why."""
        if self._rows is not None:
            return [_checked(row) for row in self._rows[rows.start : rows.stop]]
        found = []
        with self.path.open("rb") as file:
            for start, end in self._spans[rows.start : rows.stop].tolist():
                file.seek(start)
                line = file.read(end - start)
                try:
                    found.append(_checked(json.loads(line)))
                except (ValueError, RecursionError) as error:
                    found.append(ValueError(f"the line is not JSON: {error}"))
        return found


def _checked(row: Any) -> Any:
    return row if isinstance(row, Mapping) else ValueError(f"found a {type(row).__name__}; expected an object")


class DatasetRows:
    """The rows of a `datasets.Dataset` by position, their images as stored."""

    def __init__(self, dataset: Any):
        # As Arrow, images stay the bytes and paths that they are.
        self.dataset = dataset.with_format("arrow")
        self.identity = dataset._fingerprint
        self.optional: set[str] = set()

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, rows: range) -> list[Any]:
        """These rows."""
        return self.dataset[rows.start : rows.stop].to_pylist()


def open_rows(dataset: str, split: str = "train") -> JsonRows | DatasetRows:
    """The rows of a data set.

    Args:
        dataset: an id on the Hub, a folder, or a parquet, `.json` or `.jsonl` file.
        split: of a data set that has several.

    Raises:
        ValueError: no such file, or nothing that `datasets` can load.
    """
    from datasets import DatasetDict, load_dataset, load_from_disk

    path = Path(dataset)
    if path.suffix in JSON_SUFFIXES and path.is_file():
        return JsonRows(path)
    if not path.exists() and is_a_path(dataset):
        raise ValueError(f"the data set {dataset!r} cannot be loaded: there is no such file or folder")
    try:
        if path.suffix == ".parquet" and path.is_file():
            loaded = load_dataset("parquet", data_files=str(path), split="train")
        elif (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            loaded = load_from_disk(str(path))
            loaded = loaded[split] if isinstance(loaded, DatasetDict) else loaded
        else:
            loaded = load_dataset(dataset, split=split)
    except Exception as error:
        raise ValueError(f"the data set {dataset!r} cannot be loaded: {error}") from error
    return DatasetRows(loaded)


def is_a_path(dataset: str) -> bool:
    """Whether the name of a data set can only be that of a file or folder, and never an id on the Hub."""
    return "://" not in dataset and (
        Path(dataset).suffix in DATA_SUFFIXES
        or dataset.startswith((".", "/", "~"))
        or dataset.endswith("/")
        or dataset.count("/") > 1
        or "\\" in dataset
    )


def image_roots(dataset: str, image_root: Path | None) -> list[Path]:
    """The folders that image paths are relative to and may not leave: the one given, or that of the data set itself. One of
    the Hub has its folder in the cache; nothing else there is its own.

    Raises:
        ValueError: what is given is no folder.
    """
    if image_root is not None:
        if not image_root.is_dir():
            what = "a file; unpack an archive and name its folder" if image_root.exists() else "not there"
            raise ValueError(f"--image-root {str(image_root)!r} must be a folder, and is {what}")
        return [image_root.resolve()]
    path = Path(dataset)
    if path.exists():
        return [path.resolve() if path.is_dir() else path.resolve().parent]
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return [Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=dataset, repo_type="dataset")).resolve()]


def image_bytes(value: Any, roots: Sequence[Path]) -> dict[str, Any]:
    """An image as it is stored in the source, never encoded again.

    Args:
        value: bytes, a path, or the `{"bytes", "path"}` of `datasets`.
        roots: see `image_roots`.

    Returns:
        `{"bytes": ..., "path": file name or None}`.

    Raises:
        ValueError: a URL, a path outside of the roots, a missing or empty file, or no image at all.
    """
    path = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, str) else None
    data = value.get("bytes") if isinstance(value, Mapping) else value if isinstance(value, bytes) else None
    # A text in place of bytes would be opened as a path, whatever it leads to.
    if (data is None and path is None) or not (isinstance(data, bytes | None) and isinstance(path, str | None)):
        found = f"{type(value).__name__} of {type(data).__name__} and {type(path).__name__}"
        raise ValueError(
            f"expected bytes or a path, found {found if isinstance(value, Mapping) else type(value).__name__}"
        )
    if data is None:
        assert path is not None
        data = image_file(path, roots).read_bytes()
    if not data:
        raise ValueError(f"the file {str(path)!r} is empty (0 bytes)" if path else "the image is empty (0 bytes)")
    return {"bytes": data, "path": Path(path).name if path else None}


def read_masks(value: Any, roots: Sequence[Path]) -> Any:
    """A row's `key_regions` with the files of its masks read, from inside of the roots only; raises as `image_bytes`."""
    if isinstance(value, str):
        return image_bytes(value, roots)
    if isinstance(value, Mapping):
        # Wherever `images.regions` would find a region; what it gets holds no path.
        read = {key: read_masks(own, roots) if key in ("box", "mask", "rle") else own for key, own in value.items()}
        is_file = value.get("path") is not None or value.get("bytes") is not None
        return read | image_bytes(value, roots) if is_file else read
    return [read_masks(own, roots) for own in value] if isinstance(value, list) else value


def image_file(path: str, roots: Sequence[Path]) -> Path:
    """The file that a path of a row means, symbolic links followed.

    Args:
        roots: see `image_roots`.

    Raises:
        MissingFileError: there is no such file.
        ValueError: a URL, or a path outside of the roots.
    """
    if "://" in path:
        raise ValueError(f"{path[:80]!r} is a URL; download the images first and name their folder with --image-root")
    for root in roots:
        found = (root / path).resolve()
        if found.is_relative_to(root) and found.is_file():
            return found
    outside = not any((root / path).resolve().is_relative_to(root) for root in roots)
    # In quotes, by which the report knows a path and leaves it out.
    folders = ", ".join(repr(str(root)) for root in roots[:1]) or "any folder"
    if outside:
        raise ValueError(f"{path!r} lies outside of {folders}; see --image-root")
    raise MissingFileError(f"{path!r} is not a file in {folders}; see --image-root")


def repeated(ids: Iterable[Any]) -> dict[int, int]:
    """The positions whose id stands at an earlier one too, and the how-manieth of that id they are, from 2 up.

    Eight bytes are kept of an id; None is no id.
    """
    names = np.fromiter((0 if own is None else _digest(own) for own in ids), dtype=np.uint64)
    _, name, counts = np.unique(names, return_inverse=True, return_counts=True)
    times: Counter[int] = Counter()
    found = {}
    for position in np.flatnonzero((counts[name] > 1) & (names > 0)).tolist():
        times[int(name[position])] += 1
        if times[int(name[position])] > 1:
            found[position] = times[int(name[position])]
    return found


def _digest(own: Any) -> int:
    return (
        int.from_bytes(hashlib.blake2b(str(own).encode(errors="surrogatepass"), digest_size=8).digest(), "little") or 1
    )
