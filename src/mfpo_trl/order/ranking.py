"""How hard the rows of a trainer's data are, and the order that follows from it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate.logging import get_logger
from datasets import Dataset

from .. import _trl
from ..batch import MFPOCollator, proven
from ..config import MFPOConfig
from ..images import region_mask, regions_per_image
from ..reference import References
from ..rows import has_image_column, load_images, plain_text, row_error
from .curriculum import Plan, by_length, make_plan, stages
from .sampling import keep_together, prompt_groups

logger = get_logger(__name__)


def read_difficulties(trainer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The difficulty and the stage of every row, (n,) each, from the data set's column, or computed where it has none.

    Raises:
        ValueError: as `check_difficulties`, or what is computed is no number.
    """
    args, dataset = trainer.args, trainer.train_dataset
    found = given_difficulties(args, dataset)
    if found is None:
        logger.info(f"No difficulty in train_dataset: it is computed as {args.curriculum_score}.")
        found = SCORES[args.curriculum_score].difficulty(trainer)
    missing = int((~np.isfinite(found)).sum())
    found, stage_of = with_stages(args, found)
    if missing:
        logger.warning(
            f"{missing} of {len(found)} rows have no finite {args.curriculum_column!r} and count as the hardest."
        )
    return found, stage_of


def check_difficulties(args: MFPOConfig, dataset: Dataset) -> None:
    """What must hold for the rows to be ranked, looked at before anything is loaded.

    Raises:
        ValueError: no such column and nothing to compute it from, or rows without a value, counted.
    """
    found = given_difficulties(args, dataset)
    if found is not None:
        with_stages(args, found)
    elif args.curriculum_score != "mask_area" and not has_image_column(dataset):
        raise ValueError(
            f"curriculum_score={args.curriculum_score!r} is computed for data with images only, and train_dataset has neither "
            f"'image' nor 'images', only {dataset.column_names}; rename its column of images, or give it a column 'difficulty'"
        )


def given_difficulties(args: MFPOConfig, dataset: Dataset) -> np.ndarray | None:
    """What the data set's column holds, (n,), NaN where a row has none; None where it has to be computed.

    Raises:
        ValueError: a column of stages that is missing, or something that is no number.
    """
    column = args.curriculum_column
    found = _column(dataset, column)
    if found is None and column != "difficulty":
        lacks = "has only empty values in" if column in dataset.column_names else "has no"
        raise ValueError(
            f"train_dataset {lacks} column {column!r}; curriculum_column='difficulty' ranks the rows by a number, "
            "which is computed where the column is missing"
        )
    return found


def with_stages(args: MFPOConfig, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Difficulties, (n,), with a number for every row, and the stage of each.

    Raises:
        ValueError: rows without a value, counted, or a stage that is no whole number.
    """
    column = args.curriculum_column
    missing = ~np.isfinite(found)
    if missing.any():
        if args.curriculum_missing != "hard" or missing.all():
            raise ValueError(
                f"{int(missing.sum())} of {len(found)} rows have no finite {column!r} (the first is row "
                f"{int(missing.argmax())}); fill it in, drop them, or set curriculum_missing='hard' to train on them last"
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


def branches_ranked(args: MFPOConfig, dataset: Any) -> tuple[str, ...]:
    """The branches that the reference scores in every row so that the rows can be ranked; none where their difficulty is
    given.

    Raises:
        ValueError: the column `difficulty` holds no numbers.
    """
    score = SCORES[args.curriculum_score]
    given = args.curriculum == "none" or args.curriculum_column != "difficulty" or not score.reads
    return () if given or _column(dataset, "difficulty") is not None else score.reads


def _reference_values(trainer: Any) -> dict[str, np.ndarray]:
    """The reference's values of every row, by name; from the cache, which is filled where it is not.

    Raises:
        ValueError: a collator that cannot be asked for the branches of a row.
    """
    dataset, score = trainer.train_dataset, f"curriculum_score={trainer.args.curriculum_score!r}"
    if not isinstance(trainer.data_collator, MFPOCollator):
        raise ValueError(
            f"{score} needs MFPOCollator; leave data_collator out, or give train_dataset a column 'difficulty'"
        )
    references = trainer.references
    if references is None:
        references = References(trainer)
        if not trainer.layout.proven:
            trainer.layout = proven(trainer.layout, trainer, references.model)
        references.add("train_dataset", dataset, branches_ranked(trainer.args, dataset))
        references.release()
    return dict(zip(references.names, references.of(dataset).astype(np.float64).T, strict=True))


def nll(trainer: Any) -> np.ndarray:
    """Negative log-likelihood of the chosen answer under the reference, in nats a token, (n,).

    Raises:
        ValueError: the data have no images.
    """
    values = _reference_values(trainer)
    return -values["chosen"] / np.maximum(values["chosen_tokens"], 1)


def reference_margin(trainer: Any) -> np.ndarray:
    """By how many nats the reference prefers the rejected to the chosen answer, (n,).

    Raises:
        ValueError: the data have no images.
    """
    values = _reference_values(trainer)
    return values["rejected"] - values["chosen"]


def mask_area(trainer: Any) -> np.ndarray:
    """1 minus the share of the images' area that the key regions cover, (n,); 0 for a row without regions or images.

    Raises:
        RowError: regions that cannot be used.
    """
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


@dataclass(frozen=True)
class Score:
    """A measure of difficulty: the branches whose reference values it reads, and the difficulty of a trainer's rows."""

    reads: tuple[str, ...]
    difficulty: Callable[[Any], np.ndarray]


SCORES = {
    "nll": Score(("chosen",), nll),
    "reference_margin": Score(("chosen", "rejected"), reference_margin),
    "mask_area": Score((), mask_area),
}


# The order of the rows


def plan_of(trainer: Any) -> Plan:
    """The order in which a trainer sees its rows.

    Raises:
        ValueError: `max_steps` is more than the steps of all stages.
    """
    return plan(trainer.args, trainer.train_dataset, *read_difficulties(trainer), trainer.args.world_size)


def plan(args: MFPOConfig, dataset: Dataset, difficulties: np.ndarray, stage_of: np.ndarray, processes: int) -> Plan:
    """The order in which a training sees its rows; says what is padded or left out.

    Args:
        difficulties, stage_of: of every row, (n,) each.
        processes: that share a step.

    Raises:
        ValueError: a stage without a step, another number of `curriculum_epochs` than stages, or too many steps asked for.
    """
    seed = args.seed if args.data_seed is None else args.data_seed
    ranks = 1 if args.accelerator_config.split_batches else processes
    assert args.curriculum_epochs is not None, "a curriculum fills it"
    made = make_plan(
        stage_of,
        difficulties,
        args.curriculum,
        args.curriculum_epochs,
        args.train_batch_size * args.gradient_accumulation_steps * ranks,
        args.dataloader_drop_last,
        seed,
        _arranger(args, dataset),
    )
    if args.max_steps > made.ends[-1]:
        raise ValueError(
            f"max_steps={args.max_steps} is more than the {made.ends[-1]} steps of all stages; raise curriculum_epochs, or "
            "leave max_steps out"
        )
    for line in describe(made):
        logger.info(line)
    changed = [
        f"{stage.added:+d} of {len(stage.sequence) - stage.added} in stage {number}"
        for number, stage in enumerate(made.stages, 1)
        if stage.added
    ]
    if changed:
        logger.warning(
            f"So that no step of {made.step_rows} rows mixes two stages, rows are repeated (+) or left out (-): "
            f"{', '.join(changed)}. Smaller steps change fewer rows; dataloader_drop_last=True repeats none."
        )
    return made


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
