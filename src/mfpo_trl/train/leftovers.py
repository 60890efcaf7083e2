"""Options of a recipe's corruption, where the command line names another one."""

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..images import AUTO, Recipe, options_of_others


def without_leftovers(argv: Sequence[str], recipe: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """A recipe's fields without those `corruption_kwargs` that the corruption of the command line does not have, and a line
    that says which went.

    An option that no corruption has stays, and is refused as a misspelt one.

    Args:
        argv: the command line.
        recipe: the fields that the recipe gives.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--corruption", nargs="?")
    finder.add_argument("--corruption_kwargs", "--corruption-kwargs", nargs="?")
    given = finder.parse_known_args(list(argv))[0]
    options, before = _options(recipe.get("corruption_kwargs")), recipe.get("corruption", AUTO)
    if given.corruption in (None, before) or given.corruption_kwargs is not None or not options:
        return dict(recipe), None
    # `auto` takes diffusion for a row that says nothing else.
    name = Recipe.corruption if given.corruption == AUTO else given.corruption
    try:
        left = options_of_others(name, options)
    except ValueError:
        # An unknown corruption is refused where the fields are read.
        return dict(recipe), None
    if not left:
        return dict(recipe), None
    kept = {key: value for key, value in options.items() if key not in left}
    gone = ", ".join(f"{key}={options[key]!r}" for key in left)
    line = f"--corruption {given.corruption} leaves out corruption_kwargs of the recipe that belong to another corruption: {gone}."
    return {**recipe, "corruption_kwargs": kept}, line


def _options(value: Any) -> dict[str, Any]:
    """The options as a mapping, also from the text that a field of mappings takes."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = json.loads(value)
    return dict(value) if isinstance(value, Mapping) else {}
