"""Who judges the answers of a benchmark, and by which prompt."""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ...endpoint import Endpoint, Judge, Verdicts, digest
from ..figures import read_text


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
