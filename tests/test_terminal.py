"""What a command shows: its own lines, whole, and none of libraries that ask for nothing."""

import logging
import subprocess
import sys
import warnings

import pytest
from tqdm.auto import tqdm

from mfpo_trl.terminal import UNSAID, quiet, told


@pytest.mark.parametrize("logger", UNSAID)
def test_lines_that_ask_for_nothing_are_left_out(logger, caplog):
    with quiet():
        logging.getLogger(logger).warning("%s of something", UNSAID[logger])
        logging.getLogger(logger).warning("something else")
    assert [own.getMessage() for own in caplog.records] == ["something else"]
    logging.getLogger(logger).warning("%s of something", UNSAID[logger])
    assert len(caplog.records) == 2


SAID = "import warnings; from mfpo_trl.terminal import quiet\nwith quiet():\n    "
OF_A_LIBRARY = "warnings.warn_explicit('old', FutureWarning, 'file', 1, 'transformers.training_args')"


@pytest.mark.parametrize(
    ("options", "code", "shown"),
    [
        ([], OF_A_LIBRARY, False),
        (["-W", "default"], OF_A_LIBRARY, True),
        ([], OF_A_LIBRARY.replace("FutureWarning", "UserWarning"), True),
        ([], OF_A_LIBRARY.replace("transformers.training_args", "transformers_of_mine"), True),
        ([], OF_A_LIBRARY.replace("transformers.training_args", "__main__"), True),
    ],
)
def test_future_warnings_of_libraries_are_left_out(options, code, shown):
    """Those of the user's own code are not, nor other warnings, nor any where they are asked for."""
    done = subprocess.run([sys.executable, *options, "-c", SAID + code], capture_output=True, text=True, check=True)
    assert ("old" in done.stderr) == shown


def test_lines_stand_above_a_progress_bar(capfd):
    """Whoever writes them: this package, a library with a handler of its own, one without, a warning of Python."""
    library = logging.getLogger("a library")
    library.propagate = False
    library.addHandler(logging.StreamHandler(sys.stderr))
    try:
        with told(), tqdm(range(3), file=sys.stderr) as bar:
            for number in bar:
                logging.getLogger("mfpo_trl.order").info("ours %d", number)
                library.warning("theirs %d", number)
                logging.getLogger("another").warning("another %d", number)
                warnings.warn_explicit(f"python {number}", UserWarning, "file", number)
    finally:
        library.handlers.clear()
    lines = capfd.readouterr().err.replace("\r", "\n").splitlines()
    for number in range(3):
        for words in (f"ours {number}", f"theirs {number}", f"another {number}"):
            assert lines.count(words) == 1, words
        assert f"file:{number}: UserWarning: python {number}" in lines
    assert not logging.getLogger("mfpo_trl").isEnabledFor(logging.INFO)
