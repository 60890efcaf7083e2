"""A Python that has imported what a training imports: real processes for tests, without nine seconds of imports each.

`warm.executable()` is a program that is used as `python` is (`SCRIPT ...`, `-m MODULE ...`, `-c CODE ...`; as `PYTHON_EXEC`, by torch's
launcher too). It asks the server of the test run for a fork: a process with the environment, folder, output, signals and exit status of
its own, which ends as an interpreter ends. Only what modules read of the environment while they are imported is the server's; tests of
that start a Python of their own.

`warm.py serve SOCKET` is the server, `warm.py ask SOCKET ...` the program.
"""

import contextlib
import gc
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

IMPORTED = (
    "accelerate.commands.launch bitsandbytes datasets deepspeed peft torch.distributed.run tiny trl.trainer.dpo_trainer "
    "mfpo_trl.check.command mfpo_trl.train.command mfpo_trl.train.launch mfpo_trl.trainer"
).split()
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def executable() -> Path:
    """The program; the server is started by whoever of a test run asks first."""
    from filelock import FileLock

    folder = Path(os.environ["MFPO_TEST_RUN"])
    program, place = folder / "python", folder / "warm.socket"
    with FileLock(folder / "warm.lock"):
        if not program.exists():
            environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
            environment["PYTHONPATH"] = os.pathsep.join(sys.path)
            # Arrow's allocator would have a thread of its own.
            environment["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
            with (folder / "warm.log").open("w") as log:
                server = subprocess.Popen(
                    [sys.executable, __file__, "serve", str(place)], env=environment, stdout=log, stderr=log
                )
            while not place.exists():
                assert server.poll() is None, (folder / "warm.log").read_text()
                time.sleep(0.1)
            program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -SE '{__file__}' ask '{place}' \"$@\"\n")
            program.chmod(0o755)
    return program


# The program


def ask(place: str, argv: list[str]) -> None:
    """Have it done by a fork, and end as it ends."""
    # What a shell starts in its background ignores SIGINT, and so do its children.
    ignored = [number for number in FORWARDED if signal.getsignal(number) == signal.SIG_IGN]
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(place)
        job = {"argv": argv, "environment": dict(os.environ), "folder": os.getcwd(), "ignored": ignored}
        job = json.dumps(job).encode()
        socket.send_fds(server, [len(job).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(job)
        replies = server.makefile()
        process = int(replies.readline())

        def forward(number: int, frame: Any) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

        for number in set(FORWARDED) - set(ignored):
            signal.signal(number, forward)
        # A signal that comes right before a call that waits is heeded behind that call alone.
        while not select.select([server], [], [], 0.1)[0]:
            pass
        status = int(replies.readline() or 1)
    if status < 0:
        with contextlib.suppress(OSError):  # nobody decides what SIGKILL does
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


# The server


def serve(place: str) -> list[str]:
    """Fork for each that asks, for as long as the folder of the test run is there; returns in the forks, with their arguments."""
    for name in IMPORTED:
        __import__(name)
    # What forks would copy, only to look for garbage in it.
    gc.freeze()
    # A fork has the locks that other threads hold, and not the threads that would let go of them.
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert len(names) <= 1, names
    waiting: dict[int, socket.socket] = {}
    listening, selector = socket.socket(socket.AF_UNIX), selectors.DefaultSelector()
    listening.bind(f"{place}.unfinished")
    listening.listen(64)
    os.rename(f"{place}.unfinished", place)
    selector.register(listening, selectors.EVENT_READ)
    while os.path.exists(place):
        for key, _ in selector.select(timeout=0.02 if waiting else 1):
            if key.fileobj is not listening:
                # Whoever asked is gone: killed, as a launcher kills its ranks.
                for process in [own for own, asking in waiting.items() if asking is key.fileobj]:
                    kill(process)
                selector.unregister(key.fileobj)
                continue
            asking, _ = listening.accept()
            job, files = received(asking)
            process = os.fork()
            if not process:
                for own in (listening, asking, selector, *waiting.values()):
                    own.close()
                return become(job, files)
            for file in files:
                os.close(file)
            say(asking, process)
            waiting[process] = asking
            selector.register(asking, selectors.EVENT_READ)
        for process in ended(waiting):
            asking = waiting.pop(process[0])
            if asking in selector.get_map():
                selector.unregister(asking)
                say(asking, process[1])
            asking.close()
    for process in waiting:
        kill(process)
    os._exit(0)


def say(asking: socket.socket, number: int) -> None:
    # Whoever asked may have been killed since, which is seen where the socket is read.
    with contextlib.suppress(OSError):
        asking.sendall(f"{number}\n".encode())


def kill(process: int) -> None:
    """A fork and what it has started, or a fork that has no session of its own yet."""
    for end in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            end(process, signal.SIGKILL)


def ended(waiting: dict[int, socket.socket]) -> list[tuple[int, int]]:
    """Forks that have ended, with their exit status."""
    found = []
    while waiting and (done := os.waitpid(-1, os.WNOHANG))[0]:
        found.append((done[0], os.waitstatus_to_exitcode(done[1])))
        if len(found) == len(waiting):
            break
    return found


def received(asking: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, files, *_ = socket.recv_fds(asking, 8, 3)
    size, parts = int.from_bytes(head, "big"), b""
    while len(parts) < size:
        parts += asking.recv(size - len(parts))
    return json.loads(parts), files


def become(job: dict[str, Any], files: list[int]) -> list[str]:
    """The process that was asked for, up to what it is to run."""
    import random

    import numpy

    os.setsid()
    for number in FORWARDED:
        # That of the server is what whoever asked first was started with.
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in job["ignored"] else usual)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    random.seed()
    numpy.random.seed()
    return job["argv"]


def run(argv: list[str]) -> None:
    """As `python` does with these arguments."""
    import runpy

    while argv[0] == "-u":
        argv = argv[1:]
    if argv[0] == "-m":
        sys.argv, sys.path[0] = argv[1:], os.getcwd()
        if not hasattr(sys.modules.get(argv[1]), "__path__"):
            # It would be there twice, which Python warns of.
            sys.modules.pop(argv[1], None)
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    elif argv[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *argv[2:]], os.getcwd()
        exec(compile(argv[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = argv, os.path.dirname(os.path.abspath(argv[0]))
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        ask(sys.argv[2], sys.argv[3:])
    run(serve(sys.argv[2]))
