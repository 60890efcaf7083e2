"""The policy becomes the reference: as weights, or as the frozen adapter `ref` that TRL scores with."""

import copy
from collections.abc import Iterator

from peft import PeftModel
from torch import Tensor
from trl import DPOTrainer
from trl.trainer.utils import disable_dropout_in_model

from .attributes import unwrapped_of


def forget_reference_model(trainer: DPOTrainer) -> None:
    """Let go of the reference model, which accelerate keeps as well."""
    models = trainer.accelerator._models
    models[:] = [model for model in models if model is not trainer.ref_model]
    trainer.ref_model = None


def policy_to_reference(trainer: DPOTrainer) -> None:
    """Make the policy as it is now the reference: its weights those of the reference model, or its adapter the frozen
    adapter `ref` that TRL scores with. Nothing where neither is kept.

    Raises:
        ValueError: weights are trained that belong to no adapter, or to one whose copy cannot be found.
    """
    policy = unwrapped_of(trainer, trainer.model)
    if trainer.ref_model is not None:
        unwrapped_of(trainer, trainer.ref_model).load_state_dict(policy.state_dict())
    elif isinstance(policy, PeftModel):
        if "ref" not in policy.peft_config:
            _add_reference_adapter(policy)
        pairs = dict(_adapter_pairs(policy))
        left = [name for name, value in policy.named_parameters() if value.requires_grad and name not in pairs]
        if left:
            raise ValueError(
                f"the reference cannot follow the policy in {', '.join(left[:3])}, which no adapter holds"
            )
        for name, reference in pairs.items():
            reference.data = policy.get_parameter(name).data.clone()
        settle_reference_adapter(trainer)


def _add_reference_adapter(policy: PeftModel) -> None:
    """An adapter `ref` of the active one's kind; the model's own weights stay what they are."""
    config = copy.copy(policy.peft_config[policy.active_adapter])
    # AdaLoRA takes a second adapter only where it is not to be trained.
    config.inference_mode = True
    if hasattr(config, "init_lora_weights"):
        # PiSSA and its kin take what they begin with out of the weights of the model, which the policy reads too.
        config.init_lora_weights = True
    weights = [(value, value.data) for value in policy.get_base_model().parameters()]
    policy.add_adapter("ref", config)
    for value, data in weights:
        # KaSA has made others, without the smallest of the singular values that it has left.
        value.data = data


def trained_outside_of_adapter(policy: PeftModel) -> list[str]:
    """The names of the parameters that are trained and do not belong to the active adapter."""
    trained = (name for name, value in policy.named_parameters() if value.requires_grad)
    return [name for name in trained if f".{policy.active_adapter}." not in f".{name}."]


def settle_reference_adapter(trainer: DPOTrainer) -> None:
    """Make the adapter `ref`, which PEFT has just added or read from a checkpoint, what TRL makes of its own: frozen, in the
    policy's precision, without dropout."""
    policy = unwrapped_of(trainer, trainer.model)
    if not isinstance(policy, PeftModel) or "ref" not in policy.peft_config:
        return
    for name, reference in _adapter_pairs(policy):
        reference.data = reference.data.to(policy.get_parameter(name).dtype)
        reference.requires_grad_(False)
    if trainer.args.disable_dropout:
        disable_dropout_in_model(policy)


def _adapter_pairs(policy: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """The names of the active adapter's parameters, each with the parameter of `ref` for it."""
    own, parameters = policy.active_adapter, dict(policy.named_parameters())
    for name in parameters:
        # Most names end in `.weight`, those of embeddings in the adapter's.
        other = f"{name}.".replace(f".{own}.", ".ref.").removesuffix(".")
        if other != name and other in parameters:
            yield name, parameters[other]
