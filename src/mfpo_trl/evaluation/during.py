"""A benchmark that is asked and scored again and again on the same questions, as while a model is trained."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .benchmarks import BENCHMARKS
from .benchmarks import build_parser as build_score_parser
from .figures import Result, read_rows
from .generation import BENCHMARKS as ASKED
from .generation import (
    TEXT,
    TRUTH,
    Decoding,
    Kept,
    Prompt,
    answer,
    line_of,
    question_files,
    read_prompts,
    share,
    spread,
)

DURING = ("amber", "chair", "pope")
"""Benchmarks whose scorers need no judge."""

SYNONYMS = "synonyms.txt"
PLAIN = ("all", "macro", "generative")
"""Groups of figures that are not named: what a benchmark is known for."""


@dataclass
class Scored:
    """One evaluation: the prompts, the answer to each, and the figures by name."""

    prompts: Sequence[Prompt]
    texts: Sequence[str]
    figures: Mapping[str, float]


class During:
    """Questions of a benchmark, and their scorer.

    Args:
        name: in `DURING`.
        folder: with the files and pictures of the benchmark, and for CHAIR with what the pictures show: `ground_truth.json`, or the
            annotations of COCO.
        rows: at most so many questions, evenly spread over each part that is there.
        max_new_tokens: of an answer.

    Raises:
        ValueError: what is missing and where to get it, or what cannot be read.
    """

    def __init__(self, name: str, folder: Path | str, rows: int = 200, max_new_tokens: int = 256):
        self.name, self.decoding, folder = name, Decoding(max_new_tokens), Path(folder)
        there = [part for part in ASKED[name].files if _is_there(name, folder, part)]
        self.prompts = spread(read_prompts(name, folder, there), rows)
        # Only what is asked, so that nothing else counts as unanswered, and nothing large is read again.
        self._own = TemporaryDirectory(prefix="mfpo-benchmark-")
        self._options = {"amber": self._of_amber, "chair": self._of_chair, "pope": self._of_pope}[name](folder)
        blank = self.score([""] * len(self.prompts))
        self.better: dict[str, bool | None] = {
            name: measure.higher_is_better for name, measure in _measures(self.name, blank).items()
        }
        """Of each figure, whether a higher one is better; None where neither is."""

    def answer(
        self, model: Any, processor: Any, batch_size: int, process: int = 0, processes: int = 1, **options: Any
    ) -> list[tuple[int, str]]:
        """What one of several processes answers, by the numbers of the prompts.

        Every process has as many prompts, some of them twice, so that those which share out a model stay in step.

        Args:
            model: in evaluation mode.
            options: of `generate`.
        """
        numbers = {id(prompt): number for number, prompt in enumerate(self.prompts)}
        own = share(self.prompts, process, processes)
        longest = -(-len(self.prompts) // processes)
        own += (own or list(self.prompts))[:1] * (longest - len(own))
        batches = answer(model, processor, own, self.decoding, batch_size, **options)
        return [(numbers[id(prompt)], text) for batch in batches for prompt, text in batch]

    def scored(self, answers: Sequence[tuple[int, str]]) -> Scored:
        """The figures of the answers of all processes, by the names that they are logged under."""
        texts = dict(answers)
        assert len(texts) == len(self.prompts)
        ordered = [texts[number] for number in range(len(self.prompts))]
        measures = _measures(self.name, self.score(ordered))
        return Scored(self.prompts, ordered, {name: float(one.figure().value) for name, one in measures.items()})

    def score(self, texts: Sequence[str]) -> Result:
        """The result of these answers, one a prompt; raises as the scorer does."""
        args = self._parsed(self.write(texts, Path(self._own.name, "answers.jsonl")))
        return BENCHMARKS[self.name].score(args, args.responses)

    def write(self, texts: Sequence[str], output: Path) -> list[str]:
        """Answers into this file, or into one beside it for each part, as `mfpo score` reads them; the names of the files."""
        kept = Kept(output, self.prompts, ASKED[self.name].apart)
        lines: dict[Path, list[str]] = {path: [] for path in kept.order}
        for prompt, text in zip(self.prompts, texts, strict=True):
            lines[kept.paths[prompt.part]].append(line_of({**prompt.row, TEXT: text}))
        for path, own in lines.items():
            path.write_text("".join(own), encoding="utf-8", errors="replace")
        return list(map(str, kept.order))

    def _parsed(self, responses: Sequence[str]) -> argparse.Namespace:
        return build_score_parser().parse_args([self.name, "--responses", *responses, *self._options])

    # Options of each scorer

    def _of_amber(self, folder: Path) -> list[str]:
        return ["--data", str(folder)]

    def _of_pope(self, folder: Path) -> list[str]:
        asked = {(prompt.part, str(prompt.row["question_id"])) for prompt in self.prompts}
        paths = []
        for part, file in question_files(
            "pope", folder, list(dict.fromkeys(own.part for own in self.prompts))
        ).items():
            rows = [row for _, row in read_rows(file) if (part, str(row["question_id"])) in asked]
            paths.append(Path(self._own.name, file.name))
            paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return ["--questions", *map(str, paths)]

    def _of_chair(self, folder: Path) -> list[str]:
        from .benchmarks import Truth

        own = ["--synonyms", str(folder / SYNONYMS)] if (folder / SYNONYMS).is_file() else []
        if (folder / TRUTH).is_file():
            given = ["--ground-truth", str(folder / TRUTH)]
        else:
            annotations = folder / "annotations"
            given = ["--coco-annotations", str(annotations if annotations.is_dir() else folder)]
        self._options = [*given, *own]
        source = Truth(self._parsed(["-"]))
        images = [str(prompt.row["image_id"]) for prompt in self.prompts]
        truth = source.of(images)
        unknown = [image for image in images if image not in truth]
        if unknown:
            raise ValueError(f"image {unknown[0]} is not among {source.what}")
        path = Path(self._own.name, TRUTH)
        path.write_text(json.dumps({image: sorted(truth[image]) for image in images}), encoding="utf-8")
        return ["--ground-truth", str(path), *own]


def _is_there(name: str, folder: Path, part: str) -> bool:
    try:
        return bool(question_files(name, folder, [part]))
    except ValueError:
        return False


def _measures(name: str, result: Result) -> dict[str, Any]:
    """Every measure of a result by the name that it is logged under: `chair_s`, `pope_f1`, `amber_discriminative_f1`."""
    found = {}
    for group, own in result.groups.items():
        plain = group in PLAIN or len(result.groups) == 1
        for measure, one in own.all().items():
            words = [name, *([] if plain else [group]), measure]
            found["_".join(words[1:] if len(words) == 2 and measure.startswith(f"{name}_") else words)] = one
    return found
