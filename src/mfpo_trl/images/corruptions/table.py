"""The corruptions by their names, and what is asked of a name and its options."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .alone import black, blur, crop, mask, mean
from .filled import generate, inpaint
from .noise import diffusion
from .others import swap, transplant
from .pixels import bounds, nearest

NO_CORRUPTION = "none"
"""Make no dispreferred image: every row with an image has to bring its own."""

CORRUPTIONS: dict[str, Callable[..., np.ndarray]] = {
    "diffusion": diffusion,
    "crop": crop,
    "mean": mean,
    "black": black,
    "mask": mask,
    "blur": blur,
    "inpaint": inpaint,
    "transplant": transplant,
    "generate": generate,
    "swap": swap,
}

GENERATE = "generate"
"""Whose pictures only `mfpo build --materialize` makes."""

STRENGTHS = {"mask": "share", "diffusion": "step", "blur": "sigma"}
"""The option that says how strong a corruption is. A list of strengths is a ladder: one for each of a row's dispreferred images."""


def of_variant(name: str, kwargs: Mapping[str, Any], variant: int = 1) -> dict[str, Any]:
    """The options of a row's dispreferred image of this number, from 1: of a ladder its rung.

    Raises:
        ValueError: the ladder has fewer rungs.
    """
    option = STRENGTHS.get(name, "")
    strengths = kwargs.get(option)
    if not isinstance(strengths, list | tuple):
        return dict(kwargs)
    if variant > len(strengths):
        raise ValueError(
            f"image {variant} of a row is asked for, and {option!r} of {name} has {len(strengths)} numbers"
        )
    return {**kwargs, option: strengths[variant - 1]}


def rungs(name: str, kwargs: Mapping[str, Any]) -> int:
    """How many dispreferred images a ladder makes of an image; 1 where there is none."""
    strengths = kwargs.get(STRENGTHS.get(name, ""))
    return len(strengths) if isinstance(strengths, list | tuple) else 1


def needs_outside(name: str) -> bool:
    """Whether a corruption reads what surrounds a region, so that the region cannot be the whole image."""
    return name in ("inpaint", "transplant", GENERATE)


def takes_from_others(name: str) -> bool:
    """Whether a corruption takes something from another row of the data set."""
    return bool(_given(name))


def corrupt(
    image: np.ndarray, region: np.ndarray, rng: np.random.Generator, name: str = "diffusion", **kwargs: Any
) -> np.ndarray:
    """Corrupt an image inside a region; pixels outside are those of `image`, bit by bit.

    Args:
        image: (H, W, 3) uint8, RGB.
        region: (H, W) bool.
        rng: the only source of randomness, see `row_generator`.
        name: a name in `CORRUPTIONS`.
        kwargs: the options of that function, and what else it takes, such as another row's image. Of a ladder the first rung is made.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        ValueError: an unknown corruption or option, or a region that the corruption cannot use.
    """
    check_options(name, {key: value for key, value in kwargs.items() if key not in _given(name)})
    picture = CORRUPTIONS[name](image, region, rng, **of_variant(name, kwargs))
    result, box = image.copy(), bounds(region)
    np.copyto(result[box], picture[box], where=region[box][..., None])
    return result


def check_corruption(name: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse a corruption or options that cannot be used.

    Raises:
        ValueError: an unknown corruption, option or schedule, with the nearest known name, or a value that the corruption
            refuses.
    """
    check_options(name, kwargs)
    if name == NO_CORRUPTION:
        return
    image, region = np.zeros((16, 16, 3), dtype=np.uint8), np.zeros((16, 16), dtype=bool)
    region[2:12, 2:12] = True
    given = {"donor": image, "donor_region": region}
    others = {key: given[key] for key in _given(name)}
    option = STRENGTHS.get(name, "")
    if kwargs.get(option) in ([], ()):
        raise ValueError(
            f"{option!r} of {name} is an empty list; expected a number, or one for each dispreferred image of a row"
        )
    try:
        for variant in range(1, rungs(name, kwargs) + 1):
            own = of_variant(name, kwargs, variant)
            CORRUPTIONS[name](image, region, np.random.default_rng(0), **own, **others)
    except (TypeError, KeyError) as error:
        raise ValueError(f"corruption {name!r} cannot use {dict(kwargs)}: {error}") from error


def check_options(name: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse an unknown corruption or option; values are not looked at.

    Raises:
        ValueError: names the nearest one.
    """
    known = corruption_defaults(name)
    for key in kwargs:
        if key not in known:
            raise ValueError(f"corruption {name!r} has no option {key!r}{nearest(key, known)}")


def check_some_corruption(kwargs: Mapping[str, Any]) -> None:
    """Refuse options that no corruption takes.

    Raises:
        ValueError: names an unknown one's nearest, or what stands against them together.
    """
    options = {name: corruption_defaults(name) for name in CORRUPTIONS}
    known = dict.fromkeys(key for own in options.values() for key in own)
    for key in kwargs:
        if key not in known:
            raise ValueError(f"no corruption has an option {key!r}{nearest(key, known)}")
    errors = []
    for name in (name for name, own in options.items() if set(kwargs) <= set(own)):
        try:
            return check_corruption(name, kwargs)
        except ValueError as error:
            errors.append(error)
    raise errors[0] if errors else ValueError(f"no corruption has all of the options {', '.join(kwargs)}")


def options_of_others(name: str, kwargs: Mapping[str, Any]) -> list[str]:
    """Those options that this corruption does not have and another one has.

    Raises:
        ValueError: an unknown corruption.
    """
    own = corruption_defaults(name)
    known = {key for other in CORRUPTIONS for key in corruption_defaults(other)}
    return [key for key in kwargs if key in known and key not in own]


def corruption_defaults(name: str) -> dict[str, Any]:
    """The options of a corruption and their default values.

    Raises:
        ValueError: an unknown corruption.
    """
    if name == NO_CORRUPTION:
        return {}
    if name not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {name!r}{nearest(name, [*CORRUPTIONS, NO_CORRUPTION])}")
    return {own.name: own.default for own in _keywords(name) if own.default is not inspect.Parameter.empty}


def _given(name: str) -> list[str]:
    """What a corruption takes beside image, region and options."""
    if name not in CORRUPTIONS:
        return []
    return [own.name for own in _keywords(name) if own.default is inspect.Parameter.empty]


def _keywords(name: str) -> list[inspect.Parameter]:
    parameters = inspect.signature(CORRUPTIONS[name]).parameters.values()
    return [own for own in parameters if own.kind is own.KEYWORD_ONLY]
