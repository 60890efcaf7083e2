"""What a command shows on the terminal: what concerns its user, in whole lines."""

import argparse
import difflib
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from .leaving import joined_a_group

LIBRARIES = "accelerate|bitsandbytes|datasets|deepspeed|huggingface_hub|peft|torch|transformers|trl"

UNSAID = {
    # A faster kernel for 4-bit weights on a CPU, which it then does without.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # Said wherever it is installed, whether or not it is used.
    "DeepSpeed": "Setting accelerator to CPU",
}
"""By their logger, how lines begin that ask for nothing from who reads them."""

RANK = "[RANK 0] "
"""How accelerate begins a line of a logger of its own, also where there is one process only."""


class Parser(argparse.ArgumentParser):
    """argparse's, and that of every command below it, whose mistakes are one sentence that names what is nearest, without a page of
    usage."""

    def error(self, message: str) -> NoReturn:
        """What argparse calls on a mistake, to end the program."""
        self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help lists what there is\n")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """argparse's, which says what is missing before it says what is misspelt."""
        args = sys.argv[1:] if args is None else list(args)
        if self._subparsers is None:
            self._check_options(args)
        return super().parse_known_args(args, namespace)

    def _check_options(self, args: Sequence[str]) -> None:
        known = self._option_string_actions
        for option in (own.partition("=")[0] for own in args[: args.index("--") if "--" in args else None]):
            shortened = self.allow_abbrev and any(own.startswith(option) for own in known)
            if option.startswith("--") and option not in known and not shortened:
                self.error(f"unknown option {option}{nearest(option, known)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """What argparse calls for a value that has to be one of some."""
        if action.choices is not None and value not in action.choices:
            choices = list(map(str, action.choices))
            there = f"{value!r} is none of {', '.join(choices)}{nearest(str(value), choices)}"
            raise argparse.ArgumentError(action, there)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the one that a misspelt word, or option, is nearest to, if it is near to one."""
    names = {own.lstrip("-"): own for own in known}
    close = difflib.get_close_matches(word.lstrip("-"), names, 1)
    return f"; did you mean {names[close[0]]}?" if close else ""


@contextmanager
def quiet() -> Iterator[None]:
    """While a command runs, leave out `UNSAID` and what libraries tell the authors of other libraries (`FutureWarning`); the option `-W` of
    Python brings the latter back."""
    filters = [(logging.getLogger(name), _Unsaid(words)) for name, words in UNSAID.items()]
    for logger, own in filters:
        logger.addFilter(own)
    # Lines of a command that shows none of its own: they go here.
    plain = logging.lastResort
    assert plain is not None
    plain.addFilter(_without_rank)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.filterwarnings("ignore", category=FutureWarning, module=rf"({LIBRARIES})(\.|$)")
            yield
    finally:
        plain.removeFilter(_without_rank)
        for logger, own in filters:
            logger.removeFilter(own)


class _Unsaid(logging.Filter):
    def __init__(self, words: str):
        super().__init__()
        self.words = words

    def filter(self, record: logging.LogRecord) -> bool:
        return self.words not in record.getMessage()


@contextmanager
def told() -> Iterator[None]:
    """While a command works, show what this package logs from `INFO` up, and every line above the progress bars instead of in them;
    which rank a line is of is told where there are several."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    package = logging.getLogger(__package__)
    before, known = package.level, logging.root.manager.loggerDict.values()
    package.setLevel(logging.INFO)
    logging.captureWarnings(True)
    heard = [own for own in known if isinstance(own, logging.Logger) and any(map(_is_console, own.handlers))]
    try:
        with logging_redirect_tqdm([logging.root, *heard]):
            for handler in logging.root.handlers:
                handler.addFilter(_without_rank)
            yield
    finally:
        for handler in logging.root.handlers:
            handler.removeFilter(_without_rank)
        logging.captureWarnings(False)
        package.setLevel(before)


def _without_rank(record: logging.LogRecord) -> bool:
    """A filter that keeps every line."""
    if isinstance(record.msg, str) and not joined_a_group():
        record.msg = record.msg.removeprefix(RANK)
    return True


def _is_console(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stdout, sys.stderr)
