"""The data sets that the fields of a training name."""

from pathlib import Path
from typing import Any

from datasets import load_dataset, load_from_disk
from trl import ScriptArguments


def load(script: ScriptArguments) -> Any:
    """The splits of a data set on the Hub, of a folder or file that `load_dataset` reads, or of a `save_to_disk` folder.

    Raises:
        ValueError: there is no such data set, here or on the Hub.
    """
    path = Path(script.dataset_name)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return load_from_disk(path)
    if path.is_file():
        kind = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}.get(path.suffix, path.suffix[1:])
        return load_dataset(kind, data_files=str(path), streaming=script.dataset_streaming)
    try:
        return load_dataset(script.dataset_name, name=script.dataset_config, streaming=script.dataset_streaming)
    except OSError as error:
        if path.exists() or "/" in script.dataset_name:
            raise
        raise ValueError(
            f"there is no folder or file {script.dataset_name!r} here, nor a data set of that name on the Hub ({error}); "
            f"`mfpo build --output {script.dataset_name}` makes one"
        ) from error


def split_of(data: Any, split: str) -> Any:
    """One split; a data set without splits is its own only one.

    Raises:
        ValueError: there is no such split.
    """
    if not isinstance(data, dict):
        return data
    if split not in data:
        raise ValueError(f"the data set has no split {split!r}, only {list(data)}")
    return data[split]
