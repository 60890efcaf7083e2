"""What the tests of the launcher start in place of a training: it does as it is told, and writes down what it saw.

`FOLDER DEED`, where the deed is `exit=N` or `die=SIGNAL` on rank 1 or the only process, or `wait`.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil

from mfpo_trl.train.launch import FIELDS, given_fields

# Torch's launcher would tell the first line of a traceback as its own.
sys.tracebacklimit = 0


def main() -> int:
    arguments, fields = sys.argv[1:], given_fields()
    folder, deed = fields[:2]
    rank, several = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1") != "1"
    caught, first = [], threading.Event()

    def catch(number: int, _) -> None:
        caught.append(number)
        first.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, catch)
    lines = []
    # Above this one are accelerate's launcher and the process that waits.
    waiting = psutil.Process().parents()[1]
    for process in (waiting, *waiting.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            lines.append(" ".join(process.cmdline()))
    seen = {"pid": os.getpid(), "fields": fields, "arguments": arguments, "command_lines": lines}
    Path(folder, f"rank-{rank}.part").write_text(json.dumps(seen | {"inherited": FIELDS in os.environ}))
    # With all of its content, or not yet.
    Path(folder, f"rank-{rank}.part").rename(Path(folder, f"rank-{rank}.json"))
    what, _, how = deed.partition("=")
    if what != "wait" and (rank == "1" or not several):
        # A launcher ends the other rank with this one.
        while several and not Path(folder, "rank-0.json").exists():
            time.sleep(0.05)
        if what == "exit":
            return int(how)
        os.kill(os.getpid(), signal.Signals[how])
    first.wait()
    # A second signal would be one too many.
    threading.Event().wait(0.3)
    Path(folder, f"caught-{rank}").write_text(" ".join(signal.Signals(number).name for number in caught))
    return 130 if caught[0] == signal.SIGINT else 9


if __name__ == "__main__":
    sys.exit(main())
