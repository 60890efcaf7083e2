"""`mfpo loop` on the command line."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..hub import without_tokens


def add_loop(commands: Any) -> None:
    """Add `loop` to the commands of a parser."""
    parser = commands.add_parser(
        "loop",
        help="rounds of pairs, training and score, each from the policy of the one before",
        description="Make pairs of the policy's own answers, train on them, score the policy on what is held out, and begin again with "
        "the new policy, until the score no longer improves. Run it again after a kill: it goes on where it was.",
    )
    parser.add_argument("--config", type=Path, required=True, help="a YAML file; docs/pairs.md says what it holds")
    parser.set_defaults(run=_loop)


def _loop(args: argparse.Namespace) -> int:
    try:
        # A verifier or a term of the user's is found where the command is given, behind all that is installed.
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
        from ..endpoint import EndpointError
        from .recipe import read_recipe
        from .rounds import run

        run(read_recipe(args.config))
    except KeyboardInterrupt:
        print("mfpo loop: stopped; the same command goes on.", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError, EndpointError) as error:
        print(f"mfpo loop: error: {without_tokens(str(error))}", file=sys.stderr)
        return 1
    return 0
