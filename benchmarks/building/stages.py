"""The stages of a build, and its work on a core by kind."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

BATCH = 8


class Clock:
    """Adds up the time of functions by name, each without that of the clocked functions that it calls.

    Args:
        now: the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.process_time):
        self.now, self.seconds = now, Counter()
        self._running: list[str] = []
        self._since = 0.0

    def timed(self, name: str, function: Callable) -> Callable:
        """The function, its time counted under `name`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self._count()
            self._running.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self._count()
                self._running.pop()

        return run

    def _count(self) -> None:
        now = self.now()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


MODELS = ("models: forward", "models: image processors, masks at full size")
REST = "the rest"


@contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """The functions that do a build's work, clocked by name."""
    from transformers import GroundingDinoForObjectDetection, SamModel

    from mfpo_trl.data import stages
    from mfpo_trl.data.grounding.grounders import ModelGrounder, NoRegions, RandomRegions
    from mfpo_trl.data.pipeline import Pipeline
    from mfpo_trl.data.reading.files import JsonRows
    from mfpo_trl.data.writing.parts import Parts
    from mfpo_trl.images import dispreferred

    functions = {
        REST: [(Pipeline, "build")],
        "reading lines and files, schema": [(JsonRows, "read"), (stages.Read, "__call__")],
        "decoding": [(stages, "load_images")],
        "key words": [(stages.Keywords, "__call__")],
        MODELS[0]: [
            (GroundingDinoForObjectDetection, "forward"),
            (SamModel, "forward"),
            (SamModel, "get_image_embeddings"),
        ],
        MODELS[1]: [(ModelGrounder, "ground")],
        "region masks, RLE": [
            (RandomRegions, "ground"),
            (NoRegions, "ground"),
            (stages.Regions, "_with_regions"),
            (dispreferred.DispreferredImages, "masks"),
        ],
        "row digest": [(dispreferred, "row_digest")],
        "noise": [(dispreferred.DispreferredImages, "_corrupted")],
        "PNG": [(stages, "_png")],
        "parquet": [(Parts, "write"), (Parts, "finish")],
    }
    with ExitStack() as stack:
        for name, places in functions.items():
            for owner, attribute in places:
                stack.enter_context(mock.patch.object(owner, attribute, clock.timed(name, getattr(owner, attribute))))
        yield


def measure_stages(options: Any) -> dict[str, Any]:
    """Build all parts in this process.

    Returns:
        "rows_per_second"; "stages": wall milliseconds a row as the build itself counts them, parquet added; "cpu": milliseconds
        a row on a core by kind of work; "regions" a row and "runs" of a region's run-length encoding.
    """
    import pyarrow.parquet as pq

    from mfpo_trl.data.pipeline import Pipeline
    from mfpo_trl.data.writing.parts import remember
    from mfpo_trl.data.writing.report import PartReport
    from mfpo_trl.order.curriculum import stages

    pipeline = Pipeline(options)
    remember(options.output, {})
    pipeline._batch(range(min(options.batch_size, pipeline.count)), PartReport())
    clock = Clock()
    with watched(clock):
        started = time.perf_counter()
        for part in pipeline.parts.missing():
            pipeline.build(part)
        pipeline.parts.finish(stages)
        wall = time.perf_counter() - started
    seconds: Counter[str] = Counter()
    for report in pipeline.parts.reports():
        seconds.update(report["seconds"])
    # The build's own "storage" leaves out the writing, which is all that its stages leave out.
    seconds["storage"] += wall - sum(seconds.values())
    rows = [
        row
        for path in sorted(options.output.glob("data/*.parquet"))
        for row in pq.read_table(path, columns=["key_regions"]).to_pylist()
    ]
    regions = [region for row in rows for own in row["key_regions"] for region in own]
    runs = [len(region["rle"]["counts"]) for region in regions]
    if len(rows) != pipeline.count:
        raise RuntimeError(f"{pipeline.count - len(rows)} rows of the benchmark's own source were rejected")
    return {
        "rows_per_second": len(rows) / wall,
        "stages": {name: 1000 * value / len(rows) for name, value in seconds.items()},
        "cpu": {name: 1000 * value / len(rows) for name, value in clock.seconds.items()},
        "regions": len(regions) / len(rows),
        "runs": sum(runs) / max(len(runs), 1),
    }


def outside(cpu: dict[str, float]) -> float:
    """Milliseconds a row on a core that no model is the cause of."""
    return sum(value for name, value in cpu.items() if name not in MODELS)


def median(found: list[Any]) -> Any:
    """Medians of equal nests of figures; what a repeat lacks counts 0."""
    if isinstance(found[0], dict):
        return {
            name: median([one.get(name, 0.0) for one in found]) for name in dict.fromkeys(n for o in found for n in o)
        }
    return statistics.median(found)


def stages_report(folder: Path, dataset: str, grounder: dict[str, str], device: str, repeats: int) -> dict[str, Any]:
    """`measure_stages` without and with `--materialize`: medians of builds that take turns."""
    rounds = [
        {
            name: measure_stages(
                options_of(folder / f"stages-{n}-{name}", dataset, grounder, device, materialize=stored)
            )
            for name, stored in (("recipe", False), ("materialize", True))
        }
        for n in range(repeats)
    ]
    return median(rounds)


def options_of(output: Path, dataset: str, grounder: dict[str, str], device: str, **own: Any) -> Any:
    from mfpo_trl.data.pipeline import BuildOptions

    return BuildOptions(
        dataset=dataset, output=output, device=device, batch_size=BATCH, progress=False, **grounder, **own
    )
