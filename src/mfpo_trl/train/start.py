"""`mfpo train`: in this process, or by accelerate, in others that this one waits for and loads nothing heavy for."""

import sys
from collections.abc import Sequence

from ..hub import without_tokens
from .launch import command, given_fields, launch


def main(argv: Sequence[str] | None = None) -> int:
    """Train with the fields of `argv`; returns the exit status, 2 for fields that cannot be used."""
    argv = given_fields() if argv is None else argv
    # What records a run takes down its command line.
    sys.argv = [without_tokens(argument) for argument in sys.argv]
    try:
        if launched := command(argv):
            return launch(*launched)
    except (ValueError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:
        return stopped("nothing was trained")
    from .command import run

    return run(argv)


def stopped(last_word: str) -> int:
    """Say where an interrupt has left things; returns the exit status."""
    print(f"mfpo train: stopped; {last_word}", file=sys.stderr)
    return 130


def fail(error: Exception) -> int:
    """Say in one line what is wrong; returns the exit status."""
    print(f"mfpo train: error: {without_tokens(' '.join(str(error).split()))}", file=sys.stderr)
    return 2
