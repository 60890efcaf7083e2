"""Data sets as the trainer reads them: with numbered rows, and images that fail where they can be named."""

from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset
from PIL import UnidentifiedImageError

from ..rows import REFERENCE, ROW_NUMBER, row_error


def undecoded(dataset: Any) -> Any:
    """A streamed data set whose images stay files until the collator reads them, where a bad one can be named; any other
    data set, or a dict of them, as it is."""
    if isinstance(dataset, dict) and not isinstance(dataset, DatasetDict):
        return {name: undecoded(own) for name, own in dataset.items()}
    if isinstance(dataset, IterableDataset) and dataset.features is not None:
        return dataset.decode(False)
    return dataset


class NumberedRows(Dataset):
    """A data set whose rows carry their number, and whose unreadable rows fail by name."""

    first: int | None = None

    @classmethod
    def of(cls, dataset: Dataset, first: int | None = None) -> "NumberedRows":
        """The same rows; where `first` is given, the place of the first one in the table of cached reference values, each
        with its own place there. Nothing is copied."""
        rows = cls(
            dataset.data,
            info=dataset.info.copy(),
            split=dataset.split,
            indices_table=dataset._indices,
            fingerprint=dataset._fingerprint,
        )
        form = dataset.format
        rows.set_format(form["type"], form["columns"], form["output_all_columns"], **form["format_kwargs"])
        rows.first = first
        return rows

    def __getitems__(self, keys: list[int]) -> list[dict[str, Any]]:
        """The rows at these positions, each with `row_number`; called by torch's data loader for a batch.

        Raises:
            ValueError: a row that `datasets` cannot decode; names the row and the field.
        """
        try:
            rows = super().__getitems__(keys)
        except Exception as error:
            raise self._unreadable(keys, error) from error
        rows = [{**row, ROW_NUMBER: int(key)} for key, row in zip(keys, rows, strict=True)]
        if self.first is None:
            return rows
        return [{**row, REFERENCE: self.first + row[ROW_NUMBER]} for row in rows]

    def _unreadable(self, keys: list[int], error: Exception) -> Exception:
        for key in map(int, keys):
            if self.format["type"] == "custom":
                try:
                    self[key]
                except Exception as cause:
                    return ValueError(f"row {key}: the data set's transform failed: {cause!r}")
                continue
            for column in self.column_names:
                try:
                    self[column][key]
                except Exception as cause:
                    return row_error({ROW_NUMBER: key}, column, f"cannot be read: {_of_image(cause)}")
        return error


def _of_image(error: Exception) -> str:
    """Pillow's message, where it names an object in memory instead of what is wrong."""
    unknown = isinstance(error, UnidentifiedImageError)
    return "the file is empty, or no image of a known format" if unknown else str(error)
