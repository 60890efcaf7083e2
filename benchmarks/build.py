"""What `mfpo build` costs: milliseconds a row by stage, the CPU work outside of the models, processes, memory.

    python benchmarks/build.py                       # stages, and CPU work outside of the models, with tiny random models
    python benchmarks/build.py --grounder random     # the same without models: a random rectangle in each image
    python benchmarks/build.py --num-proc 2          # rows a second of 2 processes against 1
    python benchmarks/build.py --memory              # peak memory of 100,000 small rows against 10,000
    python benchmarks/build.py --device cuda         # Grounding DINO tiny and SAM ViT-B at their real sizes, on a GPU

The source is made here: photo-like JPEGs of 640x480 and about 100 kB, captions of 80 words, in JSON lines; no network. Models
have random weights, so their regions mean nothing, and time that depends on how regions look is only of the right order.
Wall time is that of the build without its start (imports, loading models, a first batch). CPU work is the time that the
process spends on a core, whoever else uses the machine, with one thread.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from building.memory import memory_report
from building.processes import scaling_report
from building.source import make_source, save_models
from building.stages import outside, stages_report
from rich.console import Console
from rich.table import Table

# Heavy modules are imported in functions: with --memory this process has to stay smaller than the builds it starts, because
# Linux counts into a child's peak what its parent held when it was started.

TARGET_MS, TARGET_RATIO, TARGET_GROWTH = 15.0, 1.7, 0.10
MEMORY_ROWS = (10_000, 100_000)


def show_stages(title: str, report: dict[str, Any]) -> None:
    """Wall time by stage and work on a core by kind, without and with `--materialize`."""
    ways = {"recipe": "", "materialize": "--materialize"}
    for key, heading in (("stages", "wall, ms a row (rows a second)"), ("cpu", "on a core, ms a row")):
        table = Table(title=f"{title}: {heading}")
        table.add_column("stage" if key == "stages" else "work")
        for way in ways.values():
            table.add_column(way or "recipe only", justify="right")
        names = list(dict.fromkeys(name for way in ways for name in report[way][key]))
        for name in names:
            cells = [report[way][key].get(name, 0.0) for way in ways]
            rate = [f" ({1000 / cell:.0f})" if key == "stages" and cell else "" for cell in cells]
            table.add_row(name, *(f"{cell:.2f}{own}" for cell, own in zip(cells, rate, strict=True)))
        table.add_section()
        if key == "stages":
            table.add_row("all, rows a second", *(f"{report[way]['rows_per_second']:.1f}" for way in ways))
            table.add_row("regions a row", *(f"{report[way]['regions']:.1f}" for way in ways))
            table.add_row("runs a region", *(f"{report[way]['runs']:.0f}" for way in ways))
        else:
            totals = [outside(report[way]["cpu"]) for way in ways]
            table.add_row(f"outside of the models (target {TARGET_MS:.0f})", *(f"{total:.2f}" for total in totals))
        Console(width=120).print(table)


def show_figures(title: str, figures: dict[str, str]) -> None:
    """One table of names and figures."""
    table = Table(title=title, show_header=False)
    for name, value in figures.items():
        table.add_row(name, value)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="of the source; by default 200, and 1024 with --num-proc")
    parser.add_argument("--grounder", choices=("tiny", "full", "random", "none"), help="tiny and full: DINO and SAM")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--num-proc", type=int, default=1, help="compare as many processes with one")
    parser.add_argument("--memory", action="store_true", help="peak memory by number of rows")
    parser.add_argument("--memory-rows", type=int, nargs=2, default=MEMORY_ROWS, help="of --memory")
    parser.add_argument("--repeats", type=int, default=3, help="builds of each kind, whose median is shown")
    parser.add_argument("--output", type=Path, help="write the tables as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        report = _memory(Path(name), args) if args.memory else _time(Path(name), args)
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _memory(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    found = memory_report(folder, tuple(args.memory_rows))
    shown = {what: f"{value:.1f}" for what, value in found.items() if what != "growth"}
    show_figures("peak memory", shown | {f"growth (target {TARGET_GROWTH:.0%} at most)": f"{found['growth']:+.1%}"})
    return {"memory": found}


def _time(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    import torch

    # Processes of a build use one thread each; what is compared with them and counted on a core does too.
    torch.set_num_threads(1)
    if args.device == "cuda" and not torch.cuda.is_available():
        show_figures("Grounding DINO tiny and SAM ViT-B, random weights, cuda", {"rows a second": "not measured"})
        return {"cuda": None}
    grounder = args.grounder or ("full" if args.device == "cuda" else "tiny")
    rows = args.rows or (200 if args.num_proc == 1 else 1024)
    dataset = make_source(folder / "source", rows)
    options = save_models(folder, grounder) if grounder in ("tiny", "full") else {"grounder": grounder}
    title = f"{rows} rows, grounder {grounder}, {args.device}"
    if args.num_proc == 1:
        found = stages_report(folder, dataset, options, args.device, args.repeats)
        show_stages(title, found)
        return {title: found}
    found = scaling_report(folder, dataset, rows, options, args.device, args.repeats, args.num_proc)
    many = f"{args.num_proc} processes"
    show_figures(
        title,
        {
            "rows a second, 1 process": f"{found['one']:.1f}",
            f"rows a second, {many}": f"{found['many']:.1f}",
            f"ratio (target {TARGET_RATIO} at least for 2)": f"{found['ratio']:.2f}",
            "seconds until all processes are ready, left out": f"{found['start, s']:.1f}",
            f"ratio of {many} for work that shares nothing": f"{found['spin']:.2f}",
        },
    )
    return {f"{title}, {many}": found}


if __name__ == "__main__":
    main()
