"""A language model as judge of answers, whose verdicts are kept: none is asked for twice, and none is lost."""

import argparse
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..endpoint import Endpoint, Request, complete, user_message
from ..figures import parsed, read_text, shown

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
            row = parsed(line.decode("utf-8"), where)
        except UnicodeDecodeError:
            raise ValueError(f"{where} is not UTF-8") from None
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in FIELDS):
            raise ValueError(f"{where} is {shown(row)}; expected a verdict with the fields {', '.join(FIELDS)}")
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
        with tqdm(total=len(missing), desc=self.model, unit="verdict", disable=None) as bar:
            for request, verdict in complete(requests, endpoint, in_order=False):
                self.verdicts.keep(request.tag, verdict)
                bar.update()


def digest(prompt: str, images: Sequence[bytes] = ()) -> str:
    """SHA-256 of a text, and of the files of its images, in hexadecimal."""
    found = hashlib.sha256(prompt.encode("utf-8", "backslashreplace"))
    for image in images:
        found.update(hashlib.sha256(image).digest())
    return found.hexdigest()


def add_judge_options(parser: argparse.ArgumentParser) -> None:
    """Of a benchmark whose answers are judged."""
    judge = parser.add_argument_group("judge")
    judge.add_argument(
        "--judge-url",
        metavar="URL",
        help="a server that speaks OpenAI's chat completions, such as http://localhost:8000/v1",
    )
    judge.add_argument(
        "--judge-model", metavar="NAME", help="the judge, as its server names it; the report says who it was"
    )
    judge.add_argument(
        "--verdicts",
        type=Path,
        metavar="FILE",
        help="JSON Lines of verdicts: those that it holds are not asked for again, new ones are added",
    )
    judge.add_argument(
        "--api-key-env",
        default="OPENAI_API_KEY",
        metavar="VARIABLE",
        help="environment variable with the server's key (%(default)s)",
    )
    judge.add_argument(
        "--judge-prompt",
        type=Path,
        metavar="FILE",
        help="a prompt of your own, such as the official one, in place of ours",
    )
    judge.add_argument(
        "--judge-concurrency", type=int, default=8, metavar="N", help="requests at a time (%(default)s)"
    )
    judge.add_argument(
        "--judge-timeout", type=float, default=300.0, metavar="SECONDS", help="for one verdict (%(default)g)"
    )
    judge.add_argument(
        "--judge-temperature",
        type=number_or_server(float, 0),
        default=0.0,
        metavar="T",
        help="0 by default; server leaves it to the server, for judges that refuse any",
    )
    judge.add_argument(
        "--judge-max-tokens",
        type=number_or_server(int, 1),
        default=1024,
        metavar="N",
        help="length of a verdict (%(default)s); server leaves it to the server, for judges that refuse max_tokens",
    )


def number_or_server(kind: Callable[[str], float], least: float) -> Callable[[str], float | None]:
    """What reads an option: a number, or `server` for None."""

    def number(text: str) -> float | None:
        if text == "server":
            return None
        value = kind(text)
        if not least <= value < math.inf:
            raise ValueError
        return value

    return number


def judge_of(args: argparse.Namespace) -> Judge:
    """The judge that the options name.

    Raises:
        ValueError: they name none, or several.
    """
    if args.judge_url is None and args.verdicts is None:
        raise ValueError(
            "a judge is needed: give --judge-url and --judge-model, or --verdicts with the verdicts of one"
        )
    verdicts = Verdicts(args.verdicts)
    model = args.judge_model
    if args.judge_url is not None:
        if not model:
            raise ValueError("--judge-url needs --judge-model, the name under which the server has the judge")
        endpoint = Endpoint(
            args.judge_url, model, args.api_key_env, concurrency=args.judge_concurrency, timeout=args.judge_timeout
        )
        return Judge(model, verdicts, endpoint, args.judge_max_tokens, args.judge_temperature)
    judges = verdicts.judges()
    if not judges:
        raise ValueError(f"{args.verdicts} holds no verdicts; add --judge-url and --judge-model to ask for them")
    if model is None and len(judges) > 1:
        raise ValueError(f"{args.verdicts} holds verdicts of {', '.join(judges)}; choose with --judge-model")
    return Judge(model or judges[0], verdicts)


def template_of(args: argparse.Namespace, own: str, blanks: Sequence[str]) -> tuple[str, str]:
    """The judge's prompt with its blanks, and what a report says of it.

    Args:
        args: with `judge_prompt`, a file that names the blanks as `{question}` or leaves them as `{}` in the order of `blanks`.
        own: ours.
        blanks: their names.

    Raises:
        ValueError: the file cannot be read, or its blanks are not those.
    """
    if args.judge_prompt is None:
        return own, "mfpo_trl's own wording, not the official one"
    template = read_text(args.judge_prompt)
    if template.count("{}") == len(blanks):
        pieces = template.split("{}")
        template = "".join(piece + f"{{{name}}}" for piece, name in zip(pieces, blanks, strict=False)) + pieces[-1]
    missing = [name for name in blanks if f"{{{name}}}" not in template]
    if missing:
        told = ", ".join(f"{{{name}}}" for name in blanks)
        raise ValueError(
            f"{args.judge_prompt} has no blank {{{missing[0]}}}; expected {told}, or as many {{}} in this order"
        )
    return template, f"{args.judge_prompt} (SHA-256 {digest(template)[:12]}…)"


def filled(template: str, **values: str) -> str:
    """A template with its blanks filled; other braces, and those within the values, stay as they are."""
    pattern = re.compile("|".join(re.escape(f"{{{name}}}") for name in values))
    return pattern.sub(lambda match: values[match.group()[1:-1]], template)
