"""Weights that come back from a checkpoint are, bit by bit, those that were written, each in its own precision."""

import copy

import pytest
import tiny
import torch
from peft import LoraConfig
from test_trainer import CPU
from transformers import BitsAndBytesConfig, TrainerCallback

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl._trl import load_full_weights

TOWER = ("vision_tower", "multi_modal_projector")
MIXTURES = {
    "float32": {},
    "bfloat16": {"": torch.bfloat16},
    "tower in bfloat16": dict.fromkeys(TOWER, torch.bfloat16),
    "tower in float16, head in bfloat16": {**dict.fromkeys(TOWER, torch.float16), "lm_head": torch.bfloat16},
    "tower in float32": {"language_model": torch.bfloat16, "lm_head": torch.bfloat16},
    "norms in float32": {"": torch.bfloat16, "norm": torch.float32},
    "head in float64": {"lm_head": torch.float64},
}


def mixed(seed: int, mixture: dict[str, torch.dtype], tied: bool = False) -> tiny.LlavaForConditionalGeneration:
    """The tiny model with the parameters whose names hold a key in that precision; later keys win."""
    model = tiny.model(seed)
    if tied:
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
        model.tie_weights()
    for name, value in model.named_parameters():
        for part, dtype in mixture.items():
            if part in name:
                value.data = value.data.to(dtype)
        # So that every bit of the precision counts.
        value.data += 0.01 * torch.randn(value.shape, dtype=torch.float64).to(value.dtype)
    return model


def bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same_bits(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("shards", ["5GB", "40KB"])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_full_weights_come_back_as_they_were(tmp_path, mixture, shards, tied):
    written, model = (mixed(seed, MIXTURES[mixture], tied) for seed in (1, 0))
    written.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards == "40KB")
    load_full_weights(model, str(tmp_path))
    assert_same_bits(bits(model), bits(written))
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


def test_weights_of_16_bits_come_back_into_what_is_trained(tmp_path):
    """A checkpoint that was gathered in 16 bits: the model keeps its own precision and gets the values of the file."""
    written = mixed(1, {"": torch.bfloat16})
    written.save_pretrained(tmp_path)
    for mixture in MIXTURES.values():
        model = mixed(0, mixture)
        own = {name: value.dtype for name, value in model.named_parameters()}
        load_full_weights(model, str(tmp_path))
        for name, value in model.named_parameters():
            assert value.dtype == own[name]
            assert torch.equal(value, written.get_parameter(name).to(own[name])), name


def test_a_wider_file_is_rounded_once(tmp_path):
    """Weights in 32 bits that go into a model of 16 are rounded to the nearest of 16."""
    written, model = tiny.model(1), mixed(0, {"": torch.bfloat16})
    written.save_pretrained(tmp_path)
    load_full_weights(model, str(tmp_path))
    assert_same_bits(bits(model), {name: value.to(torch.bfloat16) for name, value in bits(written).items()})


class Keeping(TrainerCallback):
    """The weights that each checkpoint was written from."""

    def __init__(self):
        self.saved = {}

    def on_save(self, args, state, control, model=None, **kwargs):
        self.saved[state.global_step] = bits(model)


def trainer_of(folder, model, **settings) -> MFPOTrainer:
    options = {**CPU, "save_strategy": "steps", "save_steps": 1, "max_steps": 3, "eval_strategy": "steps"}
    options |= {"eval_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 0.05, "optim": "sgd"}
    return MFPOTrainer(
        model=model,
        ref_model=settings.pop("ref_model", None),
        args=MFPOConfig(output_dir=str(folder), **options),
        train_dataset=tiny.dataset(4),
        eval_dataset=tiny.dataset(2),
        processing_class=tiny.processor(),
        **settings,
    )


@pytest.mark.parametrize("mixture", ["float32", "tower in bfloat16"])
def test_a_training_goes_on_from_the_bits_it_stopped_with(tmp_path, mixture):
    """Resumed, and with the best model loaded at the end, which is made the first one here."""
    model = mixed(0, MIXTURES[mixture])
    keeping = Keeping()
    trainer = trainer_of(tmp_path, copy.deepcopy(model), ref_model=copy.deepcopy(model), callbacks=[keeping])
    trainer.train()
    again = trainer_of(tmp_path / "again", copy.deepcopy(model), ref_model=copy.deepcopy(model), callbacks=[Keeping()])
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same_bits(bits(again.model), keeping.saved[3])
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
    trainer._load_best_model()
    assert_same_bits(bits(trainer.model), keeping.saved[1])
    assert not all(torch.equal(value, keeping.saved[3][name]) for name, value in keeping.saved[1].items())


def test_an_adapter_of_a_quantised_model_comes_back_too(tmp_path):
    """TRL trains it in 16 bits, and PEFT reads it back in 32."""
    tiny.allow_four_bits()
    keeping = Keeping()
    trainer = trainer_of(
        tmp_path,
        tiny.save_pretrained(tmp_path / "model"),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
        callbacks=[keeping],
    )
    trainer.train()
    assert {value.dtype for value in trainer.model.parameters() if value.requires_grad} == {torch.bfloat16}
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
    trainer._load_best_model()
    assert_same_bits(bits(trainer.model), keeping.saved[1])
