"""By which recipe a row's dispreferred images are made: what its column `corruption` holds."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..rows import RECIPE, row_error, without_none
from .corruptions import GENERATE, check_corruption, check_options, corruption_defaults

REGION_CHOICES = ("auto", "global", "random", "key", "partial")
"""`partial` is one of the row's key regions, so that the answer is wrong in one claim; its further variants have the next ones."""

NOT_A_RECIPE = (
    "rename or remove a column of another meaning, or name a corruption for all rows (corruption: diffusion), "
    "with which the column is not read"
)


@dataclass(frozen=True)
class Recipe:
    """How a row's dispreferred images are made; the column `corruption` holds it as JSON.

    Args:
        corruption: a name in `mfpo_trl.images.corruptions.CORRUPTIONS`, or `none`.
        kwargs: options of that function.
        region: one of `REGION_CHOICES`.
        seed: the images depend on it.
    """

    corruption: str = "diffusion"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    region: str = "auto"
    seed: int = 0

    @property
    def changed(self) -> dict[str, Any]:
        """The options that are set to something else than the corruption's own defaults."""
        known = corruption_defaults(self.corruption)
        return {key: value for key, value in self.kwargs.items() if key not in known or known[key] != value}

    @property
    def options(self) -> dict[str, Any]:
        """The options that are set, those of the corruption's own defaults among them."""
        known = {**corruption_defaults(self.corruption), **self.kwargs}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in known.items()}
        return {key: value for key, value in plain.items() if isinstance(value, str | int | float | list)}

    def __str__(self) -> str:
        options = ", ".join(f"{key} {value}" for key, value in self.options.items())
        region = f"; region {self.region}" if self.region != "auto" else ""
        return f"{self.corruption}{f': {options}' if options else ''}{region}; seed {self.seed}"


def row_recipe(row: Mapping[str, Any]) -> Recipe | None:
    """The recipe in a row's column `corruption`, JSON or a mapping; None where it has none.

    Raises:
        ValueError: something else, or a corruption, option, region or seed that there is not; names row and field.
    """
    value = row.get(RECIPE)
    if value is None:
        return None
    try:
        found = without_none(value if isinstance(value, Mapping) else json.loads(value))
    except (TypeError, ValueError) as error:
        raise row_error(row, RECIPE, f"{str(value)[:60]!r} is not JSON: {error}; {NOT_A_RECIPE}") from error
    known = tuple(Recipe.__dataclass_fields__)
    if not isinstance(found, dict) or "corruption" not in found or not set(found) <= set(known):
        problem = f"found {str(found)[:80]}; expected 'corruption' and any of {known[1:]}; {NOT_A_RECIPE}"
        raise row_error(row, RECIPE, problem)
    recipe = Recipe(**found)
    try:
        _check(recipe)
    except ValueError as error:
        raise row_error(row, RECIPE, str(error)) from error
    return recipe


def _check(recipe: Recipe) -> None:
    if not isinstance(recipe.corruption, str):
        raise ValueError(f"corruption is {recipe.corruption!r}; expected a name")
    if not isinstance(recipe.kwargs, Mapping) or "donor" in recipe.kwargs:
        raise ValueError(f"kwargs is {str(recipe.kwargs)[:60]}; expected options of the corruption by their names")
    if recipe.region not in REGION_CHOICES:
        raise ValueError(f"region is {recipe.region!r}; expected {list(REGION_CHOICES)}")
    if not isinstance(recipe.seed, int) or isinstance(recipe.seed, bool):
        raise ValueError(f"seed is {recipe.seed!r}; expected a whole number")
    if recipe.corruption == GENERATE:
        # The row brings what was made.
        check_options(recipe.corruption, recipe.kwargs)
    else:
        check_corruption(recipe.corruption, recipe.kwargs)
