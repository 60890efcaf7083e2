"""Rows a second of several processes against one."""

import hashlib
import os
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

from building.stages import BATCH, median, options_of


def ready(options: Any, places: Any) -> None:
    """Start a process of a build, its models loaded and a first batch built; wait for the other ones, and note when that was
    done."""
    from mfpo_trl.data import build
    from mfpo_trl.data.writing.report import PartReport

    build._start(options, places)
    build._PIPELINE._batch(range(min(options.batch_size, build._PIPELINE.count)), PartReport())
    (options.output / f"ready-{os.getpid()}").touch()
    # Otherwise the first one would build what is meant for the others.
    while len(list(options.output.glob("ready-*"))) < options.num_proc:
        time.sleep(0.01)
    (options.output / f"started-{os.getpid()}").write_text(repr(time.time()), encoding="utf-8")


def processes_rate(options: Any, processes: int) -> tuple[float, float]:
    """Rows a second from when all processes were ready, and seconds until then."""
    from mfpo_trl.data import build
    from mfpo_trl.data.writing.parts import remember

    options = replace(options, num_proc=processes)
    pipeline = build.Pipeline(options)
    remember(options.output, {})
    todo = pipeline.parts.missing()
    if len(todo) < processes:
        raise ValueError(f"{len(todo)} parts for {processes} processes; give more --rows")
    started = time.time()
    with mock.patch.object(build, "_start", ready):
        for _ in build._with_processes(options, todo, lambda part: None):
            ended = time.time()
    times = [float(path.read_text(encoding="utf-8")) for path in options.output.glob("started-*")]
    return pipeline.count / (ended - max(times)), max(times) - started


def spin(n: int) -> float:
    """Work that needs a core and nothing else; returns the time when it was done."""
    data = bytes(2**20)
    for _ in range(400):
        hashlib.blake2b(data).digest()
    return time.time()


def spin_rate(processes: int) -> float:
    """Pieces of `spin` a second: what more processes give on this machine, now, to work that shares nothing."""
    with get_context("spawn").Pool(processes) as pool:
        pool.map(spin, range(processes), 1)
        started = time.time()
        return 4 * processes / (max(pool.map(spin, range(4 * processes), 1)) - started)


def scaling_report(
    folder: Path, dataset: str, rows: int, grounder: dict[str, str], device: str, repeats: int, processes: int
) -> dict[str, float]:
    """Rows a second of 1 process and of several, taking turns: medians."""
    # Equal shares, small enough that nobody waits long for the last part.
    size, rounds = max(BATCH, rows // (4 * processes)), []
    for n in range(repeats):
        one, many = (
            processes_rate(
                options_of(folder / f"scaling-{n}-{count}", dataset, grounder, device, part_rows=size), count
            )
            for count in (1, processes)
        )
        spun = spin_rate(processes) / spin_rate(1)
        rounds.append({"one": one[0], "many": many[0], "ratio": many[0] / one[0], "start, s": many[1], "spin": spun})
    return median(rounds)
