"""The memory model: hand arithmetic, DeepSpeed's estimators, real models, and what the recipes and docs/scaling.md say."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import scaling
import tiny
import torch
import yaml
from accelerate import PartialState
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    CLIPVisionConfig,
    Idefics3Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    MistralConfig,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
)

from mfpo_trl.check import memory as check_memory
from mfpo_trl.check import model as check_model
from mfpo_trl.check.formulas import (
    CUDA,
    GIB,
    NF4,
    Engine,
    Geometry,
    MicroBatch,
    Training,
    deepspeed_estimate,
    per_device,
)
from mfpo_trl.train import command as train
from mfpo_trl.train import parts

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*/*.yaml") if re.match(r"(.*-)?\d+b-", path.name))
SMALL = Geometry(total=1000, linear=800, trained=100, hidden=4, layers=3, intermediate=8, vocabulary=50)
BATCH = MicroBatch(tokens=10, labels=2)


def tower() -> CLIPVisionConfig:
    """CLIP-L/14 at 336 pixels."""
    return CLIPVisionConfig(
        image_size=336,
        patch_size=14,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        projection_dim=768,
    )


def llava(hidden, intermediate, layers, heads, kind=LlavaConfig, **more) -> LlavaConfig | LlavaNextConfig:
    """LLaVA-1.5 and 1.6 as published: that tower, and Vicuna, or Mistral, with 64 more tokens."""
    language = (MistralConfig if more else LlamaConfig)(
        vocab_size=32064,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=4096,
        pad_token_id=0,
        **more,
    )
    config = kind(vision_config=tower(), text_config=language, image_token_id=32000, vision_feature_layer=-2)
    config.tie_word_embeddings = False
    return config


def llava_7b() -> LlavaConfig:
    return llava(4096, 11008, 32, 32)


def qwen2_5_vl() -> Qwen2_5_VLConfig:
    language = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 152064}
    language |= {"num_attention_heads": 28, "num_key_value_heads": 4}
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    return Qwen2_5_VLConfig(text_config=language, vision_config=vision, tie_word_embeddings=False)


def qwen3_vl() -> Qwen3VLConfig:
    language = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "vocab_size": 151936}
    language |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096}
    return Qwen3VLConfig(text_config=language, vision_config=vision, tie_word_embeddings=False)


def smolvlm() -> Idefics3Config:
    language = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "vocab_size": 49155}
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "image_size": 384}
    vision |= {"num_attention_heads": 16, "patch_size": 14}
    config = Idefics3Config(text_config=LlamaConfig(**language), vision_config=vision, scale_factor=3)
    config.tie_word_embeddings = False
    return config


PUBLISHED = {"7b": llava_7b, "13b": lambda: llava(5120, 13824, 40, 40)}

CONFIGURATIONS = {
    **{f"llava-1.5/{size}": made for size, made in PUBLISHED.items()},
    "llava-1.6/vicuna-7b": lambda: llava(4096, 11008, 32, 32, LlavaNextConfig),
    "llava-1.6/mistral-7b": lambda: llava(4096, 14336, 32, 32, LlavaNextConfig, num_key_value_heads=8),
    "qwen2.5-vl/7b": qwen2_5_vl,
    "qwen3-vl/8b": qwen3_vl,
    "smolvlm/2b": smolvlm,
}
"""Of the models of the recipes, as published."""


@cache
def published(model: str, full: bool) -> Geometry:
    """Of a model of the recipes in full fine-tuning, or with LoRA of rank 64."""
    return counted(CONFIGURATIONS[model](), *([] if full else ["--use_peft", "--lora_r", "64"]))


def counted(config, *fields: str) -> Geometry:
    """The geometry that `mfpo check` would count, of a model without weights."""
    _, _, model = train.parse(["--model_name_or_path", "x", "--dataset_name", "y", "--use_cpu", *fields])
    with torch.device("meta"):
        skeleton = AutoModelForImageTextToText.from_config(config)
    return check_memory.geometry(check_model.adapted(skeleton, model))


# By hand


def test_lora_by_hand():
    """Weights 2 x 1000; adapter and gradients 4 x 100, AdamW 8 x 100; checkpoints 2 x 10 x 4 x 3 = 240, the layer again
    2 x 10 x (12 x 4 + 6 x 8) = 1920; LM head 8 x 50 x 2."""
    found = per_device(SMALL, Training(), Engine(), BATCH)
    expected = (2000, 400, 400, 800, 2160, 800, 0, 0, CUDA, 0)
    assert tuple(found.parts().values()) == expected and found.total == sum(expected)
    assert found.states == 3600


def test_what_changes_lora():
    def parts(training=None, engine=None):
        return per_device(SMALL, replace(Training(), **(training or {})), engine or Engine(), BATCH)

    assert parts({"checkpointing": False}).activations == 3 * 1920
    assert parts({"half": False}).activations == 2 * 2160
    # A whole second model, or a copy of the adapter.
    assert parts({"reference": "model"}).reference == 2000 and parts({"reference": "adapter"}).reference == 400
    # Plain data parallelism sums gradients in buckets beside them.
    assert parts(engine=Engine(8)).gradients == 800 and parts(engine=Engine(8)).weights == 2000
    # Half a byte, a scale of a byte for 64 weights, and 4 bytes for 256 scales; 200 weights stay in 16 bits.
    quantised = parts({"linear_bytes": NF4[True], "trained_bytes": 2})
    assert quantised.weights == pytest.approx(800 * (0.5 + 1 / 64 + 4 / 16384) + 400)
    assert (quantised.adapter, quantised.gradients, quantised.optimizer) == (200, 200, 400)


def test_raw_logits_by_hand():
    """Two labels over a vocabulary of 50: 32 bytes each in place of 8."""
    plain, read = (per_device(SMALL, Training(), Engine(), replace(BATCH, logits=own)).head for own in (False, True))
    assert (plain, read) == (800, 3200)


def test_full_by_hand():
    """One device in 32 bits: 4 + 4 + 8 for each trained weight, 4 for the others. ZeRO on 4: 2, 2 and 12."""
    full, most = Training(weight_bytes=4, adapter=False), replace(SMALL, trained=900)
    alone = per_device(most, full, Engine(), BATCH)
    assert (alone.weights, alone.adapter, alone.gradients, alone.optimizer) == (4000, 0, 3600, 7200)
    two = per_device(most, full, Engine(4, stage=2, deepspeed=True), BATCH)
    assert (two.weights, two.gradients, two.optimizer, two.gathered) == (2000, 450, 2700, 0)
    three = per_device(most, full, Engine(4, stage=3, deepspeed=True), BATCH)
    # The LM head, 4 x 50, whole in 2 bytes, and its gradient in 4.
    assert (three.weights, three.gradients, three.optimizer, three.gathered) == (500, 450, 2700, 1200)
    fsdp = per_device(most, full, Engine(4, stage=3), BATCH)
    assert (fsdp.weights, fsdp.gradients, fsdp.optimizer) == (1000, 900, 1800)
    away = per_device(most, full, Engine(4, 2, 3, True, True, True), BATCH)
    assert away.states == 0 and away.host == 2 * (500 + 450 + 2700)


@settings(max_examples=200, deadline=None)
@given(
    st.builds(
        Geometry,
        total=st.integers(10_000, 10**10),
        linear=st.integers(0, 10_000),
        trained=st.integers(0, 10_000),
        hidden=st.integers(1, 100),
        layers=st.integers(1, 10),
        intermediate=st.integers(1, 100),
        vocabulary=st.integers(1, 100),
    ),
    st.sampled_from([training for training, _ in scaling.WAYS.values()]),
    st.sampled_from([0, 1, 2, 3]),
    st.booleans(),
    st.integers(2, 512),
)
def test_more_devices_never_need_more(geometry, training, stage, deepspeed, devices):
    """Nor does a higher stage hold more of weights, gradients and optimizer."""

    def needs(count, stage=stage):
        return per_device(geometry, training, Engine(count, 1, stage, deepspeed), BATCH)

    assert needs(devices + 1).total <= needs(devices).total
    if stage == 3:
        assert needs(devices).total <= needs(1).total
    assert needs(devices, 3).states <= needs(devices, 2).states <= needs(devices, 1).states


# Against DeepSpeed


@pytest.mark.parametrize(("devices", "machines"), [(1, 1), (8, 1), (32, 4)])
def test_deepspeeds_own_estimators(devices, machines):
    """Where every weight is trained, theirs is ours and, under ZeRO-2, 4 bytes a weight shared out for the gradients that
    its optimizer step casts to 32 bits, or, under ZeRO-3, 2 of them and 4 bytes for each weight of the largest layer."""
    everything = replace(scaling.LLAVA_7B, trained=scaling.LLAVA_7B.total)
    two, three = (Engine(devices, machines, stage, True) for stage in (2, 3))
    total, nodes = everything.total, {"num_gpus_per_node": devices // machines, "num_nodes": machines}
    device, host = deepspeed_estimate(everything, two)
    assert (host, device) == estimate_zero2_model_states_mem_needs(total, cpu_offload=False, **nodes)
    ours = per_device(everything, scaling.FULL, two, BATCH).states
    assert device - ours == pytest.approx(4 * total / devices, abs=1)
    device, host = deepspeed_estimate(everything, three)
    own = {"cpu_offload": False, "cpu_offload_params": False}
    assert (host, device) == estimate_zero3_model_states_mem_needs(total, everything.head, **own, **nodes)[:2]
    ours = per_device(everything, scaling.FULL, three, BATCH).states
    assert device - ours == pytest.approx(2 * total / devices + 4 * everything.head, abs=1)
    assert deepspeed_estimate(everything, Engine(devices, machines, 3)) is None


# Against real models


@pytest.mark.parametrize("fields", [[], ["--lora_r", "3"], ["--lora_modules_to_save", "multi_modal_projector"]])
def test_trained_parameters_are_those_of_the_real_model(fields):
    fields = ["--use_peft", *fields]
    _, _, model = train.parse(["--model_name_or_path", "x", "--dataset_name", "y", "--use_cpu", *fields])
    real = get_peft_model(tiny.model(), parts.peft_config(model))
    found = counted(tiny.model().config, *fields)
    assert found.trained == real.get_nb_trainable_parameters()[0] > 0
    assert found.total == sum(parameter.numel() for parameter in tiny.model().parameters())


def test_full_fine_tuning_trains_what_is_not_frozen():
    PartialState()  # whose log says what is frozen
    real = tiny.model()
    parts.freeze(real, ["vision tower"])
    expected = sum(parameter.numel() for parameter in real.parameters() if parameter.requires_grad)
    assert counted(tiny.model().config).trained == expected


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A small model whose layers are wide enough for blocks of 64 weights and of 256 scales to fill."""
    config = tiny.model().config
    config.text_config = LlamaConfig(
        vocab_size=320, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("wide")
    LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(path)
    return path, config


@pytest.mark.parametrize("nested", [True, False])
def test_quantised_weights_have_the_bytes_of_bitsandbytes(wide, nested):
    """Up to 1 %; the tables that name the 16 and the 256 values of a layer are left out, 1 kB a layer whatever its size."""
    path, config = wide
    quantised = AutoModelForImageTextToText.from_pretrained(
        path,
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=nested,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )
    real = 0
    for weight in quantised.parameters():
        real += weight.numel() * weight.itemsize
        if state := getattr(weight, "quant_state", None):
            scales = [state.absmax] + ([state.state2.absmax] if nested else [])
            real += sum(scale.numel() * scale.itemsize for scale in scales)
    geometry = counted(config, "--use_peft")
    found = per_device(geometry, Training(linear_bytes=NF4[nested]), Engine(), BATCH).weights
    assert found == pytest.approx(real, rel=0.01)
    assert real < 0.7 * 2 * geometry.total


# What is written


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_geometries_are_those_of_the_configurations(size):
    expected = scaling.MODELS[size.upper()]
    assert counted(PUBLISHED[size](), "--use_peft", "--lora_r", "64") == expected
    full = counted(PUBLISHED[size]())
    assert full == replace(expected, trained=expected.total - scaling.VISION_TOWER)
    assert full == scaling.trained_in(expected, scaling.FULL)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_heads_of_the_recipes_say_the_same(path):
    """To a tenth of a GiB in each part and one in the sum, which the heads round."""
    text = path.read_text()
    recipe = yaml.safe_load(text)
    *_, method, how = path.stem.split("-")
    training = scaling.WAYS[{"lora": "LoRA", "qlora": "QLoRA", "full": "full"}[how]][0]
    assert recipe["precompute_ref_log_probs"]
    engine = Engine(8, 1, 3, True) if "--accelerate-config zero3" in text else Engine()
    geometry = published(f"{path.parent.name}/{path.stem.removesuffix(f'-{method}-{how}')}", how == "full")
    pairs, image, *texts = map(
        int, re.search(r"\((\d+) pairs? of (\d+) image tokens, (\d+) prompt and (\d+) \+ (\d+) answer", text).groups()
    )
    assert pairs == recipe["per_device_train_batch_size"] and texts == [
        scaling.PROMPT,
        scaling.CHOSEN,
        scaling.REJECTED,
    ]
    # A packed row with both answers, and one with the chosen answer under the dispreferred image.
    rows = 1 if method == "dpo" else 2
    labels = scaling.CHOSEN * rows + scaling.REJECTED
    found = per_device(geometry, training, engine, MicroBatch(pairs * rows * (image + sum(texts)), pairs * labels))
    head = re.search(
        r"about (\d+) GiB a GPU \(weights ([\d.]+) \+ .*AdamW ([\d.]+) \+ activations ([\d.]+) \+ CUDA ([\d.]+)\)",
        text,
    )
    total, weights, states, activations, cuda = map(float, head.groups())
    own = found.adapter + found.gradients + found.optimizer
    parts = (found.weights, own, found.activations + found.head + found.gathered, found.cuda)
    assert [part / GIB for part in parts] == pytest.approx([weights, states, activations, cuda], abs=0.06)
    assert found.total / GIB == pytest.approx(total, abs=0.6)


def test_the_tables_of_the_page_are_regenerated():
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert scaling.memory_table() in page and scaling.time_table() in page


def test_step_time_by_hand():
    """6 operations a parameter and token for LoRA with checkpointing, 8 for all weights; 4 and 6 without."""
    factors = {"LoRA": (6, 4), "QLoRA": (6, 4), "full": (8, 6)}
    for way, (training, _) in scaling.WAYS.items():
        for checkpointing, factor in zip((True, False), factors[way], strict=True):
            found = scaling.step_flops(SMALL, replace(training, checkpointing=checkpointing), 7)
            assert found == factor * 1000 * 7
    device = scaling.Device(flops=100.0, utilisation=0.5)
    assert scaling.compute_seconds(SMALL, scaling.LORA, 7, device) == 6 * 7000 / 50


def test_traffic_by_hand():
    """On 4 devices each sends three quarters: all gradients twice (4 bytes a weight), those of ZeRO in 2 bytes."""
    sent = {stage: scaling.sent_bytes(SMALL, scaling.LORA, scaling.engine(stage, 4), 3) for stage in (0, 2, 3)}
    assert sent == {0: 0.75 * 2 * 400, 2: 0.75 * (3 * 200 + 200), 3: 0.75 * 3 * (2 * 2000 + 200)}
    assert scaling.sent_bytes(SMALL, scaling.LORA, scaling.engine(3, 1)) == 0
