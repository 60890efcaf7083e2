"""Arms and seeds -> figures, on several processes, each result kept as soon as it is there."""

import hashlib
import json
import os
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from .plan import Arm

BASE = "base"
"""The name of the base among the arms."""


@dataclass(frozen=True)
class Job:
    """One arm in one seed.

    Attributes:
        arm: None: the base itself.
        seed: of the world and of the training.
        folder: of the seed.
        size: how much of everything.
        settings: what decides the figures beside seed and base.
        part: of the world that it is scored on.
        thorough: see `measures.measured`.
    """

    arm: Arm | None
    seed: int
    folder: Path
    size: Any
    settings: Mapping[str, Any]
    part: int
    thorough: bool = True

    @property
    def name(self) -> str:
        """Of the arm."""
        return self.arm.name if self.arm else BASE


def base_digest(folder: Path) -> str:
    """Of the base's weights: another processor rounds differently, and trains another base from the same seed."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]


def start(logs: Path) -> None:
    """What each process does first: its words go into a file, and one thread always sums in the same order."""
    logs.mkdir(parents=True, exist_ok=True)
    log = os.open(logs / f"{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)

    import datasets
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


def make(folder: Path, seed: int, size: Any, data: Sequence[str], parts: Sequence[int]) -> float:
    """Make what is missing of a seed: base, data sets, held-out scenes; returns the seconds of the processor."""
    from .material import Place

    begun = time.process_time()
    place = Place(folder, seed, size)
    assert place.base
    for name in data:
        place.data(name)
    for part in parts:
        place.held_out(part)
    return time.process_time() - begun


def do(job: Job) -> dict[str, Any]:
    """Train and measure one arm; everything that the laboratory keeps of it."""
    from .material import Place

    place = Place(job.folder, job.seed, job.size)
    kept = {"settings": dict(job.settings), "base": base_digest(place.base)}
    if job.arm is None:
        found = of_model(job, place.base, place)
        return {**kept, "figures": found}
    folder = job.folder / "arms" / job.arm.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    begun = time.process_time()
    model = looped(job, place, folder) if job.arm.rounds else trained(job, place, folder)
    seconds = time.process_time() - begun
    found = of_model(job, model, place)
    from .measures import negatives, of_training

    found["training"] = {**of_training(model), "seconds": round(seconds, 1)}
    if job.thorough and job.arm.probed:
        found["probe"] = negatives(folder / "recipe.yaml")
    shutil.rmtree(folder)
    return {**kept, "figures": found}


def of_model(job: Job, model: Path, place: Any) -> dict[str, Any]:
    """The figures of a model."""
    from .measures import measured

    folder = job.folder / "answers" / (job.arm.folder if job.arm else BASE)
    return measured(model, place.base, place.held_out(job.part), folder, job.thorough)


def trained(job: Job, place: Any, folder: Path) -> Path:
    """The folder of the model that `mfpo train` makes."""
    from .measures import run

    recipe = {
        "model_name_or_path": str(place.base),
        "dataset_name": str(place.data(job.arm.data) / "rows"),
        "output_dir": str(folder / "model"),
        **training(job),
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    run(["train", "--config", str(path)])
    return folder / "model"


def training(job: Job) -> dict[str, Any]:
    """The fields of `mfpo train` that every arm has, and the arm's own."""
    return {
        "seed": job.seed,
        "use_cpu": True,
        "bf16": False,
        "dtype": "float32",
        "gradient_checkpointing": False,
        "logging_steps": min(10, job.size.steps),
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "steps",
        "save_steps": min(job.settings["train"]["max_steps"], job.size.steps),
        "save_only_model": True,
        **job.settings["train"],
        "max_steps": min(job.settings["train"]["max_steps"], job.size.steps),
    }


def looped(job: Job, place: Any, folder: Path) -> Path:
    """The folder of the policy after that many rounds of `mfpo loop` on its own pairs; each round has the steps of an arm."""
    from .captioner import MOST_NEW_TOKENS
    from .measures import run

    held = place.held_out(job.part)
    (folder / "scored").mkdir()
    truth = {"0": json.loads((held / "truth.json").read_text())["0"]}
    (folder / "scored" / "ground_truth.json").write_text(json.dumps(truth))
    recipe = {
        "output": str(folder / "rounds"),
        "model": str(place.base),
        "rounds": job.arm.rounds,
        "figure": "chair_s",
        "least_gain": -100,  # all rounds, whatever the score
        "pairs": {
            "dataset": str(place.data("own") / "rows"),
            "verifier": "labels",
            "samples": 6,
            "max_new_tokens": MOST_NEW_TOKENS,
            "batch_size": 64,
            "seed": job.seed,
        },
        "train": {key: own for key, own in training(job).items() if not key.startswith("save_")},
        "score": {"benchmark": "chair", "data": str(folder / "scored"), "max_new_tokens": MOST_NEW_TOKENS},
    }
    path = folder / "loop.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    run(["loop", "--config", str(path)])
    return folder / "rounds" / f"round-{job.arm.rounds}" / "model"


def all_done(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, dict[str, Any] | str]]:
    """The jobs with what they found, or with why they failed, in the order in which they end."""
    if not jobs:
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), start, (jobs[0].folder.parent / "logs",)) as pool:
        futures: dict[Future[Any], Job] = {pool.submit(do, job): job for job in jobs}
        for future in as_completed(futures):
            error = future.exception()
            if error is None:
                yield futures[future], future.result()
            else:
                yield futures[future], "".join(traceback.format_exception(error))


def all_made(
    root: Path, needed: Mapping[int, Sequence[str]], parts: Sequence[int], size: Any, processes: int
) -> dict[int, str]:
    """Make bases, data sets and held-out scenes of seeds; returns what went wrong, by seed."""
    wrong = {}
    with ProcessPoolExecutor(processes, get_context("spawn"), start, (root / "logs",)) as pool:
        futures = {
            pool.submit(make, seed_folder(root, seed), seed, size, data, parts): seed for seed, data in needed.items()
        }
        for future in as_completed(futures):
            if (error := future.exception()) is not None:
                wrong[futures[future]] = "".join(traceback.format_exception(error))
            else:
                print(f"seed {futures[future]}: base, data and held-out scenes, {future.result():.0f} s", flush=True)
    return wrong


def seed_folder(root: Path, seed: int) -> Path:
    """Of everything of one seed."""
    return root / f"seed-{seed}"


def with_rate(arm: Arm, rate: float) -> Arm:
    """The arm at another learning rate, under another name."""
    return replace(arm, name=f"{arm.name} at {rate:g}", train={**arm.train, "learning_rate": rate})
