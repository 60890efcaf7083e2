"""What a model card says of the dispreferred images."""

from collections.abc import Sequence, Set
from dataclasses import replace

from ..images import AUTO, NO_CORRUPTION, DispreferredImages, Recipe, needs_outside, used_recipes
from ..rows import RECIPE
from .training import Training

LISTED = 4
"""Recipes that a card lists."""


def used_in(training: Training) -> list[tuple[Recipe, int]] | None:
    """The recipes of the dispreferred images that were trained on; None where only the rows of a stream, or a collator of
    the caller's own, know them."""
    if "image" not in training.term_weights:
        return []
    images = getattr(training.data_collator, "dispreferred", None)
    return used_recipes(images, training.train_dataset) if isinstance(images, DispreferredImages) else None


def describe_corruption(training: Training, made: Sequence[tuple[Recipe, int]] | None) -> str:
    """One or two sentences on where the dispreferred images come from; `made` as `used_in` returns it."""
    if "image" not in training.term_weights:
        return "None: the image term has no weight, or the data set no image."
    images = getattr(training.data_collator, "dispreferred", None)
    if not isinstance(images, DispreferredImages):
        return "As the data collator of the training makes them."
    given = "The data set's `rejected_images`"
    if made is None:
        return (
            f"{given} where a row has them; otherwise made by the row's own recipe (column `{RECIPE}`), or without one by "
            f"{_in_words(images.recipe({}), {images.region})}."
        )
    groups: dict[str, tuple[Recipe, set[str], int]] = {}
    for recipe, count in made:
        key = str(replace(recipe, region="auto"))
        _, regions, before = groups.get(key, (recipe, set(), 0))
        groups[key] = recipe, regions | {recipe.region}, before + count
    if {recipe.corruption for recipe, *_ in groups.values()} <= {NO_CORRUPTION}:
        return f"{given}."
    most = sorted(groups.values(), key=lambda group: -group[2])
    words = [_in_words(recipe, regions) for recipe, regions, _ in most[:LISTED]]
    if len(most) > 1:
        words = [f"{own} ({count:,} rows)" for own, (*_, count) in zip(words, most, strict=False)]
        words += [f"{len(most) - LISTED} other recipes"] if len(most) > LISTED else []
    own = images.corruption == AUTO and RECIPE in (training.train_dataset.column_names or ())
    by = f" by the row's own recipe (column `{RECIPE}`)," if own else ""
    return f"{given} where a row has them; otherwise{by} {'; '.join(words)}."


def _in_words(recipe: Recipe, regions: Set[str]) -> str:
    options = "".join(f", {key} = {value}" for key, value in recipe.options.items())
    whole = "the whole image" if "key" not in regions else "the whole image where a row has none"
    fallback = "" if needs_outside(recipe.corruption) else ", or the whole image where a row has none"
    places = {
        "auto": f"the row's key regions{fallback}",
        "key": "the row's key regions",
        "partial": f"one of the row's key regions, drawn by what the row shows and asks{fallback}",
        "global": whole,
        "random": "a random rectangle of 20 % of the image",
    }
    where = ", or ".join(words for region, words in places.items() if region in regions)
    return f"`{recipe.corruption}`{options}, inside {where}; seed {recipe.seed}"
