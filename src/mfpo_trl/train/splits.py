"""The data sets that the fields of a training name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from trl import ScriptArguments

from ..config import MFPOConfig
from ..data.reading import SOURCES, is_a_path
from ..evaluation import DURING
from .heldout import hold_out
from .mirrors import read_by_objective
from .reading import as_rows

KINDS_OF_FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}


@dataclass
class TrainScriptArguments(ScriptArguments):
    """TRL's fields of the data set, and how its rows are read.

    Args:
        source, image_root: as `mfpo build` takes them.
        eval_split_ratio: share of the rows to train on that are held out to evaluate on; rows with the same prompt and images
            stay together.
        eval_benchmark, eval_benchmark_data, eval_benchmark_rows, eval_benchmark_max_new_tokens: which benchmark is asked and scored
            at each evaluation (`mfpo_trl.train.benchmark`), the folder of its files and pictures, on how many questions, and with how
            long answers.
    """

    source: str = field(
        default="auto",
        metadata={
            "help": "How the rows are published; `auto` goes by their columns.",
            "choices": ("auto", *SOURCES),
        },
    )
    image_root: str | None = field(
        default=None,
        metadata={"help": "Folder that image paths are relative to and may not leave; that of the data set if unset."},
    )
    eval_split_ratio: float = field(
        default=0.0,
        metadata={"help": "Share of the training rows that are held out to evaluate on; 0 holds out none."},
    )
    eval_benchmark: str = field(
        default="none",
        metadata={
            "help": "Benchmark that is asked and scored at each evaluation, for figures such as eval_chair_s.",
            "choices": ("none", *DURING),
        },
    )
    eval_benchmark_data: str | None = field(
        default=None, metadata={"help": "Folder of its files and pictures, as `mfpo generate --data` takes it."}
    )
    eval_benchmark_rows: int = field(
        default=200, metadata={"help": "Questions of it at most, evenly spread over its parts."}
    )
    eval_benchmark_max_new_tokens: int = field(default=256, metadata={"help": "Length of an answer to it at most."})


class Splits:
    """The rows of a training, those to evaluate on among them, read when they are asked for.

    Args:
        script, training: the fields of the training.

    Raises:
        ValueError: there is no such data set, here or on the Hub, or fields that exclude each other.
    """

    def __init__(self, script: TrainScriptArguments, training: MFPOConfig):
        self.script, self.training = script, training
        self.data = load(script)

    @property
    def train(self) -> Any:
        """The rows to train on.

        Raises:
            ValueError: there is no such split, or a row that cannot be read.
        """
        return self._held_out[0] if self.script.eval_split_ratio else self._split(self.script.dataset_train_split)

    @property
    def evaluation(self) -> Any:
        """The rows to evaluate on, None where there is no evaluation; raises as `train`."""
        if not evaluates(self.training):
            return None
        if self.script.eval_split_ratio:
            return self._held_out[1]
        return self._split(
            self.script.dataset_test_split, "; eval_split_ratio holds out a share of the rows to train on"
        )

    @cached_property
    def _held_out(self) -> tuple[Dataset, Dataset]:
        check_ratio(self.script, self.training)
        training = self.training
        seed = training.seed if training.data_seed is None else training.data_seed
        return hold_out(self._split(self.script.dataset_train_split), self.script.eval_split_ratio, seed)

    def _split(self, name: str, advice: str = "") -> Any:
        script = self.script
        rows = as_rows(split_of(self.data, name, advice), script.dataset_name, script.source, script.image_root)
        return read_by_objective(rows, self.training, script.dataset_name)


def rows_of(name: str, split: str = "train", source: str = "auto", image_root: str | None = None) -> Any:
    """The rows of one split of a data set, as a training reads them.

    Args:
        name: a folder, a file or an id on the Hub.
        split: of the data set.
        source, image_root: as the fields of those names.

    Raises:
        ValueError: there is no such data set or split, or a row that cannot be read.
    """
    script = TrainScriptArguments(dataset_name=name, source=source, image_root=image_root)
    return as_rows(split_of(load(script), split), name, source, image_root)


def evaluates(training: MFPOConfig) -> bool:
    """Whether the rows to evaluate on are read."""
    return training.eval_strategy != "no" or training.eval_on_start


def check_ratio(script: TrainScriptArguments, training: MFPOConfig) -> None:
    """Refuse rows to be held out for nothing, or out of a stream.

    Raises:
        ValueError: says which fields exclude each other.
    """
    ratio = script.eval_split_ratio
    if not 0 < ratio < 1:
        raise ValueError(f"eval_split_ratio is {ratio!r}; expected a share of the rows, from 0 to below 1")
    if not evaluates(training):
        raise ValueError(
            f"eval_split_ratio={ratio} holds rows out to evaluate on, and eval_strategy is 'no'; set eval_strategy to epoch or steps"
        )
    if script.dataset_streaming:
        raise ValueError(
            f"eval_split_ratio={ratio} takes a share of rows that can be counted, and dataset_streaming reads them as they come; set "
            "one of them to its default, or name a dataset_test_split"
        )


def load(script: ScriptArguments) -> Any:
    """The splits of a data set on the Hub, of a folder or file that `load_dataset` reads, or of a `save_to_disk` folder.

    Raises:
        ValueError: there is no such data set, here or on the Hub.
    """
    name = script.dataset_name
    path = Path(name)
    if not path.exists() and not _may_be_an_id(name):
        raise ValueError(
            f"dataset_name is {name!r}, and there is no such folder or file; `mfpo build --output {name}` makes one"
        )
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return load_from_disk(path)
    if path.is_file():
        return _load_file(path, script.dataset_streaming)
    try:
        return load_dataset(name, name=script.dataset_config, streaming=script.dataset_streaming)
    except OSError as error:
        if path.exists():
            raise
        raise ValueError(
            f"there is no folder or file {name!r} here, nor a data set of that name on the Hub ({error}); "
            f"`mfpo build --output {name}` makes one"
        ) from error


def _load_file(path: Path, streaming: bool) -> Any:
    if path.suffix not in KINDS_OF_FILES:
        # By another name a builder of the Hub would be asked for.
        raise ValueError(
            f"dataset_name is {str(path)!r}; expected a folder, or a file that ends in {', '.join(KINDS_OF_FILES)}"
        )
    try:
        return load_dataset(KINDS_OF_FILES[path.suffix], data_files=str(path), streaming=streaming)
    except (ValueError, DatasetGenerationError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be loaded: {error.__cause__ or error}; where single rows are at fault, `mfpo build --dataset "
            f"{path} --output FOLDER` sets them aside"
        ) from error


def _may_be_an_id(name: str) -> bool:
    """Whether the Hub may have a data set of this name."""
    if is_a_path(name):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return "://" in name
    return True


def split_of(data: Any, split: str, advice: str = "") -> Any:
    """One split; a data set without splits is its own only one.

    Args:
        advice: to be given where there is no such split.

    Raises:
        ValueError: there is no such split.
    """
    if not isinstance(data, Mapping):
        return data
    if split not in data:
        raise ValueError(f"the data set has no split {split!r}, only {list(data)}{advice}")
    return data[split]
