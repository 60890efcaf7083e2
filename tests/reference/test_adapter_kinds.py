"""Every kind of adapter that PEFT builds on the tiny LLaVA: what the reference reads of it is in the cache's key, and a frozen
copy of it computes what it computes, or is refused before anything is loaded."""

import copy
import math
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import tiny
import torch
from datasets import load_from_disk
from peft import LoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from test_trainer import CPU
from torch import Tensor, nn

from mfpo_trl import MFPOConfig, MFPOTrainer, _trl
from mfpo_trl.reference.digests import adapter_settings, settings_digest, weights_digest

LAYER = r".*language_model.layers.1.self_attn.q_proj"
INSIDE = {"target_modules": LAYER}
VIRTUAL = {"num_virtual_tokens": 4}
OPTIONS = {
    **dict.fromkeys(
        ("BEFT", "DEFT", "DELORA", "FROD", "GLORA", "GRALORA", "HIRA", "HRA", "LILY", "LOHA", "LOKR", "LORA"), INSIDE
    ),
    **dict.fromkeys(
        ("OSF", "PEANUT", "PSOFT", "PVERA", "RANDLORA", "SUPERTUNING", "TINYLORA", "UNILORA", "VERA"), INSIDE
    ),
    **{name: {**INSIDE, "n_frequency": 10} for name in ("FOURIERFT", "WAVEFT")},
    **dict.fromkeys(("CARTRIDGE", "PREFIX_TUNING", "PROMPT_TUNING"), VIRTUAL),
    "ADALORA": {**INSIDE, "total_step": 10},
    "BOFT": {**INSIDE, "boft_block_size": 8},
    "C3A": {**INSIDE, "block_size": 8},
    "CPT": {"cpt_token_ids": [7, 8, 9], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]},
    "IA3": {**INSIDE, "feedforward_modules": "none"},
    "LN_TUNING": {"target_modules": r".*language_model.layers.1.input_layernorm"},
    "MISS": {**INSIDE, "r": 4},
    "OFT": {**INSIDE, "oft_block_size": 8, "r": 0},
    "P_TUNING": {**VIRTUAL, "encoder_hidden_size": 8},
    "ROAD": {**INSIDE, "group_size": 8},
    "SHIRA": {**INSIDE, "r": 2},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [7, 8]},
    "VBLORA": {**INSIDE, "num_vectors": 8, "vector_length": 4, "topk": 2, "r": 2},
}
"""PEFT's name of a method -> what makes a small one of it."""

NOT_HERE = {
    "ADAMSS": "needs scikit-learn",
    "ADAPTION_PROMPT": "PEFT has no LLaVA",
    "MULTITASK_PROMPT_TUNING": "reads task_ids, which no trainer of TRL has",
    "POLY": "reads task_ids, which no trainer of TRL has",
    "SHADOW": "PEFT has no LLaVA",
    "XLORA": "mixes adapters that were trained before",
}

LORAS = {
    "alora": {**INSIDE, "alora_invocation_tokens": [7]},
    "bias": {**INSIDE, "bias": "all"},
    "bias of its own": {**INSIDE, "lora_bias": True},
    "biases beside it": {**INSIDE, "bias": "lora_only"},
    "blocks": {**INSIDE, "use_bdlora": BdLoraConfig(nblocks=2, target_modules_bd_a=["q_proj"])},
    "dora": {**INSIDE, "use_dora": True},
    "embedding": {"target_modules": r".*embed_tokens"},
    "kasa": {**INSIDE, "kasa_config": KasaConfig()},
    "mica": {**INSIDE, "init_lora_weights": "mica"},
    "modules to save": {**INSIDE, "modules_to_save": ["norm"]},
    "monteclora": {**INSIDE, "monteclora_config": MontecloraConfig()},
    "olora": {**INSIDE, "init_lora_weights": "olora"},
    "parameters": {"target_modules": [], "target_parameters": ["layers.1.self_attn.q_proj.weight"]},
    "pissa": {**INSIDE, "init_lora_weights": "pissa"},
    "qalora": {**INSIDE, "use_qalora": True, "qalora_group_size": 16},
    "rank-stabilised": {**INSIDE, "use_rslora": True},
    "tokens": {**INSIDE, "trainable_token_indices": [7, 8]},
    "velora": {**INSIDE, "velora_config": VeloraConfig()},
}
KINDS = [*OPTIONS, *LORAS]
UNCOPIED = ("CARTRIDGE", "CPT", "P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "bias", "biases beside it")
ALONE = ("ADALORA", "bias", "biases beside it")
"""PEFT puts no second one of them beside the first that is to be trained as well."""


def config_of(kind: str):
    if kind in LORAS:
        return LoraConfig(task_type="CAUSAL_LM", **LORAS[kind])
    made = {name.value: config for name, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}[kind]
    return made(task_type="CAUSAL_LM", **OPTIONS[kind])


def adapted(kind: str, seed: int = 0) -> PeftModel:
    """The tiny model with an adapter that was trained, as far as random numbers tell."""
    torch.manual_seed(0)
    model = get_peft_model(tiny.model(), config_of(kind)).eval()
    shake([value for value in model.parameters() if value.requires_grad], seed)
    return model


def shake(values: list[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for value in values:
        value.data += 0.1 * torch.randn(value.shape, generator=generator).to(value.dtype)


TOKENS = torch.tensor([[7, 8, 9, 10, 11, 7, 8]])


def logits(model: PeftModel, adapter: str | None = "default") -> Tensor:
    from trl.trainer.utils import use_adapter

    with torch.no_grad(), use_adapter(model, adapter):
        return model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS), use_cache=False).logits


def key(model: PeftModel, adapters: list[str]) -> tuple:
    return (*weights_digest(model, adapters), settings_digest(adapter_settings(model, adapters)))


def held(model: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a module of the adapter holds: parameters, buffers, attributes, and what lies in its dictionaries."""
    base = {id(value) for value in tiny_tensors(model)}
    seen = set()
    for name, module in model.named_modules():
        kept = {**module._parameters, **module._buffers, **vars(module)}
        for attribute, value in kept.items():
            inner = dict(value) if isinstance(value, dict) and not attribute.startswith("_") else {"": value}
            for adapter, item in inner.items():
                for tensor in item if isinstance(item, list | tuple) else [item]:
                    if isinstance(tensor, Tensor) and id(tensor) not in seen | base:
                        seen.add(id(tensor))
                        yield f"{name}.{attribute}.{adapter}", tensor


def tiny_tensors(model: PeftModel) -> list[Tensor]:
    """The tensors of the base that bear none of an adapter's names."""
    own = dict(tiny.model().named_parameters()).keys() | dict(tiny.model().named_buffers()).keys()
    named = [*model.get_base_model().named_parameters(), *model.get_base_model().named_buffers()]
    return [value for name, value in named if name in own and "layers.1.self_attn" not in name]


def changed(value: Tensor) -> Tensor:
    return value + 0.37 if value.is_floating_point() or value.is_complex() else value.flip(0) if value.dim() else value


def test_every_kind_is_here():
    known = {name.value for name in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert known == OPTIONS.keys() | NOT_HERE.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_knows_every_tensor_that_is_read(kind):
    """Whatever changes what the reference computes changes the key, and another adapter's random weights do not."""
    model, other = adapted(kind, 1), adapted(kind, 2)
    # The policy's adapter is switched off.
    if kind not in ("pissa", "olora", "kasa", "bias"):  # which change the model's own weights
        assert key(model, []) == key(other, [])
    read = [] if kind in ALONE else ["ref"]
    if read:
        # The copy that TRL scores with when an adapter is trained on.
        keys = []
        for own in (model, other, adapted(kind, 1)):
            torch.manual_seed(0)
            own.add_adapter("ref", copy.deepcopy(own.peft_config["default"]))
            copy_of_default(own)
            keys.append(key(own, read))
        assert keys[0] != keys[1] and keys[0] == keys[2] != key(model, [])
    mode = "ref" if read else None
    logits(model, mode)  # CPT's first forward brings its tokens into their bounds
    expected, own = logits(model, mode), key(model, read)
    assert torch.equal(logits(model, mode), expected) and key(model, read) == own
    found = 0
    for name, value in held(model):
        before = value.detach().clone()
        value.data.copy_(changed(before))
        moved = not torch.equal(logits(model, mode), expected)
        assert not moved or key(model, read) != own, name
        found += moved
        value.data.copy_(before)
    assert found or not read, "nothing that the adapter holds is read"


def copy_of_default(model: PeftModel) -> None:
    for name, value in model.named_parameters():
        twin = f"{name}.".replace(".default.", ".ref.").removesuffix(".")
        if twin != name:
            model.get_parameter(twin).data.copy_(value.data)


def test_what_a_layer_was_told_later_is_read_too():
    """The scaling of a LoRA can be set without its configuration."""
    model = adapted("LORA")
    model.add_adapter("ref", model.peft_config["default"])
    before = key(model, ["ref"])
    layer = model.get_base_model().model.language_model.layers[1].self_attn.q_proj
    layer.set_scale("ref", 2.0)
    assert key(model, ["ref"]) != before


def test_adapters_that_transformers_loads_are_part_of_the_model(tmp_path):
    """`from_pretrained` of a folder with an adapter gives a model, not a `PeftModel`."""
    base = tiny.save_pretrained(tmp_path / "base")
    keys = []
    for name, alpha, seed in (("one", 4, 1), ("same", 4, 1), ("scaled", 8, 1), ("other", 4, 2)):
        torch.manual_seed(0)
        model = tiny.LlavaForConditionalGeneration.from_pretrained(base)
        model.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=LAYER), name)
        shake([value for value in model.parameters() if value.requires_grad], seed)
        model.save_pretrained(tmp_path / name)
        loaded = tiny.LlavaForConditionalGeneration.from_pretrained(tmp_path / name)
        keys.append(key(loaded, list(loaded.peft_config)))
    assert keys[0] == keys[1] and len(set(keys)) == 3


@pytest.mark.parametrize("kind", ["LORA", "PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"])
def test_an_adapter_that_is_trained_on_is_its_own_first_reference(tmp_path, kind):
    """Every term is log 2 at the first step, whichever adapter was trained on these rows before."""
    tiny.dataset(4).save_to_disk(tmp_path / "data")
    for seed in (1, 2):
        settings = {**CPU, "precompute_ref_log_probs": True, "max_steps": 1}
        trainer = MFPOTrainer(
            model=adapted(kind, seed),
            args=MFPOConfig(output_dir=str(tmp_path / "out"), **settings),
            train_dataset=load_from_disk(str(tmp_path / "data")),
            processing_class=tiny.processor(),
        )
        trainer.train()
        assert trainer.state.log_history[0]["loss"] == pytest.approx(3 * math.log(2), abs=1e-5)


# The policy's adapter becomes the reference of a stage


def trainer_like(model: nn.Module) -> SimpleNamespace:
    return SimpleNamespace(
        model=model,
        ref_model=None,
        accelerator=SimpleNamespace(unwrap_model=lambda own, **_: own),
        args=SimpleNamespace(disable_dropout=True),
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in UNCOPIED])
def test_a_copy_computes_what_the_policy_computes(kind):
    """And it stays behind when the policy is trained on, which is left as it was: its own weights, and those of the model."""
    model = adapted(kind)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert _trl.trained_outside_of_adapter(model) == []
    for stage in (1, 2):
        before = logits(model)
        _trl.policy_to_reference(trainer_like(model))
        assert torch.equal(logits(model), before) and torch.equal(logits(model, "ref"), before)
        assert [name for name, value in model.named_parameters() if value.requires_grad] == trained
        shake([value for value in model.parameters() if value.requires_grad], stage)
        assert torch.equal(logits(model, "ref"), before)


@pytest.mark.parametrize("given", ["peft_config", "model"])
@pytest.mark.parametrize("kind", UNCOPIED)
def test_what_has_no_copy_is_refused_before_anything_is_loaded(tmp_path, kind, given):
    settings = {**CPU, "max_steps": -1, "curriculum": "staged", "curriculum_reference": "stage", "num_train_epochs": 1}
    adapter = (
        {"model": adapted(kind)} if given == "model" else {"model": "nowhere/at-all", "peft_config": config_of(kind)}
    )
    with pytest.raises(ValueError, match="keeps a frozen copy of the adapter .* there is none of"):
        MFPOTrainer(args=MFPOConfig(output_dir=str(tmp_path), **settings), train_dataset=tiny.dataset(4), **adapter)


def test_weights_that_are_trained_beside_an_adapter_are_named(tmp_path):
    model = get_peft_model(tiny.model(), config_of("LORA"))
    model.get_base_model().model.language_model.norm.weight.requires_grad_(True)
    settings = {**CPU, "max_steps": -1, "curriculum": "staged", "curriculum_reference": "stage", "num_train_epochs": 1}
    settings["precompute_ref_log_probs"] = True
    with pytest.raises(ValueError, match=r"language_model.norm.weight are trained outside of it; freeze them"):
        MFPOTrainer(
            model=model,
            args=MFPOConfig(output_dir=str(tmp_path), **settings),
            train_dataset=tiny.dataset(4),
            processing_class=tiny.processor(),
        )
