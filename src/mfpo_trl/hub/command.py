"""`mfpo push`."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from .files import kind_of
from .upload import logger, push


def add_push(commands: Any) -> None:
    """Add `push` to the commands of a parser."""
    parser = commands.add_parser(
        "push",
        help="upload a model, an adapter or a built data set to the Hugging Face Hub",
        description="Upload the safetensors, configurations, tokenizer, processor, chat template and card of a model or an "
        "adapter, or the rows, card and report of a built data set. Checkpoints, optimizer states, pickles and logs stay. "
        "Needs a token with write access: log in with `hf auth login`, or set HF_TOKEN.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="what training or mfpo build has written")
    parser.add_argument("repo", metavar="REPO", help="id on the Hub, user/name; created where it is missing")
    parser.add_argument("--private", action="store_true", help="nobody else may see it")
    parser.add_argument("--type", choices=("model", "dataset"), help="of the repository; guessed from what DIR holds")
    parser.add_argument("--revision", help="branch, created where it is missing (default: main)")
    parser.set_defaults(run=_push)


def _push(args: argparse.Namespace) -> int:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("mfpo push: %(message)s"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        repo_type = args.type or kind_of(args.folder)
        print(push(args.folder, args.repo, repo_type=repo_type, private=args.private, revision=args.revision))
    except KeyboardInterrupt:
        print("mfpo push: stopped; the same command tries again.", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"mfpo push: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0
