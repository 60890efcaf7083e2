"""Rows of images and prompts, and the answers to them: none is asked for twice, and none is lost."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ..data import Rejected, Row, each
from ..data.reading import IMAGE, asked, image_bytes, read_masks
from ..endpoint import EndpointError
from ..evaluation.generation import Drawing, Kept, Prompt, images_of, question_of
from ..rows import load_images, plain_text, row_digest, row_generator
from .options import SHIPPED
from .policies import Asked, Policy

ANSWERS = "answers.jsonl"
"""What keeps the answers of a part until it is built."""

ENDS = (ImportError, EndpointError, MemoryError)
"""Errors that are no row's fault."""


class ReadPrompt:
    """A row as published -> a row with `images`, `pictures` and `prompt`, and what it was under `published`.

    Args:
        roots: where image paths may lead (`reading.image_roots`).
        questions: one is drawn, by the row's images, for a row that asks nothing itself; none to set such rows aside.
    """

    def __init__(self, roots: Sequence[Path], questions: Sequence[str] = ()):
        self.roots, self.questions = roots, questions

    def __call__(self, raw: Mapping[str, Any] | Exception, number: int) -> list[Row | Rejected]:
        """The row, or why it cannot be used."""
        if isinstance(raw, Exception):
            return [Rejected(str(raw))]
        try:
            return [self._read(raw, number)]
        except Exception as error:
            return [
                Rejected(str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}")
            ]

    def _read(self, raw: Mapping[str, Any], number: int) -> Row:
        images = [image_bytes(own, self.roots) for own in images_of(raw)]
        if not images:
            raise ValueError("the row has no image; there is nothing to look at")
        row: Row = {"id": str(raw.get("id") or f"row {number}"), "images": images, "published": raw}
        row["pictures"] = load_images(row, "image")
        row["prompt"] = asked(self._question(raw, images), len(images))
        if not plain_text(row["prompt"]).replace(IMAGE, "").strip():
            raise ValueError("field 'prompt' is empty; there is nothing to answer")
        if raw.get("key_regions"):
            row["key_regions"] = read_masks(raw["key_regions"], self.roots)
        return row

    def _question(self, raw: Mapping[str, Any], images: Sequence[Mapping[str, Any]]) -> Any:
        if self.questions and not any(_asks(raw.get(name)) for name in ("prompt", "question", "query")):
            digest = hashlib.blake2b(b"".join(own["bytes"] for own in images), digest_size=8).digest()
            return self.questions[int.from_bytes(digest, "little") % len(self.questions)]
        try:
            return question_of(raw)
        except ValueError as error:
            raise ValueError(
                str(error).replace("ask the same of every row with --prompt", "ask with --questions")
            ) from None


def _asks(prompt: Any) -> bool:
    """Whether a prompt says anything beside where its images stand."""
    return bool(prompt.replace(IMAGE, "").strip() if isinstance(prompt, str) else prompt)


def read_questions(name: str | None) -> list[str]:
    """The questions of a file, one a line; those that come with the package for "shipped".

    Raises:
        ValueError: a file that cannot be read, or holds none.
    """
    if name is None:
        return []
    path = SHIPPED if name == "shipped" else Path(name)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--questions {name}: cannot be read ({error}); expected a file of one question a line"
        ) from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(f"--questions {name}: holds no question; expected one a line")
    return found


def seeds_of(row: Row, seed: int, count: int, purpose: str = "") -> list[int]:
    """The seed of each answer to a row: from what it asks and shows, and never from its place."""
    digest = row_digest(row["prompt"], row["pictures"])
    return [
        int(row_generator(digest, seed, f"answer {purpose}", position).integers(2**31)) for position in range(count)
    ]


class Asking:
    """Asks a policy, and keeps its answers in files until their part is built.

    Args:
        policy: called when it is needed: a part that was answered before is built without it.
        who: what tells it from other policies.
        drawing: how answers are drawn.
        seed, samples: of each prompt.
    """

    def __init__(self, policy: Callable[[], Policy], who: str, drawing: Drawing, seed: int, samples: int):
        self.policy, self.drawing, self.seed, self.samples = policy, drawing, seed, samples
        self.how = json.dumps([who, asdict(drawing)])

    def answers(
        self, rows: Sequence[Row], path: Path, begun: Sequence[str] = (), purpose: str = ""
    ) -> list[list[str] | Rejected]:
        """The answers to each row, or why it has none.

        Args:
            path: of the file that keeps them, and others beside them.
            begun: how the answers to each row begin.
            purpose: tells answers of one row apart that are asked for one after another.

        Raises:
            EndpointError: a server did not answer; what it answered before is kept.
        """
        starts = {row["number"]: own for row, own in zip(rows, begun or [""] * len(rows), strict=True)}
        seeds = {row["number"]: seeds_of(row, self.seed, self.samples, purpose) for row in rows}
        of_row = {
            number: [
                Prompt({"row": number, "sample": n, "asked": self._asked(seed, starts[number])}, (), list)
                for n, seed in enumerate(own)
            ]
            for number, own in seeds.items()
        }
        kept = Kept(path, [own for prompts in of_row.values() for own in prompts], shared=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept.take_in()
        missing: dict[int, list[int]] = {}
        for own in kept.pending():
            missing.setdefault(own.row["row"], []).append(own.row["sample"])

        def ask(todo: list[Row]) -> list[Row | Rejected]:
            wanted = [
                Asked(
                    Prompt({"row": row["number"]}, row["prompt"], partial(_files, row)),
                    seeds[row["number"]],
                    missing[row["number"]],
                    starts[row["number"]],
                )
                for row in todo
            ]
            for number, texts in self.policy().answer(wanted, self.drawing):
                own = of_row[todo[number]["number"]]
                kept.add([(own[sample], text) for sample, text in texts])
            return list(todo)

        todo = [row for row in rows if row["number"] in missing]
        failed = {}
        if todo:
            done = each(ask, todo, ENDS)
            failed = {row["number"]: own for row, own in zip(todo, done, strict=True) if isinstance(own, Rejected)}
        texts = iter(kept.texts())
        found: list[list[str] | Rejected] = []
        for row in rows:
            some = [next(texts) for _ in range(self.samples)]
            whole = [text for text in some if text is not None]
            none = Rejected(f"the policy gave {len(whole)} of {self.samples} answers")
            found.append(failed.get(row["number"], whole if len(whole) == self.samples else none))
        return found

    def _asked(self, seed: int, begun: str) -> str:
        """What tells an answer from one of another policy, or to other words: a seed comes from the prompt and its pictures."""
        return hashlib.blake2b(json.dumps([self.how, seed, begun]).encode(), digest_size=8).hexdigest()


def _files(row: Row) -> list[bytes]:
    """Its pictures as they are stored."""
    return [own["bytes"] for own in row["images"]]
