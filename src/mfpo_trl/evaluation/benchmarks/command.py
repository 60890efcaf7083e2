"""`mfpo score BENCHMARK`: the figures of a file of answers."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...endpoint import EndpointError
from ...terminal import Parser
from ..figures import Result, as_json, as_text, differences, table
from . import amber, chair, hallusionbench, mmhal, objhal, pope
from .published import published_rows, published_table

BENCHMARKS = {
    "amber": amber,
    "chair": chair,
    "hallusionbench": hallusionbench,
    "mmhal": mmhal,
    "objhal": objhal,
    "pope": pope,
}
"""Each is a file with `TITLE`, `HELP`, `DESCRIPTION`, `add_options(parser)` and `score(args, responses) -> Result`."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of `mfpo score`."""
    parser = Parser(
        prog="mfpo score",
        description="The official scorers' figures from a file of answers, with 95 % intervals and the mean answer length.",
    )
    benchmarks = parser.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK", dest="benchmark")
    for name, benchmark in BENCHMARKS.items():
        own = benchmarks.add_parser(name, help=benchmark.HELP, description=benchmark.DESCRIPTION)
        many = getattr(benchmark, "SPLITS", False)
        own.add_argument(
            "--responses",
            type=Path,
            nargs="+" if many else 1,
            required=True,
            metavar="FILE",
            help=f"answers, JSON Lines or a JSON list{'; a file for each split' if many else ''}",
        )
        own.add_argument(
            "--compare",
            type=Path,
            nargs="+" if many else 1,
            metavar="FILE",
            help="answers of another model to the same items: paired differences",
        )
        benchmark.add_options(own)
        own.add_argument(
            "--json",
            nargs="?",
            const="-",
            metavar="FILE",
            help="write the report as JSON to this file; without a name, print it in place of the table",
        )
        own.add_argument(
            "--scores", type=Path, metavar="DIR", help="folder of a model: write scores/BENCHMARK.json there"
        )
        own.add_argument(
            "--update-card",
            type=Path,
            metavar="DIR",
            help="folder of a model: the same, and into the table and the metadata of its README.md",
        )
        own.add_argument("--published", action="store_true", help="add the published rows, with sources")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `mfpo score` with these arguments; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        return run(args)
    except KeyboardInterrupt:
        return 130
    except (EndpointError, ImportError, OSError, ValueError) as error:
        print(f"mfpo score {args.benchmark}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace) -> int:
    """Score, compare, print and write.

    Raises:
        ValueError: what cannot be scored or written as asked.
    """
    benchmark = BENCHMARKS[args.benchmark]
    result: Result = benchmark.score(args, args.responses)
    compared = None
    if args.compare:
        other: Result = benchmark.score(args, args.compare)
        compared = differences(result, other)
        against = ", ".join(path.name for path in args.compare)
        if not any(group.common(other.groups[name]) for name, group in result.groups.items() if name in other.groups):
            raise ValueError(f"--compare {against}: no item has an answer there and in --responses as well")
        result = replace(result, notes=[*result.notes, *(f"{against}: {note}" for note in other.notes)])
    more = {"published": published_rows(result.benchmark)} if args.published else {}
    content = as_json(result, compared, **more)
    if args.json not in (None, "-"):
        Path(args.json).write_text(as_text(content), encoding="utf-8")
    for folder in {own for own in (args.scores, args.update_card) if own is not None}:
        path = folder / "scores" / f"{args.benchmark}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(as_text(content), encoding="utf-8")
    if args.update_card is not None:
        from ...card import update_card

        update_card(args.update_card)
    if args.json == "-":
        print(as_text(content), end="")
        return 0
    print(table(result, compared, ", ".join(map(str, args.compare or ()))), end="")
    if args.published:
        print(published_table(result.benchmark), end="")
    return 0
