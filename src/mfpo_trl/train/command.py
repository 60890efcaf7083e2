"""`mfpo train`: a recipe, a model and a data set -> a trained model."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import yaml
from accelerate.logging import get_logger
from transformers import TrainerCallback
from trl import get_quantization_config

from ..checkpoints import ResumeError, resume_point
from ..config import MFPOConfig
from ..hub import PushError, check_strategy, open_repository, push_trained
from ..leaving import tear_down
from ..objective.terms import TermError
from ..recipes import recipe_file
from ..rows import RowError
from ..terminal import told
from ..trainer import MFPOTrainer
from .benchmark import BenchmarkCallback, benchmark_of
from .fields import Parser, read_recipe
from .leftovers import without_leftovers
from .options import check_options
from .parts import TrainModelConfig, freeze_parts, going_on, peft_config
from .splits import Splits, TrainScriptArguments
from .start import fail, stopped

logger = get_logger(__name__)

PROBE = 2**20


class Begun(TrainerCallback):
    """Whether all is made that a training needs, and its steps come."""

    begun = False

    def __bool__(self) -> bool:
        return self.begun

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun = True


KINDS = (TrainScriptArguments, MFPOConfig, TrainModelConfig)
"""Whose fields a recipe and the command line give."""


def run(argv: Sequence[str]) -> int:
    """Train with these fields in this process; returns the exit status, 2 for fields that cannot be used."""
    with told():
        return _run(argv)


def _run(argv: Sequence[str]) -> int:
    try:
        script, training, model = parse(argv)
        trainer = build(script, training, model)
    except (ValueError, OSError, ImportError, NotImplementedError, PushError, yaml.YAMLError) as error:
        return fail(error)
    except KeyboardInterrupt:
        return stopped("nothing was trained")
    begun = Begun()
    trainer.add_callback(begun)
    try:
        train(trainer, script)
    except (ValueError, ImportError, NotImplementedError, PushError) as error:
        if begun and not isinstance(error, RowError | ResumeError | PushError | TermError):
            # It may be a fault of ours, and keeps its traceback.
            raise
        return fail(error)
    except KeyboardInterrupt:
        return stopped("the same command with --resume_from_checkpoint true goes on from the last complete checkpoint")
    return 0


def parse(argv: Sequence[str]) -> tuple[TrainScriptArguments, MFPOConfig, TrainModelConfig]:
    """The fields of TRL's scripts and of `MFPOConfig`, from `--config recipe.yaml` and from the command line, which wins.

    Raises:
        ValueError: a recipe that is no mapping, an unknown key or option (the nearest name is told), no model or data set,
            or a value that its field cannot have.
        OSError: the recipe cannot be read.
    """
    argv, recipe = with_recipe(argv)
    given = {arg.split("=")[0].removeprefix("--").replace("-", "_") for arg in argv if arg.startswith("--")}
    everything = "help_all" in given
    parser = parser_of_fields(everything)
    if everything or "help" in given or "-h" in argv:
        argv = ["--help"]
    else:
        check_options(argv, parser.spelt)
        for name in ("model_name_or_path", "dataset_name"):
            if name not in given | recipe.keys():
                raise ValueError(f"--{name} is needed")
    recipe, line = without_leftovers(argv, recipe)
    fields = parser.parse(argv, recipe)
    if fields[0].eval_split_ratio and "dataset_test_split" in given | recipe.keys():
        raise ValueError(
            "eval_split_ratio holds rows out to evaluate on, and dataset_test_split names others; leave one of them out"
        )
    if fields[0].eval_benchmark != "none" and "greater_is_better" not in given | recipe.keys():
        # Transformers has set it by a rule that knows no figure of a benchmark.
        fields[1].greater_is_better = None
    if line:
        logger.warning(line)
    return fields


def parser_of_fields(everything: bool = False) -> Parser:
    """The parser of the command line.

    Args:
        everything: `--help` shows every field.
    """
    # A field that is cut short would be taken for another one without a word.
    return Parser(KINDS, everything, prog="mfpo train", allow_abbrev=False)


def with_recipe(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The command line without `--config`, and the fields of the recipe that it names.

    Raises:
        ValueError: no recipe is named, or it cannot be used.
        OSError: it cannot be read.
    """
    argv = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    if "--config" not in argv:
        return argv, {}
    place = argv.index("--config")
    if place + 1 == len(argv):
        raise ValueError("--config needs the path or the name of a recipe")
    rest = argv[:place] + argv[place + 2 :]
    if "--config" in rest:
        raise ValueError("--config is given twice; a training has one recipe")
    return rest, read_recipe(recipe_file(argv[place + 1]), KINDS)


def build(script: TrainScriptArguments, training: MFPOConfig, model: TrainModelConfig) -> MFPOTrainer:
    """Load the data and the model into a trainer, with what is not trained frozen.

    Raises:
        ValueError: fields that cannot be used, or a checkpoint that is not complete.
        OSError: the model cannot be read; names it.
    """
    given = arguments(script, training, model)
    if training.push_to_hub:
        # Now, and not when everything is trained.
        check_strategy(training)
        open_repository(hub_id(training), private=bool(training.hub_private_repo), token=training.hub_token)
    try:
        trainer = MFPOTrainer(**going_on(model, given))
    except OSError as error:
        if str(given["model"]) in str(error):
            raise
        # Without a network transformers says that nothing is cached, and not of what.
        raise OSError(f"{given['model']}: {error}") from error
    freeze_parts(trainer.model, model)
    for callback in given["callbacks"] or []:
        callback.trainer = trainer
    return trainer


def hub_id(training: MFPOConfig) -> str:
    """The repository that is pushed to."""
    return training.hub_model_id or Path(training.output_dir).resolve().name


def arguments(script: TrainScriptArguments, training: MFPOConfig, model: TrainModelConfig) -> dict[str, Any]:
    """What the trainer is built with; the fields of `training` that the others decide are set.

    Raises:
        ValueError: fields that cannot be used, no such data, or a checkpoint that is not complete.
    """
    adapter = peft_config(model)
    check_name(model)
    check_output(training.output_dir)
    training.resume_from_checkpoint = resume_point(
        training.resume_from_checkpoint, training.output_dir, training.save_only_model
    )
    training.model_init_kwargs = model_options(model, training)
    data = Splits(script, training)
    benchmark = benchmark_of(script, training)
    return {
        "callbacks": None if benchmark is None else [BenchmarkCallback(benchmark)],
        "model": model.model_name_or_path,
        "args": training,
        "train_dataset": data.train,
        "eval_dataset": data.evaluation,
        "quantization_config": get_quantization_config(model),
        "peft_config": adapter,
    }


def model_options(model: TrainModelConfig, training: MFPOConfig) -> dict[str, Any]:
    """What the model is loaded with."""
    return {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }


def check_name(settings: TrainModelConfig) -> None:
    """Refuse a path that is not there; it would be looked up on the Hub, and the message say so.

    Raises:
        ValueError: there is no such folder.
    """
    name = settings.model_name_or_path
    if name.startswith(("/", "./", "../", "~")) and not Path(name).exists():
        raise ValueError(f"model_name_or_path is {name!r}, and there is no such folder")


def check_output(folder: str) -> None:
    """Refuse a folder to which no checkpoint could be written, found by writing a mebibyte; it need not be there yet.

    Raises:
        ValueError: says what is there instead.
    """
    there = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(
            f"output_dir is {folder!r}, and {there} {'cannot be written to' if there.is_dir() else 'is a file'}"
        )
    try:
        with TemporaryFile(dir=there) as probe:
            probe.write(bytes(PROBE))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise ValueError(
            f"output_dir is {folder!r}, and nothing can be written to {there}: {error.strerror}"
        ) from error


def train(trainer: MFPOTrainer, script: TrainScriptArguments) -> None:
    """Train, save and, where asked, push."""
    training = trainer.args
    if training.resume_from_checkpoint:
        trainer.accelerator.print(f"Going on from {training.resume_from_checkpoint}")
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    # The word keeps it from pushing before there is a card.
    trainer.save_model(training.output_dir, _internal_call=True)
    # After training, so that the card tells the final state.
    trainer.create_model_card(dataset_name=script.dataset_name)
    trainer.accelerator.print(f"The model and its card are in {training.output_dir}")
    tear_down(trainer)
    if training.push_to_hub:
        trainer.accelerator.print(f"The model is at {push_trained(trainer)}")
