"""`mfpo build`: from text-preference data to image-preference data, part by part, in one process or many."""

import difflib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..corruptions import check_corruption
from ..dispreferred import DispreferredImages
from .grounding import GROUNDERS
from .keywords import KeywordOptions
from .parts import Parts, features, remember
from .reading import image_roots, open_rows, repeated
from .report import PartReport, finish
from .sources import SOURCES, recognise
from .stages import Corrupt, Keywords, Read, Regions, Rejected, Row, Score

PART_ROWS = 512
"""Rows of the source that a part is made from: what a killed build has to do again at most, per process."""

ELSEWHERE = (
    "output",
    "num_proc",
    "engine",
    "shards",
    "shard_index",
    "push_to_hub",
    "progress",
    "device",
)
"""Options that say where and how fast, not what is built."""


@dataclass(frozen=True)
class BuildOptions:
    """What is built from what; the fields are the options of `mfpo build`.

    Raises:
        ValueError: an unknown source, corruption, schedule or option, or numbers that make no sense.
    """

    dataset: str
    output: Path
    source: str = "auto"
    split: str = "train"
    image_root: Path | None = None
    limit: int | None = None
    grounder: str = "grounding-dino-sam"
    grounder_model: str | None = None
    segmenter_model: str | None = None
    keywords: KeywordOptions = field(default_factory=KeywordOptions)
    tagger: str | None = None
    corruption: str = "diffusion"
    schedule: str = "vcd_sigmoid"
    step: int = 500
    resolution: int = 336
    seed: int = 0
    materialize: bool = False
    difficulty: str | None = None
    model: str | None = None
    samples: int = 10
    nli_model: str | None = None
    rao_blackwell: bool = False
    stages: int = 3
    device: str | None = None
    batch_size: int = 8
    part_rows: int = PART_ROWS
    num_proc: int = 1
    engine: str = "local"
    shards: int = 1
    shard_index: int = 0
    push_to_hub: str | None = None
    progress: bool = True

    def __post_init__(self):
        if self.source not in ("auto", *SOURCES):
            raise ValueError(f"--source {self.source!r} is unknown; expected auto, {', '.join(SOURCES)}")
        if not 0 <= self.shard_index < self.shards:
            raise ValueError(
                f"--shard-index {self.shard_index} is not one of --shards {self.shards}, which count from 0"
            )
        if self.grounder not in (known := (*GROUNDERS, "column")) and ":" not in self.grounder:
            near = difflib.get_close_matches(self.grounder, known, 1)
            hint = (
                f", did you mean {near[0]!r}?"
                if near
                else f"; expected {', '.join(known)}, or package.module:function"
            )
            raise ValueError(f"--grounder {self.grounder!r} is unknown{hint}")
        for name in ("batch_size", "part_rows", "num_proc", "shards", "resolution", "samples", "stages"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; expected a number from 1 up")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit is {self.limit}; expected a number from 1 up")
        if self.corruption == "swap":
            raise ValueError(
                "--corruption swap needs other rows; set `corruption: swap` in the training recipe instead"
            )
        check_corruption(self.corruption, self.corruption_kwargs)

    @property
    def corruption_kwargs(self) -> dict[str, Any]:
        """Options of the corruption."""
        if self.corruption != "diffusion":
            return {}
        return {"step": self.step, "schedule": self.schedule, "resolution": self.resolution}

    @property
    def scorer(self) -> str:
        """How difficulty is measured: as asked for, else by likelihood where there is a model."""
        return self.difficulty or ("nll" if self.model else "none")

    def remembered(self, rows: int) -> dict[str, Any]:
        """What decides the parts' content."""
        kept = {own.name: getattr(self, own.name) for own in fields(self) if own.name not in ELSEWHERE}
        kept |= {"keywords": asdict(self.keywords), "difficulty": self.scorer}
        kept["image_root"] = str(self.image_root.resolve()) if self.image_root else None
        return {**kept, "rows": rows, "version": __version__}


class Pipeline:
    """Everything that builds a part; models are loaded once.

    Args:
        options: what to build.
        device: of the models; None takes a GPU where there is one.
    """

    def __init__(self, options: BuildOptions, device: str | None = None):
        self.options, self.device = options, options.device or device
        self.rows = open_rows(options.dataset, options.split)
        self.count = min(len(self.rows), options.limit or len(self.rows))
        if not self.count:
            raise ValueError(f"the data set {options.dataset!r} has no rows")
        columns = self._columns()
        self.source = recognise(columns) if options.source == "auto" else options.source
        self.parts = Parts(options.output, self.count, options.part_rows)
        brings = {"rejected_image", "rejected_images"} & set(columns)
        self.features = features(options.materialize or bool(brings))

    def _columns(self) -> list[str]:
        if hasattr(self.rows, "dataset"):
            return self.rows.dataset.column_names
        rows = [row for row in self.rows.read(range(min(100, self.count))) if not isinstance(row, Exception)]
        return list(dict.fromkeys([*(column for row in rows for column in row), *sorted(self.rows.optional)]))

    @cached_property
    def repeated(self) -> dict[int, int]:
        """The rows whose id an earlier row has, and the how-manieth they are."""
        starts = range(0, self.count, 4096) if "id" in self._columns() else ()
        return repeated(own for start in starts for own in self._ids(start))

    def _ids(self, start: int) -> list[Any]:
        rows = range(start, min(start + 4096, self.count))
        if hasattr(self.rows, "dataset"):
            return self.rows.dataset.select_columns("id")[rows.start : rows.stop]["id"].to_pylist()
        return [None if isinstance(row, Exception) else row.get("id") for row in self.rows.read(rows)]

    @cached_property
    def stages(self) -> dict[str, Any]:
        """The stages behind reading, by name, in their order."""
        from .difficulty import build_difficulty
        from .grounding import build_grounder
        from .keywords import embedding_vectors, load_tagger

        own = self.options
        grounder = None
        if own.grounder != "column":
            grounder = build_grounder(
                own.grounder,
                model=own.grounder_model,
                segmenter=own.segmenter_model,
                device=self.device,
                batch_size=own.batch_size,
                seed=own.seed,
            )
        dispreferred = DispreferredImages(own.corruption, own.corruption_kwargs, seed=own.seed)
        score = build_difficulty(
            own.scorer,
            model=own.model,
            device=self.device,
            samples=own.samples,
            nli_model=own.nli_model,
            rao_blackwell=own.rao_blackwell,
            seed=own.seed,
        )
        # A model that is there anyway tells which words are alike: the policy, or the grounder's text encoder.
        reader = getattr(grounder, "words", None)
        if hasattr(score, "collator"):
            reader = score.model, score.collator.processor.tokenizer
        vectors = embedding_vectors(*reader) if reader else None
        return {
            "keywords": Keywords(own.keywords, vectors, load_tagger(own.tagger)),
            "grounding": Regions(grounder),
            "corruption": Corrupt(dispreferred, own.materialize),
            "difficulty": Score(score),
        }

    def build(self, part: int, progress: Callable[[int], None] = lambda rows: None) -> None:
        """Build a part and store it."""
        rows, report = self.parts.ranges[part], PartReport()
        done: list[Row] = []
        for start in range(rows.start, rows.stop, self.options.batch_size):
            numbers = range(start, min(start + self.options.batch_size, rows.stop))
            done += self._batch(numbers, report)
            progress(len(numbers))
        with report.timed("storage"):
            stored = [{name: row.get(name) for name in self.features} for row in done]
            self.parts.write(part, stored, self.features)
        self.parts.note(part, report.summary(done, len(rows)))

    def _batch(self, numbers: range, report: PartReport) -> list[Row]:
        with report.timed("reading"):
            read = Read(self.source, image_roots(self.options.dataset, self.options.image_root))
            rows = []
            for number, raw in zip(numbers, self.rows.read(numbers), strict=True):
                found = read(raw, number)
                if number in self.repeated:
                    found = [_renamed(row, self.repeated[number]) for row in found]
                rows += report.kept(found, [number] * len(found))
        for name, stage in self.stages.items():
            with report.timed(name):
                rows = report.kept(_each(stage, rows), [row["number"] for row in rows])
        for row in rows:
            # What is no longer needed would fill the memory until the part is written.
            del row["pictures"]
        return rows


def _each(stage: Callable[[list[Row]], list[Row | Rejected]], rows: list[Row]) -> list[Row | Rejected]:
    """A stage on a batch; where it fails, on each row alone, so that a bad one costs itself only.

    Raises:
        Exception: every row of the batch fails in the same way, which is no row's fault.
    """
    try:
        return stage([{**row} for row in rows])
    except ImportError:
        raise
    except Exception as error:
        found = [own for row in rows for own in _alone(stage, row)]
        if len(rows) > 1 and {str(own) if isinstance(own, Rejected) else None for own in found} == {str(error)}:
            raise
        return found


def _alone(stage: Callable[[list[Row]], list[Row | Rejected]], row: Row) -> list[Row | Rejected]:
    try:
        return stage([{**row}])
    except Exception as error:
        return [Rejected(str(error) or type(error).__name__)]


def _renamed(row: Row | Rejected, times: int) -> Row | Rejected:
    return row if isinstance(row, Rejected) else {**row, "id": f"{row['id']}#{times}"}


# Who builds which part


def run(options: BuildOptions) -> Path:
    """Build what is missing of a data set, and finish it when all parts of all shards are there.

    Returns:
        The folder of the data set.

    Raises:
        ValueError: an option, or a folder that holds a build with other options.
        OSError: the disk is full.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        from accelerate import PartialState

        # Ranks meet now, and again at the end, which may be days apart for a slow one.
        everyone = PartialState(cpu=True, timeout=timedelta(days=30))
    pipeline = Pipeline(options, _gpu(int(os.environ.get("LOCAL_RANK", 0))) if world > 1 else None)
    identity = {"source": pipeline.source, "source_content": pipeline.rows.identity}
    remember(options.output, options.remembered(pipeline.count) | identity)
    mine = options.shard_index * world + rank
    todo = [part for part in pipeline.parts.missing() if part % (options.shards * world) == mine]
    print(
        f"{options.dataset}: {pipeline.count} rows, read as {pipeline.source}; {len(todo)} of "
        f"{len(pipeline.parts.ranges)} parts to build{f' on rank {rank}' if world > 1 else ''}.",
        flush=True,
    )
    started = time.perf_counter()
    for _ in _progress(options, pipeline, todo, rank):
        pass
    if world > 1:
        everyone.wait_for_everyone()
    missing = pipeline.parts.missing()
    if missing and rank == 0:
        print(f"{len(missing)} parts belong to other shards; the shard that is last writes the report.", flush=True)
    elif rank == 0:
        finish(options, pipeline, time.perf_counter() - started if todo else None)
    return options.output


def _progress(options: BuildOptions, pipeline: Pipeline, todo: Sequence[int], rank: int) -> Iterator[None]:
    """Build parts under a bar that counts rows of the source."""
    from tqdm.auto import tqdm

    sizes = [len(rows) for rows in pipeline.parts.ranges]
    total = sum(sizes[part] for part in todo)
    with tqdm(total=total, unit="row", desc="Building", disable=not options.progress or rank > 0) as bar:
        if options.engine == "ray":
            yield from _with_ray(options, todo, lambda part: bar.update(sizes[part]))
        elif options.num_proc > 1 and len(todo) > 1:
            yield from _with_processes(options, todo, lambda part: bar.update(sizes[part]))
        else:
            for part in todo:
                yield pipeline.build(part, bar.update)


_PIPELINE: Pipeline | None = None


def _start(options: BuildOptions, places: Any) -> None:
    """Load the pipeline of a process, on a GPU of its own where there are several."""
    global _PIPELINE
    import torch

    # Ctrl-C reaches the main process, which stops this one after its part.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _PIPELINE = Pipeline(options, _gpu(places.get()))


def _gpu(place: int) -> str | None:
    import torch

    return f"cuda:{place % torch.cuda.device_count()}" if torch.cuda.is_available() else None


def _build(part: int) -> int:
    _PIPELINE.build(part)
    return part


def _with_processes(options: BuildOptions, todo: Sequence[int], done: Callable[[int], Any]) -> Iterator[None]:
    context = get_context("spawn")
    places = context.Queue()
    for place in range(options.num_proc):
        places.put(place)
    with ProcessPoolExecutor(options.num_proc, context, _start, (options, places)) as pool:
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
    """The same pipeline for Ray Data: a batch is a part."""

    def __init__(self, options: BuildOptions):
        self.pipeline = Pipeline(options)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for part in batch["item"].tolist():
            self.pipeline.build(part)
        return batch


def _with_ray(options: BuildOptions, todo: Sequence[int], done: Callable[[int], Any]) -> Iterator[None]:
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
        fn_constructor_args=(options,),
        batch_size=1,
        num_gpus=gpus or None,
        compute=ray.data.ActorPoolStrategy(size=options.num_proc),
    )
    for row in built.iter_rows():
        yield done(row["item"])
