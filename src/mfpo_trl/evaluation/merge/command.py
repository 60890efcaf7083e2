"""`mfpo merge`: the weights of a model with its adapter in them, and what that changed."""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...terminal import Parser
from ..models import (
    Place,
    Quantisation,
    ReadRows,
    dequantised,
    load,
    load_base,
    load_processor,
    place_of,
    rows_options,
    stored_as,
    stored_options,
    with_adapter,
)
from .card import write_card

KEPT = ("*.png", "LICENSE*")
"""What lies beside an adapter's card and belongs to it."""


@dataclass(frozen=True)
class Change:
    """What merging changed in the summed log-probabilities of chosen answers, in nats.

    Attributes:
        rows: how many were scored.
        largest, mean: absolute difference between the merged model and the unmerged one.
        adapter: mean absolute difference that the adapter makes to the model without it.
    """

    rows: int
    largest: float
    mean: float
    adapter: float

    def __str__(self) -> str:
        return (
            f"log-probability of the chosen answer, {self.rows} rows: merged and unmerged differ by {self.largest:.3g} at most and "
            f"{self.mean:.3g} on average, in nats; the adapter itself moves it by {self.adapter:.3g} on average"
        )


def build_parser() -> argparse.ArgumentParser:
    """The parser of `mfpo merge`."""
    parser = Parser(
        allow_abbrev=False,
        prog="mfpo merge",
        description="Write the weights of a model with its adapter in them, for vLLM and whatever else loads a plain model. "
        "With --rows, say how far the merged model's log-probabilities of chosen answers lie from the unmerged one's.",
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="folder or id of the adapter")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--base", metavar="MODEL", help="the model, where not the one that the adapter names")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of a file of weights (default: 5GB)")
    stored_options(parser)
    measured = parser.add_argument_group("what merging changes")
    rows_options(measured, "--rows", "preference rows to measure it on")
    measured.add_argument("--num-rows", type=int, default=16, metavar="N", help="of them (default: 16)")
    measured.add_argument("--batch-size", type=int, default=4, metavar="N", help="rows at once (default: 4)")
    return parser


def run_merge(argv: Sequence[str], read_rows: ReadRows) -> int:
    """Run `mfpo merge` with these arguments; returns the exit status.

    Args:
        argv: of the command line.
        read_rows: the data set that options name.
    """
    args = build_parser().parse_args(argv)
    try:
        merge(args, read_rows)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"mfpo merge: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def merge(args: argparse.Namespace, read_rows: ReadRows) -> Change | None:
    """Write the merged model, and say what that changed where rows are given.

    Raises:
        ValueError: nothing to merge, an adapter that cannot be merged, or an output folder that holds something.
    """
    check_output(args.output)
    place = place_of(args.adapter, base=args.base)
    if place.adapter is None:
        raise ValueError(f"{args.adapter} is a whole model and no adapter: there is nothing to merge")
    quantisation, dtype = stored_as(args, place.adapter)
    rows = [] if args.dataset is None else _rows(read_rows(args), args.num_rows)
    processor = load_processor(place)
    print(f"Merging {place.adapter} into {place.base}" + (f", trained in {quantisation}" if quantisation else ""))
    before = _score_before(place, dtype, quantisation, processor, rows, args.batch_size)
    merged, written = merged_model(place, dtype, quantisation)
    unfinished = args.output.with_name(f".{args.output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        save(merged, processor, unfinished, args.max_shard_size)
        del merged
        change = _change(before, unfinished, written, processor, rows, args.batch_size)
        _copy_beside(place.adapter, unfinished)
        write_card(unfinished, args.output.name, place, written, quantisation, change)
        os.replace(unfinished, args.output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(change or "Not measured what merging changes; --rows DATA scores chosen answers before and after")
    print(f"The merged model, in {written}, is in {args.output}")
    return change


def check_output(folder: Path) -> None:
    """Make room for a new folder.

    Raises:
        ValueError: what is written would lie among other files.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--output {folder} is there already; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.rmdir()


def merged_model(place: Place, dtype: str, quantisation: Quantisation | None) -> tuple[Any, str]:
    """A plain model with the adapter in its weights, and the type of these.

    Loaded anew, so that it has no hook of whoever scored the unmerged one, and no other adapter.

    Raises:
        ValueError: an adapter of a kind that cannot be merged, or one that changes no weight.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTuner

    base = load_base(place.base, dtype, quantisation, scored=False)
    written = base.dtype if dtype == "auto" else getattr(torch, dtype)
    base = dequantised(base, written)
    before = _digests(base)
    assert place.adapter is not None
    model = with_adapter(base, place.adapter)
    config = model.active_peft_config
    kind = getattr(config.peft_type, "value", config.peft_type)
    if not isinstance(model.base_model, BaseTuner):
        raise ValueError(
            f"{place.adapter} is an adapter of type {kind}, which has no weights to merge; serve it as it is"
        )
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{place.adapter} is an adapter of type {kind}, which cannot be merged: {error}") from error
    name = str(written).removeprefix("torch.")
    if before == _digests(merged):
        raise ValueError(
            f"{place.adapter} changes no weight of {place.base} in {name}: there is nothing to merge; an adapter that was "
            "trained too little to be seen there is in --dtype float32"
        )
    return merged.to(written), name


def _digests(model: Any) -> dict[str, float]:
    """What tells changed weights from unchanged ones: a weighed sum of each, which takes no second copy of the model."""
    import torch

    found = {}
    for name, value in model.state_dict().items():
        flat = value.flatten().double()
        found[name] = float((flat * torch.linspace(1, 2, len(flat), dtype=flat.dtype, device=flat.device)).sum())
    return found


def save(model: Any, processor: Any, folder: Path, max_shard_size: str) -> None:
    """Weights as safetensors, configurations, processor and chat template, as plain `from_pretrained` reads them."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    processor.save_pretrained(folder)


def _rows(dataset: Any, count: int) -> list[Mapping[str, Any]]:
    from ..._trl import NumberedRows
    from ..likelihood import spread

    if count < 1:
        raise ValueError(f"--num-rows is {count}; expected a number from 1 up")
    numbered = NumberedRows.of(dataset)
    return [numbered.__getitems__([number])[0] for number in spread(len(dataset), count)]


def _score_before(
    place: Place, dtype: str, quantisation: Quantisation | None, processor: Any, rows: Sequence[Any], size: int
) -> np.ndarray:
    """Log-probability of the chosen answers with the adapter unmerged, and without it, (rows, 2)."""
    if not rows:
        return np.zeros((0, 2))
    from ..likelihood import Answers

    model = load(place, dtype, quantisation)
    answers = Answers(model, processor, size, "off")
    unmerged = answers(rows, ("chosen",))[0]
    with model.disable_adapter():
        return np.concatenate([unmerged, answers(rows, ("chosen",))[0]], axis=1)


def _change(
    before: np.ndarray, folder: Path, dtype: str, processor: Any, rows: Sequence[Any], size: int
) -> Change | None:
    """Of the model as it is written, loaded again."""
    if not rows:
        return None
    from ..likelihood import Answers

    after = Answers(load(Place(str(folder)), dtype), processor, size, "off")(rows, ("chosen",))[0]
    apart = np.abs(after[:, 0] - before[:, 0])
    return Change(
        len(rows), float(apart.max()), float(apart.mean()), float(np.abs(before[:, 0] - before[:, 1]).mean())
    )


def _copy_beside(adapter: str, folder: Path) -> None:
    for pattern in KEPT if Path(adapter).is_dir() else ():
        for path in Path(adapter).glob(pattern):
            shutil.copy(path, folder / path.name)
