"""Answers on their way into a file: each batch is there before the next one begins, and what is there is not asked for again."""

import glob
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..figures import shown
from .prompts import Prompt

TEXT = "response"


def identity(row: Mapping[str, Any]) -> str:
    """What an answer is known by: all of its row but the answer."""
    return json.dumps({name: own for name, own in row.items() if name != TEXT}, sort_keys=True)


def line_of(row: Mapping[str, Any]) -> str:
    """A row as a line of a file."""
    return json.dumps(row, ensure_ascii=False) + "\n"


class Kept:
    """The files of answers of one run, perhaps of several processes.

    The first process writes into the files themselves, every other one beside them, and in the end the first one puts all answers
    into the order of the prompts.

    Args:
        output: the file; prompts of parts that stand apart have one each, named after the part.
        prompts: all of them.
        apart: whether parts stand apart, as far as there are several.
        process: number of this one, from 0.
        shared: whether lines that answer none of the prompts belong to others, and stay.

    Raises:
        ValueError: two prompts that nothing tells apart.
    """

    def __init__(
        self, output: Path, prompts: Sequence[Prompt], apart: bool = False, process: int = 0, shared: bool = False
    ):
        self.output, self.prompts, self.process, self.shared = output, prompts, process, shared
        parts = list(dict.fromkeys(prompt.part for prompt in prompts))
        several = apart and len(parts) > 1
        self.paths = {part: output.with_stem(f"{output.stem}-{part}") if several else output for part in parts}
        self.order: dict[Path, dict[str, Prompt]] = {path: {} for path in self.paths.values()}
        for prompt in prompts:
            own = self.order[self.paths[prompt.part]]
            name = identity(prompt.row)
            if name in own:
                raise ValueError(
                    f"two prompts have the same id {shown(dict(prompt.row))}; give each an 'id' of its own"
                )
            own[name] = prompt

    # Settings

    @property
    def settings_path(self) -> Path:
        """What the answers were made with."""
        return self.output.with_name(f"{self.output.name}.settings.json")

    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuse to go on with other settings than those of the answers that are there.

        Raises:
            ValueError: which differ, or that nobody knows them.
        """
        there = self._there()
        if not there:
            return
        if not self.settings_path.exists():
            raise ValueError(
                f"{there[0]} is there and {self.settings_path.name}, which says what made it, is not; name another --output, or "
                "remove it"
            )
        try:
            before = json.loads(self.settings_path.read_text(encoding="utf-8"))["settings"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self.settings_path} cannot be read; name another --output, or remove both") from None
        now = json.loads(json.dumps(settings))
        other = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if other:
            told = ", ".join(f"{name} {before.get(name)!r:.60}, now {now.get(name)!r:.60}" for name in other)
            raise ValueError(
                f"{self.output} was begun with other settings ({told}); name another --output, or remove it"
            )

    def begin(self, settings: Mapping[str, Any], told: Mapping[str, Any]) -> None:
        """Write down the settings, and take in what processes of a run before this one left. Of the first process.

        Args:
            settings: what `check` compares.
            told: what is written beside them.

        Raises:
            ValueError: an answer to none of the prompts, or a line that is none.
        """
        self.output.parent.mkdir(parents=True, exist_ok=True)
        if not self._there():
            write(self.settings_path, json.dumps({"settings": settings, **told}, indent=2, ensure_ascii=False) + "\n")
        self.take_in()

    def take_in(self) -> None:
        """Take in what processes of a run before this one left, and drop a line that was not written to its end.

        Raises:
            ValueError: an answer to none of the prompts, or a line that is none.
        """
        for path in self.order:
            self._gather(path, in_order=False)

    def _there(self) -> list[Path]:
        """The files that hold answers."""
        return [own for path in self.order for own in (path, *_of_others(path)) if own.exists()]

    # Answers

    def pending(self) -> list[Prompt]:
        """The prompts without an answer, in their order.

        Raises:
            ValueError: a line of a file that is no answer, or none to these prompts.
        """
        there = {path: self._read(path) for path in self.order}
        return [
            own for path, prompts in self.order.items() for name, own in prompts.items() if name not in there[path]
        ]

    def texts(self) -> list[str | None]:
        """The answer to each prompt in their order, None where there is none yet.

        Raises:
            ValueError: a line of a file that is no answer, or none to these prompts.
        """
        there = {name: row for path in self.order for name, row in self._read(path).items()}
        return [there.get(identity(prompt.row), {}).get(TEXT) for prompt in self.prompts]

    def add(self, answers: Iterable[tuple[Prompt, str]]) -> None:
        """Append answers; they are in the file when this returns."""
        lines: dict[Path, bytes] = {}
        for prompt, text in answers:
            path = self.paths[prompt.part]
            line = line_of({**prompt.row, TEXT: text}).encode("utf-8", "replace")
            lines[path] = lines.get(path, b"") + line
        for path, own in lines.items():
            with self._own(path).open("ab", buffering=0) as file:
                file.write(own)
                os.fsync(file.fileno())

    def finish(self) -> None:
        """All answers into their files, in the order of the prompts. Of the first process, when all are done.

        Raises:
            ValueError: a line of a file that is no answer, or none to these prompts.
        """
        for path in self.order:
            self._gather(path, in_order=True)

    def _own(self, path: Path) -> Path:
        """What this process writes to."""
        return path.with_name(f"{path.name}.process-{self.process}") if self.process else path

    def _gather(self, path: Path, in_order: bool) -> None:
        others = _of_others(path)
        found: dict[str, Any] = {}
        for own in (path, *others):
            found |= self._read(own, path)
        if in_order:
            found = {name: found[name] for name in self.order[path] if name in found}
        content = "".join(map(line_of, found.values()))
        if found or path.exists():
            write(path, content)
        for own in others:
            own.unlink()

    def _read(self, path: Path, known_as: Path | None = None) -> dict[str, dict[str, Any]]:
        """The rows of a file by what they are known by; a last line that was not written to its end is none."""
        if not path.exists():
            return {}
        *lines, _ = path.read_bytes().split(b"\n")
        known, found = self.order[known_as or path], {}
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                name = identity(row)
                answered = isinstance(row[TEXT], str)
            except (ValueError, KeyError, TypeError, AttributeError):
                answered = False
            if not answered:
                raise ValueError(
                    f"{path} line {number} is no answer; remove the line, and the file goes on without it"
                )
            if name not in known and not self.shared:
                raise ValueError(
                    f"{path} line {number} answers none of the prompts; name another --output, or remove it"
                )
            found[name] = row
        return found


def _of_others(path: Path) -> list[Path]:
    """What other processes than the first have written."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.process-*"))


def write(path: Path, content: str) -> None:
    """A whole file or none."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8", errors="replace") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
