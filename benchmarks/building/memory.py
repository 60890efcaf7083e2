"""What a build holds at most, by its number of rows."""

import subprocess
import sys
import time
from pathlib import Path

from building.source import make_source

PEAK = (
    "import resource, sys; from mfpo_trl.cli import main; status = main(sys.argv[1:]);"
    "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
)


def peak_memory(folder: Path, rows: int) -> tuple[float, float]:
    """MiB that `mfpo build` holds at most over `rows` small rows, in a process of its own; and its seconds."""
    dataset = make_source(folder / f"source-{rows}", rows, size=(32, 32), words=8)
    arguments = ["build", "--dataset", dataset, "--output", str(folder / f"memory-{rows}"), "--grounder", "none"]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the build failed: {done.stderr or done.stdout}")
    # In kilobytes on Linux, in bytes on macOS.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return int(done.stdout.split("peak ")[-1]) / unit, time.perf_counter() - started


def memory_report(folder: Path, sizes: tuple[int, int]) -> dict[str, float]:
    """Peak MiB and seconds by number of rows, and the growth of the peak as a share."""
    found = {rows: peak_memory(folder, rows) for rows in sizes}
    report = {f"{rows} rows, {what}": found[rows][n] for rows in sizes for n, what in enumerate(("MiB", "s"))}
    return {**report, "growth": found[sizes[1]][0] / found[sizes[0]][0] - 1}
