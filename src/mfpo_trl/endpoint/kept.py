"""A language model as judge of answers, whose verdicts are kept: none is asked for twice, and none is lost."""

import hashlib
import io
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .client import Endpoint, Request, complete, user_message

logger = logging.getLogger(__name__)

FIELDS = ("judge", "prompt", "answer", "verdict")


class Question(NamedTuple):
    """What a judge is asked.

    Attributes:
        id: of the answer, for messages.
        prompt: all that the judge reads, the answer within.
        answer: what is judged.
        images: that it sees, as `user_message` takes them; bytes where verdicts are kept.
    """

    id: str
    prompt: str
    answer: str
    images: Sequence[Any] = ()


class Key(NamedTuple):
    """What a verdict depends on: the judge's name, the SHA-256 of the prompt and of its images, and the answer."""

    judge: str
    prompt: str
    answer: str


class Verdicts:
    """Verdicts in a JSON Lines file, {"judge", "prompt", "answer", "verdict"} a line; with None for a file, in memory.

    A last line that was cut off while it was written is dropped, from the file when the next one is written.

    Raises:
        ValueError: a line that is none, and which.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.known: dict[Key, str] = {}
        self._whole: int | None = None
        if path is not None and path.exists():
            self._read(path, path.read_bytes())

    def _read(self, path: Path, content: bytes) -> None:
        *lines, last = content.split(b"\n")
        for number, line in enumerate(lines, 1):
            if line.strip():
                self._add(line, f"{path} line {number}")
        if last.strip():
            try:
                self._add(last, str(path))
            except ValueError:
                logger.warning("%s: the last line was not written to its end, and is dropped", path)
                self._whole = len(content) - len(last)
            else:
                self._whole = len(content)

    def _add(self, line: bytes, where: str) -> None:
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"{where} is not UTF-8") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in FIELDS):
            raise ValueError(f"{where} is {str(row)[:60]!r}; expected a verdict with the fields {', '.join(FIELDS)}")
        self.known[Key(row["judge"], row["prompt"], row["answer"])] = row["verdict"]

    def keep(self, key: Key, verdict: str) -> None:
        """Written before anything else happens."""
        self.known[key] = verdict
        if self.path is None:
            return
        line = json.dumps(dict(zip(FIELDS, (*key, verdict), strict=True))).encode() + b"\n"
        if self._whole is not None:
            # What stands before is whole, or ends without its line break.
            os.truncate(self.path, self._whole)
            line = line if self._ends_a_line() else b"\n" + line
            self._whole = None
        # One write of one line: what several processes append does not mix.
        with self.path.open("ab", buffering=0) as file:
            file.write(line)

    def _ends_a_line(self) -> bool:
        assert self.path is not None
        content = self.path.read_bytes()
        return not content or content.endswith(b"\n")

    def judges(self) -> list[str]:
        """Whose verdicts these are."""
        return sorted({key.judge for key in self.known})


@dataclass(frozen=True)
class Judge:
    """Who judges.

    Attributes:
        model: its name, as its server has it.
        verdicts: those that are known.
        endpoint: where to ask for others; None to make do with those.
        max_tokens: of a verdict.
        temperature: of its answers; None leaves it to the server.
    """

    model: str
    verdicts: Verdicts
    endpoint: Endpoint | None = None
    max_tokens: int | None = 1024
    temperature: float | None = 0.0

    def judge(self, questions: Sequence[Question]) -> list[str]:
        """A verdict on each.

        Raises:
            ValueError: verdicts are missing, and there is nobody to ask.
            EndpointError: the judge did not answer; its verdicts so far are kept.
        """
        keys = [Key(self.model, digest(one.prompt, one.images), one.answer) for one in questions]
        known = self.verdicts.known
        missing = {key: one for key, one in zip(keys, questions, strict=True) if key not in known}
        if missing and self.endpoint is None:
            first = next(iter(missing.values()))
            raise ValueError(
                f"{len(missing):,} of {len(set(keys)):,} answers, the first of them {first.id}, have no verdict of {self.model} in "
                f"{self.verdicts.path}; add --judge-url to ask for them"
            )
        if missing:
            assert self.endpoint is not None
            self._ask(missing, self.endpoint)
        return [known[key] for key in keys]

    def _ask(self, missing: dict[Key, Question], endpoint: Endpoint) -> None:
        from tqdm.auto import tqdm

        requests = (
            Request(one.id, user_message(one.prompt, one.images), self.max_tokens, self.temperature, {}, key)
            for key, one in missing.items()
        )
        with tqdm(total=len(missing), desc=self.model, unit="verdict", disable=None, leave=False) as bar:
            for request, verdict in complete(requests, endpoint, in_order=False):
                self.verdicts.keep(request.tag, verdict)
                bar.update()


def digest(prompt: str, images: Sequence[bytes] = ()) -> str:
    """SHA-256 of a text, and of the files of its images, in hexadecimal."""
    found = hashlib.sha256(prompt.encode("utf-8", "backslashreplace"))
    for image in images:
        found.update(hashlib.sha256(image).digest())
    return found.hexdigest()


def readable(image: bytes, picture: Any) -> bytes:
    """The file of an image as servers read it: as it is, or its picture in PNG where servers do not read such files."""
    try:
        user_message("", [image])
    except ValueError:
        held = io.BytesIO()
        picture.save(held, "PNG")
        return held.getvalue()
    return image
