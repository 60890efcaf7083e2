"""`mfpo preview`: some rows of a preference data set as a picture (PNG) or a page (HTML)."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...rows import COLUMNS, ROW_NUMBER, image_columns, row_error
from ..reading import image_bytes, read_masks
from .exhibit import Exhibit, exhibit
from .page import write_page
from .samples import exhibit_of_samples
from .sheet import draw_sheet

EXTRA_COLUMNS = ("id", "rejected_image_chosen", "mirror_of", "keywords", "difficulty", "stage")
BATCH = 16
"""Rows that are in memory at once while the drawn ones are looked up."""


class ParquetRows(Sequence):
    """The rows of a folder of parquet files, read when they are asked for.

    Args:
        folder: holds `data/*.parquet` or the files themselves; they are taken in the order of their names.

    Raises:
        ValueError: no such file, a file that is not parquet, or one without `chosen` and `rejected`.
    """

    def __init__(self, folder: Path) -> None:
        self.roots = [folder.resolve()]
        found = sorted(folder.glob("data/*.parquet")) or sorted(folder.glob("*.parquet"))
        # Writers keep unfinished parts under names that begin so.
        self.parts = [path for path in found if not path.name.startswith((".", "_"))]
        if not self.parts:
            raise ValueError(
                f"{str(folder)!r} holds no data set: expected the parquet files that `mfpo build` writes, as "
                f"data/train-*.parquet in it or in the folder itself"
            )
        self.ends = np.cumsum([_opened(part).metadata.num_rows for part in self.parts]).tolist()

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return next(self.take([index]))

    def twins(self) -> set[int]:
        """The positions of the rows that are twins of the row before them."""
        import pyarrow.parquet

        found: set[int] = set()
        for part, end in zip(self.parts, self.ends, strict=True):
            if "mirror_of" in (read := pyarrow.parquet.ParquetFile(part)).schema_arrow.names:
                own = read.read(["mirror_of"])["mirror_of"].is_valid().to_pylist()
                found |= {end - len(own) + place for place, is_twin in enumerate(own) if is_twin}
        return found

    def take(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The rows at these ascending positions; only the row groups that hold them are read.

        Raises:
            RowError: a file that a row names cannot be read, or lies outside of the folder.
            ValueError: a part file is not parquet.
        """
        wanted = sorted(indices)
        start = 0
        for part, end in zip(self.parts, self.ends, strict=True):
            own = [index - start for index in wanted if start <= index < end]
            for place, row in _rows_of(part, own):
                yield self._read({**row, ROW_NUMBER: start + place})
            start = end

    def _read(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with the files read that its images and masks may be, from inside of the folder only."""
        for column in (*image_columns(row), *({"key_regions"} & set(row))):
            read = read_masks if column == "key_regions" else image_bytes
            try:
                if row[column] is not None:
                    many = "images" in column
                    row[column] = (
                        [read(own, self.roots) for own in row[column]] if many else read(row[column], self.roots)
                    )
            except (ValueError, OSError) as error:
                raise row_error(row, column, str(error)) from error
        return row


def _opened(part: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(part)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{str(part)!r} is not a whole parquet file: {error}") from error
    missing = {"chosen", "rejected"} - set(file.schema_arrow.names)
    if missing:
        raise ValueError(
            f"{str(part)!r} has no column {' and '.join(map(repr, sorted(missing)))}; a preference data set has both "
            f"(found {', '.join(file.schema_arrow.names)})"
        )
    return file


def _rows_of(part: Path, places: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows at ascending places of a file."""
    if not places:
        return
    with _opened(part) as file:
        columns = [
            name
            for name in file.schema_arrow.names
            if name in {*COLUMNS, *EXTRA_COLUMNS, *image_columns(file.schema_arrow.names)}
        ]
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            own = [place for place in places if start <= place < end]
            # A row group of photos can be larger than memory; its batches are not.
            for batch in file.iter_batches(batch_size=BATCH, row_groups=[group], columns=columns) if own else ():
                for place in own:
                    if start <= place < start + batch.num_rows:
                        yield place, batch.slice(place - start, 1).to_pylist()[0]
                start += batch.num_rows
                if start > own[-1]:
                    break
            start = end


class SampleRows:
    """The prompts of a folder of pairs, each with every answer to it.

    Args:
        folder: holds `samples/*.parquet`.

    Raises:
        ValueError: no such file.
    """

    def __init__(self, folder: Path) -> None:
        import pyarrow.parquet as pq

        self.parts = sorted(folder.glob("samples/part-*.parquet"))
        if not self.parts:
            raise ValueError(
                f"{str(folder)!r} holds no samples: expected the files that `mfpo pairs` writes, as samples/part-*"
            )
        self.ends = np.cumsum([pq.read_metadata(part).num_rows for part in self.parts]).tolist()

    def __len__(self) -> int:
        return self.ends[-1]

    def take(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The rows at these ascending positions."""
        import pyarrow.parquet as pq

        start = 0
        for part, end in zip(self.parts, self.ends, strict=True):
            own = [index - start for index in indices if start <= index < end]
            rows = pq.read_table(part).take(own).to_pylist() if own else []
            yield from ({**row, ROW_NUMBER: start + place} for row, place in zip(rows, own, strict=True))
            start = end


def draw_rows(total: int, n: int, seed: int) -> list[int]:
    """`n` of `total` positions, ascending: one drawn from each of `n` equal stretches; all when there are no more.

    Raises:
        ValueError: `n` under 1.
    """
    if n < 1:
        raise ValueError(f"n is the number of rows to show, at least 1; found {n}")
    n = min(n, total)
    rng = np.random.default_rng(seed)
    return [int(rng.integers(i * total // n, (i + 1) * total // n)) for i in range(n)]


def twins_first(total: int, twins: Collection[int], n: int, seed: int) -> list[int]:
    """`n` of `total` positions, ascending: of twins, each with the row before it that it is the twin of, as far as there are some; the
    rest of what is neither."""
    ends = sorted(twins)
    drawn = [ends[place] for place in draw_rows(len(ends), -(-n // 2), seed)]
    shown = [place for end in drawn for place in (end - 1, end)][:n]
    single = sorted(set(range(total)) - set(twins) - {end - 1 for end in twins})
    more = draw_rows(len(single), n - len(shown), seed) if n > len(shown) else []
    return sorted([*shown, *(single[place] for place in more)])


WRITERS: dict[str, Callable[[str, Iterable[Exhibit]], bytes]] = {".png": draw_sheet, ".html": write_page}


def preview(folder: Path, n: int = 16, output: Path = Path("sheet.png"), seed: int = 0, samples: bool = False) -> Path:
    """Write a sheet that shows rows of a preference data set: images, key regions, dispreferred images, texts.

    Args:
        folder: of the data set; holds `data/*.parquet`, or the parquet files themselves.
        n: rows to show, spread over the data set; all where it has no more.
        output: a `.png`, in which long texts are cut, or an `.html`, in which they stand in full.
        seed: of the draw.
        samples: of a data set of `mfpo pairs`, show every answer with its claims instead.

    Returns:
        `output`. The same data set, `n` and `seed` give the same bytes.

    Raises:
        ValueError: another suffix, no data set in the folder, no row in it, or a row that cannot be used.
    """
    folder, output = Path(folder), Path(output)
    writer = WRITERS.get(output.suffix.lower())
    if writer is None:
        raise ValueError(f"cannot write {str(output)!r}: expected a file that ends in {' or '.join(WRITERS)}")
    rows: Any = SampleRows(folder) if samples else ParquetRows(folder)
    if not len(rows):
        raise ValueError(f"the data set in {str(folder)!r} has no row")
    twins = set() if samples else rows.twins()
    drawn = draw_rows(len(rows), n, seed)
    if twins and n < len(rows):
        drawn = twins_first(len(rows), twins, n, seed)
    title = (
        f"{folder.resolve().name}: {len(drawn)} of {len(rows)} {'prompts with their answers' if samples else 'rows'}"
    )
    shown = (exhibit_of_samples(row) if samples else exhibit(row, rows) for row in rows.take(drawn))
    content = writer(title, shown)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(content)
    return output
