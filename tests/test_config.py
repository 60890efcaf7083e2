"""What the configuration refuses, and what it takes over from DPOConfig."""

import dataclasses

import pytest
import yaml
from trl import DPOConfig, TrlParser

from mfpo_trl import MFPOConfig

CPU = {"bf16": False, "use_cpu": True}


def config(tmp_path, **fields):
    return MFPOConfig(output_dir=str(tmp_path), **CPU, **fields)


def test_defaults(tmp_path):
    found = config(tmp_path)
    assert found.term_weights == {"text": 1.0, "image": 1.0, "anchor": 1.0}
    assert (found.anchor_margin, found.image_beta, found.corruption, found.corruption_kwargs) == (
        0,
        None,
        "auto",
        {},
    )
    assert (found.corruption_region, found.corruption_seed, found.add_eos, found.prefix_sharing) == (
        "auto",
        None,
        True,
        "auto",
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_loss_weight": -1}, "image_loss_weight is -1; expected a number >= 0"),
        ({"text_loss_weight": float("nan")}, "text_loss_weight is nan"),
        ({"anchor_loss_weight": float("inf")}, "anchor_loss_weight is inf"),
        ({"text_loss_weight": 0, "image_loss_weight": 0, "anchor_loss_weight": 0}, "all 0: there is nothing to train"),
        ({"anchor_margin": float("nan")}, "anchor_margin is nan"),
        ({"image_beta": 0}, "image_beta is 0; expected a number > 0"),
        ({"corruption": "blurr"}, "did you mean 'blur'"),
        ({"corruption_kwargs": {"schedule": "sigmoid"}}, "unknown noise schedule 'sigmoid'"),
        ({"corruption_kwargs": {"steps": 5}}, "did you mean 'step'"),
        ({"corruption": "swap", "corruption_kwargs": {"donor": 1}}, "swap. takes another row"),
        ({"corruption_kwargs": {"donor": 1}}, "swap. takes another row"),
        ({"corruption_kwargs": {"sigma": 2}}, "above 0 and at most 1, found 2"),
        ({"corruption_kwargs": {"scale": {"low": 0, "high": 1}}}, "corruption 'crop' cannot use"),
        ({"corruption_kwargs": {"step": 5, "sigma": 0.1}}, "no corruption has all of the options step, sigma"),
        ({"corruption": "blur", "corruption_kwargs": {"step": 5}}, "corruption 'blur' has no option 'step'"),
        ({"corruption_seed": 0.5}, "corruption_seed is 0.5; expected a whole number"),
        ({"corruption_region": "everywhere"}, "expected .*'auto', 'global', 'random', 'key'"),
        ({"prefix_sharing": "yes"}, "expected .*'auto', 'on', 'off'"),
    ],
)
def test_refusals(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **fields)


def test_plain_dpo_config_keeps_every_setting(tmp_path):
    plain = DPOConfig(output_dir=str(tmp_path), **CPU, beta=0.3, loss_type="ipo", learning_rate=3e-5, save_steps=7)
    found = MFPOConfig.from_dpo_config(plain)
    for field in dataclasses.fields(DPOConfig):
        if hasattr(plain, field.name):
            assert getattr(found, field.name) == getattr(plain, field.name), field.name
    assert found.term_weights == {"text": 1.0, "image": 1.0, "anchor": 1.0} and found.corruption_kwargs == {}
    assert (found.corruption, found.corruption_seed) == ("auto", None)
    assert found.distributed_state is plain.distributed_state


def test_command_line_fields(tmp_path):
    argv = ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false", "--image_loss_weight", "0.5"]
    argv += ["--corruption_kwargs", '{"step": 700, "schedule": "cosine"}', "--add_eos", "false"]
    (found,) = TrlParser(MFPOConfig).parse_args_and_config(argv)
    assert found.image_loss_weight == 0.5 and not found.add_eos
    assert found.corruption_kwargs == {"step": 700, "schedule": "cosine"}


@pytest.mark.parametrize(
    ("method", "branches"),
    [
        ("dpo", ("chosen", "rejected")),
        ("rdpo", ("chosen", "rejected", "corrupted")),
        ("mdpo", ("chosen", "rejected", "corrupted")),
        ("mfpo", ("chosen", "rejected", "corrupted")),
    ],
)
def test_method_recipes(tmp_path, method, branches, recipes):
    fields = yaml.safe_load((recipes / "methods" / f"{method}.yaml").read_text())
    assert set(fields) <= {field.name for field in dataclasses.fields(MFPOConfig)}
    found = config(tmp_path, **fields)
    assert found.branches == branches
    assert found.max_length is None
    assert (found.anchor_loss_weight > 0) == (method in ("mdpo", "mfpo"))
