"""What a step of preference tuning costs in the tools that a user would pick: TRL, ms-swift, LLaMA-Factory, and this package.

    python benchmarks/peers.py                        # the tiny LLaVA, a few minutes behind the installations
    python benchmarks/peers.py --geometry wide        # a language part that dominates, 636 tokens of prompt and image
    python benchmarks/peers.py --geometry 7b          # LLaVA-1.5-7B's geometry, on a GPU
    python benchmarks/peers.py --tools trl mfpo_trl   # what needs no environment of its own
    python benchmarks/peers.py --show FILE.json       # the table of an earlier run

Each other tool lives in a virtual environment of its own under `--cache`, made from the package index on first use. All
train the same random weights, the same adapter, and the same pairs in the same order, with the same micro-batch, optimizer
and precision: text-only DPO, and beside it four presets of `recipes/methods`. Each is trained by its own command in a process
of its own; they take turns, one step each a round, so that no two compute at once. The first round warms up and is not counted.
"loss" is the greatest difference between a step's loss and TRL's over all steps, in which every tool moved its own weights.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml
from comparing.environments import interpreter
from comparing.inputs import save_model, save_pairs
from comparing.rounds import Run, start, take_turns
from llava import GEOMETRIES

METHODS = Path(__file__).parents[1] / "recipes" / "methods"
COMPARED = ("dpo", "mdpo", "mfpo", "rdpo")
"""Those of them that need nothing which the other tools' rows have not; `step_cost.py --methods` counts all."""
SIZES = {"tiny": "tiny", "wide": "wide", "7b": "llava-1.5-7b"}
TOOLS = {"trl": "TRL", "ms-swift": "ms-swift", "llamafactory": "LLaMA-Factory", "mfpo_trl": "mfpo_trl"}
BASE = "TRL DPO"
TRAINING = ("learning_rate", "max_length", "beta", "curriculum")
"""What the benchmark sets for everybody; a curriculum would change the order of the rows."""
LIVE = {"precompute_ref_log_probs": False}
CACHED = {"precompute_ref_log_probs": True}


def presets() -> dict[str, dict[str, Any]]:
    """The options of each method of this package that make its loss and its dispreferred images."""
    found = {name: yaml.safe_load((METHODS / f"{name}.yaml").read_text(encoding="utf-8")) for name in COMPARED}
    return {name: {k: v for k, v in fields.items() if k not in TRAINING} for name, fields in found.items()}


def ways(tools: list[str], asked: bool = True) -> dict[str, dict[str, Any]]:
    """The lines of the table: a tool, its options, and what is asked of it beside text-only DPO with a live reference.

    Args:
        asked: whether the other tools are also asked for what this package adds, which they may refuse.
    """
    lines: dict[str, dict[str, Any]] = {}
    for tool in ("trl", "ms-swift", "llamafactory"):
        if tool in tools:
            lines[f"{TOOLS[tool]} DPO"] = {"tool": tool, "options": {}}
    if "mfpo_trl" in tools:
        for name, options in presets().items():
            # As DPOTrainer has it first, then as the preset has it.
            if name in ("dpo", "mfpo"):
                lines[f"mfpo_trl {name}, live reference"] = {"tool": "mfpo_trl", "options": options | LIVE}
            lines[f"mfpo_trl {name}, cached reference"] = {"tool": "mfpo_trl", "options": options | CACHED}
    for tool in ("trl", "ms-swift", "llamafactory"):
        if tool in tools and asked:
            lines[f"{TOOLS[tool]}, cached reference"] = {"tool": tool, "options": CACHED}
            lines[f"{TOOLS[tool]}, image term"] = {"tool": tool, "options": {}, "loss_type": "mdpo"}
    return lines


def summary(run: Run, base: Run) -> dict[str, Any]:
    """The figures of one line."""
    if run.refused is not None:
        return {"refuses": run.refused}
    steps = run.steps[1:]
    found: dict[str, Any] = {"trained": run.ready["trained"], "versions": run.ready["versions"]}
    for what in ("seconds", "cpu"):
        values = [step[what] for step in steps]
        found[what] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        if base.refused is None:
            found[what]["ratio"] = found[what]["median"] / statistics.median(step[what] for step in base.steps[1:])
    found |= {"peak": run.steps[-1]["peak"], "before": run.ready["before"], "tokens": steps[0]["tokens"]}
    found["losses"] = [step["loss"] for step in run.steps]
    found["logps"] = {name: run.steps[0][name] for name in ("logps/chosen", "logps/rejected") if name in run.steps[0]}
    return found


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every way in turn; the report that is printed and written."""
    geometry, cuda = GEOMETRIES[SIZES[args.geometry]], args.device == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    pythons: dict[str, tuple[Path, str]] = {tool: (Path(sys.executable), "") for tool in ("trl", "mfpo_trl")}
    failed: dict[str, str] = {}
    for tool in args.tools:
        if tool not in pythons:
            try:
                pythons[tool] = interpreter(tool, args.cache)
            except RuntimeError as error:
                failed[tool] = str(error)
    common = {
        "model": str(save_model(geometry, dtype, folder / "model")),
        "data": save_pairs(geometry, args.pairs * (args.steps + 2), folder / "data"),
        "dtype": str(dtype).removeprefix("torch."),
        "cuda": cuda,
        "batch": args.pairs,
        "steps": args.steps + 1,
        "rank": args.rank,
        "beta": 0.1,
        "learning_rate": 1e-4,
    }
    lines = ways(args.tools, not args.without_refusals)
    threads = {"OMP_NUM_THREADS": str(args.threads)}
    report: dict[str, Any] = {}
    runs: dict[str, Run] = {}
    try:
        for number, (name, way) in enumerate(lines.items()):
            tool = way["tool"]
            if tool in failed:
                report[name] = {"refuses": failed[tool]}
                continue
            environment = dict(threads)
            if tool in ("trl", "mfpo_trl"):
                environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
            else:
                environment["PYTHONPATH"] = ""
            run = runs[name] = start(name, pythons[tool][0], common | way, folder / f"run-{number}", environment)
            run.hear(args.patience)  # one after the other: loading all at once would only be slower
            print(f"{name}: {run.refused or 'ready'}", flush=True)
        for turn in range(args.steps + 1):
            take_turns(list(runs.values()), args.patience)
            print(f"round {turn} of {args.steps}: load {os.getloadavg()[0]:.1f}", flush=True)
    finally:
        for run in runs.values():
            run.close()
    for name, run in runs.items():
        report[name] = {"tool": lines[name]["tool"]} | summary(run, runs[BASE])
    for name, found in report.items():
        plain = report.get(f"{TOOLS[lines[name]['tool']]} DPO", {})
        if lines[name].get("loss_type") and found.get("losses") and found["losses"] == plain.get("losses"):
            report[name] = {
                "tool": found["tool"],
                "refuses": "nothing, and trains plain DPO: every loss is that of its DPO",
            }
    notes = [f"{TOOLS[tool]} without {without}" for tool, (_, without) in pythons.items() if without]
    return {"notes": notes, "load": os.getloadavg(), "ways": {name: report[name] for name in lines}}


def table(report: dict[str, Any]) -> str:
    """The report in Markdown: medians, least and greatest; ratios to TRL."""
    held = "GPU memory" if report["machine"].endswith("cuda") else "resident"
    heads = ["", "seconds a step", "ratio", "CPU seconds a step", "ratio", f"{held}, MiB (above the start)"]
    rows = [[*heads, "tokens a step", "loss"], ["---", *["---:"] * (len(heads) + 1)]]
    refused, versions = [], {}
    base = report["ways"].get(BASE, {})
    for name, found in report["ways"].items():
        if "refuses" in found:
            refused.append(f"- {name}: refuses {found['refuses'][:200]}")
            continue
        cells = [name]
        for what in ("seconds", "cpu"):
            times = found[what]
            cells.append(f"{times['median']:.3g} ({times['min']:.3g}–{times['max']:.3g})")
            cells.append(f"{times['ratio']:.2f}" if "ratio" in times else "–")
        cells.append(f"{found['peak'] / 2**20:.0f} ({(found['peak'] - found['before']) / 2**20:.0f})")
        cells.append(str(found["tokens"]))
        same = found["tool"] != "mfpo_trl" or name.startswith("mfpo_trl dpo,")
        apart = [abs(a - b) for a, b in zip(found["losses"], base.get("losses", []), strict=False)]
        cells.append(f"{max(apart):.0e}" if same and apart else "other terms")
        rows.append(cells)
        own = [f"{package} {version}" for package, version in found["versions"].items()]
        versions[TOOLS[found["tool"]]] = ", ".join(own)
    head = f"{report['geometry']}, {report['pairs']} pair(s) a step, {report['machine']}, {report['threads']} thread(s) a process"
    lines = [f"{head}, {report['date']}, load {report['load'][0]:.0f}", ""]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(
        [*lines, "", *refused, *(f"- {n}: {v}" for n, v in versions.items()), *(f"- {n}" for n in report["notes"])]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=SIZES, default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--pairs", type=int, default=1, help="pairs in a micro-batch")
    parser.add_argument("--steps", type=int, default=5, help="counted steps of each tool")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each process on a CPU")
    parser.add_argument("--patience", type=float, default=900, help="seconds that a tool may take for one thing")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "mfpo_trl" / "peers")
    parser.add_argument("--output", type=Path, help="write the table as JSON")
    parser.add_argument("--without-refusals", action="store_true", help="ask the other tools for plain DPO only")
    parser.add_argument("--show", type=Path, help="print the table of such a file, and measure nothing")
    args = parser.parse_args()
    if args.show:
        print(table(json.loads(args.show.read_text(encoding="utf-8"))))
        return
    with tempfile.TemporaryDirectory() as folder:
        report = {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {args.device}",
            "geometry": args.geometry,
            "pairs": args.pairs,
            "threads": args.threads,
        } | measure(args, Path(folder))
    print(table(report))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
