"""What a build did: counts of a part, their sum, a table, the rejected rows and the data set's card."""

import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ...order import stages
from .. import Rejected, Row
from ..mirror import MADE, STEPS
from .parts import replace

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
QUOTED = re.compile(r"'[^']*[/.][^']*'")
PATH = re.compile(r"(?<![\w…])(?:~|\.{1,2})?/[^\s,;:'\")]+")
"""One that is not quoted."""
LARGE, SMALL = 0.8, 0.005
"""Shares of the image beyond which regions are hardly key regions."""


class Said(NamedTuple):
    """What is said of a build beside what is said of every one: in its report, its table, its card and its warnings."""

    report: Mapping[str, Any] = {}
    lines: Mapping[str, str] = {}
    section: str = ""
    warnings: Sequence[str] = ()


class PartReport:
    """Collects the counts and times of a part while it is built.

    Attributes:
        counts: whatever else is counted, by name.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter()
        self.rejected: list[dict[str, Any]] = []

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time of a block."""
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start

    def kept(self, found: Sequence[Row | Rejected], numbers: Sequence[int]) -> list[Row]:
        """The rows that can be used, with the number of their source row; the others are noted."""
        rows = []
        for row, number in zip(found, numbers, strict=True):
            if isinstance(row, Rejected):
                self.rejected.append({"row": number, "reason": str(row)})
            else:
                rows.append({**row, "number": number})
        return rows

    def summary(self, rows: Sequence[Row], rows_in: int) -> dict[str, Any]:
        """What is stored beside the part."""
        with_images = [row for row in rows if row["images"]]
        return {
            "rows_in": rows_in,
            "rows_out": len(rows),
            "with_images": len(with_images),
            "ungrounded": sum(not row["grounded"] for row in with_images),
            "areas": [round(row["mask_area"], 6) for row in with_images if row["grounded"]],
            "keywords": sum(len(row["keywords"]) for row in rows),
            "equal_answers": sum(row["chosen"] == row["rejected"] for row in rows),
            "mirror": dict(Counter(row["mirror"] for row in rows if row.get("mirror"))),
            "seconds": dict(self.seconds),
            "counts": dict(self.counts),
            "rejected": sorted(self.rejected, key=lambda one: one["row"]),
        }


def total(reports: Sequence[Mapping[str, Any]], wall: float, grounds: bool = True) -> dict[str, Any]:
    """The report of a build, from those of its parts.

    Args:
        reports: as `PartReport.summary` gives them.
        wall: seconds of the last run that built something.
        grounds: whether regions were looked for; without, none can fail.
    """
    sums = {name: sum(report[name] for report in reports) for name in ("rows_in", "rows_out", "with_images")}
    areas = np.array([area for report in reports for area in report["areas"]])
    seconds: Counter[str] = Counter()
    for report in reports:
        seconds.update(report["seconds"])
    rejected = [one for report in reports for one in report["rejected"]]
    warnings = [
        f"{share:.0%} of the rows have regions that cover {what} of the image"
        for share, what in (
            (float((areas > LARGE).mean()) if len(areas) else 0, f"over {LARGE:.0%}"),
            (float((areas < SMALL).mean()) if len(areas) else 0, f"under {SMALL:.1%}"),
        )
        if share > 0.05
    ]
    ungrounded = sum(report["ungrounded"] for report in reports)
    if ungrounded and grounds:
        warnings.append(
            f"{ungrounded} rows have no region: training corrupts their whole image, and refuses them under "
            "--corruption_region key"
        )
    return {
        **sums,
        "rejected": len(rejected),
        "rejected_by_reason": dict(Counter(kind(one["reason"]) for one in rejected).most_common()),
        "equal_answers": sum(report["equal_answers"] for report in reports),
        "grounding_failure_rate": ungrounded / max(sums["with_images"], 1) if grounds else None,
        "mask_area_quantiles": {f"{q:.0%}": float(np.quantile(areas, q)) for q in QUANTILES} if len(areas) else {},
        **_mirrored(reports),
        "keywords_per_row": sum(report["keywords"] for report in reports) / max(sums["rows_out"], 1),
        "seconds_per_stage": {name: round(value, 3) for name, value in seconds.items()},
        "wall_seconds": round(wall, 3),
        "warnings": warnings,
    }


def _mirrored(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many rows got through each step towards a twin, and why the others did not; empty where no twins were made."""
    found: Counter[str] = Counter()
    for report in reports:
        found.update(report.get("mirror", {}))
    if not found:
        return {}
    left: Counter[str] = Counter()
    for reason, count in found.items():
        if reason != MADE:
            left[kind(reason)] += count
    through, rows = {}, sum(found.values())
    for step in STEPS:
        rows -= sum(count for reason, count in found.items() if reason.startswith(f"{step}: "))
        through[step] = rows
    return {"mirror": {"rows": sum(found.values()), **through, "left_out_by_reason": dict(left.most_common())}}


def kind(reason: str) -> str:
    """A reason without what is particular to its row, and without any place on this machine."""
    reason = re.sub(r"^(?:a row|row \d+)(?: \(prompt .*\))?, (?=field )", "", reason, flags=re.DOTALL)
    return re.sub(rf"{QUOTED.pattern}|{PATH.pattern}|\b\d+\b", "…", reason)[:100]


def finish(options: Any, pipeline: Any, wall: float | None) -> None:
    """Write what is known when all parts are there: stages, `rejects.jsonl`, `report.json`, the card; and say it.

    Args:
        options, pipeline: of the build.
        wall: seconds of this run; None where it had nothing to build, and an earlier run's stay.
    """
    from .card import write_card

    reports = pipeline.parts.reports()
    folder: Path = options.output
    lines = [json.dumps(one, ensure_ascii=False) for report in reports for one in report["rejected"]]
    replace(folder / "rejects.jsonl", lambda path: path.write_text("".join(f"{line}\n" for line in lines), "utf-8"))
    pipeline.parts.finish(partial(stages, count=options.stages), _commonest(reports))
    if wall is None:
        wall = _wall_before(folder)
    report, said = total(reports, wall, options.grounder != "none"), pipeline.more(reports)
    if "mirror" in report and not options.detects:
        asked = f"--grounder {options.grounder} has none"
        report["warnings"].append(f"no detector has looked at the twins, before or after the edit: {asked}")
    told = {name: without_folder(value) for name, value in options.remembered(pipeline.count).items()}
    report |= {"source": pipeline.source, "options": told, **said.report}
    report["warnings"] += said.warnings
    replace(
        folder / "report.json", lambda path: path.write_text(json.dumps(report, indent=2, default=str) + "\n", "utf-8")
    )
    show(report, folder, said.lines)
    write_card(options, report, said.section)


def _twins(found: Mapping[str, Any]) -> str:
    """The steps towards twins in words."""
    steps = ", ".join(f"{step} {found[step]}" for step in STEPS)
    reasons = "".join(f"\n{count} × {reason}" for reason, count in found["left_out_by_reason"].items())
    return f"{found[STEPS[-1]]} of {found['rows']} rows; left after each step: {steps}{reasons}"


def _commonest(reports: Sequence[Mapping[str, Any]]) -> str:
    """What a build without rows says of its commonest reason, and of its first row where the rows differ in it."""
    rejected = [one for report in reports for one in report["rejected"]]
    for reason, count in Counter(kind(one["reason"]) for one in rejected).most_common(1):
        first = next(one for one in rejected if kind(one["reason"]) == reason)
        said = f", {count} of {len(rejected)} because: {reason}"
        return f"{said}; the first: row {first['row']}, {first['reason']}" if "…" in reason else said
    return ""


def without_folder(value: Any) -> Any:
    """A local path by its name only: where it lies is nobody else's business, and the report goes to the Hub."""
    if isinstance(value, Mapping):
        return {name: without_folder(own) for name, own in value.items()}
    is_path = isinstance(value, str) and value and (Path(value).exists() or value.startswith(("/", "./", "../", "~")))
    return Path(value).resolve().name if is_path else value


def _wall_before(folder: Path) -> float:
    path = folder / "report.json"
    return json.loads(path.read_text("utf-8"))["wall_seconds"] if path.exists() else 0.0


def show(report: Mapping[str, Any], folder: Path, more: Mapping[str, str] = MappingProxyType({})) -> None:
    """The report as a table on the terminal, with more lines in it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Reasons quote rows, whose brackets are no markup.
    table = Table(title=Text(f"Built {folder}"), show_header=False)
    quantiles = "\n".join(
        f"{name:>3} of them at most {value:.1%} of the image" for name, value in report["mask_area_quantiles"].items()
    )
    spent = sum(report["seconds_per_stage"].values())
    rate = report["grounding_failure_rate"]
    reasons = "".join(f"\n{count} × {reason}" for reason, count in report["rejected_by_reason"].items())
    lines = {
        "rows of the source": report["rows_in"],
        "rows built": f"{report['rows_out']} ({report['with_images']} with images)",
        "rejected": f"{report['rejected']}, see rejects.jsonl{reasons}" if report["rejected"] else 0,
        **more,
        "chosen equals rejected": report["equal_answers"],
        "grounding failed": "nothing was grounded"
        if rate is None or not report["with_images"]
        else f"{rate:.1%} of the rows with images (whole image)",
        "regions cover": quantiles or "-",
        **({"twins": _twins(report["mirror"])} if "mirror" in report else {}),
        "key words a row": f"{report['keywords_per_row']:.1f}",
        **{
            f"seconds, {stage}": f"{seconds:.1f} ({seconds / max(spent, 1e-9):.0%})"
            for stage, seconds in report["seconds_per_stage"].items()
        },
    }
    for name, value in lines.items():
        table.add_row(Text(name), Text(str(value)))
    console = Console()
    console.print(table)
    for warning in report["warnings"]:
        console.print(f"Warning: {warning}.", style="yellow")
