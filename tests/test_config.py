"""What the configuration refuses, and what it takes over from DPOConfig."""

import copy
import dataclasses
import io
import pickle

import pytest
import tiny
import torch
import yaml
from trl import DPOConfig, TrlParser

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl.objective import BRANCHES, PRESETS, Preset

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


def test_a_beta_that_is_not_set_is_the_papers(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(PRESETS, "hot", Preset({"text": 1.0}, "here", beta=0.5))
    monkeypatch.setitem(PRESETS, "silent", Preset({"text": 1.0}, "here"))
    with caplog.at_level("INFO", "mfpo_trl"):
        assert config(tmp_path).beta == config(tmp_path, objective="silent").beta == 0.1 and not caplog.messages
        assert config(tmp_path, objective="hot", beta=0.1).beta == 0.1 and not caplog.messages
        assert config(tmp_path, objective="hot").beta == 0.5
    assert caplog.messages == ["beta=0.5, that of objective='hot'; `beta` says another one."]
    assert MFPOConfig.from_dpo_config(DPOConfig(output_dir=str(tmp_path), **CPU)).beta == 0.1
    (found,) = TrlParser(MFPOConfig).parse_args_and_config(
        ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false", "--objective", "hot"]
    )
    assert found.beta == 0.5


@pytest.mark.parametrize(
    ("method", "branches"),
    [
        ("dpo", BRANCHES[:2]),
        ("rdpo", BRANCHES),
        ("mdpo", BRANCHES),
        ("mfpo", BRANCHES),
    ],
)
def test_method_recipes(tmp_path, method, branches, recipes):
    fields = yaml.safe_load((recipes / "methods" / f"{method}.yaml").read_text())
    assert set(fields) <= {field.name for field in dataclasses.fields(MFPOConfig)}
    found = config(tmp_path, **fields)
    assert found.branches == branches
    assert found.max_length is None
    assert ("anchor" in found.term_weights) == (method in ("mdpo", "mfpo"))


TOKEN, OTHER = f"hf_{'a' * 34}", f"hf_{'b' * 34}"
WITH_TOKENS = {
    "hub_token": TOKEN,
    "model_init_kwargs": {"token": OTHER, "dtype": "float32", "adapter_kwargs": {"token": OTHER}},
}


def saved(config):
    file = io.BytesIO()
    torch.save(config, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "replace": dataclasses.replace,
    "pickle": lambda config: pickle.loads(pickle.dumps(config)),
    "torch": saved,
    "fields": lambda config: MFPOConfig(**{own.name: getattr(config, own.name) for own in dataclasses.fields(config)}),
    "plain": lambda config: MFPOConfig.from_dpo_config(config),
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_keeps_the_tokens(way, tmp_path):
    found = COPIES[way](config(tmp_path, **WITH_TOKENS))
    assert found.hub_token == TOKEN and found.model_init_kwargs == WITH_TOKENS["model_init_kwargs"]


WRITTEN = {
    "str": str,
    "repr": repr,
    "dict": lambda config: str(config.to_dict()),
    "json": lambda config: config.to_json_string(),
    "sanitized": lambda config: str(config.to_sanitized_dict()),
    "pickle": lambda config: str(pickle.dumps(config.without_tokens())),
}


@pytest.mark.parametrize("way", WRITTEN)
def test_what_is_written_down_has_no_token(way, tmp_path):
    given = config(tmp_path, **WITH_TOKENS)
    found = WRITTEN[way](given)
    assert TOKEN not in found and OTHER not in found
    assert "float32" in found and str(tmp_path) in found
    # Nothing is taken from what was given.
    assert given.hub_token == TOKEN and given.model_init_kwargs == WITH_TOKENS["model_init_kwargs"]


@pytest.mark.parametrize("kind", [DPOConfig, MFPOConfig])
def test_a_trainer_saves_no_token_and_keeps_it(kind, tmp_path):
    """With checkpoints and with the model, where `Trainer` pickles its arguments."""
    args = kind(str(tmp_path / "out"), **CPU, **WITH_TOKENS, max_steps=1, save_steps=1, report_to="none")
    model = tiny.save_pretrained(tmp_path / "model")
    trainer = MFPOTrainer(model, args=args, train_dataset=tiny.dataset(8))
    trainer.train()
    trainer.save_model()
    assert trainer.args.hub_token == args.hub_token == TOKEN and trainer.args.model_init_kwargs["token"] == OTHER
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sum(path.name == "training_args.bin" for path in files) == 2
    assert not any(token.encode() in path.read_bytes() for path in files for token in (TOKEN, OTHER))
    loaded = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
    assert (loaded.hub_token, loaded.model_init_kwargs, loaded.max_steps) == (
        None,
        {"dtype": "float32", "adapter_kwargs": {}},
        1,
    )
