"""The `mfpo` command. Nothing heavy is imported before a command runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .data import add_build, add_preview, with_recipe
from .hub import add_push
from .leaving import run
from .loop import add_loop
from .objective import add_methods
from .pairs import add_pairs
from .recipes import add_recipes
from .terminal import Parser, quiet


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mfpo` with these arguments, those of the process by default; returns the exit status."""
    with quiet():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(argv: list[str]) -> int:
    if argv[:1] == ["train"]:
        # Its fields are those of TRL's own scripts, which take seconds to import.
        from .train import main as train

        return train(argv[1:])
    if argv[:1] == ["check"]:
        # The same fields, and a few of its own.
        from .check import main as check

        return check(argv[1:])
    if argv[:1] == ["score"]:
        # Its options are those of each benchmark, with numpy behind them.
        from .evaluation import main as score

        return score(argv[1:])
    if argv[:1] == ["generate"]:
        from .evaluation import run_generate

        return run_generate(argv[1:])
    if argv[:1] == ["merge"]:
        from .evaluation import run_merge

        return run_merge(argv[1:], _rows)
    if argv[:1] == ["reliance"]:
        from .evaluation import run_reliance

        return run_reliance(argv[1:], _rows)
    if argv[:1] in (["build"], ["pairs"]):
        try:
            argv = [argv[0], *with_recipe(argv[1:], argv[0], add_build if argv[0] == "build" else add_pairs)]
        except ValueError as error:
            print(f"mfpo {argv[0]}: error: {error}", file=sys.stderr)
            return 1
    args = build_parser().parse_args(argv)
    return args.run(args)


def _rows(options: argparse.Namespace) -> Any:
    """The data set that options name, read as a training reads it."""
    from .train import rows_of

    return rows_of(options.dataset, options.split, options.source, options.image_root)


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command but the fields of `train` and `check`."""
    parser = Parser(
        prog="mfpo",
        description="Modality-Fair Preference Optimization: make a vision-language model answer because of the image.",
    )
    parser.add_argument("--version", action="version", version=f"mfpo_trl {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="train a tiny captioner with DPO, with DPO and an anchor, and with MFPO on a CPU, and compare them",
        description="Build a tiny world and a tiny LLaVA, teach it to presume, train it further with DPO, with DPO "
        "and an anchor and with MFPO on pairs that share its habits, and compare. Minutes on two CPU cores; no network.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--output-dir", type=Path, default=Path("demo-output"), help="where pictures and models go")
    demo.add_argument("--seed", type=int, default=0, help="of the world, the models and the training")
    demo.set_defaults(run=_demo)

    add_build(commands)
    add_pairs(commands)
    add_loop(commands)
    add_preview(commands)
    add_push(commands)
    add_recipes(commands)
    add_methods(commands)

    commands.add_parser(
        "check",
        help="find what would go wrong in a training, and what it needs, before it runs (mfpo check --help)",
        add_help=False,
    )
    commands.add_parser(
        "generate",
        help="a model's answers to a benchmark or to prompts of your own (mfpo generate --help)",
        add_help=False,
    )
    commands.add_parser(
        "merge",
        help="write the weights of a model with its adapter in them (mfpo merge --help)",
        add_help=False,
    )
    commands.add_parser(
        "reliance",
        help="whether a model answers because of the image (mfpo reliance --help)",
        add_help=False,
    )
    commands.add_parser(
        "score",
        help="figures of a benchmark from a file of answers (mfpo score --help lists the benchmarks)",
        add_help=False,
    )
    commands.add_parser(
        "train",
        help="train a model on preference rows with MFPO (mfpo train --help lists the fields)",
        add_help=False,
    )
    return parser


def _demo(args: argparse.Namespace) -> int:
    print(f"mfpo demo, seed {args.seed}: a tiny world for a tiny captioner. Loading PyTorch ...", flush=True)
    try:
        from .demo import run

        run(args.output_dir, args.seed)
    except (ImportError, OSError) as error:
        print(f"mfpo demo: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mfpo demo: stopped", file=sys.stderr)
        return 130
    return 0


def program() -> NoReturn:
    """The command `mfpo`: a launcher may start it as a rank, which leaves its process group before its interpreter ends."""
    run(main)


if __name__ == "__main__":
    program()
