"""What is looked at before the first round: whether every step can be done as asked, and whose rounds the folder holds."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from transformers.utils import is_bitsandbytes_available

from ..data.writing import replace as replace_file
from ..evaluation import During
from ..evaluation.generation import weights_told
from ..evaluation.models import place_of
from ..hub import without_tokens
from ..pairs import PairOptions, options_of
from ..train import check_name, check_processes, config_file, parse, peft_config, split, with_recipe
from .recipe import LoopRecipe, spelt

FREE = (
    *("accelerate_config", "num_processes", "deepspeed", "fsdp", "fsdp_config", "ddp_backend", "env"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "auto_find_batch_size"),
    *("per_device_eval_batch_size", "precompute_ref_batch_size"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_empty_cache_steps"),
    *("dataset_num_proc", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
    *("logging_strategy", "logging_steps", "logging_first_step", "logging_dir", "log_level", "disable_tqdm"),
    *("report_to", "run_name", "save_strategy", "save_steps", "save_total_limit"),
)
"""Fields of a training that say where, how fast and in which pieces: a later round may have others, as after a lack of memory."""

SECRET = re.compile(r"(?<!pad_)(?<!eos_)(?<!bos_)(token|key|secret|password)$", re.IGNORECASE)
"""Keys whose values are written nowhere."""


def check(recipe: LoopRecipe) -> During:
    """Look at everything that can be looked at before the first step, and remember what the rounds are asked for.

    Returns:
        What scores the policies.

    Raises:
        ValueError: what one of the steps would refuse, several processes, or a folder that holds rounds with other options.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "mfpo loop is one process, which starts others itself: accelerate_config under train starts a training on several "
            "devices, num_proc under pairs makes pairs with several"
        )
    options = pair_options(recipe, 1, recipe.model)
    for name in ("shards", "push_to_hub"):
        if getattr(options, name) not in (1, None):
            raise ValueError(f"pairs: {name!r} does not go with rounds; leave it out")
    if (options.load_in_4bit or recipe.score.get("load_in_4bit")) and not is_bitsandbytes_available():
        raise ValueError("load_in_4bit needs bitsandbytes; run `pip install bitsandbytes`")
    check_training(recipe)
    adapter = place_of(recipe.model).adapter
    if adapter is not None and not Path(adapter).is_dir():
        raise ValueError(
            f"model is {adapter!r}, an adapter on the Hub, and a training goes on with one in a folder: hf download {adapter} "
            "--local-dir FOLDER, and name FOLDER"
        )
    judge = During(recipe.score["benchmark"], recipe.score["data"], **_limits(recipe))
    figures = [name for name, better in judge.better.items() if better is not None]
    if recipe.figure not in figures:
        neither = ", of which neither more nor less is better" if recipe.figure in judge.better else ""
        raise ValueError(f"figure is {recipe.figure!r}{neither}; {judge.name} has {', '.join(figures)}")
    _remember(recipe, options)
    return judge


def pair_options(recipe: LoopRecipe, number: int, policy: str) -> PairOptions:
    """Of a round, which draws with a seed of its own.

    Raises:
        ValueError: an option that cannot be used.
    """
    options = options_of({**recipe.pairs, "model": policy, "output": recipe.output / f"round-{number}" / "pairs"})
    return replace(options, seed=options.seed + number)


def training_fields(recipe: LoopRecipe, number: int, policy: str) -> dict[str, Any]:
    """Of a round."""
    folder = recipe.output / f"round-{number}"
    own = {"dataset_name": str(folder / "pairs"), "output_dir": str(folder / "model")}
    return {**recipe.train, "model_name_or_path": policy, **own}


def arguments(fields: Mapping[str, Any]) -> list[str]:
    """Fields as `mfpo train` takes them on its command line."""
    found: list[str] = []
    for name, value in fields.items():
        values = value if isinstance(value, list) else [value]
        words = [json.dumps(own) if isinstance(own, Mapping | bool | None) else str(own) for own in values]
        found += [f"--{name}", *words]
    return found


def check_training(recipe: LoopRecipe) -> None:
    """Read the fields of the first training, without loading anything.

    Raises:
        ValueError: a field that is none, a value that it cannot have, or what does not go with rounds.
    """
    try:
        given, fields = split(arguments(training_fields(recipe, 1, recipe.model)))
        if "config" in given:
            path = config_file(given["config"])
            check_processes(path, given.get("processes", "1"))
        elif "processes" in given:
            raise ValueError("num_processes needs accelerate_config; without, there is one process")
        # What a training sets for itself is not for the steps before it.
        with _environment_kept():
            _, training, model = parse(fields)
            check_name(model)
            peft_config(model)
    except (ValueError, OSError, ImportError, yaml.YAMLError) as error:
        raise ValueError(f"train: {' '.join(str(error).split())}") from error
    if recipe.merge and not model.use_peft:
        raise ValueError(
            "train: merge is of an adapter, and each round begins a new one; set use_peft: true, or leave merge out"
        )
    if training.push_to_hub:
        raise ValueError("train: 'push_to_hub' does not go with rounds; push the best policy with mfpo push")


@contextmanager
def _environment_kept() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _limits(recipe: LoopRecipe) -> dict[str, Any]:
    return {name: recipe.score[name] for name in ("rows", "max_new_tokens") if name in recipe.score}


# What the rounds in a folder were asked for


def without_secrets(value: Any) -> Any:
    """The same value without tokens, passwords and keys, wherever they are in it, as it may be written down."""
    if isinstance(value, Mapping):
        return {str(name): without_secrets(own) for name, own in value.items() if not SECRET.search(str(name))}
    if isinstance(value, list | tuple):
        return [without_secrets(own) for own in value]
    return without_tokens(value) if isinstance(value, str) else value


def _remember(recipe: LoopRecipe, options: PairOptions) -> None:
    """Write down what decides the content of the rounds, or compare it with what is written.

    Raises:
        ValueError: the folder holds rounds with other options.
    """
    asked, path = _asked(recipe, options), recipe.output / "options.json"
    if not path.exists():
        write(path, asked)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    # Values are not told: anything may be in them.
    changed = [name for name in {**before, **asked} if before.get(name) != asked.get(name)]
    if changed:
        raise ValueError(
            f"{recipe.output} holds rounds with other options: {', '.join(changed)} changed. Name another output, or delete it"
        )


def _asked(recipe: LoopRecipe, options: PairOptions) -> dict[str, Any]:
    """What decides the content of finished pieces; how many rounds there may be does not, nor where and how fast they are made."""
    kept = options.remembered(0)
    asked = {
        **{name: getattr(recipe, name) for name in ("figure", "merge")},
        "model": weights_told(recipe.model) or recipe.model,
        **{f"pairs.{name}": kept[spelt(name)] for name in recipe.pairs if spelt(name) in kept},
        **{f"train.{name}": own for name, own in _fields_of(recipe).items() if name not in FREE},
        **{f"score.{name}": own for name, own in recipe.score.items() if name != "batch_size"},
    }
    return json.loads(json.dumps(without_secrets(asked), default=str))


def _fields_of(recipe: LoopRecipe) -> dict[str, Any]:
    """The fields of a training, those of a recipe that it names among them: its file may hold others tomorrow."""
    own = {spelt(name): value for name, value in recipe.train.items() if spelt(name) != "config"}
    named = [recipe.train[name] for name in recipe.train if spelt(name) == "config"]
    return {**with_recipe(arguments({"config": named[0]}))[1], **own} if named else own


def write(path: Path, content: Mapping[str, Any]) -> None:
    """JSON into a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, default=str, allow_nan=False)
    replace_file(path, lambda own: own.write_text(text + "\n", encoding="utf-8"))
