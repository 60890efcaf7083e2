"""Options of a recipe's corruption, where the command line names another one."""

import json
import logging

import pytest
import yaml

from mfpo_trl.images.corruptions import CORRUPTIONS, corruption_defaults
from mfpo_trl.train import command as train

ARGV = ["--model_name_or_path", "x", "--dataset_name", "y", "--use_cpu", "--bf16", "false"]
OPTIONS = {"diffusion": {"step": 300, "schedule": "cosine"}, "crop": {"scale": [0.01, 0.2]}, "blur": {"sigma": 0.1}}
NAMES = (*(name for name in CORRUPTIONS if name != "generate"), "none")


@pytest.fixture
def parsed(tmp_path, caplog):
    """The configuration of a recipe and a command line, and the lines that are logged."""

    def read(recipe: dict, *fields: str):
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "mfpo_trl"):
            training = train.parse([*ARGV, "--config", str(tmp_path / "r.yaml"), *fields])[1]
        return training, [own.message for own in caplog.records if "corruption_kwargs" in own.message]

    return read


@pytest.mark.parametrize("after", NAMES)
@pytest.mark.parametrize("before", OPTIONS)
def test_the_options_go_with_their_corruption(before, after, parsed):
    """Of every corruption that has options to every other one; where it is the same one they stay."""
    own = {} if after == "none" else corruption_defaults(after)
    kept = {key: value for key, value in OPTIONS[before].items() if key in own}
    for fields in (["--corruption", after], [f"--corruption={after}"]):
        training, said = parsed({"corruption": before, "corruption_kwargs": OPTIONS[before]}, *fields)
        assert training.corruption == after and training.corruption_kwargs == kept
        assert len(said) == (kept != OPTIONS[before])
        assert not said or (
            all(f"{key}=" in said[0] for key in OPTIONS[before]) and f"--corruption {after}" in said[0]
        )


def test_auto_takes_the_options_of_diffusion(parsed):
    """Which a row without a recipe of its own gets; a recipe that names no corruption is one of `auto`."""
    training, said = parsed({"corruption": "crop", "corruption_kwargs": OPTIONS["crop"]}, "--corruption", "auto")
    assert training.corruption_kwargs == {} and len(said) == 1
    training, said = parsed({"corruption": "diffusion", "corruption_kwargs": {"step": 3}}, "--corruption", "auto")
    assert training.corruption_kwargs == {"step": 3} and not said
    training, said = parsed({"corruption_kwargs": {"step": 3}}, "--corruption", "swap")
    assert training.corruption_kwargs == {} and len(said) == 1
    training, said = parsed({"corruption_kwargs": {"sigma": 0.2}}, "--corruption", "auto")
    assert training.corruption_kwargs == {"sigma": 0.2} and not said


def test_a_text_of_json(parsed):
    training, said = parsed(
        {"corruption": "crop", "corruption_kwargs": json.dumps(OPTIONS["crop"])}, "--corruption", "blur"
    )
    assert training.corruption_kwargs == {} and len(said) == 1


@pytest.mark.parametrize(
    ("recipe", "fields", "problem"),
    [
        ({"corruption": "crop", "corruption_kwargs": {"scal": 1}}, ["--corruption", "blur"], "no option 'scal'"),
        ({"corruption": "crop", "corruption_kwargs": {"sigma": 0.1}}, [], "no option 'sigma'"),
        ({"corruption": "crop", "corruption_kwargs": {"sigma": 0.1}}, ["--corruption", "crop"], "no option 'sigma'"),
        ({}, ["--corruption", "crop", "--corruption_kwargs", '{"sigma": 0.1}'], "no option 'sigma'"),
        (
            {"corruption": "blur", "corruption_kwargs": {"sigma": 0.1}},
            ["--corruption", "crop", "--corruption-kwargs", '{"sigma": 0.2}'],
            "no option 'sigma'",
        ),
        (
            {"corruption": "crop", "corruption_kwargs": OPTIONS["crop"]},
            ["--corruption", "blurr"],
            "did you mean 'blur'",
        ),
    ],
)
def test_what_is_misspelt_is_refused(recipe, fields, problem, parsed):
    """What was said together is taken by its word, and so is what belongs to no corruption."""
    with pytest.raises(ValueError, match=problem):
        parsed(recipe, *fields)
