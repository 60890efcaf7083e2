"""What a curriculum does to a trainer: how hard its rows are, their order, and what happens where a stage ends."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback, get_scheduler
from transformers.trainer_callback import ExportableState

from . import _trl
from .config import MFPOConfig
from .curriculum import Plan, by_length, make_plan, stages
from .reference import VALUES, References
from .regions import region_mask, regions_per_image
from .rows import load_images, plain_text, row_error
from .sampling import EpochSampler, keep_together, prompt_groups
from .validation import is_stored

logger = get_logger(__name__)


def check_curriculum(args: MFPOConfig, dataset: Any) -> None:
    """What must hold before a curriculum is planned.

    Raises:
        ValueError: a data set that cannot be ordered, or another setting that orders rows or counts steps by itself.
    """
    if args.curriculum == "none":
        return
    if not is_stored(dataset):
        raise ValueError(
            f"curriculum={args.curriculum!r} needs a map-style data set without a transform, whose rows can be ranked; "
            f"train_dataset is a {type(dataset).__name__}. Load it without streaming, apply transforms with `map`, or order "
            "the rows yourself and set train_sampling_strategy='sequential'"
        )
    refused = (
        (args.train_sampling_strategy != "random", f"train_sampling_strategy={args.train_sampling_strategy!r}"),
        (args.ignore_data_skip, "ignore_data_skip=True"),
        (args.auto_find_batch_size, "auto_find_batch_size=True"),
    )
    for given, name in refused:
        if given:
            raise ValueError(
                f"curriculum={args.curriculum!r} decides itself which row comes in which step, and {name} would change "
                "that; leave it at its default (rows of similar length come together with curriculum_group_by_length=True)"
            )
    if args.num_train_epochs != 1:
        raise ValueError(
            f"num_train_epochs={args.num_train_epochs} was set after the configuration was made; with a curriculum, all "
            "stages are one epoch of the trainer: set curriculum_epochs, the passes over each stage"
        )


def check_stage_reference(trainer: Any) -> None:
    """Raise ValueError where the policy cannot become the reference at the end of a stage."""
    if trainer.args.curriculum_reference == "initial" or _copies_nothing(trainer):
        return
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ValueError(
            "curriculum_reference='stage' copies the policy's weights into the reference, which is not done for the shards of "
            "DeepSpeed or FSDP; use plain data parallelism, or train all weights with precompute_ref_log_probs=True"
        )
    if trainer.ref_model is not None and isinstance(trainer.model, PeftModel):
        raise ValueError(
            "curriculum_reference='stage' makes the adapter the reference; leave ref_model out, or train all weights"
        )


def _copies_nothing(trainer: Any) -> bool:
    """Whether only numbers are kept of the reference: no weights have to become another model's."""
    return trainer.references is not None and not isinstance(trainer.model, PeftModel)


# How hard the rows are


def read_difficulties(trainer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The difficulty and the stage of every row, (n,) each, from the data set's column, or computed where it has none.

    Raises:
        ValueError: no such column and nothing to compute it from, or rows without a value, counted.
    """
    args, dataset = trainer.args, trainer.train_dataset
    column = args.curriculum_column
    found = _column(dataset, column)
    if found is None:
        if column != "difficulty":
            raise ValueError(
                f"train_dataset has no column {column!r}; curriculum_column='difficulty' ranks the rows by a number, "
                "which is computed where the column is missing"
            )
        logger.info(f"No difficulty in train_dataset: it is computed as {args.curriculum_score}.")
        found = SCORES[args.curriculum_score](trainer)
    missing = ~np.isfinite(found)
    if missing.any():
        if args.curriculum_missing != "hard" or missing.all():
            raise ValueError(
                f"{int(missing.sum())} of {len(found)} rows have no finite {column!r} (the first is row "
                f"{int(missing.argmax())}); fill it in, drop them, or set curriculum_missing='hard' to train on them last"
            )
        logger.warning(
            f"{int(missing.sum())} of {len(found)} rows have no finite {column!r} and count as the hardest."
        )
        found = np.where(missing, found[~missing].max(), found)
        if column == "difficulty":
            # Behind the hardest of the others, in the order of the data set.
            found = np.where(missing, np.nextafter(found, np.inf), found)
    if column == "difficulty":
        return found, stages(found, args.curriculum_stages)
    if (found != np.rint(found)).any():
        raise ValueError(f"column {column!r} of train_dataset holds fractions; a stage is a whole number")
    return found, found.astype(np.int64)


def _column(dataset: Dataset, name: str) -> np.ndarray | None:
    """The numbers of a column, NaN where there is none; None where it is missing or all of it is empty."""
    if name not in dataset.column_names:
        return None
    values = dataset.select_columns(name).with_format(None)[:][name]
    try:
        found = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name!r} of train_dataset holds something that is no number: {error}") from error
    return None if np.isnan(found).all() else found


def _reference_values(trainer: Any) -> dict[str, np.ndarray]:
    """The reference's values of every row, by name; from the cache, which is filled where it is not."""
    if not trainer._is_vision_dataset:
        raise ValueError(
            f"curriculum_score={trainer.args.curriculum_score!r} is computed for data with images only; give train_dataset a "
            "column 'difficulty'"
        )
    references = trainer.references
    if references is None:
        references = References(trainer)
        references.add("train_dataset", trainer.train_dataset)
        references.release()
    return dict(zip(VALUES, references.of(trainer.train_dataset).astype(np.float64).T, strict=True))


def nll(trainer: Any) -> np.ndarray:
    """Negative log-likelihood of the chosen answer under the reference, in nats a token, (n,)."""
    values = _reference_values(trainer)
    return -values["chosen"] / np.maximum(values["chosen_tokens"], 1)


def reference_margin(trainer: Any) -> np.ndarray:
    """By how many nats the reference prefers the rejected to the chosen answer, (n,)."""
    values = _reference_values(trainer)
    return values["rejected"] - values["chosen"]


def mask_area(trainer: Any) -> np.ndarray:
    """1 minus the share of the images' area that the key regions cover, (n,); 0 for a row without regions or images."""
    rows = _trl.NumberedRows.of(trainer.train_dataset)
    return np.array([1 - _covered(rows.__getitems__([number])[0]) for number in range(len(rows))])


def _covered(row: Mapping[str, Any]) -> float:
    images = load_images(row, "image") or []
    try:
        regions = regions_per_image(row.get("key_regions"), len(images))
        if not any(regions):
            return 1.0
        covered = sum(
            region_mask(own, image.height, image.width).sum()
            for own, image in zip(regions, images, strict=True)
            if own
        )
    except (ValueError, TypeError, OSError) as error:
        raise row_error(row, "key_regions", str(error)) from error
    return float(covered) / sum(image.height * image.width for image in images)


SCORES: dict[str, Callable[[Any], np.ndarray]] = {
    "nll": nll,
    "reference_margin": reference_margin,
    "mask_area": mask_area,
}


# The order of the rows


def plan_of(trainer: Any) -> Plan:
    """The order in which a trainer sees its rows; says what is padded or left out."""
    args, dataset = trainer.args, trainer.train_dataset
    difficulties, stage_of = read_difficulties(trainer)
    seed = args.seed if args.data_seed is None else args.data_seed
    ranks = 1 if args.accelerator_config.split_batches else args.world_size
    plan = make_plan(
        stage_of,
        difficulties,
        args.curriculum,
        args.curriculum_epochs,
        args.train_batch_size * args.gradient_accumulation_steps * ranks,
        args.dataloader_drop_last,
        seed,
        _arranger(args, dataset),
    )
    if args.max_steps > plan.ends[-1]:
        raise ValueError(
            f"max_steps={args.max_steps} is more than the {plan.ends[-1]} steps of all stages; raise curriculum_epochs, or "
            "leave max_steps out"
        )
    for line in describe(plan):
        logger.info(line)
    changed = [f"{stage.added:+d} in stage {number}" for number, stage in enumerate(plan.stages, 1) if stage.added]
    if changed:
        logger.warning(
            f"So that no step of {plan.step_rows} rows mixes two stages, rows are repeated (+) or left out (-): "
            f"{', '.join(changed)}."
        )
    return plan


def _arranger(args: MFPOConfig, dataset: Dataset) -> Callable[[list[int]], list[int]]:
    batch = args.train_batch_size
    if args.group_by_prompt:
        groups = prompt_groups(dataset)
        return lambda rows: keep_together(rows, groups, batch)
    if args.curriculum_group_by_length:
        texts = dataset.select_columns([c for c in ("prompt", "chosen", "rejected") if c in dataset.column_names])
        lengths = np.array([sum(len(plain_text(value)) for value in row.values()) for row in texts])
        return lambda rows: by_length(rows, lengths, batch)
    return lambda rows: rows


def describe(plan: Plan) -> Iterator[str]:
    """A line for each stage."""
    steps = np.diff([0, *plan.ends])
    for number, (stage, count) in enumerate(zip(plan.stages, steps, strict=True), 1):
        low, high = stage.difficulty
        yield (
            f"Stage {number} of {len(plan.stages)}: {len(stage.rows)} rows, difficulty {low:.4g} to {high:.4g}, "
            f"{stage.epochs:g} epoch(s), {count} steps."
        )


# What happens where a stage ends


class Curriculum(TrainerCallback, ExportableState):
    """Watches a training go through its stages.

    At the end of each it asks for a log line, an evaluation and a checkpoint where the strategies of the configuration allow,
    links the checkpoint to one of the stage's name, and, with `curriculum_reference="stage"`, makes the policy the reference
    before the next step.

    Args:
        trainer: an `MFPOTrainer` with a curriculum.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        check_stage_reference(trainer)
        self.plan = plan_of(trainer)
        self.renews = trainer.args.curriculum_reference == "stage"
        # Digests of the weights that the cached values of the current stage are of.
        self.weights: list[tuple[str, str]] | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"weights": self.weights}}

    def sampler(self) -> EpochSampler:
        """All stages as the one epoch of the trainer: an epoch that a sampler has to know does not always reach it."""
        return EpochSampler(lambda epoch: self.plan.order, lambda: 0, len(self.plan.order))

    def metrics(self) -> dict[str, float]:
        """What is logged of the step that is being computed."""
        step = min(self.trainer.state.global_step, self.plan.ends[-1] - 1)
        return {
            "curriculum/stage": float(self.plan.stage_of(step) + 1),
            "curriculum/difficulty": float(self.plan.step_difficulty[step]),
        }

    def evaluations(self) -> list[dict[str, float]]:
        """What was measured at the end of each stage, by the names of the log."""
        history = self.trainer.state.log_history
        return [
            {name: value for line in history if line["step"] == end for name, value in line.items() if "eval_" in name}
            for end in self.plan.ends
        ]

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        """The learning-rate schedule of the configuration, once for each stage."""
        args = self.trainer.args
        starts = [0, *self.plan.ends[:-1]]
        factors = []
        for start, end in zip(starts, self.plan.ends, strict=True):
            # Another optimizer, because a schedule changes the one that it is made for.
            spare = torch.optim.SGD([torch.zeros(1)], lr=1.0)
            own = get_scheduler(
                args.lr_scheduler_type,
                spare,
                args.get_warmup_steps(end - start),
                end - start,
                args.lr_scheduler_kwargs,
            )
            if not isinstance(own, torch.optim.lr_scheduler.LambdaLR):
                raise ValueError(
                    f"curriculum_scheduler='restart' needs a schedule that is a function of the step; "
                    f"lr_scheduler_type={str(args.lr_scheduler_type)!r} is none"
                )
            factors.append(own.lr_lambdas[0])

        def factor(step: int) -> float:
            stage = min(self.plan.stage_of(step), len(starts) - 1)
            return factors[stage](step - starts[stage])

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    # Called by the trainer

    def on_train_begin(self, args, state, control, **kwargs):
        """Bring back the reference of the stage that a checkpoint was written in."""
        stage = self.plan.stage_of(state.global_step)
        inside = state.global_step not in (0, *self.plan.ends)
        if not self.renews or not stage or not inside:
            return
        kept = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {}).get("weights")
        self.weights = [tuple(pair) for pair in kept] if kept else None
        trainer, rows = self.trainer, self.plan.stages[stage].rows
        if trainer.ref_model is not None:
            folder = self._named(stage)
            if not os.path.isdir(folder):
                raise ValueError(
                    f"the reference of stage {stage + 1} is the policy at the end of stage {stage}, and {folder} is not "
                    "there; keep the checkpoints that are named after stages, or start that stage again"
                )
            _trl.load_full_weights(trainer.accelerator.unwrap_model(trainer.ref_model), folder)
        elif trainer.references is not None:
            trainer.references.restore(rows, stage + 1, None if isinstance(trainer.model, PeftModel) else self.weights)

    def on_step_begin(self, args, state, control, **kwargs):
        """Make the policy the reference of the stage that begins."""
        if not self.renews or state.global_step not in self.plan.ends[:-1]:
            return
        stage, trainer = self.plan.stage_of(state.global_step), self.trainer
        _trl.policy_to_reference(trainer)
        if trainer.references is not None:
            trainer.references.renew(self.plan.stages[stage].rows, stage + 1)
            self.weights = trainer.references.weights
        logger.info(f"The reference of stage {stage + 1} is the policy as it is now.")

    def on_step_end(self, args, state, control, **kwargs):
        """Log, evaluate and save where a stage ends, as where an epoch ends."""
        if state.global_step not in self.plan.ends:
            return
        # The last stage ends with the epoch, where what happens at epochs is asked for anyway.
        never = ("no", "epoch") if state.global_step == self.plan.ends[-1] else ("no",)
        control.should_log = control.should_log or args.logging_strategy not in never
        control.should_evaluate = control.should_evaluate or args.eval_strategy not in never
        control.should_save = control.should_save or args.save_strategy not in never

    def on_save(self, args, state, control, **kwargs):
        """Give the checkpoint at the end of a stage a second name, under which no limit of checkpoints removes it."""
        if state.global_step not in self.plan.ends:
            return
        self.trainer.accelerator.wait_for_everyone()
        source = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        target = self._named(self.plan.ends.index(state.global_step) + 1)
        if args.should_save and os.path.isdir(source):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, copy_function=_link)
        self.trainer.accelerator.wait_for_everyone()

    def _named(self, stage: int) -> str:
        return os.path.join(self.trainer.args.output_dir, f"checkpoint-stage-{stage}")


def _link(source: str, target: str) -> None:
    """A hard link, which takes no room; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
