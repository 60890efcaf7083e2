"""Options that commands which load a model have in common: how its weights are stored, and on which rows it is looked at."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, TextIO

from .loading import Quantisation, quantisation_told

DTYPES = ("auto", "bfloat16", "float16", "float32")

ReadRows = Callable[[argparse.Namespace], Any]
"""From the options of `rows_options` to a data set, read as a training reads it."""


def rows_options(parser: Any, name: str, told: str, **more: Any) -> None:
    """Add the options that say which rows are read."""
    parser.add_argument(
        name, dest="dataset", metavar="DATA", help=f"{told}: a folder, a file or an id on the Hub", **more
    )
    parser.add_argument("--split", default="train", help="of the data set (default: train)")
    parser.add_argument("--source", default="auto", help="how the rows are published, as mfpo train takes it")
    parser.add_argument("--image-root", metavar="DIR", help="the folder that image paths are relative to")


def stored_options(parser: Any) -> None:
    """Add the options of `stored_as`."""
    stored = parser.add_argument_group(
        "weights of the model",
        "by default as the adapter's card tells of its training, else as the model's own files are",
    )
    stored.add_argument("--dtype", choices=DTYPES, default="auto", help="their type, and that of the arithmetic")
    stored.add_argument(
        "--load-in-4bit", action=argparse.BooleanOptionalAction, help="quantise them to 4 bits, or do not"
    )
    stored.add_argument("--bnb-4bit-quant-type", choices=("nf4", "fp4"), default="nf4", help="with it (default: nf4)")
    stored.add_argument("--use-bnb-nested-quant", action="store_true", help="with it: quantise their scales too")


def stored_as(
    args: argparse.Namespace, adapter: str | None, told_to: TextIO | None = None
) -> tuple[Quantisation | None, str]:
    """How the weights of the model are stored, and their type; a line where a card says it, to standard output by default."""
    told = None if adapter is None else quantisation_told(adapter)
    if args.load_in_4bit is not None or told is None:
        asked = Quantisation(args.bnb_4bit_quant_type, args.use_bnb_nested_quant) if args.load_in_4bit else None
        return asked, args.dtype
    quantisation, dtype = told
    line = (
        f"The card of {adapter} says that it was trained on weights in {quantisation}; --no-load-in-4bit overrules it"
    )
    print(line, file=told_to or sys.stdout)
    known = dtype if dtype in DTYPES else None
    return quantisation, (known or args.dtype) if args.dtype == "auto" else args.dtype
