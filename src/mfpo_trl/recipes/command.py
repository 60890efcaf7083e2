"""`mfpo recipes`: lists, shows and copies what comes with the package."""

import argparse
import sys
from pathlib import Path
from typing import Any

from .shipped import ACCELERATE, any_file, is_training, shipped_files, what_it_is


def add_recipes(commands: Any) -> None:
    """Add `recipes` to the commands of a parser."""
    parser = commands.add_parser(
        "recipes",
        help="list, show or copy the recipes and launch configurations that come with the package",
        description="List the recipes and launch configurations that come with the package, which mfpo train --config "
        "and --accelerate-config find by these names.",
    )
    parser.set_defaults(run=_list)
    deeds = parser.add_subparsers(title="what to do", metavar="COMMAND")
    deeds.add_parser("list", help="list them, as without a COMMAND")
    show = deeds.add_parser("show", help="print one")
    show.add_argument("name", metavar="NAME")
    show.set_defaults(run=_show)
    copy = deeds.add_parser("copy", help="copy one, to change it; nothing is overwritten")
    copy.add_argument("name", metavar="NAME")
    copy.add_argument("to", metavar="DIR", type=Path, nargs="?", default=Path(), help="or a file with the same ending")
    copy.set_defaults(run=_copy)


def _list(args: argparse.Namespace) -> int:
    known = shipped_files()
    width = max(map(len, known), default=0)
    lines = {
        of_training: [
            f"  {name:{width}}  {what_it_is(path)}" for name, path in known.items() if is_training(name) == of_training
        ]
        for of_training in (True, False)
    }
    # At once, as a pager may not read on.
    print(
        "mfpo train --config NAME, with --field value for whatever should differ:",
        *lines[True],
        "",
        "How it is launched, mfpo train --accelerate-config NAME, and files for other launchers:",
        *lines[False],
        "",
        "mfpo recipes show NAME prints one, mfpo recipes copy NAME [DIR] copies it.",
        sep="\n",
    )
    return 0


def _show(args: argparse.Namespace) -> int:
    try:
        print(any_file(args.name)[1].read_text(encoding="utf-8"), end="")
    except (ValueError, OSError) as error:
        return _fail("show", error)
    return 0


def _copy(args: argparse.Namespace) -> int:
    try:
        name, source = any_file(args.name)
        target = args.to if args.to.suffix == source.suffix and not args.to.is_dir() else args.to / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError as error:
        return _fail("copy", ValueError(f"{error.filename} is there already, and nothing is overwritten"))
    except (ValueError, OSError) as error:
        return _fail("copy", error)
    if source.suffix == ".yaml":
        option = "config" if is_training(name) else ACCELERATE.replace("/", "-config")
        print(f"{target}: change it, then mfpo train --{option} {target}")
    else:
        print(target)
    return 0


def _fail(deed: str, error: Exception) -> int:
    print(f"mfpo recipes {deed}: error: {error}", file=sys.stderr)
    return 2
