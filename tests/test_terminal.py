"""What a command shows: its own lines, whole, and none of libraries that ask for nothing."""

import logging
import re
import subprocess
import sys
import warnings
from contextlib import contextmanager

import pytest
from accelerate import PartialState
from accelerate.logging import get_logger
from tqdm.auto import tqdm

from mfpo_trl.cli import main
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


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("shown", [quiet, told])
def test_a_single_process_is_no_rank(shown, several, capfd, monkeypatch):
    """Where accelerate's loggers put the number of their process before each line."""
    PartialState()
    monkeypatch.setenv("RANK", "0") if several else monkeypatch.delenv("RANK", raising=False)
    with shown(), without_handlers():
        get_logger("mfpo_trl.train").warning("Layout: %s", "[RANK 0] flat")
    assert capfd.readouterr().err.strip() == ("[RANK 0] " if several else "") + "Layout: [RANK 0] flat"


@contextmanager
def without_handlers():
    """As in a command, whose root logger has none of pytest's."""
    ours = [own for own in logging.root.handlers if type(own).__module__.startswith("_pytest")]
    for own in ours:
        logging.root.removeHandler(own)
    try:
        yield
    finally:
        for own in ours:
            logging.root.addHandler(own)


MISSPELT = {
    "trian": "mfpo: error: argument COMMAND: 'trian' is none of .*; did you mean train[?]; mfpo --help",
    "recipes lst": "mfpo recipes: error: argument COMMAND: 'lst' is none of list, show, copy; did you mean list[?]",
    "build --datset x --output y": "mfpo build: error: unknown option --datset; did you mean --dataset[?]",
    "build --dataset x --output y --variant mpfo": "'mpfo' is none of mfpo, multipartite; did you mean mfpo[?]",
    "demo --sed=1": "mfpo demo: error: unknown option --sed; did you mean --seed[?]",
    "push x y --hub-token hf_secret": "mfpo push: error: unknown option --hub-token; mfpo push --help",
    "score chiar": "'chiar' is none of amber, .*; did you mean chair[?]",
    "score chair --respones x": "mfpo score chair: error: unknown option --respones; did you mean --responses[?]",
    "generate --modl x": "mfpo generate: error: unknown option --modl; did you mean --model[?]",
    "generate --mode x --benchmark chair": "mfpo generate: error: unknown option --mode; did you mean --model[?]",
    "merge --ouptut x": "mfpo merge: error: unknown option --ouptut; did you mean --output[?]",
    "reliance --modle x": "mfpo reliance: error: unknown option --modle; did you mean --model[?]",
    "train --lerning_rate 1": "mfpo train: error: unknown option --lerning_rate; did you mean --learning_rate[?]",
    "check --curiculum x": "mfpo check: error: unknown option --curiculum; did you mean --curriculum[?]",
}


@pytest.mark.parametrize("line", MISSPELT)
def test_what_is_misspelt_gets_the_nearest_name(line, capsys):
    """On one line, with no page of usage, before what is missing is said."""
    try:
        status = main(line.split())
    except SystemExit as ending:
        status = ending.code
    said = capsys.readouterr().err
    assert status == 2 and re.match(".*" + MISSPELT[line], said) and len(said.splitlines()) == 1
    assert "hf_secret" not in said


def test_options_may_be_cut_short(capsys):
    with pytest.raises(SystemExit) as ending:
        main(["demo", "--outp", "x", "--help"])
    assert ending.value.code == 0
