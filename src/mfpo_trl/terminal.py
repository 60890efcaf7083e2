"""What a command shows on the terminal: what concerns its user, in whole lines."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = "accelerate|bitsandbytes|datasets|deepspeed|huggingface_hub|peft|torch|transformers|trl"

UNSAID = {
    # A faster kernel for 4-bit weights on a CPU, which it then does without.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # Said wherever it is installed, whether or not it is used.
    "DeepSpeed": "Setting accelerator to CPU",
}
"""By their logger, how lines begin that ask for nothing from who reads them."""


@contextmanager
def quiet() -> Iterator[None]:
    """While a command runs, leave out `UNSAID` and what libraries tell the authors of other libraries (`FutureWarning`); the option `-W` of
    Python brings the latter back."""
    filters = [(logging.getLogger(name), _Unsaid(words)) for name, words in UNSAID.items()]
    for logger, own in filters:
        logger.addFilter(own)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.filterwarnings("ignore", category=FutureWarning, module=rf"({LIBRARIES})(\.|$)")
            yield
    finally:
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
    """While a command works, show what this package logs from `INFO` up, and every line above the progress bars instead of in them."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    package = logging.getLogger(__package__)
    before, known = package.level, logging.root.manager.loggerDict.values()
    package.setLevel(logging.INFO)
    logging.captureWarnings(True)
    heard = [own for own in known if isinstance(own, logging.Logger) and any(map(_is_console, own.handlers))]
    try:
        with logging_redirect_tqdm([logging.root, *heard]):
            yield
    finally:
        logging.captureWarnings(False)
        package.setLevel(before)


def _is_console(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stdout, sys.stderr)
