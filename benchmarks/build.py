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
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

# Heavy modules are imported in functions: with --memory this process has to stay smaller than the builds it starts, because
# Linux counts into a child's peak what its parent held when it was started.

TARGET_MS, TARGET_RATIO, TARGET_GROWTH = 15.0, 1.7, 0.10
BATCH = 8
MEMORY_ROWS = (10_000, 100_000)
ADJECTIVES = "small large red wooden old bright empty round tall dark green broken striped narrow".split()
NOUNS = (
    "dog cat horse bird table window street car bicycle tree bench bottle lamp chair woman child bridge boat clock door "
    "plate kite umbrella train fence river mountain building flower basket"
).split()
VERBS = "stands beside|sits near|lies under|waits behind|leans against|hangs above|looks towards|moves past".split("|")


# A source and models, made here


def photo(rng: np.random.Generator, width: int = 640, height: int = 480) -> bytes:
    """A JPEG of quality 90 with gradients, blobs and fine texture, about 100 kB at its default size."""
    picture = np.zeros((height, width, 3), dtype=np.float32)
    for cells, strength in ((2, 80.0), (6, 40.0), (20, 25.0), (60, 14.0), (200, 8.0)):
        grid = rng.integers(0, 256, (max(2, cells * height // width), cells, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
        picture += (smooth - 128) / 128 * strength
    picture += rng.normal(0, 7, picture.shape).astype(np.float32)
    file = io.BytesIO()
    Image.fromarray(np.clip(picture + 128, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def caption(rng: np.random.Generator, words: int = 80) -> str:
    """Sentences in the manner of a description, `words` words in all."""
    found: list[str] = []
    while len(found) < words:
        one, other = rng.choice(NOUNS, 2, replace=False)
        first, second = rng.choice(ADJECTIVES, 2)
        found += f"The {first} {one} {rng.choice(VERBS)} the {second} {other}.".split()
    return " ".join(found[:words])


def make_source(
    folder: Path, rows: int, pictures: int = 16, size: tuple[int, int] = (640, 480), words: int = 80
) -> str:
    """A JSON lines file of `rows` rows over a few pictures, as the path that `--dataset` takes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n in range(pictures):
        (folder / f"{n}.jpg").write_bytes(photo(rng, *size))
    answers = [caption(rng, words) for _ in range(2 * min(rows, 512))]
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for n in range(rows):
            chosen, rejected = answers[2 * n % len(answers)], answers[(2 * n + 1) % len(answers)]
            row = {"id": f"row-{n}", "prompt": f"Describe image {n}.", "images": [f"{n % pictures}.jpg"]}
            file.write(json.dumps({**row, "chosen": chosen, "rejected": rejected}) + "\n")
    return str(folder / "rows.jsonl")


TINY_DINO = {
    "backbone_config": {
        "model_type": "swin",
        "image_size": 64,
        "embed_dim": 8,
        "depths": [1, 1, 1],
        "num_heads": [1, 2, 2],
        "window_size": 4,
        "out_indices": [2, 3],
    },
    "num_feature_levels": 3,
    "d_model": 32,
    **{
        f"{part}_{name}": n
        for part in ("encoder", "decoder")
        for name, n in (("layers", 2), ("ffn_dim", 16), ("attention_heads", 2))
    },
    "num_queries": 12,
}
TINY_BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TINY_SAM = {
    "vision_config": {
        "hidden_size": 16,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "window_size": 4,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
        "mlp_dim": 16,
    },
    "prompt_encoder_config": {
        "hidden_size": 16,
        "image_size": 64,
        "patch_size": 8,
        "image_embedding_size": 8,
        "mask_input_channels": 4,
    },
    "mask_decoder_config": {
        "hidden_size": 16,
        "mlp_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    },
}
TINY_SAM_IMAGES = {
    "size": {"longest_edge": 64},
    "pad_size": {"height": 64, "width": 64},
    "mask_size": {"longest_edge": 32},
    "mask_pad_size": {"height": 32, "width": 32},
}


def save_models(folder: Path, geometry: str) -> dict[str, str]:
    """Grounding DINO and SAM with random weights, "tiny" or "full" (the defaults of transformers, which are Grounding DINO
    tiny and SAM ViT-B), as options of a build."""
    import torch
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoProcessor,
        SamConfig,
        SamModel,
        SamProcessor,
    )
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    tiny = geometry == "tiny"
    torch.manual_seed(0)
    # The ids of these tokens are those of BERT's vocabulary, which the model has hard-coded.
    fixed = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    fixed |= {word: 1030 + n for n, word in enumerate([*ADJECTIVES, *NOUNS])}
    size = 1100 if tiny else 30522
    taken = set(fixed.values())
    vocabulary = {f"[unused{n}]": n for n in range(size) if n not in taken} | fixed
    tokenizer = BertTokenizer(vocab=dict(sorted(vocabulary.items(), key=lambda item: item[1])), do_lower_case=True)
    text = BertConfig(vocab_size=size, **(TINY_BERT if tiny else {}))
    detector = GroundingDinoForObjectDetection(GroundingDinoConfig(text_config=text, **(TINY_DINO if tiny else {})))
    segmenter = SamModel(SamConfig(**(TINY_SAM if tiny else {})))
    if tiny:
        _enlarge(detector, lambda name: 1.0 if "bbox" in name else 3.0)
        _enlarge(segmenter, lambda name: 8.0 if "mask_decoder" in name else 3.0)
    detector.save_pretrained(folder / "dino")
    segmenter.save_pretrained(folder / "sam")
    edges = {"size": {"shortest_edge": 48, "longest_edge": 96}} if tiny else {}
    GroundingDinoProcessor(GroundingDinoImageProcessorPil(**edges), tokenizer).save_pretrained(folder / "dino")
    SamProcessor(SamImageProcessorPil(**(TINY_SAM_IMAGES if tiny else {}))).save_pretrained(folder / "sam")
    return {
        "grounder": "grounding-dino-sam",
        "grounder_model": str(folder / "dino"),
        "segmenter_model": str(folder / "sam"),
    }


def _enlarge(model: Any, factor: Callable[[str], float]) -> None:
    """Weights large enough that outputs differ between places, as those of trained models do."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(factor(name))


# Stages, and the work on a core


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
                _options(folder / f"stages-{n}-{name}", dataset, grounder, device, materialize=stored)
            )
            for name, stored in (("recipe", False), ("materialize", True))
        }
        for n in range(repeats)
    ]
    return median(rounds)


def _options(output: Path, dataset: str, grounder: dict[str, str], device: str, **own: Any) -> Any:
    from mfpo_trl.data.pipeline import BuildOptions

    return BuildOptions(
        dataset=dataset, output=output, device=device, batch_size=BATCH, progress=False, **grounder, **own
    )


# Processes


def ready(options: Any, places: Any) -> None:
    """Start a process of a build, its models loaded and a first batch built; wait for the other ones, and note when that was
    done."""
    from mfpo_trl.data import build
    from mfpo_trl.data.writing.report import PartReport

    build._start(options, places)
    build._PIPELINE._batch(range(min(options.batch_size, build._PIPELINE.count)), PartReport())
    (options.output / f"ready-{os.getpid()}").touch()
    # Otherwise the first one would build what is meant for the others.
    while len(list(options.output.glob("ready-*"))) < options.num_proc:
        time.sleep(0.01)
    (options.output / f"started-{os.getpid()}").write_text(repr(time.time()), encoding="utf-8")


def processes_rate(options: Any, processes: int) -> tuple[float, float]:
    """Rows a second from when all processes were ready, and seconds until then."""
    from mfpo_trl.data import build
    from mfpo_trl.data.writing.parts import remember

    options = replace(options, num_proc=processes)
    pipeline = build.Pipeline(options)
    remember(options.output, {})
    todo = pipeline.parts.missing()
    if len(todo) < processes:
        raise ValueError(f"{len(todo)} parts for {processes} processes; give more --rows")
    started = time.time()
    with mock.patch.object(build, "_start", ready):
        for _ in build._with_processes(options, todo, lambda part: None):
            ended = time.time()
    times = [float(path.read_text(encoding="utf-8")) for path in options.output.glob("started-*")]
    return pipeline.count / (ended - max(times)), max(times) - started


def spin(n: int) -> float:
    """Work that needs a core and nothing else; returns the time when it was done."""
    data = bytes(2**20)
    for _ in range(400):
        hashlib.blake2b(data).digest()
    return time.time()


def spin_rate(processes: int) -> float:
    """Pieces of `spin` a second: what more processes give on this machine, now, to work that shares nothing."""
    with get_context("spawn").Pool(processes) as pool:
        pool.map(spin, range(processes), 1)
        started = time.time()
        return 4 * processes / (max(pool.map(spin, range(4 * processes), 1)) - started)


def scaling_report(
    folder: Path, dataset: str, rows: int, grounder: dict[str, str], device: str, repeats: int, processes: int
) -> dict[str, float]:
    """Rows a second of 1 process and of several, taking turns: medians."""
    # Equal shares, small enough that nobody waits long for the last part.
    size, rounds = max(BATCH, rows // (4 * processes)), []
    for n in range(repeats):
        one, many = (
            processes_rate(_options(folder / f"scaling-{n}-{count}", dataset, grounder, device, part_rows=size), count)
            for count in (1, processes)
        )
        spun = spin_rate(processes) / spin_rate(1)
        rounds.append({"one": one[0], "many": many[0], "ratio": many[0] / one[0], "start, s": many[1], "spin": spun})
    return median(rounds)


# Memory

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


# Shown


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
