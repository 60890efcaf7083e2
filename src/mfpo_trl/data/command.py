"""`mfpo build` and `mfpo preview` on the command line."""

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..recipes import shipped_files

KEYWORD_OPTIONS = ("top_k", "phi", "gamma", "lambda_", "damping", "variant")


def add_build(commands: Any) -> None:
    """Add `build` to the commands of a parser."""
    parser = commands.add_parser(
        "build",
        help="make image-preference data from a text-preference data set",
        description="Find what the chosen answers speak of, find it in the images, and build a data set whose dispreferred "
        "images differ from the originals only there. Run it again after a kill: finished parts stay.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="a YAML recipe with these options as keys")
    _add_rows(parser)
    _add_images(parser)
    _add_mirror(parser)
    _add_difficulty(parser)
    add_running(parser)
    parser.set_defaults(run=_build)


def _add_rows(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group("source")
    source.add_argument("--dataset", help="an id on the Hub, a folder, or a parquet, .json or .jsonl file")
    source.add_argument(
        "--source", default="auto", help="the publisher's convention; auto recognises it by its columns"
    )
    source.add_argument("--split", default="train")
    source.add_argument("--image-root", type=Path, help="the folder that image paths are relative to")
    source.add_argument("--limit", type=int, help="only the first rows of the source")


def _add_images(parser: argparse.ArgumentParser) -> None:
    words = parser.add_argument_group("key words")
    words.add_argument("--top-k", type=int, default=5, help="key words of an answer")
    words.add_argument("--phi", type=float, default=1.0, help="exponent of the distance between words")
    words.add_argument(
        "--gamma",
        type=float,
        default=0.5,
        help="weight of the similarity of word vectors: those of --model, else of the grounder's text encoder",
    )
    words.add_argument("--lambda_", type=float, default=0.02, help="decay with the position of a word")
    words.add_argument("--damping", type=float, default=0.85, help="of PageRank")
    words.add_argument("--variant", choices=("mfpo", "multipartite"), default="mfpo")
    words.add_argument("--tagger", help="a spaCy model for noun chunks; without, words are told by lists")
    regions = parser.add_argument_group("regions")
    regions.add_argument(
        "--grounder",
        default="grounding-dino-sam",
        help="grounding-dino-sam, owlv2-sam, grounding-dino or owlv2 (boxes as they are), clipseg, sam3, column (the row's own), random, none, or package.module:function",
    )
    regions.add_argument("--grounder-model", help="its weights, where not the default")
    regions.add_argument("--segmenter-model", help="the weights of SAM, where not the default")
    add_dispreferred(parser)


def add_dispreferred(parser: argparse.ArgumentParser) -> None:
    """Add the options of the dispreferred images."""
    images = parser.add_argument_group("dispreferred images")
    images.add_argument(
        "--corruption",
        default="diffusion",
        help="diffusion, crop, mean, black, mask, blur, inpaint, transplant or generate (with --materialize)",
    )
    images.add_argument(
        "--corruption-kwargs", metavar="JSON", help="its options by their names; a list of strengths is a ladder"
    )
    images.add_argument(
        "--corruption-region", default="auto", help="auto (the key regions), partial (one of them), random or global"
    )
    images.add_argument("--schedule", default="vcd_sigmoid", help="of the noise")
    images.add_argument("--step", type=int, default=500, help="of the noise, 0 to 999")
    images.add_argument(
        "--resolution", type=int, default=336, help="shorter side, in pixels, at which the model sees images"
    )
    images.add_argument("--seed", type=int, default=0)
    images.add_argument("--materialize", action="store_true", help="store the dispreferred images too, as PNG")


def _add_mirror(parser: argparse.ArgumentParser) -> None:
    mirror = parser.add_argument_group("mirror rows")
    mirror.add_argument(
        "--mirror",
        action="store_true",
        help="give each row that allows it a twin: its image with one object replaced, and the answer that is true of that; "
        "for rows whose key_regions have phrases, such as those of another build",
    )
    mirror.add_argument(
        "--mirror-choice",
        default="rare",
        help="of the replacement: rare, what the data set seldom shows together with the rest; or uniform",
    )
    mirror.add_argument(
        "--mirror-editor",
        default="transplant",
        help="transplant, another row's object; generate, by an inpainting pipeline; or package.module:function",
    )
    mirror.add_argument(
        "--mirror-replacement",
        default="pool",
        help="where replacements come from: pool, the phrases of the rows' regions; endpoint, which is shown the image; or a file, one a line",
    )
    mirror.add_argument(
        "--mirror-answer", choices=("rule", "endpoint"), default="rule", help="who rewrites the chosen answer"
    )
    mirror.add_argument(
        "--mirror-kwargs", metavar="JSON", help="options of --mirror-editor generate: model, guidance_scale, …"
    )
    mirror.add_argument(
        "--endpoint", metavar="URL", help="a server that speaks OpenAI's chat completions, for the two that ask one"
    )
    mirror.add_argument(
        "--served-model", metavar="NAME", help="with it: the name under which the server has the model"
    )
    mirror.add_argument("--concurrency", type=int, default=8, help="with it: requests at a time")
    mirror.add_argument("--timeout", type=float, default=300.0, help="with it: seconds for one answer")
    mirror.add_argument(
        "--api-key-env", default="OPENAI_API_KEY", metavar="VARIABLE", help="with it: holds the server's key"
    )


def _add_difficulty(parser: argparse.ArgumentParser) -> None:
    hard = parser.add_argument_group("difficulty")
    hard.add_argument(
        "--difficulty", help="nll (the default with --model), token-entropy, semantic-entropy, mask-area or none"
    )
    hard.add_argument(
        "--model", help="the policy, which measures difficulty, and whose embeddings tell which words are alike"
    )
    hard.add_argument("--samples", type=int, default=10, help="answers drawn a row for semantic-entropy")
    hard.add_argument(
        "--nli-model", help="tells for semantic-entropy which answers mean the same; without, equal words do"
    )
    hard.add_argument("--rao-blackwell", action="store_true", help="weigh drawn answers by their probability")
    hard.add_argument("--stages", type=int, default=3, help="into how many the rows are cut by difficulty")


def add_running(parser: argparse.ArgumentParser, part_rows: int = 512) -> None:
    """Add the options that say where and how fast."""
    how = parser.add_argument_group("how it runs")
    how.add_argument("--output", type=Path, help="folder of the data set")
    how.add_argument("--batch-size", type=int, default=8)
    how.add_argument("--part-rows", type=int, default=part_rows, help="rows of the source in a part file")
    how.add_argument("--num-proc", type=int, default=1, help="processes, or Ray actors, of this machine")
    how.add_argument("--engine", choices=("local", "ray"), default="local")
    how.add_argument("--shards", type=int, default=1, help="jobs that build this data set together, on a shared disk")
    how.add_argument("--shard-index", type=int, default=0, help="which of them this is, from 0")
    how.add_argument("--device", help="of the models; a GPU where there is one")
    how.add_argument("--push-to-hub", metavar="REPO", help="upload the finished data set")
    how.add_argument("--private", action="store_true", help="with --push-to-hub: nobody else may see it")


def add_preview(commands: Any) -> None:
    """Add `preview` to the commands of a parser."""
    parser = commands.add_parser(
        "preview",
        help="look at rows of a built data set",
        description="Draw rows of a built data set: image with its regions, dispreferred image, texts, difficulty.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="the output of mfpo build or mfpo pairs")
    parser.add_argument("--n", type=int, default=16, help="rows")
    parser.add_argument("--output", type=Path, default=Path("sheet.png"), help="a .png or a self-contained .html")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument(
        "--samples",
        action="store_true",
        help="of mfpo pairs: every answer, its claims marked as present, absent or uncertain",
    )
    parser.set_defaults(run=_preview)


def _preview(args: argparse.Namespace) -> int:
    from .preview import preview

    try:
        print(preview(args.folder, args.n, args.output, args.seed, args.samples))
    except (ValueError, OSError) as error:
        print(f"mfpo preview: error: {error}", file=sys.stderr)
        return 1
    return 0


def _build(args: argparse.Namespace) -> int:
    try:
        from .build import BuildOptions, run
        from .keywords import KeywordOptions

        for name in ("dataset", "output"):
            if getattr(args, name) is None:
                raise ValueError(f"--{name} is missing; give it here or in the recipe")
        given = {name: value for name, value in vars(args).items() if name not in ("run", "config")}
        words = {name: given.pop(name) for name in KEYWORD_OPTIONS}
        run(BuildOptions(**given, keywords=KeywordOptions(**words)))
    except KeyboardInterrupt:
        print("mfpo build: stopped; finished parts are kept, the same command goes on.", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"mfpo build: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def with_recipe(argv: Sequence[str], command: str = "build", add: Callable[[Any], None] = add_build) -> list[str]:
    """The arguments of a command, with the options of its `--config` before them, where they lose against them.

    Args:
        argv: what stands behind the command.
        command: its name.
        add: adds it to the commands of a parser.

    Raises:
        ValueError: a recipe that is none, or has a key that is no option.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    path = finder.parse_known_args(argv)[0].config
    if path is None:
        return list(argv)
    import yaml

    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        if not path.exists() and str(path) in shipped_files():
            raise ValueError(
                f"{path} is a recipe of mfpo train; mfpo {command} reads a file of its own options"
            ) from None
        raise ValueError(f"the recipe {path} cannot be read: {error}") from error
    if not isinstance(recipe, Mapping):
        raise ValueError(f"the recipe {path} holds a {type(recipe).__name__}; expected keys and values")
    commands = argparse.ArgumentParser().add_subparsers()
    add(commands)
    return [*recipe_arguments(recipe, f"the recipe {path}", commands.choices[command]), *argv]


def recipe_arguments(recipe: Mapping[str, Any], where: str, parser: argparse.ArgumentParser) -> list[str]:
    """Options of a command as keys -> its arguments.

    Args:
        where: names the recipe in an error.

    Raises:
        ValueError: a key that is no option.
    """
    names = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    arguments: list[str] = []
    for name, value in recipe.items():
        action = names.get(name.replace("-", "_"))
        if action is None:
            near = difflib.get_close_matches(name.replace("-", "_"), names, 1)
            raise ValueError(f"{where}: unknown key {name!r}{f', did you mean {near[0]!r}?' if near else ''}")
        if action.nargs == 0:
            arguments += [action.option_strings[0]] if value else []
        elif isinstance(value, list):
            arguments += [action.option_strings[0], *map(str, value)]
        elif isinstance(value, Mapping):
            arguments.append(f"{action.option_strings[0]}={json.dumps(value)}")
        elif value is not None:
            arguments.append(f"{action.option_strings[0]}={value}")
    return arguments
