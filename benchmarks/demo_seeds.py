"""The README's table: `mfpo demo` with several seeds.

    python benchmarks/demo_seeds.py --seeds 0 1 2 --folder demos --output benchmarks/results/demo.json

The folder gets a `seed-N` for each, with what `mfpo demo --seed N` writes.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rounds import table

from mfpo_trl.demo import story


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("demos"), help="where pictures and models go")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything; the figures mean nothing")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures of every seed")
    args = parser.parse_args()
    results = {}
    for seed in args.seeds:
        found = story.run(args.folder / f"seed-{seed}", seed, args.quick)
        own = {name: {**scores, "pairs": found["pairs"]} for name, scores in found["scores"].items() if name != "base"}
        results[seed] = {"base": found["scores"]["base"], **own}
        if args.output:
            args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    Console(width=120).print(table(results))


if __name__ == "__main__":
    main()
