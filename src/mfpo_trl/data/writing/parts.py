"""A built data set on disk: part files that are there whole or not at all, and what is known of each.

DIR/data/train-00000-of-00003.parquet    rows, loadable with `load_dataset(DIR)`
DIR/build/options.json                   what the build was asked for
DIR/build/part-00000.parquet             a finished part that waits for the others, whose difficulties fix the stages
DIR/build/part-00000.json                its counts and its rejected rows
DIR/rejects.jsonl, report.json, README.md    written when all parts are there
"""

import errno
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ...rows import dispreferred_column, plural_of

WORK = "build"

GROUP_BYTES = 2**28
"""Of a row group, about."""


def features(rejected_images: int, answer_prefix: bool = False, mirrors: bool = False) -> Any:
    """The `datasets.Features` of a built row.

    Args:
        rejected_images: how many dispreferred images of each image are stored.
        answer_prefix: whether rows have begun answers.
        mirrors: whether rows have twins.
    """
    from datasets import Features, Image, List, Value

    text, number = Value("string"), Value("int32")
    messages = List({"role": text, "content": List({"type": text, "text": text})})
    region = {"rle": {"size": List(number), "counts": List(number)}, "phrase": text, "score": Value("float32")}
    columns = {
        "id": text,
        "images": List(Image()),
        **dict.fromkeys(("prompt", "chosen", "rejected"), messages),
        "keywords": List(text),
        "key_regions": List(List(region)),
        "grounded": Value("bool"),
        "corruption": text,
        "difficulty": Value("float64"),
        "stage": Value("int64"),
    }
    stored = [plural_of(dispreferred_column(variant)) for variant in range(1, rejected_images + 1)]
    if mirrors:
        columns |= {"rejected_image_chosen": messages, "mirror_of": text}
    columns |= {name: List(Image()) for name in stored}
    return Features(columns | ({"answer_prefix": text} if answer_prefix else {}))


class NoRows(ValueError):
    """Every row of a source was rejected: all is done, and there is no data set."""


class Parts:
    """The part files of a build.

    Args:
        folder: of the data set.
        rows: of the source.
        size: rows of the source that a part is made from.
    """

    def __init__(self, folder: Path, rows: int, size: int):
        self.folder = folder
        self.ranges = [range(start, min(start + size, rows)) for start in range(0, rows, size)]

    def missing(self) -> list[int]:
        """The parts that are not there yet."""
        return [part for part in range(len(self.ranges)) if not (self._is_final(part) or self._is_built(part))]

    def write(self, part: int, rows: Sequence[Mapping[str, Any]], columns: Any) -> None:
        """Store the rows of a part, which counts as built once `note` has stored its report too.

        Raises:
            OSError: the disk is full; no half part is left under its name.
        """
        import pyarrow as pa

        table = pa.Table.from_pylist(list(rows), schema=columns.arrow_schema)
        self._work(part).parent.mkdir(parents=True, exist_ok=True)
        replace(self._work(part), partial(_write, table))

    def note(self, part: int, report: Mapping[str, Any]) -> None:
        """Store what is known of a part."""
        replace(self._report(part), lambda path: path.write_text(json.dumps(report), encoding="utf-8"))

    def reports(self) -> list[dict[str, Any]]:
        """What was written beside each part."""
        return [json.loads(self._report(part).read_text(encoding="utf-8")) for part in range(len(self.ranges))]

    @cached_property
    def columns(self) -> list[str]:
        """The names of the columns of the parts."""
        import pyarrow.parquet as pq

        return pq.read_schema(self._path(0)).names

    def difficulties(self) -> list[np.ndarray]:
        """The difficulties of each part's rows, NaN where there is none."""
        import pyarrow.parquet as pq

        tables = [pq.read_table(self._path(part), columns=["difficulty"]) for part in range(len(self.ranges))]
        return [table["difficulty"].to_numpy().astype(float) for table in tables]

    def finish(self, stages: Callable[[np.ndarray], np.ndarray], why: str = "") -> None:
        """Give every row its stage and every part its final name.

        Args:
            stages: from all difficulties to as many stages; rows without a difficulty get none.
            why: what is said of the rejected rows where there is no other.

        Raises:
            NoRows: every row was rejected.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        waiting = [part for part in range(len(self.ranges)) if not self._is_final(part)]
        if not waiting:
            return
        (self.folder / "data").mkdir(exist_ok=True)
        found = self.difficulties()
        known = np.concatenate(found)
        if not len(known):
            raise NoRows(f"every row was rejected{why}; all reasons are in {self.folder / 'rejects.jsonl'}")
        stage = np.full(len(known), -1)
        stage[~np.isnan(known)] = stages(known[~np.isnan(known)])
        ends = np.cumsum([len(own) for own in found])
        for part in waiting:
            own = stage[ends[part] - len(found[part]) : ends[part]]
            if not len(own):
                continue  # `datasets` cannot read a file without rows
            try:
                table = pq.read_table(self._work(part))
            except FileNotFoundError:
                if self._is_final(part):
                    continue  # another machine was quicker
                raise
            values = pa.array(own, type=pa.int64(), mask=own < 0)
            table = table.set_column(table.column_names.index("stage"), table.field("stage"), values)
            replace(self._final(part), partial(_write, table), self.folder / WORK)
            self._work(part).unlink(missing_ok=True)

    def _path(self, part: int) -> Path:
        return self._final(part) if self._is_final(part) else self._work(part)

    def _is_final(self, part: int) -> bool:
        return self._final(part).exists()

    def _is_built(self, part: int) -> bool:
        return self._work(part).exists() and self._report(part).exists()

    def _final(self, part: int) -> Path:
        return self.folder / "data" / f"train-{part:05d}-of-{len(self.ranges):05d}.parquet"

    def _work(self, part: int) -> Path:
        return self.folder / WORK / f"part-{part:05d}.parquet"

    def _report(self, part: int) -> Path:
        return self.folder / WORK / f"part-{part:05d}.json"


def _write(table: Any, path: Path) -> None:
    """Images, which are nearly all of it, are compressed already; a row group stays below the 2 GiB that Arrow reads at once."""
    import pyarrow.parquet as pq

    rows = max(1, len(table) * GROUP_BYTES // max(table.nbytes, 1))
    pq.write_table(table, path, compression="none", row_group_size=min(rows, 1024))


def replace(path: Path, write: Callable[[Path], Any], scratch: Path | None = None) -> None:
    """Write a file under a temporary name and rename it, so that it is there whole or not at all.

    Args:
        path: its final name.
        write: writes it where it is told.
        scratch: a folder of the same disk for the temporary file, where a leftover of a killed process harms nobody.

    Raises:
        OSError: nothing is left behind; a full disk is said in so many words.
    """
    # A name of its own also on another machine with the same process number.
    temporary = (scratch or path.parent) / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.errno == errno.ENOSPC or "No space left" in str(error):
            raise OSError(
                errno.ENOSPC,
                f"the disk is full; {path.name} was not written. Free space and run the same command again",
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def beside(folder: Path, part: int, name: str) -> Path:
    """Where what belongs to a part is kept while it is built."""
    return folder / WORK / f"part-{part:05d}-{name}"


def remember(folder: Path, options: Mapping[str, Any]) -> None:
    """Store what a build is asked for, or compare it with what the build in this folder was asked for.

    Raises:
        ValueError: the folder holds a build with other options, whose parts would not fit.
    """
    path = folder / WORK / "options.json"
    # What is kept of a part under way was made with these options too.
    started = any(folder.glob(f"{WORK}/part-*")) or any(folder.glob("data/*.parquet"))
    if path.exists() and started:
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in {**before, **options} if before.get(name) != options.get(name)]
        if changed:
            said = "; ".join(f"{name} was {before.get(name)!r}, is {options.get(name)!r}" for name in changed)
            raise ValueError(f"{folder} holds a build with other options: {said}. Name another --output, or delete it")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, lambda own: own.write_text(json.dumps(dict(options), indent=2), encoding="utf-8"))
