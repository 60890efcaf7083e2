"""What the pages, the heads of the recipes and the docstrings advise: every command, flag and field is there, takes the
value that it is given, and is not refused beside a recipe that the advice may be taken with."""

import argparse
import ast
import configparser
import importlib
import inspect
import re
import runpy
import shlex
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from laboratory.command import build_parser as build_laboratory
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Sam3VideoConfig,
    Sam3VideoModel,
    SamConfig,
    SamModel,
)

import mfpo_trl
from mfpo_trl import MFPOConfig, cli
from mfpo_trl.arguments import check_arguments
from mfpo_trl.check.command import parse_options
from mfpo_trl.data.command import KEYWORD_OPTIONS, with_recipe
from mfpo_trl.data.keywords.extraction import KeywordOptions
from mfpo_trl.data.pipeline import BuildOptions
from mfpo_trl.evaluation import build_parser as build_score
from mfpo_trl.evaluation.generation.command import build_parser as build_generate
from mfpo_trl.evaluation.merge.command import build_parser as build_merge
from mfpo_trl.evaluation.reliance.command import build_parser as build_reliance
from mfpo_trl.objective import PRESETS
from mfpo_trl.objective.terms import row_columns
from mfpo_trl.recipes import recipe_file
from mfpo_trl.train import command as train
from mfpo_trl.train import launch

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
RECIPES = [path for path in RECIPES if path.parent.name != "accelerate"]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "recipes" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
LAUNCHING = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
SLURM = ROOT / "recipes" / "accelerate" / "multi_node.slurm"
CODE = [path for folder in ("src", "examples", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
COMMANDS = ("mfpo", "python", "accelerate", "torchrun", "sbatch", "make", "pip", "bash", "hf")
COMMAND = re.compile(rf"^ *(?:\w[\w ]*: +)*((?:{'|'.join(COMMANDS)}) .*)$", re.M)
"""On a line of its own, perhaps behind what it is: "Launch: mfpo train ..."."""
STANDS_FOR = {
    "NAME": "single_gpu",
    "BENCHMARK": "chair",
    "RECIPE": "recipes/llava-1.5/7b-mfpo-lora.yaml",
    "recipes/RECIPE": "recipes/llava-1.5/7b-mfpo-lora.yaml",
    "N": "2",
    "I": "1",
}
"""What a reader puts there."""
PLACEHOLDERS = ("--field value", "--config RECIPE", "--model_name_or_path, --dataset_name")
VALUE = r"(?:\"[^\"]*\"|[^\s`\",;:()\[\]-][^\s`\",;:()\[\]]*(?<![.]))"


@cache
def text_of(path: Path) -> str:
    """Of a page; the docstrings of a module; the comments of a recipe, where a line goes on in the next."""
    text = path.read_text()
    if path.suffix in (".yaml", ".slurm"):
        lines = [line.partition("# ")[2] for line in text.splitlines()]
        return "\n".join(lines).replace("\\\n", " ")
    if path.suffix == ".py":
        nodes = ast.walk(ast.parse(text))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        return "\n".join(filter(None, (ast.get_docstring(node) for node in nodes if isinstance(node, documented))))
    return text


@cache
def fenced(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(path), re.S | re.M)


@cache
def spans(path: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", text_of(path), flags=re.S | re.M)
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]


def commands(path: Path) -> list[list[str]]:
    """Of the fenced blocks and code spans of a page, the head of a recipe, the indented lines of a docstring."""
    lines = [line for block in fenced(path, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += [line for line in spans(path) if line.split()[0] in COMMANDS]
    if path.suffix != ".md":
        lines += [
            line for line in COMMAND.findall(text_of(path)) if path.suffix != ".py" or re.search(r"--|\.py", line)
        ]
    # A flag at its end is named, and its value is the reader's.
    lines = [re.sub(r" --[\w-]+$", "", re.split(r"\s{2,}[(#]|\s#", line)[0].strip()) for line in lines]
    return [
        [STANDS_FOR.get(word, word) for word in shlex.split(line.replace("[", " ").replace("]", " "))]
        for line in lines
        # A name alone is a method or a program; what pip installs is looked at elsewhere.
        if len(line.split()) > 1 and not line.startswith("pip ")
    ]


# Parsers


class Parsed(Exception):
    """Ends a program once its arguments are read."""


@cache
def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every parser of this repository by what it is of."""
    found = {**cli.build_parser()._subparsers._group_actions[0].choices}
    found["train"] = train.parser_of_fields()
    found["check"] = _parser_of(lambda: parse_options([]))
    benchmarks = build_score()._subparsers._group_actions[0].choices
    found |= {"generate": build_generate(), "merge": build_merge(), "reliance": build_reliance()}
    found |= {f"score {name}": parser for name, parser in benchmarks.items()}
    found["laboratory"] = build_laboratory()
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        if "ArgumentParser" in path.read_text():
            found[path.name] = _parser_of(lambda path=path: runpy.run_path(str(path), run_name="__main__"))
    return found


def _parser_of(program: Callable[[], Any]) -> argparse.ArgumentParser:
    kept, parse = [], argparse.ArgumentParser.parse_known_args

    def stop(self, *args, **kwargs):
        kept.append(self)
        raise Parsed

    argparse.ArgumentParser.parse_known_args = stop
    try:
        with suppress(Parsed):
            program()
    finally:
        argparse.ArgumentParser.parse_known_args = parse
    return kept[0]


def built(arguments: list[str], folder: Path) -> None:
    """Read the arguments of `mfpo build`, and, where they are whole, its options."""
    given = vars(cli.build_parser().parse_args(["build", *with_recipe(arguments)]))
    given = {name: value for name, value in given.items() if name not in ("run", "config")}
    words = KeywordOptions(**{name: given.pop(name) for name in KEYWORD_OPTIONS})
    if given["dataset"] and given["output"]:
        BuildOptions(**given, keywords=words)


def trained(arguments: list[str], dataset=None) -> None:
    """Read the fields of `mfpo train`, and ask what a trainer asks of them before it loads anything."""
    named = [
        part
        for name in ("model_name_or_path", "dataset_name")
        if not _has(arguments, name)
        for part in (f"--{name}", "x")
    ]
    # Half precision needs a GPU.
    script, training, _ = train.parse([*arguments, *named, "--use_cpu", "--bf16", "false"])
    dataset = rows() if dataset is None else dataset
    if _has(arguments, "objective"):
        # What each row needs, a recipe says in its head; here the columns are there, whatever is in them.
        needed = {*row_columns(training.terms), *PRESETS[training.objective].columns} - set(dataset.column_names)
        for column in sorted(needed):
            dataset = dataset.add_column(column, [""] * len(dataset))
    dataset = dataset.to_iterable_dataset() if script.dataset_streaming else dataset
    check_arguments(training, {"train_dataset": dataset}, None, training.precompute_ref_log_probs)


def _has(arguments: list[str], name: str) -> bool:
    recipe = arguments[arguments.index("--config") + 1] if "--config" in arguments else None
    return f"--{name}" in arguments or (recipe is not None and name in yaml.safe_load(recipe_file(recipe).read_text()))


@cache
def rows():
    """With every column that an objective asks for."""
    found = tiny.dataset(4, tiny.BOXES, key_regions=tiny.boxes)
    for name in ("chosen_2", "rejected_image_chosen"):
        found = found.add_column(name, found["chosen"], feature=found.features["chosen"])
    for name in ("weight", "beta_scale", "chosen_score", "rejected_score"):
        found = found.add_column(name, [1.0] * len(found))
    return found


def fields_of(arguments: list[str]) -> list[str]:
    """Those of `mfpo train`, with the launcher's taken out and looked up."""
    given, rest = launch.split(arguments)
    if "config" in given:
        launch.config_file(given["config"])
    return rest


def run(command: list[str], folder: Path) -> None:
    """Everything of a command but its work; raises, or exits, where it would be refused."""
    program, rest = command[0], command[1:]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert not rest or rest[0] in targets
    elif program == "mfpo" and rest:
        name, arguments = rest[0], rest[1:]
        if name == "train":
            trained(fields_of(arguments))
        elif name == "check":
            trained(parse_options(arguments)[1])
        elif name == "build":
            built(arguments, folder)
        elif name in ("generate", "merge", "reliance") and arguments:
            parsers()[name].parse_args(arguments)
        elif name == "score" and arguments[1:]:
            build_score().parse_args(arguments)
        elif name == "score":
            assert " ".join(rest) in ("score", *parsers())
        elif arguments:
            cli.build_parser().parse_args(rest)
        else:
            assert name in parsers()
    else:
        _started(rest, folder)


def _started(rest: list[str], folder: Path) -> None:
    """A script or module behind `python`, `accelerate launch`, `torchrun`, `sbatch` or `bash`."""
    if "--config_file" in rest:
        assert (ROOT / rest[rest.index("--config_file") + 1]).is_file()
    programs = (".py", ".slurm", ".ci/run", "benchmarks/laboratory")
    script = next((n for n, word in enumerate(rest) if word.endswith(programs)), None)
    if script is not None:
        path = ROOT / rest[script]
        assert (path / "__main__.py" if path.is_dir() else path).is_file(), rest[script]
        name, arguments = Path(rest[script]).name, rest[script + 1 :]
        if name == "train_mfpo.py":
            trained(fields_of(arguments))
        elif name == "multi_node.slurm":
            trained(["--config", *arguments])
        elif name in parsers():
            parsers()[name].parse_args(arguments)
    elif "mfpo_trl.train" in rest:
        arguments = rest[rest.index("mfpo_trl.train") + 1 :]
        engine = arguments.index("--deepspeed") if "--deepspeed" in arguments else len(arguments)
        assert all((ROOT / path).is_file() for path in arguments[engine + 1 : engine + 2])
        trained(arguments[:engine] + arguments[engine + 2 :])
    elif "mfpo_trl.cli" in rest:
        run(["mfpo", *rest[rest.index("mfpo_trl.cli") + 1 :]], folder)
    else:
        assert rest in (["launch"], ["auth", "login"]), rest


# Commands


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Commands are given at the root of the repository; what a page has the reader write lies there."""
    monkeypatch.chdir(ROOT)
    return tmp_path


NAMED = [
    pytest.param(path, id=str(path.relative_to(ROOT)))
    for path in (*PAGES, *RECIPES, *LAUNCHING, *CODE)
    if commands(path)
]


@pytest.mark.parametrize("path", NAMED)
def test_commands_are_taken(path, here):
    (here / "build.yaml").write_text("".join(fenced(ROOT / "docs" / "data.md", "yaml")))
    for command in commands(path):
        run([str(here / word) if word == "build.yaml" else word for word in command], here)


# Flags and fields


def flags(path: Path) -> list[list[str]]:
    """Runs of `--flag value ...` outside of commands."""
    if path.suffix == ".md":
        found = [span.replace("[", "").replace("]", "") for span in spans(path) if span.startswith("--")]
        found += [span.split()[-1] for span in spans(path) if re.search(r"^\w.* --[\w-]+$", span)]
    else:
        lines = COMMAND.sub("", text_of(path)).splitlines()
        pattern = rf"--[a-z][\w-]*(?:[ =]{VALUE})*"
        found = [run for line in lines for run in re.findall(rf"{pattern}(?: {pattern})*", line)]
    return [[STANDS_FOR.get(word, word) for word in shlex.split(own)] for own in found if own not in PLACEHOLDERS]


def settings(path: Path) -> list[tuple[str, object]]:
    """Spans `field=value` of Python and `field: value` of YAML."""
    found = []
    for span in spans(path):
        if re.match(r"[a-z]\w*=[^=]", span):
            with suppress(SyntaxError):
                found += [
                    (own.arg, ast.literal_eval(own.value))
                    for own in ast.parse(f"f({span})").body[0].value.keywords
                    if own.arg not in arguments_of(path)
                ]
        elif path.suffix == ".md" and re.fullmatch(r"[a-z]\w+: [\w.]+", span):
            found += [own for own in yaml.safe_load(span).items() if not str(own[1]).isupper()]
    return found


@cache
def arguments_of(path: Path) -> set[str]:
    """Of the functions of a module, of which its docstrings may speak as they do of fields."""
    tree = ast.parse(path.read_text()) if path.suffix == ".py" else ast.Module([], [])
    names = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return names - set(MFPOConfig.__dataclass_fields__)


def accepted(arguments: list[str]) -> list[str]:
    """The parsers that have all of these flags and take their values."""
    if arguments[0] in launch.OPTIONS and len(arguments) == 1:
        return ["train", "check"]
    rest = launch.split(arguments)[1]
    return [name for name, parser in parsers().items() if _takes(parser, rest)]


def _takes(parser: argparse.ArgumentParser, arguments: list[str]) -> bool:
    starts = [n for n, word in enumerate(arguments) if word.startswith("--")]
    try:
        for start, end in zip(starts, [*starts, None][1:], strict=True):
            flag, *values = [*arguments[start].split("=", 1), *arguments[start + 1 : end]]
            action = parser._option_string_actions[flag]
            # A flag that is only named, as in "`--model` measures it", has no value to look at.
            if values and parser._match_argument(action, "A" * len(values)) != len(values):
                return False
            if values:
                parser._get_values(action, values)
    except (KeyError, argparse.ArgumentError):
        return False
    return True


SPEAKING = [
    pytest.param(path, id=str(path.relative_to(ROOT)))
    for path in (*PAGES, *RECIPES, *LAUNCHING, *CODE)
    if flags(path) or settings(path)
]


@pytest.mark.parametrize("path", SPEAKING)
def test_flags_and_fields_are_there(path):
    for run in flags(path):
        assert accepted(run), f"no command takes {shlex.join(run)}"
    for name, value in settings(path):
        assert accepted(words_of(name, value)), f"no command has {name}: {value}"


def words_of(name: str, value: object) -> list[str]:
    """A field as it is written on the command line."""
    return [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]


# Beside a recipe


def advised(path: Path) -> list[list[str]]:
    """What a page says of a training, as fields of `mfpo train`; a flag that is only named advises nothing."""
    found = [launch.split(run)[1] for run in flags(path) if len(run) > 1 or run[0] not in launch.OPTIONS]
    found += [words_of(name, value) for name, value in settings(path)]
    actions = parsers()["train"]._option_string_actions
    return [
        run
        for run in found
        if run and _takes(parsers()["train"], run) and (len(run) > 1 or actions[run[0]].nargs == "?")
    ]


KINDS = {(path.parent.name == "methods", *path.stem.split("-")[-2:]): path for path in RECIPES}
"""A recipe of each method and way of training."""

METHODS = ("mfpo", "mdpo", "rdpo", "dpo")

SAID_OF = {
    ("docs/data.md", "--corruption diffusion"): ["mfpo"],
    ("docs/method.md", "--corruption none"): ["rdpo"],
    ("docs/scaling.md", "--corruption swap"): [],  # named there as what a stream refuses
    ("recipes/README.md", "--ddp_backend gloo"): [],  # of several processes
}
"""The methods that a page speaks of, where it does not speak of all."""


@pytest.mark.parametrize("page", [str(path.relative_to(ROOT)) for path in PAGES if advised(path)])
def test_what_a_page_advises_goes_with_the_recipes(page, here):
    refused = {}
    for run in advised(ROOT / page):
        of = SAID_OF.get((page, shlex.join(run)), METHODS)
        for recipe in [
            path for path in KINDS.values() if set(path.stem.split("-")) & set(of) and path.stem != "mfpo-sym"
        ]:
            try:
                trained(["--config", str(recipe), *run])
            except ValueError as error:
                refused[shlex.join(run), recipe.stem] = str(error)
    assert not refused


@pytest.mark.parametrize("page", sorted({page for page, _ in SAID_OF}))
def test_the_exceptions_are_still_said(page):
    assert {said for own, said in SAID_OF if own == page} <= {shlex.join(run) for run in advised(ROOT / page)}


OWN = [pytest.param(path, id=f"{path.parent.name}/{path.stem}") for path in RECIPES if advised(path)]


@pytest.mark.parametrize("path", OWN)
def test_what_a_head_advises_goes_with_its_recipe(path, here):
    for run in advised(path):
        trained(["--config", str(path), *run])


# Python, extras, links


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.name) for path in (*PAGES, *CODE) if fenced(path, "python")]
)
def test_python_is_taken(path):
    """What is imported from here is there, and so are the fields of a configuration and the arguments of a trainer."""
    for block in fenced(path, "python"):
        if ">>>" in block:
            block = "\n".join(re.findall(r"^>>> (.*)", block, re.M))
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "mfpo_trl":
                module = importlib.import_module(node.module)
                assert all(hasattr(module, own.name) for own in node.names)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", None) in mfpo_trl.__all__:
                known = inspect.signature(getattr(mfpo_trl, node.func.id)).parameters
                assert {own.arg for own in node.keywords} <= set(known)


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in (*PAGES, *LAUNCHING, *CODE)]
)
def test_extras_and_links_are_there(path):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    text = text_of(path)
    assert set(re.findall(r"mfpo_trl\[(\w+)\]|\"\.\[(\w+)\]\"", text)) <= {
        own for name in setup["options.extras_require"] for own in ((name, ""), ("", name))
    }
    if path.suffix == ".md":
        for link in re.findall(r"\]\(([^)#\s]+)", re.sub(r"```.*?```", "", text, flags=re.S)):
            assert "://" in link or (path.parent / link).exists(), link


# Sizes

OWL = {"image_size": 960, "patch_size": 16}
CLIPSEG = {"reduce_dim": 64, "use_complex_transposed_convolution": True}
PUBLISHED = {
    "IDEA-Research/grounding-dino-tiny": (GroundingDinoForObjectDetection, GroundingDinoConfig()),
    "facebook/sam-vit-base": (SamModel, SamConfig()),
    "google/owlv2-base-patch16-ensemble": (Owlv2ForObjectDetection, Owlv2Config(vision_config=OWL)),
    "CIDAS/clipseg-rd64-refined": (
        CLIPSegForImageSegmentation,
        CLIPSegConfig(vision_config={"patch_size": 16}, **CLIPSEG),
    ),
    "facebook/sam3": (Sam3VideoModel, Sam3VideoConfig()),
}
"""The default weights of the grounders: their model and configuration as published."""


def parameters(model: str) -> int:
    kind, config = PUBLISHED[model]
    with torch.device("meta"):
        return sum(own.numel() for own in kind(config).parameters())


def test_the_page_has_all_default_weights():
    source = (ROOT / "src" / "mfpo_trl" / "data" / "grounding" / "grounders.py").read_text()
    assert set(re.findall(r'"([\w-]+/[\w.-]+)"', source)) == set(PUBLISHED)
    listed = {row[2].split()[0] for row in grounders()}
    assert set(PUBLISHED) == listed - {"none", "yours"}


def grounders() -> list[list[str]]:
    """The cells of the table of grounders."""
    table = re.search(r"^\| `--grounder` .*?\n\n", (ROOT / "docs" / "data.md").read_text(), re.S | re.M)[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()[2:]]


@pytest.mark.parametrize("model", PUBLISHED)
def test_sizes_of_the_default_weights(model):
    """Counted from their configurations; 4 bytes each to download."""
    count = parameters(model)
    for _, _, name, licence, size, download in grounders():
        if name.split()[0] == model:
            millions = sum(map(int, re.findall(r"(\d+)M", size)))
            assert millions == round(count / 1e6) and download == f"{4 * count / 1e9:.2f} GB"
            assert licence.startswith("SAM License" if model == "facebook/sam3" else "Apache-2.0")
