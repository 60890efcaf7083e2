"""The arguments of a trainer, before anything is loaded."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from datasets import Dataset
from peft import PeftConfig
from trl import DPOConfig

from ._trl import NumberedRows, model_id
from .config import MFPOConfig
from .hub import check_strategy
from .order import check_curriculum, check_difficulties, check_grouping, check_stage_arguments
from .reference import check_cacheable
from .rows import check_dataset, has_image_column
from .weights import refuse_pickles, safetensors_only


def as_mfpo_config(args: DPOConfig | None, model: Any) -> MFPOConfig:
    """The configuration of a trainer; a plain `DPOConfig` means the defaults of what is added to it.

    Raises:
        TypeError: neither of the two.
    """
    if args is None:
        name = model if isinstance(model, str) else model_id(model.config)
        return MFPOConfig(f"{name.rstrip('/').split('/')[-1]}-MFPO")
    if isinstance(args, MFPOConfig):
        return args
    if isinstance(args, DPOConfig):
        return MFPOConfig.from_dpo_config(args)
    raise TypeError(f"`args` must be a `MFPOConfig` or a `DPOConfig`, got `{type(args).__name__}`")


@contextmanager
def loading(args: MFPOConfig, model: Any, ref_model: Any, has_adapter: bool, cached: bool) -> Iterator[None]:
    """The arguments while TRL loads a model and its reference: weights come from safetensors only.

    Args:
        model, ref_model: as they were given.
        has_adapter: whether the reference is the model without its adapter.
        cached: whether the reference's values of data with images are computed before training.

    Raises:
        ValueError: weights are pickles only; says how to convert them.
        TypeError: `ref_model` is the name of one.
    """
    if isinstance(ref_model, str):
        raise TypeError(
            f"`ref_model` must be a model, got {ref_model!r}; load it with `from_pretrained(..., use_safetensors=True)`"
        )
    if not isinstance(model, str) and ref_model is None and not has_adapter and not cached:
        # Read from where the model was.
        refuse_pickles(model_id(model.config), args.model_init_kwargs)
    given, before = args.model_init_kwargs, args.precompute_ref_log_probs
    if isinstance(model, str):
        args.model_init_kwargs = {**(given or {}), "use_safetensors": True}
    # TRL refuses images where it reads this first, and loads no reference model where it reads it later.
    args.precompute_ref_log_probs = before and not cached
    try:
        with safetensors_only(model, given) if isinstance(model, str) else nullcontext():
            yield
    finally:
        args.model_init_kwargs, args.precompute_ref_log_probs = given, before


def check_arguments(
    args: MFPOConfig,
    datasets: dict[str, Any],
    data_collator: Any,
    cached: bool,
    compute_metrics: Any = None,
    adapter: PeftConfig | None = None,
) -> None:
    """What must go together, looked at before anything is loaded.

    Args:
        datasets: by the names of their arguments.
        data_collator: the caller's own, if any.
        cached: whether the reference's values of data with images are computed before training.
        compute_metrics: the caller's function of logits, if any.
        adapter: the configuration of the policy's adapter, if it has one.

    Raises:
        ValueError: arguments that exclude each other.
    """
    check_strategy(args)
    if args.sync_ref_model and args.precompute_ref_log_probs:
        raise ValueError(
            "sync_ref_model=True moves the reference while training, and precompute_ref_log_probs=True takes its values before; "
            "set one of them to False"
        )
    check_curriculum(args, datasets["train_dataset"])
    check_stage_arguments(args, cached, adapter)
    if args.curriculum != "none":
        check_difficulties(args, datasets["train_dataset"])
    check_grouping(args, datasets["train_dataset"])
    if (args.model_init_kwargs or {}).get("use_safetensors", True) is False:
        raise ValueError(
            "model_init_kwargs has use_safetensors=False, and pickles are not loaded: they can run code; leave it out"
        )
    with_images = has_image_column(datasets["train_dataset"])
    axes = args.parallelism_config
    if axes is not None and (axes.cp_enabled or axes.sp_enabled):
        raise ValueError(
            "context and sequence parallelism cut the rows of a batch into pieces, and the places of its answers are told in "
            "whole rows; use data parallelism, ZeRO or FSDP"
        )
    if compute_metrics is not None and with_images and not args.text_loss_weight:
        raise ValueError(
            "compute_metrics reads the logits of chosen and rejected answers, and with text_loss_weight=0 no rejected one is "
            "scored; leave it out, or give the text term a weight"
        )
    if compute_metrics is not None and with_images and "inputs" in args.include_for_metrics:
        raise ValueError(
            "include_for_metrics='inputs' would hand compute_metrics the rows of dispreferred images too; leave it out: its "
            "label_ids are the rows of the chosen and the rejected answers"
        )
    if cached:
        check_cacheable(datasets, data_collator)
    if args.precompute_ref_log_probs and not cached and args.ld_alpha is not None and args.anchor_loss_weight:
        raise ValueError(
            "precompute_ref_log_probs=True stores the log-probabilities that `ld_alpha` has weighted, and the anchor "
            "needs them unweighted; set anchor_loss_weight=0, ld_alpha=None or precompute_ref_log_probs=False"
        )


def check_rows(dataset: Any, name: str, placeholders: Sequence[str]) -> None:
    """Read the first row of a data set whole, and look at the texts of all; images, regions and lengths are checked when a row
    is collated.

    Args:
        dataset, name, placeholders: as for `check_dataset`.

    Raises:
        ValueError: a first row that cannot be read, and what `check_dataset` raises.
    """
    if isinstance(dataset, Dataset) and len(dataset):
        try:
            NumberedRows.of(dataset).__getitems__([0])
        except ValueError as error:
            raise ValueError(f"{name}, {error}") from error
    check_dataset(dataset, name, placeholders)


def follow_log_level(args: DPOConfig) -> None:
    """Show what this package logs where `log_level` asks for it, as transformers does for its own."""
    if args.log_level == "passive":
        return
    package = logging.getLogger(__package__)
    package.setLevel(args.get_process_log_level())
    if not package.handlers and not logging.getLogger().handlers:
        package.addHandler(logging.StreamHandler())


def named_evaluations(dataset: Any) -> Iterator[tuple[str, Any]]:
    """Data sets to evaluate on, each with what to call it."""
    if isinstance(dataset, dict):
        yield from ((f"eval_dataset[{name!r}]", own) for name, own in dataset.items())
    elif dataset is not None:
        yield "eval_dataset", dataset
