"""What the data loader costs: milliseconds a row on one core, by kind of work, for pictures of real size.

    python benchmarks/loader.py                       # LLaVA-1.5's processor, photos of 640 and 1344 pixels
    python benchmarks/loader.py --corruption crop inpaint transplant      # what each makes of the same rows

Photo-like JPEGs are made here; a row has one of them, a key region of a quarter of its area and two answers of 80 words. Work
is the time that this process spends on a core, with one thread, whoever else uses the machine; a row is read, its
dispreferred image made, both images encoded and all branches laid out in a packed row, as in a worker of the data loader.
`resizes` counts the pictures that were scaled, for a row.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from building.source import photo
from building.stages import Clock
from datasets import Dataset
from llava import GEOMETRIES, build_processor
from PIL import Image
from transformers import CLIPImageProcessorPil

from mfpo_trl import MFPOConfig
from mfpo_trl.batch import build_collator, collator
from mfpo_trl.batch.packing import PACKED_ROW
from mfpo_trl.images import corruptions, dispreferred

TARGET_MS = 40.0
SIZES = {"640x480": (640, 480), "1344x1008": (1344, 1008)}
REST = "texts, layout, the rest"


def rows(size: tuple[int, int], count: int) -> list[dict[str, Any]]:
    """Rows as `datasets` gives them to the collator: a picture is the bytes of its file, opened and not yet decoded."""
    rng = np.random.default_rng(0)
    width, height = size
    region = [width // 4, height // 4, 3 * width // 4, 3 * height // 4]
    answer = " ".join(f"w{n}" for n in range(10, 90))
    return [
        {
            "images": [{"bytes": photo(rng, width, height), "path": None}],
            "key_regions": [[region]],
            "prompt": f"<image> w{number} w11 w12",
            "chosen": f" {answer} w90 </s>",
            "rejected": f" {answer} w91 </s>",
        }
        for number in range(count)
    ]


@contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """The functions that do a collator's work, clocked by name."""
    places = {
        REST: [(collator.MFPOCollator, "__call__")],
        "decoding": [(collator, "load_images")],
        "row digest": [(dispreferred, "row_digest")],
        "region masks": [(dispreferred.DispreferredImages, "_regions")],
        "corruption": [(dispreferred.DispreferredImages, "_corrupted")],
        "image processor": [(CLIPImageProcessorPil, "preprocess")],
    }
    with ExitStack() as stack:
        for name, functions in places.items():
            for owner, attribute in functions:
                stack.enter_context(mock.patch.object(owner, attribute, clock.timed(name, getattr(owner, attribute))))
        yield


def measure(size: tuple[int, int], options: dict[str, Any], count: int, repeats: int) -> dict[str, Any]:
    """Milliseconds a row by kind of work, the least of several passes over the same rows; and resizes a row."""
    args = MFPOConfig(output_dir="unused", use_cpu=True, bf16=False, max_length=None, report_to="none", **options)
    own = rows(size, count)
    # Whose rows give regions to `transplant`; four at least, so that there are others.
    others = Dataset.from_list(own if count > 3 else rows(size, 4))
    collate = build_collator(args, build_processor(GEOMETRIES["llava-1.5-7b"]), others, PACKED_ROW)
    collate(own[:1])
    passes, resizes, original = [], 0, Image.Image.resize

    def resize(*args: Any, **kwargs: Any) -> Image.Image:
        nonlocal resizes
        resizes += 1
        return original(*args, **kwargs)

    for _ in range(repeats):
        clock = Clock(time.process_time)
        with watched(clock), mock.patch.object(Image.Image, "resize", resize):
            for row in own:
                collate([row])
        passes.append({name: 1000 * seconds / count for name, seconds in clock.seconds.items()})
    least = min(passes, key=lambda found: sum(found.values()))
    return {"ms": least, "total": sum(least.values()), "resizes": resizes / (repeats * count)}


def table(report: dict[str, Any]) -> str:
    """In Markdown a line a kind of work, a column a size."""
    names = list(dict.fromkeys(name for found in report.values() for name in found["ms"]))
    lines = [f"| ms a row on one core | {' | '.join(report)} |", "|---|" + "---:|" * len(report)]
    greatest = {name: max(found["ms"].get(name, 0.0) for found in report.values()) for name in names}
    for name in sorted(names, key=lambda name: -greatest[name]):
        cells = [f"{found['ms'].get(name, 0.0):.1f}" for found in report.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    totals = [f"{found['total']:.1f}" for found in report.values()]
    lines.append(f"| all (target {TARGET_MS:.0f}) | {' | '.join(totals)} |")
    resizes = [f"{found['resizes']:.0f}" for found in report.values()]
    lines.append(f"| resizes | {' | '.join(resizes)} |")
    return "\n".join(lines)


def comparison(reports: dict[str, Any]) -> str:
    """In Markdown a line a corruption: its own milliseconds a row, and those of all work, at each size."""
    lines = [f"| ms a row on one core: corruption / all | {' | '.join(SIZES)} |", "|---|" + "---:|" * len(SIZES)]
    for name, report in reports.items():
        cells = [f"{found['ms'].get('corruption', 0.0):.1f} / {found['total']:.1f}" for found in report.values()]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--corruption",
        nargs="+",
        choices=sorted({*corruptions.CORRUPTIONS} - {corruptions.GENERATE}),
        default=["diffusion"],
    )
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5, help="passes over the rows, the quickest of which counts")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    reports = {
        corruption: {
            name: measure(size, {"corruption": corruption}, args.rows, args.repeats) for name, size in SIZES.items()
        }
        for corruption in args.corruption
    }
    report = reports[args.corruption[0]]
    print(table(report) if len(reports) == 1 else comparison(reports))
    if args.output:
        args.output.write_text(json.dumps(report if len(reports) == 1 else reports, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
