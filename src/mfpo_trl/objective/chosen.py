"""Which terms a configuration asks for, with which weights and betas."""

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .names import branch_of
from .presets import PRESETS
from .terms import TERMS, Term, Weighted

OPTIONAL = ("formula", "columns", "source", "changed", "tokens", "logits")
"""What an object that stands for a term may have beside a name, branches and a loss."""


def terms_of(
    objective: str,
    free: Mapping[str, Any] | None,
    weights: Mapping[str, float | None],
    margin: float = 0.0,
    given: Sequence[Term | Weighted] = (),
) -> tuple[Weighted, ...]:
    """The terms of an objective, those with weight 0 among them.

    Args:
        objective: a key of `PRESETS`.
        free: terms by their names or as `package.module:term`, each with its weight or `{"weight", "beta"}` and options of its own, in
            place of the preset's.
        weights: of terms by their names, that win over the preset's where they are set.
        margin: of the anchor.
        given: terms of the caller's own, added with the weight 1 where they bring none.

    Raises:
        ValueError: an unknown objective, term or option, two terms of one name, or a weight or beta that is none.
    """
    if objective not in PRESETS:
        raise ValueError(f"objective is {objective!r}; expected {', '.join(PRESETS)}")
    asked: dict[str, Any] = dict(PRESETS[objective].weights if free is None else free)
    for name, weight in weights.items():
        if weight is not None:
            asked[name] = {**_options(asked.get(name, {})), "weight": weight}
    if margin and "anchor" in asked:
        asked["anchor"] = {"margin": margin, **_options(asked["anchor"])}
    found = [_weighted(name, value) for name, value in asked.items()]
    found += [own if isinstance(own, Weighted) else Weighted(checked(own, repr(own)), 1.0) for own in given]
    names = [own.term.name for own in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two terms are called {twice[0]!r}; give each a name of its own")
    return tuple(found)


def _options(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {"weight": value}


def _weighted(name: str, value: Any) -> Weighted:
    options, term = _options(value), named(name)
    weight, beta = options.pop("weight", 1.0), options.pop("beta", None)
    if unknown := sorted(set(options) - set(term.options)):
        expected = " and ".join(map(repr, ["weight", "beta", *term.options]))
        raise ValueError(f"term {name!r} has the option {unknown[0]!r}; expected {expected}")
    if not _is_number(weight) or weight < 0:
        raise ValueError(f"the weight of term {name!r} is {weight!r}; expected a number >= 0")
    if beta is not None and (not _is_number(beta) or beta <= 0):
        raise ValueError(f"the beta of term {name!r} is {beta!r}; expected a number > 0")
    for key, own in options.items():
        if not _is_number(own):
            raise ValueError(f"the option {key!r} of term {name!r} is {own!r}; expected a finite number")
    return Weighted(term, weight, beta, options)


def named(name: str) -> Term:
    """A term by its name, or as `package.module:term`.

    Raises:
        ValueError: there is none.
    """
    if name in TERMS:
        return TERMS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"term {name!r} is unknown; expected {', '.join(TERMS)}, or package.module:term")
    try:
        return checked(getattr(importlib.import_module(module), attribute), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"term {name!r} cannot be imported: {error}") from error


def checked(term: Any, name: str) -> Term:
    """A term of the caller's own.

    Raises:
        ValueError: it lacks what a term has, or reads a branch that there is not.
    """
    for attribute in ("name", "reads", "loss"):
        if not hasattr(term, attribute):
            raise ValueError(
                f"term {name} has no {attribute!r}; a term has a name, the branches that it reads, and a loss"
            )
    if not callable(term.loss):
        raise ValueError(
            f"the loss of term {term.name!r} is {term.loss!r}; expected a function of log-ratios and beta"
        )
    optional = {key: getattr(term, key) for key in OPTIONAL if getattr(term, key, None)}
    return Term(term.name, tuple(map(branch_of, term.reads)), term.loss, **optional)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
