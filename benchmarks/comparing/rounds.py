"""Tools that train in processes of their own, a step each in turn."""

import json
import os
import select
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")


@dataclass
class Run:
    """A tool on its way: what it said of itself, and its steps."""

    name: str
    process: subprocess.Popen
    replies: int
    log: Path
    ready: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    refused: str | None = None

    def order(self) -> None:
        """One step more."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()

    def hear(self, seconds: float) -> None:
        """Wait until the tool is ready, has made a step, or refuses."""
        end, known = time.monotonic() + seconds, (bool(self.ready), len(self.steps))
        while (bool(self.ready), len(self.steps)) == known and self.refused is None:
            for message in self._lines(end):
                if "ready" in message:
                    self.ready = message
                elif "logged" in message and self.steps:
                    self.steps[-1] |= message["logged"]
                elif "seconds" in message:
                    self.steps.append(message)
                elif "refused" in message:
                    self.refused = message["refused"]

    def _lines(self, end: float) -> list[dict[str, Any]]:
        if not select.select([self.replies], [], [], max(end - time.monotonic(), 0))[0]:
            self.process.kill()
            self.refused = "no answer in time"
            return []
        data = os.read(self.replies, 1 << 16)
        while data and not data.endswith(b"\n"):
            data += os.read(self.replies, 1 << 16)
        if not data:
            self.refused = self.refused or f"it ended with {self.process.wait()}; {self.log} says why"
        return [json.loads(line) for line in data.splitlines()]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        os.close(self.replies)


def start(name: str, python: Path, spec: dict[str, Any], folder: Path, environment: dict[str, str]) -> Run:
    """Start a tool; its own words go to a file in the folder."""
    folder.mkdir(parents=True)
    read, write = os.pipe()
    log = folder / "log.txt"
    own = {
        **os.environ,
        "PEERS_REPLY": str(write),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "MODELSCOPE_CACHE": str(folder / "modelscope"),
        "TOKENIZERS_PARALLELISM": "false",
        **environment,
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(python), str(WORKER), json.dumps({**spec, "output": str(folder / "output")})],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            pass_fds=(write,),
            env=own,
            cwd=folder,
        )
    os.close(write)
    return Run(name, process, read, log)


def take_turns(runs: list[Run], seconds: float) -> None:
    """One round: every tool that is ready makes a step while all others wait, each for `seconds` at most."""
    for run in runs:
        if run.refused is None:
            run.order()
            run.hear(seconds)
