"""The Python of `warm.py` does what `python` does, as far as the tests that use it ask."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys

import pytest
import warm

PROGRAMS = {
    "what it is told": "import os, sys; print(sys.argv, os.getcwd(), os.environ['TOLD'], __name__, sys.stdin.read())",
    "both streams": "import sys; print('one'); print('two', file=sys.stderr)",
    "a status": "import sys; sys.exit(7)",
    "a sentence": "import sys; sys.exit('why')",
    "a signal": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "a child": "import os, subprocess; print(subprocess.run(['echo', os.environ['TOLD']], capture_output=True))",
    "its end": "import atexit, threading, time; atexit.register(print, 'end'); "
    "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()",
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("how", ["-c", "script"])
def test_a_fork_is_a_python(name, how, tmp_path):
    (tmp_path / "script.py").write_text(PROGRAMS[name])
    told = ["-c", PROGRAMS[name], "a", "b c"] if how == "-c" else [str(tmp_path / "script.py"), "a", "b c"]
    options = {
        "env": {**os.environ, "TOLD": name},
        "cwd": tmp_path,
        "input": "read",
        "capture_output": True,
        "text": True,
    }
    cold, forked = (
        subprocess.run([program, "-u", *told], **options) for program in (sys.executable, warm.executable())
    )
    assert (forked.returncode, forked.stdout, forked.stderr) == (cold.returncode, cold.stdout, cold.stderr)


def test_an_error_ends_it_as_ever(tmp_path):
    done = subprocess.run([warm.executable(), "-c", "raise KeyError('why')"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("Traceback") and done.stderr.endswith("KeyError: 'why'\n")


def started(code: str, sigint: signal.Handlers) -> subprocess.Popen:
    """Whoever runs the tests may ignore SIGINT, as a shell does for what it starts in its background."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    return subprocess.Popen(
        [warm.executable(), "-c", code], preexec_fn=lambda: signal.signal(signal.SIGINT, sigint), **options
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_reach_it(number, tmp_path):
    """And whoever waits for the program sees how it ended; a fork does not outlive a program that is killed."""
    # In short sleeps: a signal that comes right before one is heeded behind it.
    with started("import time; print(flush=True)\nwhile True: time.sleep(0.01)", signal.SIG_DFL) as own:
        try:
            own.stdout.readline()
            own.send_signal(number)
            assert own.wait(timeout=60) == -number
            # The fork holds the other end of the pipe.
            assert own.stdout.read() == ""
        finally:
            own.kill()


def test_what_is_ignored_is_ignored_by_the_fork():
    code = "import signal; print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))"
    with started(code, signal.SIG_IGN) as own:
        assert own.stdout.read() == f"{signal.SIG_IGN} {signal.SIG_DFL}\n"
    with started(code, signal.SIG_DFL) as own:
        assert own.stdout.read() == f"{signal.default_int_handler} {signal.SIG_DFL}\n"


def test_a_program_that_is_killed_at_once(tmp_path):
    """Before it is told which process does it: that one ends, and others are served."""
    program = warm.executable()
    place = shlex.split(program.read_text())[-2]
    reading, writing = os.pipe()
    job = {"argv": ["-c", "import time; time.sleep(1000)"], "environment": {}, "folder": str(tmp_path), "ignored": []}
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(place)
        sent = json.dumps(job).encode()
        socket.send_fds(asking, [len(sent).to_bytes(8, "big")], [writing] * 3)
        asking.sendall(sent)
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == b""
    done = subprocess.run([program, "-c", "print('here')"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "here\n")


def test_imports_are_behind_it():
    code = "import sys; print('torch' in sys.modules, 'trl' in sys.modules)"
    done = subprocess.run([warm.executable(), "-c", code], capture_output=True, text=True)
    assert done.stdout == "True True\n"
