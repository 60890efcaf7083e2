"""`mfpo pairs` on the command line."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..data import add_dispreferred, add_running, recipe_arguments

if TYPE_CHECKING:
    from .options import PairOptions


def add_pairs(commands: Any) -> None:
    """Add `pairs` to the commands of a parser."""
    parser = commands.add_parser(
        "pairs",
        help="make preference rows from a model's own answers to images and prompts",
        description="Draw several answers to each prompt, have a verifier tell which of their claims are true, and pair the more "
        "faithful ones with the less faithful. Run it again after a kill: finished parts and every answer stay.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="a YAML recipe with these options as keys")
    _add_prompts(parser)
    _add_policy(parser)
    _add_verifier(parser)
    _add_rules(parser)
    regions = parser.add_argument_group("regions")
    regions.add_argument(
        "--grounder",
        default="column",
        help="where a verifier tells no places: what finds the present claims in the image, as mfpo build takes it; column takes the "
        "row's own regions",
    )
    regions.add_argument("--grounder-model", help="its weights, where not the default")
    regions.add_argument("--segmenter-model", help="the weights of SAM, where not the default")
    add_dispreferred(parser)
    add_running(parser, part_rows=64)
    parser.set_defaults(run=_pairs)


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    asked = parser.add_argument_group("images and prompts")
    asked.add_argument(
        "--dataset", help="rows with image and prompt: an id on the Hub, a folder, a file; or a folder of images"
    )
    asked.add_argument("--split", default="train")
    asked.add_argument("--image-root", type=Path, help="the folder that image paths are relative to")
    asked.add_argument("--limit", type=int, help="only the first rows of the source")
    asked.add_argument(
        "--questions",
        metavar="FILE",
        help="one a line, of which a row without a prompt gets one; shipped: those of the package",
    )


def _add_policy(parser: argparse.ArgumentParser) -> None:
    who = parser.add_argument_group("who answers")
    who.add_argument("--model", help="folder or id of a model, or of an adapter, which is left unmerged")
    who.add_argument("--adapter", help="on that model, left unmerged")
    who.add_argument(
        "--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="auto", help="of the weights"
    )
    who.add_argument("--load-in-4bit", action="store_true", help="the weights in 4 bits (NF4), as QLoRA trains them")
    who.add_argument(
        "--endpoint", metavar="URL", help="in place of --model: a server that speaks OpenAI's chat completions"
    )
    who.add_argument("--served-model", metavar="NAME", help="with it: the name under which the server has the model")
    who.add_argument("--concurrency", type=int, default=8, help="with it: requests at a time")
    who.add_argument("--timeout", type=float, default=300.0, help="with it: seconds for one answer")
    who.add_argument(
        "--api-key-env", default="OPENAI_API_KEY", metavar="VARIABLE", help="with it: holds the server's key"
    )
    how = parser.add_argument_group("how it answers")
    how.add_argument("--samples", type=int, default=8, help="answers a prompt, or sentences a round")
    how.add_argument("--temperature", type=float, default=1.0, help="0 is greedy, and all answers the same")
    how.add_argument("--top-p", type=float, default=1.0, help="share of the probability that is drawn from")
    how.add_argument("--max-new-tokens", type=int, default=256, help="of an answer, or of a sentence")
    how.add_argument(
        "--by", choices=("answer", "sentence"), default="answer", help="sentence: behind a clean beginning"
    )
    how.add_argument("--sentences", type=int, default=8, help="by sentence: of an answer, at most")


def _add_verifier(parser: argparse.ArgumentParser) -> None:
    true = parser.add_argument_group("what is true")
    true.add_argument(
        "--verifier", default="detector", help="detector, judge, labels, confidence, or package.module:function"
    )
    true.add_argument(
        "--detector",
        nargs="+",
        default=("grounding-dino",),
        metavar="NAME",
        help="as mfpo build takes --grounder; several must agree",
    )
    true.add_argument(
        "--detector-model", nargs="+", default=(), metavar="MODEL", help="weights of each, where not the default"
    )
    true.add_argument(
        "--present-from", type=float, metavar="SCORE", help="a thing counts as present; each detector's own by default"
    )
    true.add_argument(
        "--absent-below", type=float, metavar="SCORE", help="it counts as absent; between them it is uncertain"
    )
    true.add_argument("--judge-url", metavar="URL", help="of judge: a server that speaks OpenAI's chat completions")
    true.add_argument("--judge-model", metavar="NAME", help="of judge: its name there")
    true.add_argument("--judge-concurrency", type=int, default=8, help="of judge: requests at a time")
    true.add_argument("--judge-timeout", type=float, default=300.0, help="of judge: seconds for one verdict")
    true.add_argument(
        "--judge-key-env", default="OPENAI_API_KEY", metavar="VARIABLE", help="of judge: holds the server's key"
    )
    true.add_argument("--ground-truth", type=Path, metavar="FILE", help='of labels: {"<image_id>": ["dog", …]}')
    true.add_argument(
        "--coco-annotations", type=Path, metavar="DIR", help="of labels: instances_*.json and captions_*.json"
    )
    true.add_argument(
        "--synonyms", type=Path, metavar="FILE", help="of labels: a line an object, its name and its synonyms"
    )
    true.add_argument("--tagger", help="a spaCy model for noun phrases; without, words are told by lists")


def _add_rules(parser: argparse.ArgumentParser) -> None:
    rules = parser.add_argument_group("which answers make a pair")
    rules.add_argument("--margin", type=int, default=1, help="by how many false claims the rejected answer has more")
    rules.add_argument(
        "--length-ratio", type=float, default=2.0, help="of the longer answer's words to the shorter one's, at most"
    )
    rules.add_argument("--pairs-per-prompt", type=int, help="at most; by default 1, and by sentence one a round")


def _pairs(args: argparse.Namespace) -> int:
    try:
        from ..endpoint import EndpointError

        make_pairs(_built(args))
    except KeyboardInterrupt:
        print(
            "mfpo pairs: stopped; finished parts and all answers are kept, the same command goes on.", file=sys.stderr
        )
        return 130
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError, EndpointError) as error:
        print(f"mfpo pairs: error: {error}", file=sys.stderr)
        return 1
    return 0


class _Keys(argparse.ArgumentParser):
    """argparse's, whose mistakes are errors of whoever gives keys in place of a command line."""

    def error(self, message: str) -> NoReturn:
        """What argparse calls on a mistake, to end the program.

        Raises:
            ValueError: the mistake.
        """
        raise ValueError(message)


def options_of(recipe: Mapping[str, Any]) -> "PairOptions":
    """Options as keys, of which those that are left out have their defaults.

    Raises:
        ValueError: a key that is no option, a value that it cannot have, or options that do not go together.
    """
    commands = _Keys(prog="").add_subparsers()
    add_pairs(commands)
    parser = commands.choices["pairs"]
    try:
        return _built(parser.parse_args(recipe_arguments(recipe, "the keys", parser)))
    except ValueError as error:
        raise ValueError(f"pairs: {str(error).removeprefix('the keys: ')}") from None


def _built(args: argparse.Namespace) -> "PairOptions":
    from .options import PairOptions

    for name in ("dataset", "output"):
        if getattr(args, name) is None:
            raise ValueError(f"--{name} is missing; give it here or in the recipe")
    given = {name: value for name, value in vars(args).items() if name not in ("run", "config")}
    lists: dict[str, Any] = {name: tuple(given[name]) for name in ("detector", "detector_model")}
    return PairOptions(**(given | lists))


def make_pairs(options: "PairOptions") -> Path:
    """Make what is missing of a data set of pairs.

    Returns:
        The folder of the data set.

    Raises:
        ValueError: an option, a model or a data set that cannot be used, or no pair at all.
        EndpointError: a server did not answer; what it answered before is kept.
    """
    from ..data import run
    from .pipeline import PairsPipeline

    return run(options, PairsPipeline)
