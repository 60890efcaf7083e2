"""`python benchmarks/laboratory`: run arms that are missing, and show what all of them came to."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from .material import CHOOSE, SMALL, TEST, Size
from .plan import HERE, RATES, USUAL, Arm, Plan, read_plan, read_rates
from .running import BASE, Job, all_done, all_made, base_digest, seed_folder, with_rate
from .tables import Results, choice_table, tables

RESULTS = HERE.parent / "results" / "laboratory.json"
SEEDS, MORE_SEEDS = (0, 1, 2), (3, 4)
SEED_TO_CHOOSE = 9


def build_parser() -> argparse.ArgumentParser:
    """The parser of the laboratory."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/laboratory",
        allow_abbrev=False,
        description="What preference objectives, dispreferred images, orders and data do in a world that is small enough to "
        "measure. Results are kept as they come, and a second run makes what is missing.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--quick", action="store_true", help="the headline arms in one seed, about 20 minutes on two cores"
    )
    which.add_argument("--all", action="store_true", help="the arms that are left for a night too")
    which.add_argument("--arms", nargs="+", metavar="ARM", help="these arms of plan.yaml")
    which.add_argument("--questions", nargs="+", type=int, metavar="N", help="the arms of these questions")
    which.add_argument("--choose", action="store_true", help="the search of learning rates, into choices.json")
    which.add_argument("--tables", action="store_true", help="run nothing: show what there is")
    which.add_argument("--page", action="store_true", help="run nothing: write tables and plots of docs/results.md")
    parser.add_argument(
        "--seeds", nargs="+", type=int, metavar="SEED", help="in place of 0 1 2, and 3 4 for headline arms"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("laboratory-output"),
        help="of bases, data and answers (default: %(default)s)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        help="the file of all figures (default: benchmarks/results/laboratory.json)",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="at a time (default: the cores)")
    parser.add_argument("--small", action="store_true", help="a few steps of everything: the figures mean nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the laboratory; returns 1 where an arm failed."""
    options = build_parser().parse_args(argv)
    try:
        plan, rates = read_plan(), read_rates()
        if options.choose:
            return choose(plan, options)
        asked = chosen_arms(plan, options)
    except ValueError as error:
        print(f"laboratory: error: {error}", file=sys.stderr)
        return 2
    results = Results.read(options.results)
    if options.page:
        from .page import write_page

        write_page(results, plan)
        return 0
    failed = 0 if options.tables else run(asked, rates, options, results)
    Console(width=140).print(*tables(results, plan), sep="\n")
    return 1 if failed else 0


def chosen_arms(plan: Plan, options: argparse.Namespace) -> dict[str, tuple[Arm, list[int]]]:
    """The arms that are asked for, each with its seeds.

    Raises:
        ValueError: an arm that is not in the plan.
    """
    if options.arms:
        unknown = [name for name in options.arms if name not in plan.arms]
        if unknown:
            raise ValueError(f"{', '.join(map(repr, unknown))}: not in plan.yaml, which has {', '.join(plan.arms)}")
    found = {}
    for name, arm in plan.arms.items():
        if options.arms is not None:
            wanted = name in options.arms
        elif options.questions is not None:
            wanted = arm.question in options.questions and not arm.night
        else:
            wanted = arm.headline if options.quick else options.all or not arm.night
        if wanted:
            usual = SEEDS[:1] if options.quick else SEEDS + MORE_SEEDS * arm.headline
            found[name] = (arm, list(options.seeds or usual))
    return found


def run(
    asked: Mapping[str, tuple[Arm, list[int]]],
    rates: Mapping[str, float],
    options: argparse.Namespace,
    results: Results,
) -> int:
    """Make what is missing and keep it in the results; returns how many arms failed."""
    size = SMALL if options.small else Size()
    seeds = list(dict.fromkeys(seed for _, own in asked.values() for seed in own))
    needed = {
        seed: list(dict.fromkeys("own" if arm.rounds else arm.data for arm, own in asked.values() if seed in own))
        for seed in seeds
    }
    wrong = all_made(options.folder, {seed: [] for seed in seeds}, [TEST], size, options.processes)
    bases = {seed: base_digest(seed_folder(options.folder, seed) / "base") for seed in seeds if seed not in wrong}
    jobs = missing(asked, rates, options.folder, size, results, bases)
    for seed in list(needed):
        still = {job.arm.data if not job.arm.rounds else "own" for job in jobs if job.seed == seed and job.arm}
        needed[seed] = [name for name in needed[seed] if name in still]
    wrong |= all_made(options.folder, needed, [TEST], size, options.processes)
    for seed, error in wrong.items():
        print(f"seed {seed} could not be made:\n{error}", file=sys.stderr)
    jobs = [job for job in jobs if job.seed not in wrong]
    print(f"{len(jobs)} trainings to do", flush=True)
    failed = len(wrong)
    for number, (job, found) in enumerate(all_done(jobs, options.processes), 1):
        if isinstance(found, str):
            failed += 1
            print(f"{job.name}, seed {job.seed} failed:\n{found}", file=sys.stderr, flush=True)
            continue
        results.add(job.name, job.seed, found)
        results.write(options.results)
        figures = found["figures"]["captions"]
        print(
            f"{number}/{len(jobs)} {job.name}, seed {job.seed}: CHAIRs {100 * figures['chair_s']:.1f}, coverage "
            f"{100 * figures['coverage']:.1f}, F1 {100 * figures['f1']:.1f}, {figures['words']:.1f} words",
            flush=True,
        )
    return failed


def missing(
    asked: Mapping[str, tuple[Arm, list[int]]],
    rates: Mapping[str, float],
    root: Path,
    size: Size,
    results: Results,
    bases: Mapping[int, str],
) -> list[Job]:
    """The jobs whose figures are not there, or are of another base or other settings; headline arms first."""
    arms: list[tuple[Arm | None, list[int]]] = [(None, list(bases))]
    arms += sorted(asked.values(), key=lambda own: not own[0].headline)
    found = []
    for arm, seeds in arms:
        settings = arm.settings(rates) if arm else {}
        for seed in (own for own in seeds if own in bases):
            name = arm.name if arm else BASE
            if not results.has(name, seed, settings, bases[seed]):
                found.append(Job(arm, seed, seed_folder(root, seed), size, settings, TEST))
    return found


def choose(plan: Plan, options: argparse.Namespace) -> int:
    """Each arm with a learning rate of its own at each of `RATES`, on scenes to choose on of a seed of its own."""
    size = SMALL if options.small else Size()
    path = options.results if options.results != RESULTS else HERE / "choices.json"
    results = Results.read(path.with_suffix(".figures.json"))
    arms = plan.searched()
    wrong = all_made(
        options.folder,
        {SEED_TO_CHOOSE: list(dict.fromkeys(arm.data for arm in arms))},
        [CHOOSE],
        size,
        options.processes,
    )
    if wrong:
        print(wrong[SEED_TO_CHOOSE], file=sys.stderr)
        return 1
    folder = seed_folder(options.folder, SEED_TO_CHOOSE)
    base, jobs = base_digest(folder / "base"), []
    for rate in sorted(RATES, key=lambda own: own != USUAL):
        for arm in arms:
            own = with_rate(arm, rate)
            settings = own.settings({own.rated: rate})
            if not results.has(own.name, SEED_TO_CHOOSE, settings, base):
                jobs.append(Job(own, SEED_TO_CHOOSE, folder, size, settings, CHOOSE, thorough=False))
    failed = 0
    for job, found in all_done(jobs, options.processes):
        if isinstance(found, str):
            failed += 1
            print(f"{job.name} failed:\n{found}", file=sys.stderr, flush=True)
            continue
        results.add(job.name, SEED_TO_CHOOSE, found)
        results.write(path.with_suffix(".figures.json"))
        print(f"{job.name}: F1 {100 * found['figures']['captions']['f1']:.1f}", flush=True)
    write_choices(path, arms, results)
    Console(width=140).print(choice_table(json.loads(path.read_text(encoding="utf-8"))))
    return 1 if failed else 0


def write_choices(path: Path, arms: Sequence[Arm], results: Results) -> None:
    """For each arm the rate with the highest F1 of objects, and what all rates came to."""
    content: dict[str, Any] = {"seed": SEED_TO_CHOOSE, "figure": "F1 of objects", "arms": {}}
    for arm in arms:
        tried = {}
        for rate in RATES:
            own = results.get(f"{arm.name} at {rate:g}", SEED_TO_CHOOSE)
            if own:
                figures = own["figures"]["captions"]
                tried[f"{rate:g}"] = {name: round(figures[name], 4) for name in ("chair_s", "coverage", "f1", "words")}
        if tried:
            best = max(tried, key=lambda rate: tried[rate]["f1"])
            content["arms"][arm.name] = {"chosen": float(best), "tried": tried}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
