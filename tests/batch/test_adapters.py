"""Which adapters read packed rows: those that do the same to a token whatever else its row holds, and no other."""

import copy
from types import SimpleNamespace

import peft.tuners.lora.variants
import pytest
import tiny
import torch
from peft import PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from test_packing import assert_same_gradients, gradients
from trl.trainer.utils import add_fused_lm_head

from mfpo_trl.batch.choice import ADAPTERS, LORA_VARIANTS, choose_layout
from mfpo_trl.batch.collator import MFPOCollator
from mfpo_trl.batch.forward import prepare
from mfpo_trl.batch.packing import FLAT, PACKED_ROW

LANGUAGE = r".*language_model.*\.(q|v)_proj"
TOKENS = tiny.tokenizer()("the red dog", add_special_tokens=False)["input_ids"][:3]
"""Some that the rows hold."""
OPTIONS = {
    "ADALORA": {"total_step": 10, "target_r": 2, "init_r": 4},
    "C3A": {"block_size": 16},
    "IA3": {"feedforward_modules": []},
    "LN_TUNING": {"target_modules": r".*language_model.*norm"},
    "MISS": {"r": 4},
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": TOKENS, "target_modules": ["embed_tokens"]},
    "VBLORA": {"vector_length": 16, "num_vectors": 8},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 32},
}
FLAT_ADAPTERS = {
    "ADAMSS": "may mix",  # needs scikit-learn, and was never run
    "ADAPTION_PROMPT": "may mix",
    "CARTRIDGE": "prompt-learning",
    "CPT": "prompt-learning",
    "LILY": "may mix",  # weighs its experts by the mean of all tokens
    "MULTITASK_PROMPT_TUNING": "prompt-learning",
    "POLY": "may mix",
    "PREFIX_TUNING": "prompt-learning",
    "PROMPT_TUNING": "prompt-learning",
    "PVERA": "may mix",  # draws a number for every token
    "P_TUNING": "prompt-learning",
    "SHADOW": "may mix",
    "XLORA": "may mix",
}
LORAS = {
    "plain": ({}, None),
    "rslora": ({"use_rslora": True}, None),
    "bias": ({"bias": "all"}, None),
    "tokens": ({"trainable_token_indices": TOKENS}, None),
    "projector": ({"modules_to_save": ["multi_modal_projector"]}, None),
    "dora": ({"use_dora": True}, None),
    "qalora": ({"use_qalora": True, "qalora_group_size": 16}, None),
    "mica": ({"init_lora_weights": "mica"}, None),
    "kasa": ({"kasa_config": KasaConfig()}, None),
    "alora": ({"alora_invocation_tokens": [5, 6]}, "activated LoRA"),
    "velora": ({"velora_config": VeloraConfig()}, "VeloraLinearVariant"),
    "monteclora": ({"monteclora_config": MontecloraConfig()}, "MontecloraLinearVariant"),
    "bdlora": (
        {"use_bdlora": BdLoraConfig(nblocks=2, target_modules_bd_a=["q_proj", "v_proj"])},
        "BdLoraLinearVariant",
    ),
}
"""Options of LoRA, and why they are flat, where they are."""


def config(kind: str, **options):
    own = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[kind]]
    known = own.__dataclass_fields__
    common = {"task_type": "CAUSAL_LM", "target_modules": LANGUAGE, "num_virtual_tokens": 3}
    return own(**{**{k: v for k, v in common.items() if k in known}, **OPTIONS.get(kind, {}), **options})


def adapted(kind: str, **options):
    """A tiny LLaVA with an adapter whose weights are not those that leave the model as it is."""
    model = tiny.model()
    add_fused_lm_head(model, outputs=("log_probs",))
    torch.manual_seed(0)
    model = get_peft_model(model, config(kind, **options))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad and weight.is_floating_point():
                weight.add_(0.3 * torch.randn_like(weight))
    return model


def assert_packed_equals_flat(model) -> None:
    assert choose_layout(model, "auto").name == PACKED_ROW
    processor, found = tiny.processor(), []
    for layout in (FLAT, PACKED_ROW):
        own = copy.deepcopy(model).train()
        prepare(own, layout)
        found.append(gradients(own, MFPOCollator(processor, layout=layout)(tiny.rows(3))))
    assert any(value.norm() > 0 for value in found[0].values())
    assert_same_gradients(*found)


def test_every_adapter_of_peft_is_known():
    assert {kind.value for kind in ADAPTERS} | set(FLAT_ADAPTERS) == {kind.value for kind in PeftType}


@pytest.mark.parametrize("kind", sorted(kind.value for kind in ADAPTERS if kind != PeftType.LORA))
def test_an_adapter_that_reads_packed_rows(kind):
    assert_packed_equals_flat(adapted(kind))


@pytest.mark.parametrize("kind", FLAT_ADAPTERS)
def test_an_adapter_that_stays_flat(kind):
    model = tiny.model()
    model.peft_config = {
        "default": SimpleNamespace(is_prompt_learning="prompt" in FLAT_ADAPTERS[kind], peft_type=PeftType[kind])
    }
    layout = choose_layout(model, "auto")
    assert layout.name == FLAT and FLAT_ADAPTERS[kind] in layout.reason


@pytest.mark.parametrize("name", LORAS)
def test_a_kind_of_lora(name):
    options, reason = LORAS[name]
    model = adapted("LORA", **options)
    if reason is None:
        assert_packed_equals_flat(model)
    else:
        layout = choose_layout(model, "auto")
        assert layout.name == FLAT and reason in layout.reason


def test_every_variant_of_lora_is_known():
    """A new one of PEFT is flat until it is tested here."""
    variants = {name for name in vars(peft.tuners.lora.variants) if name.endswith("Variant") and name != "LoraVariant"}
    flat = {
        "ArrowLinearVariant",
        "ALoraLinearVariant",
        "VeloraLinearVariant",
        "MontecloraLinearVariant",
        "BdLoraLinearVariant",
    }
    packed = {name for name in variants if name.startswith(LORA_VARIANTS)}
    assert {name for name in variants - packed if not name.startswith("_")} == flat
