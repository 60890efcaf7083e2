"""`mfpo reliance`: whether a model looks at the image, in figures with intervals, and shown on a page."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...terminal import Parser
from ..figures import Result, as_json, as_text, table
from ..models import Place, ReadRows, load, load_processor, place_of, rows_options, stored_as, stored_options
from .looking import Looker, Seen, groups, switched_off
from .variants import Perturbation, Variants, perturbation

TITLE = "reliance"
SHOWN = 8
"""Rows on the page."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of `mfpo reliance`."""
    parser = Parser(
        allow_abbrev=False,
        prog="mfpo reliance",
        description="Whether a model answers because of the image: how often its answer changes where the image is perturbed, "
        "how much better it tells chosen from rejected answers with the image than without it and with a wrong one, what its "
        "rewards are for text and for image, and how much it needs the key regions. With 95 % intervals.",
    )
    parser.add_argument("--model", required=True, metavar="MODEL", help="folder or id of a model, or of an adapter")
    parser.add_argument("--adapter", metavar="ADAPTER", help="folder or id of an adapter on it, which stays unmerged")
    parser.add_argument(
        "--ref-model",
        metavar="MODEL",
        help="reference of the rewards (default: the model with its adapter switched off; none without an adapter)",
    )
    rows_options(parser, "--dataset", "preference rows with images", required=True)
    parser.add_argument("--num-rows", type=int, default=200, metavar="N", help="of them, spread evenly (default: 200)")
    parser.add_argument(
        "--perturb",
        default="diffusion:500",
        metavar="HOW",
        help="what is done to the image for the answer-change rate, and to regions that are hidden: diffusion:500, black, "
        "swap, crop, mean, blur (default: diffusion:500)",
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="of an answer (default: 64)")
    parser.add_argument("--no-answers", action="store_true", help="generate none: no answer-change rate, much faster")
    parser.add_argument(
        "--random-regions", type=int, default=3, metavar="N", help="beside each key region (default: 3)"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="rows at once (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of noise, wrong images and random regions (default: 0)")
    stored_options(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="a page .html that shows eight rows, or a folder for it and the JSON",
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the report as JSON to this file; without a name, print it in place of the table",
    )
    parser.add_argument(
        "--scores", type=Path, metavar="DIR", help="folder of a model: write scores/reliance.json there"
    )
    return parser


def run_reliance(argv: Sequence[str], read_rows: ReadRows) -> int:
    """Run `mfpo reliance` with these arguments; returns the exit status.

    Args:
        argv: of the command line.
        read_rows: the data set that options name.
    """
    args = build_parser().parse_args(argv)
    try:
        check_options(args)
        result, seen = look(args, read_rows)
        write(args, result, seen)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"mfpo reliance: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Refuse what cannot be done, before anything is loaded.

    Raises:
        ValueError: a number out of its range, or a page that is no page.
    """
    for name in ("num_rows", "max_new_tokens", "random_regions", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; expected a number from 1 up")
    if args.output is not None and args.output.suffix and args.output.suffix.lower() != ".html":
        raise ValueError(f"--output {args.output}: expected a page, .html, or a folder")
    perturbation(args.perturb)


def look(args: argparse.Namespace, read_rows: ReadRows) -> tuple[Result, list[Seen]]:
    """Everything that is measured, and what was seen of each row.

    Raises:
        ValueError: a model, rows or a combination of options that cannot be used.
    """
    from tqdm.auto import tqdm

    from ..likelihood import Answers

    place, how = place_of(args.model, args.adapter), perturbation(args.perturb)
    rows, notes = _rows(read_rows(args), args.num_rows)
    quantisation, dtype = stored_as(args, place.adapter, sys.stderr)
    processor = load_processor(place)
    policy = Answers(load(place, dtype, quantisation), processor, args.batch_size)
    variants = Variants(processor, how, rows, args.seed, args.random_regions)
    looker = Looker(
        variants,
        policy,
        _reference(args, place, dtype, policy, processor),
        None if args.no_answers else lambda own: policy.greedy(own, args.max_new_tokens),
    )
    notes += _without_image(looker, rows[0])
    seen: list[Seen] = []
    with tqdm(total=len(rows), desc="Looking", unit="row", disable=None) as bar:
        for start in range(0, len(rows), args.batch_size):
            part = rows[start : start + args.batch_size]
            seen += looker(part)
            bar.update(len(part))
    weights = f"{quantisation or str(policy.model.dtype).removeprefix('torch.')}"
    settings = {"weights": weights, **_settings(args, place, how)}
    return Result(TITLE, groups(seen), settings, [*notes, *_left_out(seen, looker)]), seen


def _rows(dataset: Any, count: int) -> tuple[list[Any], list[str]]:
    from datasets import Dataset

    from ..._trl import NumberedRows
    from ...rows import rows_with_images
    from ..likelihood import spread

    if not isinstance(dataset, Dataset):
        raise ValueError(f"rows are looked up by their numbers, and the data set is a {type(dataset).__name__}")
    there = rows_with_images(dataset)
    if not len(there):
        raise ValueError("no row of the data set has an image; what is looked for is whether images are looked at")
    numbered = NumberedRows.of(dataset)
    chosen = [int(there[n]) for n in spread(len(there), count)]
    notes = [f"{len(chosen):,} of {len(dataset):,} rows"] if len(chosen) < len(dataset) else []
    if len(there) < len(dataset):
        notes.append(f"{len(dataset) - len(there):,} rows have no image and are left out")
    return [numbered.__getitems__([number])[0] for number in chosen], notes


def _reference(args: argparse.Namespace, place: Place, dtype: str, policy: Any, processor: Any) -> Any:
    """What scores with the reference; None where there is none."""
    if args.ref_model is not None:
        from ..likelihood import Answers

        other = place_of(args.ref_model)
        return Answers(load(other, dtype, stored_as(args, other.adapter, sys.stderr)[0]), processor, args.batch_size)
    if place.adapter is None:
        return None

    def score(rows: Sequence[Any], answers: Sequence[str]) -> Any:
        with switched_off(policy.model):
            return policy(rows, answers)

    return score


def _without_image(looker: Looker, row: Any) -> list[str]:
    """Try to ask without an image, which not every processor and model can; a note where they cannot."""
    bare = looker.variants.without(looker.variants.plain(row))
    try:
        looker.policy([bare], ("chosen",))
    except (ValueError, TypeError, RuntimeError, KeyError, IndexError) as error:
        looker.blind = False
        return [f"the visual gain is not measured: the model cannot be asked without an image ({str(error)[:200]})"]
    return []


def _settings(args: argparse.Namespace, place: Place, how: Perturbation) -> dict[str, str]:
    reference = "another model" if args.ref_model else "the adapter switched off" if place.adapter else "none"
    settings = {"perturbed": str(how), "reference": reference}
    if not args.no_answers:
        settings["answers"] = f"greedy, {args.max_new_tokens} tokens at most"
    return settings


def _left_out(seen: Sequence[Seen], looker: Looker) -> list[str]:
    notes = []
    if looker.reference is None:
        notes.append("no reference, so no rewards: give an adapter or --ref-model")
    for what, left in (
        ("no key region", sum(own.hidden is None for own in seen)),
        ("no wrong image among the others", sum(own.wrong is None for own in seen)),
        ("no dispreferred image", sum("dispreferred" not in own.logps for own in seen)),
    ):
        if left:
            notes.append(f"{left:,} rows have {what}")
    return notes


def write(args: argparse.Namespace, result: Result, seen: Sequence[Seen]) -> None:
    """Print the table or the JSON, and write what was asked for."""
    from .page import write_page

    content, shown = as_text(as_json(result)), table(result)
    print(content if args.json == "-" else shown, end="")
    files = {}
    if args.json not in (None, "-"):
        files[Path(args.json)] = content
    if args.scores is not None:
        files[args.scores / "scores" / "reliance.json"] = content
    if args.output is not None:
        page = args.output if args.output.suffix else args.output / "reliance.html"
        files[page] = write_page(args.adapter or args.model, shown, seen, SHOWN)
        if page != args.output:
            files[args.output / "reliance.json"] = content
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
