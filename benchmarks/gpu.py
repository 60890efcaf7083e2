"""Everything that only a GPU can tell, in one command.

    python benchmarks/gpu.py --output results/gpu-NAME.json                # eight minutes on one card
    python benchmarks/gpu.py --output results/gpu-NAME.json --minutes 20 --parts lora parity
    python benchmarks/gpu.py --output /tmp/rehearsed.json --rehearse       # every part on a CPU, in small
    python benchmarks/gpu.py --show results/gpu-NAME.json                  # the tables of an earlier run

Parts run one after the other, the most valuable first, each in a process of its own with a time of its own; each result is
written as soon as it is there, so that a run that is cut off keeps what it has. `benchmarks/gpu.sh` prepares a bare machine.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from device.report import text

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "torchvision",
    "mfpo_trl",
)
USUAL_MINUTES = 8.0


def write(path: Path, report: dict[str, Any]) -> None:
    """Replace the file in one go: a run that is killed leaves the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def about(rehearse: bool) -> dict[str, Any]:
    """The card, the day and the versions of a run."""
    import torch

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    card = platform.machine() if rehearse else torch.cuda.get_device_name()
    facts = {"card": card, "date": date.today().isoformat(), "rehearsed": rehearse, "versions": versions}
    if not rehearse:
        facts |= {"memory": torch.cuda.get_device_properties(0).total_memory, "cuda": torch.version.cuda}
    return facts


def results_of(name: str, rehearse: bool, known: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The results of a part, one by one, in this process."""
    from device.parts import PARTS, Settings

    yield from PARTS[name][1](Settings.of(rehearse, known))


def child(name: str, rehearse: bool, output: Path) -> None:
    """Run a part here; a line of JSON for each result goes to standard output's original."""
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    known = {part: found["results"] for part, found in json.loads(output.read_text(encoding="utf-8"))["parts"].items()}
    for key, value in results_of(name, rehearse, known):
        lines.write(json.dumps([key, value]) + "\n")
        lines.flush()


def supervised(command: list[str], seconds: float, heard: Any) -> str:
    """Run a part in a process of its own; what became of it.

    Args:
        command: writes a line of JSON for each result.
        seconds: after these it is killed.
        heard: called with the name and value of each result as it comes.
    """
    end = time.monotonic() + seconds
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    import select

    while True:
        if not select.select([process.stdout], [], [], max(end - time.monotonic(), 0))[0]:
            process.kill()
            process.wait()
            return "cut off: its time was over"
        line = process.stdout.readline()
        if not line:
            break
        heard(*json.loads(line))
    return "done" if process.wait() == 0 else f"failed with exit code {process.returncode}"


def run(args: argparse.Namespace, here: bool = False) -> dict[str, Any]:
    """All parts that were asked for.

    Args:
        here: in this process, without a limit.
    """
    from device.parts import PARTS

    report = {**about(args.rehearse), "minutes": args.minutes, "parts": {}}
    planned, started = 0.0, time.monotonic()
    for name in args.parts or PARTS:
        planned += PARTS[name][0] * args.minutes / USUAL_MINUTES
        left = planned - (time.monotonic() - started)
        part: dict[str, Any] = {"status": "running", "seconds": 0.0, "results": {}}
        report["parts"][name] = part
        write(args.output, report)
        begun = time.monotonic()

        def heard(key: str, value: Any, part: dict[str, Any] = part, begun: float = begun) -> None:
            part["results"][key] = value
            part["seconds"] = time.monotonic() - begun
            write(args.output, report)

        if here:
            known = {other: found["results"] for other, found in report["parts"].items()}
            for key, value in results_of(name, args.rehearse, known):
                heard(key, json.loads(json.dumps(value)))
            part["status"] = "done"
        else:
            command = [sys.executable, __file__, "--child", name, "--output", str(args.output)]
            part["status"] = supervised(command + ["--rehearse"] * args.rehearse, left, heard)
        part["seconds"] = time.monotonic() - begun
        write(args.output, report)
        print(f"{name}: {part['status']}, {part['seconds']:.0f} s", flush=True)
    return report


def main(argv: list[str] | None = None, here: bool = False) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="the JSON file")
    parser.add_argument("--minutes", type=float, default=USUAL_MINUTES, help="for all parts together")
    parser.add_argument("--parts", nargs="+", help="only these")
    parser.add_argument("--rehearse", action="store_true", help="every part on a CPU with a tiny geometry")
    parser.add_argument("--show", type=Path, help="print the tables of such a file, and measure nothing")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.show:
        print(text(json.loads(args.show.read_text(encoding="utf-8"))))
        return
    if not args.output:
        parser.error("--output says where the results go")
    if args.child:
        child(args.child, args.rehearse, args.output)
        return
    from device.parts import PARTS

    if unknown := [name for name in args.parts or () if name not in PARTS]:
        parser.error(f"--parts: {unknown[0]} is unknown; there are {', '.join(PARTS)}")
    if not args.rehearse:
        import torch

        if not torch.cuda.is_available():
            parser.error("not measured: PyTorch finds no CUDA device here; --rehearse runs every part on a CPU")
    print(text(run(args, here)))


if __name__ == "__main__":
    main()
