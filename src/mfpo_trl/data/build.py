"""Part by part, in one process or many: `mfpo build`, and whatever else is built in parts."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ..hub import token_for
from .pipeline import BuildOptions, Pipeline
from .writing import finish, remember


def run(options: BuildOptions, kind: type[Pipeline] = Pipeline) -> Path:
    """Build what is missing of a data set, and finish it when all parts of all shards are there.

    Args:
        options: what is built from what.
        kind: what builds a part of it.

    Returns:
        The folder of the data set.

    Raises:
        ValueError: an option, or a folder that holds a build with other options.
        PushError: the data set is to be pushed, and there is no token.
        OSError: the disk is full.
        ImportError: Ray is asked for and not installed.
        RuntimeError: a process of the build died.
    """
    if options.push_to_hub:
        # Now, and not after hours of building.
        token_for(options.push_to_hub)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        from accelerate import PartialState

        # Ranks meet now, and again at the end, which may be days apart for a slow one.
        everyone = PartialState(cpu=True, timeout=timedelta(days=30))
    work = kind(options, _gpu(int(os.environ.get("LOCAL_RANK", 0))) if world > 1 else None)
    remember(options.output, work.remembered)
    mine = options.shard_index * world + rank
    todo = [part for part in work.parts.missing() if part % (options.shards * world) == mine]
    print(
        f"{work.told}; {len(todo)} of "
        f"{len(work.parts.ranges)} parts to build{f' on rank {rank}' if world > 1 else ''}.",
        flush=True,
    )
    started = time.perf_counter()
    for _ in _progress(options, kind, work, todo, rank):
        pass
    if world > 1:
        everyone.wait_for_everyone()
    missing = work.parts.missing()
    if missing and rank == 0:
        print(f"{len(missing)} parts belong to other shards; the shard that is last writes the report.", flush=True)
    elif rank == 0:
        finish(options, work, time.perf_counter() - started if todo else None)
    return options.output


def _progress(
    options: BuildOptions, kind: type[Pipeline], work: Pipeline, todo: Sequence[int], rank: int
) -> Iterator[None]:
    """Build parts under a bar that counts rows of the source."""
    from tqdm.auto import tqdm

    sizes = [len(rows) for rows in work.parts.ranges]
    total = sum(sizes[part] for part in todo)
    with tqdm(total=total, unit="row", desc="Building", disable=not (options.progress and total) or rank > 0) as bar:
        if options.engine == "ray":
            yield from _with_ray(options, kind, todo, lambda part: bar.update(sizes[part]))
        elif options.num_proc > 1 and len(todo) > 1:
            yield from _with_processes(options, kind, todo, lambda part: bar.update(sizes[part]))
        else:
            for part in todo:
                work.build(part, bar.update)
                yield


_WORK: Pipeline | None = None


def _start(options: BuildOptions, kind: type[Pipeline], places: Any) -> None:
    """Load what a process builds with, on a GPU of its own where there are several."""
    global _WORK
    import torch

    # Ctrl-C reaches the main process, which stops this one after its part.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _WORK = kind(options, _gpu(places.get()))


def _gpu(place: int) -> str | None:
    import torch

    return f"cuda:{place % torch.cuda.device_count()}" if torch.cuda.is_available() else None


def _build(part: int) -> int:
    assert _WORK is not None, "each process starts with its own"
    _WORK.build(part)
    return part


def _with_processes(
    options: BuildOptions, kind: type[Pipeline], todo: Sequence[int], done: Callable[[int], Any]
) -> Iterator[None]:
    context = get_context("spawn")
    places = context.Queue()
    for place in range(options.num_proc):
        places.put(place)
    with ProcessPoolExecutor(options.num_proc, context, _start, (options, kind, places)) as pool:
        futures = [pool.submit(_build, part) for part in todo]
        try:
            for future in as_completed(futures):
                yield done(future.result())
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a process of the build died, perhaps for lack of memory; finished parts are kept. Run the same command "
                "again, with a smaller --num-proc or --batch-size"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


class _Actor:
    """The same for Ray Data: a batch is a part."""

    def __init__(self, options: BuildOptions, kind: type[Pipeline]):
        self.work = kind(options, None)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for part in batch["item"].tolist():
            self.work.build(part)
        return batch


def _with_ray(
    options: BuildOptions, kind: type[Pipeline], todo: Sequence[int], done: Callable[[int], Any]
) -> Iterator[None]:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("--engine ray needs Ray: pip install 'mfpo_trl[ray]'") from error
    if not todo:
        return
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
    parts = ray.data.from_items(list(todo), override_num_blocks=len(todo))
    built = parts.map_batches(
        _Actor,
        fn_constructor_args=(options, kind),
        batch_size=1,
        num_gpus=gpus or None,
        compute=ray.data.ActorPoolStrategy(size=options.num_proc),
    )
    for row in built.iter_rows():
        yield done(row["item"])
