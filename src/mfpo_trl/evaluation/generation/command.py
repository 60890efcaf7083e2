"""`mfpo generate`: a model's answers to a benchmark's questions, or to prompts of one's own, in a file that `mfpo score` reads."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...endpoint import Endpoint, EndpointError, Request, complete, user_message
from ...terminal import Parser
from ..models import DTYPES
from .generate import Decoding, answer, opened, share, versions, weights_told
from .kept import Kept
from .own_prompts import read_own
from .prompts import BENCHMARKS, Prompt, needed, read_prompts, spread

Answers = Iterator[list[tuple[Prompt, str]]]


def build_parser() -> argparse.ArgumentParser:
    """The parser of `mfpo generate`."""
    parser = Parser(
        prog="mfpo generate",
        allow_abbrev=False,
        description="Write a model's answers into a file that mfpo score reads, greedy unless told otherwise. The same command goes on "
        "where one before it was stopped. accelerate launch -m mfpo_trl.cli generate shares the prompts out among several GPUs.",
    )
    model = parser.add_argument_group("who answers")
    model.add_argument(
        "--model", metavar="MODEL", help="folder or id of a model, or of an adapter, which is left unmerged"
    )
    model.add_argument("--adapter", metavar="ADAPTER", help="on that model, left unmerged")
    model.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: as they were saved)")
    model.add_argument("--load-in-4bit", action="store_true", help="the weights in 4 bits (NF4), as QLoRA trains them")
    model.add_argument(
        "--endpoint", metavar="URL", help="in place of --model: a server that speaks OpenAI's chat completions"
    )
    model.add_argument("--served-model", metavar="NAME", help="with it: the name under which the server has the model")
    model.add_argument(
        "--concurrency", type=int, default=8, metavar="N", help="with it: requests at a time (default: 8)"
    )
    asked = parser.add_argument_group("what is asked")
    one = asked.add_mutually_exclusive_group(required=True)
    one.add_argument("--benchmark", choices=BENCHMARKS, help="its published questions")
    one.add_argument(
        "--dataset", metavar="DATA", help="prompts of your own: rows with prompt or question, and image or images"
    )
    asked.add_argument("--data", type=Path, metavar="DIR", help="of a benchmark: the folder of its files and pictures")
    asked.add_argument(
        "--parts", nargs="+", default=[], metavar="PART", help=f"of a benchmark: only these ({_parts()})"
    )
    asked.add_argument("--split", default="train", help="of a data set (default: train)")
    asked.add_argument("--image-root", type=Path, metavar="DIR", help="of a data set: the folder of its image paths")
    asked.add_argument("--rows", type=int, metavar="N", help="at most so many questions, evenly spread over each part")
    asked.add_argument("--prompt", metavar="TEXT", help="ask this in place of every question")
    asked.add_argument("--suffix", metavar="TEXT", help=f"write this behind every question ({_suffixes()})")
    said = parser.add_argument_group("how it answers")
    said.add_argument("--output", type=Path, required=True, metavar="FILE", help="answers, JSON Lines")
    said.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="of an answer (default: 512)")
    said.add_argument("--num-beams", type=int, default=1, metavar="N", help="of beam search (default: 1, greedy)")
    said.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="prompts at once in a process (default: 8)"
    )
    return parser


def _parts() -> str:
    found = [f"{name}: {', '.join(own.files)}" for name, own in BENCHMARKS.items() if len(own.files) > 1]
    return "; ".join(found)


def _suffixes() -> str:
    found = [
        f"{words!r} behind {part} ones of {name}"
        for name, own in BENCHMARKS.items()
        for part, words in own.behind.items()
    ]
    return f"default: {', '.join(found)}, as their scorer takes no other words" if found else "default: nothing"


def run_generate(argv: Sequence[str]) -> int:
    """Run `mfpo generate` with these arguments; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        generate(args)
    except KeyboardInterrupt:
        print("mfpo generate: stopped; the same command goes on", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, EndpointError) as error:
        print(f"mfpo generate: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def generate(args: argparse.Namespace) -> None:
    """Ask what is not answered yet, and write the answers down.

    Raises:
        ValueError: options that do not go together, data that are missing, other settings than those of the answers that are there,
            or a model or prompt that cannot be used.
        EndpointError: the server did not answer; what it answered before is in the file.
    """
    check_options(args)
    prompts = read(args)
    settings, processes = settings_of(args), Processes(args.endpoint is not None)
    apart = args.benchmark is not None and BENCHMARKS[args.benchmark].apart
    kept = Kept(args.output, prompts, apart, processes.number)
    kept.check(settings)
    # Each has looked before the first one writes.
    processes.wait()
    if processes.first:
        kept.begin(settings, told_of(args, processes.count))
    processes.wait()
    pending = kept.pending()
    processes.wait()
    if pending:
        source = (
            served(args, pending) if args.endpoint else local(args, share(pending, processes.number, processes.count))
        )
        keep(source, kept, len(prompts), len(pending), processes)
        processes.wait()
    if processes.first:
        kept.finish()
        print(told(args, kept, len(prompts), len(pending), processes.count))


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that say nothing together.

    Raises:
        ValueError: which.
    """
    if (args.model is None) == (args.endpoint is None):
        raise ValueError("name who answers: --model MODEL, or --endpoint URL with --served-model NAME")
    if args.endpoint is not None and args.served_model is None:
        raise ValueError("--endpoint needs --served-model, the name under which the server has the model")
    if args.endpoint is not None and (args.adapter or args.load_in_4bit or args.num_beams > 1 or args.dtype != "auto"):
        raise ValueError(
            "--adapter, --load-in-4bit, --dtype and --num-beams are of a model that is loaded here; the server has its own"
        )
    if args.benchmark is not None and args.data is None:
        raise ValueError(f"--benchmark {args.benchmark} needs --data, a folder with {needed(args.benchmark)}")
    for name in ("batch_size", "concurrency", "rows"):
        if (own := getattr(args, name)) is not None and own < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {own}; expected at least 1")
    if args.output.is_dir():
        raise ValueError(
            f"--output {args.output} is a folder; name a file in it, such as {args.output / 'answers.jsonl'}"
        )
    Decoding(args.max_new_tokens, args.num_beams)
    if args.endpoint is not None:
        server_of(args)


def server_of(args: argparse.Namespace) -> Endpoint:
    """Raises ValueError: an address that is none."""
    return Endpoint(args.endpoint, args.served_model, concurrency=args.concurrency)


def read(args: argparse.Namespace) -> list[Prompt]:
    """The prompts of the options; raises as `read_prompts` and `read_own` do."""
    if args.dataset is not None:
        prompts = read_own(args.dataset, args.split, args.image_root, args.prompt, args.suffix)
    else:
        prompts = read_prompts(args.benchmark, args.data, args.parts, args.prompt, args.suffix)
    return prompts if args.rows is None else spread(prompts, args.rows)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What answers depend on, and what they may not differ in within one file."""
    names = ["max_new_tokens", "num_beams", "prompt", "suffix", "rows", "parts", "dtype", "load_in_4bit"]
    names += ["benchmark", "dataset", "split"] if args.dataset else ["benchmark"]
    found = {name: getattr(args, name) for name in names}
    if args.endpoint is not None:
        return {"served_model": args.served_model, **found}
    for name in ("model", "adapter"):
        if (place := getattr(args, name)) is not None:
            # A folder may be called otherwise, and may hold other weights tomorrow.
            found[name] = weights_told(place) or place
    return found


def told_of(args: argparse.Namespace, processes: int) -> dict[str, Any]:
    """What is written down beside the settings, and may change."""
    names = ("model", "adapter", "endpoint", "data", "image_root", "batch_size")
    given = {name: str(own) for name in names if (own := getattr(args, name)) is not None}
    return {"given": {**given, "processes": processes}, "versions": versions()}


class Processes:
    """The processes that `accelerate launch` has started, or this one alone.

    Args:
        alone: whether this one does all.

    Raises:
        ValueError: several, where one does all.
    """

    def __init__(self, alone: bool = False):
        import os

        self.state: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            if alone:
                raise ValueError(
                    "a server is asked by one process, several times at once (--concurrency); leave accelerate launch out"
                )
            from datetime import timedelta

            import torch
            from accelerate import PartialState

            # Without a device it finds no way to communicate by itself; and a process waits for the slowest one.
            self.state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))

    @property
    def number(self) -> int:
        return self.state.process_index if self.state else 0

    @property
    def count(self) -> int:
        return self.state.num_processes if self.state else 1

    @property
    def first(self) -> bool:
        return self.number == 0

    def wait(self) -> None:
        if self.state:
            self.state.wait_for_everyone()


def local(args: argparse.Namespace, prompts: Sequence[Prompt]) -> Answers:
    """Answers of a model that is loaded here.

    Raises:
        ValueError: a model or a prompt that cannot be used.
    """
    from ..models import Quantisation, load_base, load_processor, place_of, with_adapter

    if not prompts:
        return iter(())
    place = place_of(args.model, args.adapter)
    processor = load_processor(place)
    if not getattr(processor, "chat_template", None):
        raise ValueError(f"the processor of {place.name} has no chat template, by which questions are asked")
    model = load_base(place.base, args.dtype, Quantisation() if args.load_in_4bit else None, scored=False)
    model = model if place.adapter is None else with_adapter(model, place.adapter)
    return fitting(answer(model, processor, prompts, Decoding(args.max_new_tokens, args.num_beams), args.batch_size))


def fitting(answers: Answers) -> Answers:
    """The same answers.

    Raises:
        ValueError: the memory of the GPU does not hold a batch; says what to do.
    """
    import torch

    try:
        yield from answers
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"the memory of the GPU does not hold a batch ({error}); lower --batch-size, which changes no answer, or add --load-in-4bit"
        ) from error


def served(args: argparse.Namespace, prompts: Sequence[Prompt]) -> Answers:
    """Answers of a server, each as it comes; raises as `complete` does."""
    requests = (Request(dict(own.row), said(own), max_tokens=args.max_new_tokens, tag=own) for own in prompts)
    for request, text in complete(requests, server_of(args), in_order=False):
        yield [(request.tag, text.strip())]


def said(prompt: Prompt) -> list[dict[str, Any]]:
    """The messages of a prompt as a server reads them: pictures first in each, as the bytes of their files where it reads those."""
    pictures, decoded = list(prompt.pictures()), None
    found, first = [], 0
    for message in prompt.messages:
        parts = message["content"]
        count = sum(part["type"] == "image" for part in parts)
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        try:
            (turn,) = user_message(text, pictures[first : first + count])
        except (ValueError, OSError):
            decoded = decoded or opened(prompt)
            (turn,) = user_message(text, decoded[first : first + count])
        found.append({**turn, "role": message["role"]})
        first += count
    return found


def keep(source: Answers, kept: Kept, total: int, pending: int, processes: Processes) -> None:
    """Write each batch down as it comes, with a bar of what all processes have done."""
    from tqdm.auto import tqdm

    with tqdm(
        total=total, initial=total - pending, desc="Answers", unit="", file=sys.stderr, disable=not processes.first
    ) as bar:
        for batch in source:
            kept.add(batch)
            # The others are about as far.
            bar.update(min(len(batch) * processes.count, total - bar.n))


def told(args: argparse.Namespace, kept: Kept, total: int, new: int, processes: int = 1) -> str:
    """What is said in the end: where the answers are, and how they are scored."""
    paths = list(kept.order)
    whose = f" by {processes} processes" if processes > 1 else ""
    lines = [f"{total:,} answers, {new:,} of them new{whose}, are in {', '.join(map(str, paths))}"]
    if args.benchmark is not None:
        lines.append(
            f"Score them: mfpo score {args.benchmark} --responses {' '.join(map(str, paths))} {_score_options(args, kept)}".rstrip()
        )
    return "\n".join(lines)


def _score_options(args: argparse.Namespace, kept: Kept) -> str:
    from .pictures import TRUTH
    from .prompts import question_files

    if args.benchmark == "pope":
        files = question_files("pope", args.data, args.parts)
        return f"--questions {' '.join(str(files[part]) for part in kept.paths)}"
    if args.benchmark in ("chair", "objhal"):
        truth = args.data / TRUTH
        return f"--ground-truth {truth}" if truth.is_file() else "--coco-annotations DIR"
    return f"--data {args.data}"
