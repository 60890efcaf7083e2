"""The arguments of a trainer, before anything is loaded."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset
from peft import PeftConfig, PeftModel
from trl import DPOConfig

from ._trl import NumberedRows, model_id
from .batch import MFPOCollator
from .config import MFPOConfig
from .hub import check_strategy
from .images import check_recipes
from .objective import PRESETS
from .objective.terms import Weighted
from .order import check_curriculum, check_difficulties, check_grouping, check_stage_arguments
from .reference import check_cacheable
from .rows import (
    PREFIX,
    check_dataset,
    check_image_columns,
    has_image_column,
    has_images,
    image_tokens,
    is_stored,
    rows_without_regions,
)
from .weights import refuse_pickles, safetensors_only

logger = get_logger(__name__)

SLOW = 1e-6
"""TRL's default learning rate, which is meant for whole models."""


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


def check_weights(args: MFPOConfig, model: Any, ref_model: Any, needs_no_model: bool) -> None:
    """What the reference is loaded from.

    Args:
        model, ref_model: as they were given.
        needs_no_model: whether the policy itself gives the reference's values.

    Raises:
        ValueError: weights are pickles only, says how to convert them; or `ref_model` has an adapter.
        TypeError: `ref_model` is the name of one.
    """
    if isinstance(ref_model, str):
        raise TypeError(
            f"`ref_model` must be a model, got {ref_model!r}; load it with `from_pretrained(..., use_safetensors=True)`"
        )
    if isinstance(ref_model, PeftModel):
        raise ValueError(
            "`ref_model` has an adapter around it, with which TRL cannot score; give `ref_model.merge_and_unload()`"
        )
    if not isinstance(model, str) and ref_model is None and not needs_no_model:
        # Read from where the model was.
        refuse_pickles(model_id(model.config), args.model_init_kwargs)


@contextmanager
def loading_safetensors(args: MFPOConfig, model: Any) -> Iterator[None]:
    """While TRL loads a model by its name, or the reference from where a model was: from safetensors only.

    Raises:
        ValueError: its weights are pickles only; says how to convert them.
    """
    given = args.model_init_kwargs
    if given or isinstance(model, str):
        args.model_init_kwargs = {**(given or {}), "use_safetensors": True}
    try:
        with safetensors_only(model, given) if isinstance(model, str) else nullcontext():
            yield
    finally:
        args.model_init_kwargs = given


@contextmanager
def loading_a_reference(args: MFPOConfig, cached: bool) -> Iterator[None]:
    """While TRL makes a trainer whose reference of images is to be scored before training: TRL refuses images where it reads
    `precompute_ref_log_probs` first, and where it reads it later, loads no reference model if it is set."""
    given = args.precompute_ref_log_probs
    args.precompute_ref_log_probs = given and not cached
    try:
        yield
    finally:
        args.precompute_ref_log_probs = given


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
    if data_collator is None:
        # One of the caller's own may read any column.
        for name, dataset in datasets.items():
            check_image_columns(dataset, name)
        check_columns(args, datasets)
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
    if not with_images and data_collator is None:
        check_begun(datasets)
    axes = args.parallelism_config
    if axes is not None and (axes.cp_enabled or axes.sp_enabled):
        raise ValueError(
            "context and sequence parallelism cut the rows of a batch into pieces, and the places of its answers are told in "
            "whole rows; use data parallelism, ZeRO or FSDP"
        )
    if compute_metrics is not None and with_images and "text" not in args.term_weights:
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
    for own in args.terms:
        if args.precompute_ref_log_probs and (own.term.tokens or own.term.logits):
            raise ValueError(
                f"term {own.term.name!r} reads single tokens of the reference, and precompute_ref_log_probs=True keeps sums; set it "
                "to False"
            )
    if (
        args.precompute_ref_log_probs
        and not cached
        and args.ld_alpha is not None
        and set(args.term_weights) - {"text"}
    ):
        raise ValueError(
            "precompute_ref_log_probs=True stores the log-probabilities that `ld_alpha` has weighted, and the anchor "
            "needs them unweighted; set anchor_loss_weight=0, ld_alpha=None or precompute_ref_log_probs=False"
        )


def check_columns(args: MFPOConfig, datasets: Mapping[str, Any]) -> None:
    """Refuse data sets without a column that the objective reads in every row.

    Args:
        datasets: by the names of their arguments.

    Raises:
        ValueError: names the column and the term.
    """
    for own in args.terms:
        answers = [branch.answer for branch in own.term.reads if branch.answer not in ("chosen", "rejected")]
        for name, dataset in datasets.items():
            columns = getattr(dataset, "column_names", None)
            for column in (*answers, *own.term.columns):
                if columns is not None and column not in columns:
                    raise ValueError(
                        f"{name} has no column {column!r}, which term {own.term.name!r} of objective={args.objective!r} reads in "
                        "every row; docs/objectives.md says what each objective needs"
                    )
    for name, dataset in datasets.items():
        columns = getattr(dataset, "column_names", None)
        for column in PRESETS[args.objective].columns if args.objective_terms is None else ():
            if columns is not None and column not in columns:
                raise ValueError(
                    f"{name} has no column {column!r}, which objective={args.objective!r} is for; docs/objectives.md says what each "
                    "objective needs"
                )


def check_begun(datasets: Mapping[str, Any]) -> None:
    """Refuse begun answers in data that TRL tokenizes itself, because no row has a place for images.

    Args:
        datasets: by the names of their arguments.

    Raises:
        ValueError: names the data set and the column.
    """
    for name, dataset in datasets.items():
        if PREFIX not in (getattr(dataset, "column_names", None) or ()):
            continue
        if not is_stored(dataset) or any(str(own).strip() for own in dataset[PREFIX] if own is not None):
            raise ValueError(
                f"{name} has a column {PREFIX!r} and none for images: TRL reads rows of texts alone, and would leave out what their answers "
                "go on from; add a column 'images' with an empty list in every row"
            )


def readable_terms(
    terms: Sequence[Weighted], dataset: Any, collator: Any, has_vision_data: bool
) -> tuple[Weighted, ...]:
    """The terms that find something to read in the training data; what that leaves out is said in the log.

    Args:
        terms: of the objective.
        dataset: the training data.
        collator: that makes the batches.
        has_vision_data: whether TRL takes the data set for one with images.

    Raises:
        ValueError: none does, or one reads what batches of texts alone do not tell.
    """
    seen = has_vision_data and has_images(dataset)
    own_collator = isinstance(collator, MFPOCollator)
    kept = tuple(own for own in terms if seen or all(branch.image == "image" for branch in own.term.reads))
    if not kept:
        raise ValueError("only the image term has weight, but the data set has no image: nothing to train on")
    if len(kept) < len(terms):
        what = "data set" if isinstance(dataset, Dataset) else "stream's first row, so none is read later"
        logger.warning(f"No image in the {what}: the image term has nothing to read, the other terms are trained.")
    elif any(branch.image != "image" for own in terms for branch in own.term.reads):
        _say_what_is_corrupted(dataset, collator)
    for own in kept:
        if not own_collator and not has_vision_data and (own.term.changed or own.term.columns):
            read = "which tokens differ" if own.term.changed else f"the column {own.term.columns[0]!r}"
            raise ValueError(
                f"term {own.term.name!r} reads {read} from the rows, which TRL's batches of texts do not tell; it needs a data set "
                "with a column of images, or a MFPOCollator as data_collator"
            )
    return kept


def _say_what_is_corrupted(dataset: Any, collator: Any) -> None:
    if not isinstance(collator, MFPOCollator):
        logger.warning(
            "A data_collator of your own is used: the image term is trained only where its batches have the tables "
            "that MFPOCollator writes ('pairs', 'branches')."
        )
    elif is_stored(dataset) and collator.dispreferred.falls_back:
        bare = rows_without_regions(dataset)
        if bare:
            logger.warning(
                f"{bare} of {len(dataset)} rows have an image and no key_regions: their whole image is "
                "corrupted. `mfpo build` finds regions; corruption_region='global' means the whole image everywhere."
            )


def slow_adapter(args: DPOConfig) -> str | None:
    """What is said where an adapter would be trained at a learning rate that hardly moves it; None at any other rate."""
    if args.learning_rate > SLOW:
        return None
    default = ", TRL's default for whole models," if args.learning_rate == SLOW else ""
    return f"learning_rate={args.learning_rate:g}{default} hardly moves an adapter: LoRA usually takes 1e-5 to 1e-4"


def check_rows(datasets: Mapping[str, Any], processor: Any, args: MFPOConfig | None) -> None:
    """Read the first row of each data set whole, and look at the texts and recipes of all; images, regions and lengths are
    checked when a row is collated.

    Args:
        datasets: by the names of their arguments.
        processor: whose placeholders of images no text may hold, if it is known.
        args: that say how dispreferred images are made; None where a collator of the caller's own makes them.

    Raises:
        ValueError: a first row that cannot be read, and what `check_dataset` and `check_recipes` raise.
    """
    for name, dataset in datasets.items():
        if isinstance(dataset, Dataset) and len(dataset):
            try:
                NumberedRows.of(dataset).__getitems__([0])
            except ValueError as error:
                raise ValueError(f"{name}, {error}") from error
        check_dataset(dataset, name, image_tokens(processor))
    if args is not None:
        check_recipes(args, datasets)


def keep_batches_whole(args: MFPOConfig, dataset: Any) -> None:
    """Have each rank read its own share of a stream with images: sent from rank 0, the tensors of a batch are cut to the length
    of the first one."""
    if args.accelerator_config.dispatch_batches is None and has_image_column(dataset):
        args.accelerator_config.dispatch_batches = False


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
