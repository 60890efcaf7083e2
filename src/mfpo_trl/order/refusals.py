"""What a curriculum excludes."""

from typing import Any

from accelerate.logging import get_logger
from peft import PeftConfig, PeftModel

from .. import _trl
from ..config import MFPOConfig
from ..rows import is_stored

logger = get_logger(__name__)

CURRICULUM_FIELDS = [name for name in MFPOConfig.__dataclass_fields__ if name.startswith("curriculum_")]

FOLLOWING = ("reduce_lr_on_plateau", "greedy")
"""Schedules that go by what is measured."""


def check_curriculum(args: MFPOConfig, dataset: Any) -> None:
    """What must hold before a curriculum is planned.

    Raises:
        ValueError: a data set that cannot be ordered, or another setting that orders rows or counts steps by itself.
    """
    if args.curriculum == "none":
        idle = [
            name for name in CURRICULUM_FIELDS if getattr(args, name) != MFPOConfig.__dataclass_fields__[name].default
        ]
        if idle:
            logger.warning(f"curriculum='none': {', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect.")
        return
    if not is_stored(dataset):
        raise ValueError(
            f"curriculum={args.curriculum!r} needs a map-style data set without a transform, whose rows can be ranked; "
            f"train_dataset is a {type(dataset).__name__}. Load it without streaming, apply transforms with `map`, or set "
            "curriculum='none' and order the rows yourself (train_sampling_strategy='sequential' keeps a stored order)"
        )
    refused = (
        (args.train_sampling_strategy != "random", f"train_sampling_strategy={args.train_sampling_strategy!r}"),
        (args.ignore_data_skip, "ignore_data_skip=True"),
        (args.auto_find_batch_size, "auto_find_batch_size=True"),
        (args.curriculum == "sorted" and args.group_by_prompt, "group_by_prompt=True"),
        (args.curriculum == "sorted" and args.curriculum_group_by_length, "curriculum_group_by_length=True"),
        (
            args.group_by_prompt and args.curriculum_group_by_length,
            "group_by_prompt=True with curriculum_group_by_length=True",
        ),
    )
    for given, name in refused:
        if given:
            raise ValueError(
                f"curriculum={args.curriculum!r} decides itself which row comes in which step, and {name} would change "
                "that; leave it at its default (rows of similar length come together in `staged` with "
                "curriculum_group_by_length=True)"
            )
    if args.restore_callback_states_from_checkpoint:
        raise ValueError(
            "restore_callback_states_from_checkpoint=True makes callbacks anew, without the trainer that a curriculum needs; "
            "leave it out, a curriculum resumes by itself"
        )
    if args.num_train_epochs != 1:
        raise ValueError(
            f"num_train_epochs={args.num_train_epochs} was set after the configuration was made; with a curriculum, all "
            "stages are one epoch of the trainer: set curriculum_epochs, the passes over each stage"
        )


def check_stage_arguments(args: MFPOConfig, cached: bool, adapter: PeftConfig | None) -> None:
    """What must hold of the arguments for the policy to become the reference at the end of a stage.

    Args:
        cached: whether the reference's values of data with images are computed before training.
        adapter: the configuration of the policy's adapter, if it has one.

    Raises:
        ValueError: another setting that changes or compares references, or an adapter of which no copy can be kept.
    """
    if args.curriculum == "none" or args.curriculum_reference == "initial":
        return
    if args.sync_ref_model:
        raise ValueError("sync_ref_model=True and curriculum_reference='stage' both change the reference; choose one")
    metric = args.metric_for_best_model or "loss"
    compared = args.load_best_model_at_end or args.save_strategy == "best"
    if compared and any(word in metric for word in ("loss", "rewards")):
        raise ValueError(
            f"curriculum_reference='stage' changes what {metric!r} is measured against, so that checkpoints of different "
            "stages cannot be compared by it; set metric_for_best_model to a metric that reads no reference, or leave "
            "load_best_model_at_end out"
        )
    if args.lr_scheduler_type.value in FOLLOWING:
        raise ValueError(
            f"lr_scheduler_type={args.lr_scheduler_type.value!r} lowers the learning rate where {metric!r} gets worse, and "
            "curriculum_reference='stage' changes what that is measured against; take a schedule that is a function of the step"
        )
    if args.precompute_ref_log_probs and not cached:
        raise ValueError(
            "curriculum_reference='stage' cannot change the log-probabilities that TRL computes before training for data "
            "without images; set precompute_ref_log_probs=False"
        )
    if adapter is None:
        return
    bias = getattr(adapter, "bias", "none")
    for obstacle, cause in (
        (
            adapter.is_prompt_learning,
            f"the virtual tokens of {adapter.peft_type.value}; train an adapter inside of layers",
        ),
        (
            isinstance(bias, str) and bias != "none",
            f"bias={bias!r}, which trains biases of the model; set bias='none'",
        ),
    ):
        if obstacle:
            raise ValueError(
                f"curriculum_reference='stage' keeps a frozen copy of the adapter as the reference, and there is none of {cause}"
            )


def check_stage_reference(trainer: Any) -> None:
    """Refuse a trainer whose policy cannot become the reference at the end of a stage.

    Raises:
        ValueError: says what stands against it.
    """
    if trainer.args.curriculum_reference == "initial" or _copies_nothing(trainer):
        return
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ValueError(
            "curriculum_reference='stage' copies the policy's weights into the reference, which is not done for the shards of "
            "DeepSpeed or FSDP; use plain data parallelism, or train all weights with precompute_ref_log_probs=True"
        )
    if isinstance(trainer.model, PeftModel):
        outside = _trl.trained_outside_of_adapter(trainer.model)
        if outside:
            raise ValueError(
                f"curriculum_reference='stage' makes a copy of the adapter the reference, and {', '.join(outside[:3])} are "
                "trained outside of it; freeze them"
            )
        if trainer.ref_model is not None and trainer.references is None:
            raise ValueError(
                "curriculum_reference='stage' makes the adapter the reference; leave ref_model out, or train all weights"
            )
    elif trainer.ref_model is not None:
        shapes = [
            {name: value.shape for name, value in _trl.unwrapped_of(trainer, model).named_parameters()}
            for model in (trainer.model, trainer.ref_model)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                "curriculum_reference='stage' needs a ref_model of the policy's own architecture and size"
            )


def _copies_nothing(trainer: Any) -> bool:
    """Whether only numbers are kept of the reference: no weights have to become another model's."""
    return trainer.references is not None and not isinstance(trainer.model, PeftModel)
