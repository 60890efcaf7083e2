"""How the dispreferred images of a whole data set are made: the recipes that its rows bring, and those that are used."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset

from ..rows import RECIPE, ROW_NUMBER, is_stored, rows_to_corrupt, rows_to_corrupt_whole
from .corruptions import needs_outside
from .dispreferred import AUTO, DispreferredImages
from .recipe import Recipe, row_recipe

logger = get_logger(__name__)

REGIONS = "some"


def own_recipes(dataset: Dataset) -> list[tuple[dict[str, Any], int]]:
    """What the column `corruption` holds in the rows whose dispreferred images have to be made, each different value once
    with and once without key regions: the first row that has it (its number, that column, `REGIONS` in place of its regions), and
    how many have it."""
    wanted = rows_to_corrupt(dataset)
    if RECIPE not in dataset.column_names:
        return [({ROW_NUMBER: int(wanted.argmax())}, int(wanted.sum()))] if wanted.any() else []
    found: dict[tuple[bool, bool, str], tuple[dict[str, Any], int]] = {}
    bare = rows_to_corrupt_whole(dataset)
    number = 0
    for batch in dataset.select_columns(RECIPE).with_format("arrow").iter(1000):
        for value in batch.column(0).to_pylist():
            if wanted[number]:
                text = value if isinstance(value, str) else json.dumps(value, default=str)
                key = bool(bare[number]), isinstance(value, str), text
                some = None if bare[number] else REGIONS
                row, count = found.get(key, ({RECIPE: value, ROW_NUMBER: number, "key_regions": some}, 0))
                found[key] = row, count + 1
            number += 1
    return list(found.values())


def used_recipes(images: DispreferredImages, dataset: Any) -> list[tuple[Recipe, int]] | None:
    """The different recipes by which a data set's dispreferred images are made, and in how many rows; None where the rows may
    bring some and cannot be looked at before they come.

    Raises:
        ValueError: a row whose recipe is none.
    """
    if not is_stored(dataset):
        return None if images.corruption == AUTO and RECIPE in _columns(dataset) else [(images.recipe({}), 0)]
    found: dict[str, tuple[Recipe, int]] = {}
    for row, count in own_recipes(dataset):
        recipe = images.recipe(row)
        key = json.dumps([recipe.corruption, dict(recipe.kwargs), recipe.region, recipe.seed], sort_keys=True)
        found[key] = recipe, count + found.get(key, (recipe, 0))[1]
    return list(found.values())


def _columns(dataset: Any) -> Collection[str]:
    """Of a stream or a data set with a transform; the first row, which may cost a shard, says them where nothing else does."""
    return dataset.column_names or next(iter(dataset), {})


def check_recipes(args: Any, datasets: Mapping[str, Any]) -> None:
    """Look at the recipes of all rows, and say in one line where what `args` ask for wins over them.

    Args:
        args: of the training, a `MFPOConfig`.
        datasets: by the names of their arguments.

    Raises:
        ValueError: a row whose recipe is none, or does not take the options that `args` ask for, or whose image would have to be
            corrupted as a whole by what needs something around a region.
    """
    if not any(branch.variant for branch in args.branches):
        return
    images = DispreferredImages.of(args)
    lines = [line for name, dataset in datasets.items() if (line := overruled(images, name, dataset))]
    for name, dataset in datasets.items():
        if is_stored(dataset):
            check_surroundings(images, name, dataset)
    if lines:
        asked = ", ".join(f"{name}={value!r}" for name, value in images.asked.items())
        logger.warning(f"{asked} wins over the rows' own recipes (column '{RECIPE}') in {' and '.join(lines)}.")


def check_surroundings(images: DispreferredImages, name: str, dataset: Dataset) -> None:
    """Refuse a corruption that needs something around a region in rows whose whole image would be corrupted.

    Raises:
        ValueError: names the first such row, and how many there are.
    """
    bare = rows_to_corrupt_whole(dataset)
    rows: list[tuple[dict[str, Any], int]] = []
    if RECIPE in dataset.column_names and images.corruption == AUTO:
        rows = [(row, count) for row, count in own_recipes(dataset) if row["key_regions"] is None]
    elif bare.any():
        rows = [({ROW_NUMBER: int(bare.argmax())}, int(bare.sum()))]
    for row, count in rows:
        recipe = images.recipe(row)
        if needs_outside(recipe.corruption) and recipe.region != "random":
            raise ValueError(
                f"{name}: {count} rows (the first is row {row[ROW_NUMBER]}) have no key_regions, and corruption "
                f"{recipe.corruption!r} needs something around a region; leave these rows out, or set corruption_region='random'"
            )


def overruled(images: DispreferredImages, name: str, dataset: Any) -> str | None:
    """In how many rows of a data set something else is used than their own recipe, in words; None where there is no such row.

    Raises:
        ValueError: as in `check_recipes`.
    """
    if not is_stored(dataset):
        return f"all rows of {name} that have one" if images.asked and RECIPE in _columns(dataset) else None
    won, total, example = 0, 0, ""
    for row, count in own_recipes(dataset):
        try:
            used = images.recipe(row)
        except ValueError as error:
            raise ValueError(f"{name}, {error}") from error
        total += count
        if images.overrules(row):
            example = example or f"{row_recipe(row)} in row {row[ROW_NUMBER]} becomes {used}"
            won += count
    return f"{won} of the {total} rows of {name} ({example})" if won else None
