"""Every field of a training, given a value of another kind: one sentence that names it, and no traceback."""

import dataclasses
import enum
import json
import types
from pathlib import Path
from typing import Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from trl import DPOConfig, ModelConfig, ScriptArguments, TrlParser

from mfpo_trl import train
from mfpo_trl.check import command
from mfpo_trl.train import options
from mfpo_trl.train.command import KINDS

NEEDED = {"model_name_or_path": "x", "dataset_name": "y"}
CPU = ["--use_cpu", "--bf16", "false"]
LIST, MAPPING = [[1]], {"a": 1}
WRONG = {
    bool: ["maybe", 2, 0.5, LIST, MAPPING],
    int: ["many", 64.5, "64.5", True, LIST, MAPPING],
    float: ["much", True, LIST, MAPPING],
    str: [5, 0.5, True, LIST, MAPPING],
    list: [MAPPING, LIST],
    dict: ["word", "[1]", 5, True, LIST],
    enum.Enum: ["word", 5, False, LIST, MAPPING],
    object: ["word", 5, MAPPING],
}
"""Values that YAML reads, by the kind of a field that takes none of them."""

BY_HAND = {
    "debug": [5, True, MAPPING, ["word"]],
    "include_num_input_tokens_seen": [5, LIST, MAPPING],
    "loss_weights": ["much", True, MAPPING, ["much"]],
    "curriculum_epochs": ["much", True, MAPPING, ["much"]],
    "optim_target_modules": [5, True, MAPPING, [5]],
    "pad_to_multiple_of": ["many", 64.5, True, LIST, MAPPING],
    "report_to": [5, True, MAPPING, [5]],
    "resume_from_checkpoint": [5, LIST, MAPPING],
    "trackio_static_space_id": [5, True, LIST, MAPPING],
    # A path or a mapping.
    "accelerator_config": [5, True, LIST],
    "deepspeed": [5, True, LIST],
    "fsdp_config": [5, True, LIST],
}
"""The fields of several kinds, and those that read more than their annotation says."""

TEXTS = {bool: ["maybe"], int: ["many", "64.5"], float: ["much"], dict: ["word", "[1]"], enum.Enum: ["word"]}
"""Texts of a command line, by the kind of a field that takes none of them."""


THEIRS = {own.name for kind in (ScriptArguments, DPOConfig, ModelConfig) for own in dataclasses.fields(kind)}


def kind_of(hint) -> type:
    """The kind of a field by its annotation, and `Union` for those of several."""
    union = get_origin(hint) in (Union, types.UnionType)
    members = [own for own in (get_args(hint) if union else [hint]) if own is not type(None)]
    kinds = {get_origin(own) or own for own in members}
    if dict in kinds:
        return dict
    enums = [own for own in kinds if isinstance(own, type) and issubclass(own, enum.Enum)]
    if enums and kinds == {*enums, str}:
        return enum.Enum
    if len(kinds) > 1 or Literal in kinds:
        return Union
    (kind,) = kinds
    return kind if kind in WRONG else object


FIELDS = {
    own.name: (own, kind_of(get_type_hints(kind)[own.name]))
    for kind in KINDS
    for own in dataclasses.fields(kind)
    if own.init
}


def refused(capsys, argv, name):
    """Both commands refuse the field in one sentence with its name; the sentence."""
    said = set()
    for command_name, main in (("train", train.main), ("check", command.main)):
        assert main(argv) == 2, argv
        printed = capsys.readouterr()
        (line,) = [line for line in printed.err.splitlines() if not line.startswith("[")]
        start = f"mfpo {command_name}: error: "
        assert line.startswith(start) and name in line and printed.out == "", line
        said.add(line.removeprefix(start))
    (sentence,) = said
    return sentence


def recipe(folder: Path, **fields) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(NEEDED | fields))
    return ["--config", str(path), *CPU]


def test_every_field_is_of_a_kind_that_is_tried():
    assert len(FIELDS) > 150 and {name for name, (_, kind) in FIELDS.items() if kind is Union} <= set(BY_HAND)


@pytest.mark.parametrize("name", FIELDS)
def test_a_value_of_another_kind_in_a_recipe(name, tmp_path, capsys):
    own, kind = FIELDS[name]
    wrong = list(BY_HAND[name] if name in BY_HAND else WRONG[kind])
    annotation = get_type_hints(next(kind for kind in KINDS if name in kind.__dataclass_fields__))[name]
    if own.default is not None and type(None) not in get_args(annotation):
        wrong.append(None)
    if own.metadata.get("choices"):
        wrong.append("none of them")
    for value in wrong:
        sentence = refused(capsys, recipe(tmp_path, **{name: value}), name)
        assert f"recipe.yaml: {name} is " in sentence and "; expected " in sentence, sentence


@pytest.mark.parametrize("name", [name for name, (_, kind) in FIELDS.items() if kind in TEXTS])
def test_a_text_of_another_kind_on_the_command_line(name, capsys):
    needed = [part for field, value in NEEDED.items() for part in (f"--{field}", value)]
    for text in [] if name in ("accelerator_config", "deepspeed", "fsdp_config") else TEXTS[FIELDS[name][1]]:
        refused(capsys, [*needed, *CPU, f"--{name}", text], name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("beta: [0.1]", "beta is [0.1]; expected a number"),
        ("max_length: 64.5", "max_length is 64.5; expected a whole number or null"),
        ("learning_rate: null", "learning_rate is null; expected a number"),
        ("use_peft: maybe", "use_peft is 'maybe'; expected true or false"),
        (
            "prefix_sharing: off",
            "prefix_sharing is false; expected one of auto, on, off; YAML reads yes, no, on and off",
        ),
        ("eval_strategy: no", "eval_strategy is false; expected one of no, steps, epoch; YAML reads"),
        ("run_name: 2026", "run_name is 2026; expected null or a text; put it in quotes"),
        ("run_name: 2026-01-02", "run_name is datetime.date(2026, 1, 2); expected null or a text; put it in quotes"),
        (
            "corruption_kwargs: step",
            "corruption_kwargs is 'step'; expected a mapping, which is a JSON object in a text",
        ),
        ("loss_weights: [1, one]", "loss_weights is [1, 'one']; expected a list of numbers or null"),
        ("hub_token: [hf_secret]", "hub_token is of another kind; expected null or a text"),
        ("accelerator_config: {splits: 1}", "accelerator_config cannot be used: AcceleratorConfig"),
        ("env: 5", "env is 5; expected a mapping"),
    ],
)
def test_the_sentence(fields, message, tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(NEEDED) + fields)
    sentence = refused(capsys, ["--config", str(tmp_path / "r.yaml"), *CPU], "")
    assert message in sentence and "hf_secret" not in sentence


def test_numbers_of_the_command_line(capsys):
    needed = [part for field, value in NEEDED.items() for part in (f"--{field}", value)]
    assert "--beta: invalid float value: 'x'" in refused(capsys, [*needed, "--beta", "x"], "beta")
    assert "--beta: expected one argument" in refused(capsys, [*needed, "--beta"], "beta")
    assert "is 'x'; expected a whole number or auto" in refused(
        capsys, [*needed, "--pad_to_multiple_of", "x"], "pad_to_multiple_of"
    )


# Options and choices


@pytest.mark.parametrize(
    ("option", "nearest"),
    [
        ("--lerning_rate", "--learning_rate"),
        ("--learning-rat=1", "--learning_rate"),
        ("--curiculum", "--curriculum"),
        ("--anchor_loss_wieght", "--anchor_loss_weight"),
        ("--freeze_tower", "--freeze_vision_tower"),
        ("--no_add_eso", "--no_add_eos"),
        # Cut short, as other commands call it, or as people do.
        ("--model", "--model_name_or_path"),
        ("--dataset", "--dataset_name"),
        ("--batch_size", "--per_device_train_batch_size"),
        ("--epochs", "--num_train_epochs"),
        ("--4bit", "--load_in_4bit"),
        # What is no field.
        ("--accelerate-confg", "--accelerate-config"),
        ("--num_procesess", "--num-processes"),
        ("--confg", "--config"),
        ("--xyzzy", None),
    ],
)
def test_a_misspelt_option_gets_the_nearest(option, nearest, capsys):
    """By both commands, whatever else is missing, and without its value."""
    sentence = refused(capsys, [*CPU, option, "secret"], option.split("=")[0])
    assert sentence == f"unknown option {option.split('=')[0]}" + (f"; did you mean {nearest}?" if nearest else "")


def test_every_field_is_told_when_it_is_misspelt():
    """A letter too many at its end: no other option is nearer."""
    spelt = train.parser_of_fields().spelt
    for name in FIELDS:
        assert options.nearest(f"--{name}x", spelt) == f"--{name}"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--row", "5"], "unknown option --row; did you mean --rows?"),
        (["--try_forward", "no"], "unknown option --try_forward; did you mean --try-forward?"),
        (["--try-forward", "maybe"], "argument --try-forward: invalid choice: 'maybe' (choose from"),
        (["--rows", "x"], "argument --rows: invalid int value: 'x'"),
    ],
)
def test_the_options_of_the_check_alone(argv, message, capsys):
    assert command.main(argv) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"mfpo check: error: {message}") and printed.err.count("\n") == 1


def test_a_word_that_belongs_to_nothing(capsys):
    needed = [part for field, value in NEEDED.items() for part in (f"--{field}", value)]
    assert refused(capsys, [*needed, *CPU, "recipe.yaml"], "") == "'recipe.yaml' belongs to no option"


CHOSEN = {
    name: found
    for name, found in train.parser_of_fields().by_field.items()
    if str(found.metavar).startswith("{") and name not in BY_HAND
}
"""The fields with choices."""


def test_fields_with_choices_are_found():
    enums = {name for name, (_, kind) in FIELDS.items() if kind is enum.Enum} - set(BY_HAND)
    ours = {name for name, (own, _) in FIELDS.items() if own.metadata.get("choices")}
    assert CHOSEN.keys() >= enums | ours and len(ours) > 6


@pytest.mark.parametrize("name", CHOSEN)
def test_a_choice_that_is_none_is_one_sentence(name, tmp_path, capsys):
    """On the command line and in a recipe, with all choices and the nearest one."""
    choices = CHOSEN[name].metavar[1:-1].split(",")
    longest = max(choices, key=len)
    needed = [part for field, value in NEEDED.items() for part in (f"--{field}", value)]
    said = f"is '{longest}e'; expected one of {', '.join(choices)}; did you mean '{longest}'?"
    for argv in ([*needed, *CPU, f"--{name}", f"{longest}e"], recipe(tmp_path, **{name: f"{longest}e"})):
        assert refused(capsys, argv, name).endswith(said)


# Help


def shown(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as ended:
        train.main(list(argv))
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--config", "methods/mfpo", "--help", "--lerning_rate"]])
def test_help_opens_with_the_fields_that_people_use(argv, capsys):
    page = shown(capsys, *argv)
    named = [line.split()[0].removeprefix("--") for line in page.splitlines() if line.startswith("  --")]
    ours = [own.name for kind in KINDS for own in dataclasses.fields(kind) if own.name not in THEIRS]
    beside = ["config", "accelerate-config", "num-processes", "help-all"]
    assert named == [*beside, *ours, *options.COMMON] and set(options.COMMON) <= set(FIELDS)
    assert len(page.splitlines()) < 250 and "mfpo train --help-all" in page
    # Those of a recipe are what would be trained with.
    rate = page.split("--learning_rate X")[1].split("default: ")[1]
    assert rate.startswith("1e-05)" if "--config" in argv else "1e-06)")


def test_help_of_everything(capsys):
    page = shown(capsys, "--help-all")
    named = [line.split()[0].removeprefix("--") for line in page.splitlines() if line.startswith("  --")]
    assert sorted(named[3:]) == sorted(FIELDS) and "%(" not in page and "%%" not in page


# What is right stays


RIGHT = """
learning_rate: 1e-6
beta: "0.2"
use_peft: "true"
add_eos: "no"
bf16: false
tf32: null
save_steps: 0.5
num_train_epochs: 2
warmup_steps: 0.1
per_device_train_batch_size: "4"
max_length: null
report_to: none
lora_target_modules: [q_proj, v_proj]
lora_modules_to_save: multi_modal_projector
loss_type: [sigmoid, sft]
loss_weights: [1, 0.5]
corruption_kwargs: {step: 700}
model_init_kwargs: '{"revision": "main"}'
optim: adamw_torch
lr_scheduler_type: cosine
eval_strategy: "no"
resume_from_checkpoint: true
pad_to_multiple_of: 8
gradient_checkpointing_kwargs: {use_reentrant: false}
accelerator_config: {split_batches: false}
hub_private_repo: "true"
include_num_input_tokens_seen: no
"""


@pytest.mark.parametrize("line", RIGHT.strip().splitlines(), ids=lambda line: line.split(":")[0])
def test_what_is_right_is_read_as_by_trls_own_parser(line, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(NEEDED) + line + ("\nloss_type: [sft, ipo]" if "loss_weights" in line else ""))
    argv = ["--config", str(path), "--use_cpu", "--output_dir", str(tmp_path)]
    own, theirs = train.parse(argv), TrlParser(KINDS).parse_args_and_config(argv)
    for mine, other in zip(own, theirs, strict=True):
        for field in dataclasses.fields(mine):
            if field.name not in ("logging_dir", "accelerator_config"):
                assert getattr(mine, field.name) == getattr(other, field.name), field.name
    assert own[1].accelerator_config.to_dict() == theirs[1].accelerator_config.to_dict()


def test_numbers_in_lists_and_a_single_one(tmp_path):
    """`[1e-1, 2]` is a text and a number for YAML, and a single number is a list of one, as on the command line."""
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump(NEEDED) + "curriculum: staged\ncurriculum_epochs: [1e-1, 2]\nloss_weights: 1"
    )
    _, training, _ = train.parse(["--config", str(tmp_path / "r.yaml"), *CPU])
    assert training.curriculum_epochs == [0.1, 2] and training.loss_weights == [1]


def test_the_defaults_of_all_fields(tmp_path):
    """Written out in a recipe, the defaults are read as what they are."""
    written = {}
    for name, (own, _) in FIELDS.items():
        default = own.default if own.default is not dataclasses.MISSING else own.default_factory()
        written[name] = default.value if isinstance(default, enum.Enum) else default
    # An empty text is no option, for TRL's parser neither.
    del written["debug"]
    written |= NEEDED | {"output_dir": str(tmp_path), "use_cpu": True}
    assert json.loads(json.dumps(written)) == written
    given = train.parse(recipe(tmp_path, **written)[:2])
    plain = train.parse(
        [f"--{name}={value}" for name, value in NEEDED.items()] + ["--use_cpu", f"--output_dir={tmp_path}"]
    )
    for mine, other in zip(given, plain, strict=True):
        for field in dataclasses.fields(mine):
            if field.name != "accelerator_config":
                assert getattr(mine, field.name) == getattr(other, field.name), field.name
