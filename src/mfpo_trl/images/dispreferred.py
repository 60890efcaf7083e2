"""A row's dispreferred images: which recipe, which region, which randomness."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..rows import (
    RECIPE,
    dispreferred_column,
    image_list,
    load_images,
    plural_of,
    row_digest,
    row_error,
    row_generator,
    without_none,
)
from .corruptions import NO_CORRUPTION, check_corruption, corrupt, corruption_defaults
from .regions import random_region, region_mask, regions_per_image

AUTO = "auto"
"""As a corruption: the row's own recipe, the paper's diffusion where it has none."""

REGION_CHOICES = ("auto", "global", "random", "key")

RANDOM_AREA = 0.2
"""Share of the image that `corruption_region="random"` covers; 20 % in the ablation of arXiv 2410.15334."""

DONOR_TRIES = 64

NOT_A_RECIPE = (
    "rename or remove a column of another meaning, or name a corruption for all rows (corruption: diffusion), "
    "with which the column is not read"
)


class Donors(Protocol):
    """Rows by their position."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Mapping[str, Any]: ...


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
    check_corruption(recipe.corruption, recipe.kwargs)


@dataclass
class DispreferredImages:
    """Makes the dispreferred images of a row, the same ones whenever and wherever it is asked.

    Args:
        corruption, kwargs, region, seed: as `corruption`, `corruption_kwargs`, `corruption_region` and `corruption_seed`
            of `MFPOConfig`.
        resolution: for `diffusion` without a `resolution` of its own: from (height, width) of an image to the shorter
            side, in pixels, at which the model sees it. None: the noise is drawn for each pixel.
        donors: the rows among which `swap` finds another image.
    """

    corruption: str = AUTO
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    region: str = "auto"
    seed: int | None = None
    resolution: Callable[[int, int], int] | None = None
    donors: Donors | None = None

    @classmethod
    def of(cls, args: Any, resolution: Callable[[int, int], int] | None = None) -> "DispreferredImages":
        """As a `MFPOConfig` asks for them."""
        return cls(args.corruption, args.corruption_kwargs, args.corruption_region, args.corruption_seed, resolution)

    @property
    def falls_back(self) -> bool:
        """Whether a row without regions is corrupted as a whole in their place."""
        return self.region == "auto" and self.corruption not in (NO_CORRUPTION, "swap")

    @property
    def asked(self) -> dict[str, Any]:
        """What was asked for, by the names of `MFPOConfig`: it wins over the rows' own recipes."""
        asked = {
            "corruption": self.corruption if self.corruption != AUTO else None,
            "corruption_kwargs": dict(self.kwargs) or None,
            "corruption_region": self.region if self.region != "auto" else None,
            "corruption_seed": self.seed,
        }
        return {name: value for name, value in asked.items() if value is not None}

    def recipe(self, row: Mapping[str, Any]) -> Recipe:
        """How this row's dispreferred images are made: as was asked for, else as its own recipe says, else by default.

        A corruption that was asked for takes the place of the whole recipe. Without one, options, region and seed that
        were asked for change these in it.

        Raises:
            ValueError: a row whose recipe is none, or has no such option.
        """
        if self.corruption != AUTO:
            return Recipe(self.corruption, self.kwargs, self.region, self.seed or 0)
        own = row_recipe(row)
        start = own or Recipe()
        makes = start.corruption != NO_CORRUPTION
        recipe = Recipe(
            start.corruption,
            {**start.kwargs, **self.kwargs} if makes else {},
            self.region if self.region != "auto" else start.region,
            start.seed if self.seed is None else self.seed,
        )
        if self.kwargs and makes:
            try:
                check_corruption(recipe.corruption, recipe.kwargs)
            except ValueError as error:
                whose = "" if own else "is missing, which means the default; "
                raise row_error(row, RECIPE, f"{whose}corruption_kwargs={dict(self.kwargs)}: {error}") from error
        return recipe

    def overrules(self, row: Mapping[str, Any]) -> bool:
        """Whether what was asked for differs from the row's own recipe; False where it has none that can be read.

        Args:
            row: `corruption` is read, and whether there are `key_regions`.
        """
        try:
            own = row_recipe(row)
        except ValueError:
            return False
        if own is None:
            return False
        used = self.recipe(row)
        # `auto` takes the key regions, or the whole image where there are none; `mfpo build` says which of them it is.
        same = own.region in ("auto", "global" if not row.get("key_regions") else "key")
        region = own.region if used.region == "auto" and same else used.region
        return (own.corruption, own.options, own.region, own.seed) != (
            used.corruption,
            used.options,
            region,
            used.seed,
        )

    def __call__(self, row: Mapping[str, Any], images: Sequence[Image.Image], variant: int = 1) -> list[Image.Image]:
        """The row's dispreferred images: its own `rejected_images`, else corrupted copies of `images`.

        Args:
            row: a preference row; `prompt`, `rejected_images` and `key_regions` are read.
            images: its images in RGB, as `rows.load_images` returns them.
            variant: which of several, from 1: those of `rejected_images_2`, `_3`, …, or made with other randomness and with the option
                of that number where an option is a list.

        Returns:
            As many RGB images; made ones have the size of the originals.

        Raises:
            ValueError: `rejected_images` of another length, a region that is no region, no region where one is needed.
        """
        check_rejected_images(row, len(images), variant)
        given = load_images(row, dispreferred_column(variant))
        if given is not None:
            return given
        recipe = self.recipe(row)
        if recipe.corruption == NO_CORRUPTION:
            whose = "the row's recipe says" if self.corruption == AUTO else "corruption="
            field = plural_of(dispreferred_column(variant))
            raise row_error(row, field, f"is missing, and {whose}'none' makes none")
        digest = row_digest(row.get("prompt"), images)
        if variant > 1:
            digest += variant.to_bytes(2, "big")
        masks = self._masks(row, images, recipe, digest)
        return [self._corrupted(row, image, masks[n], recipe, digest, n, variant) for n, image in enumerate(images)]

    def masks(self, row: Mapping[str, Any], images: Sequence[Image.Image]) -> list[np.ndarray]:
        """Where each image is corrupted, one (H, W) bool mask an image.

        Raises:
            RowError: regions that cannot be used, or none where they are asked for.
        """
        return self._masks(row, images, self.recipe(row), row_digest(row.get("prompt"), images))

    def _masks(
        self, row: Mapping[str, Any], images: Sequence[Image.Image], recipe: Recipe, digest: bytes
    ) -> list[np.ndarray]:
        sizes = [(image.height, image.width) for image in images]
        if recipe.region == "random":
            generators = [row_generator(digest, recipe.seed, "region", n) for n in range(len(images))]
            return [random_region(*size, rng, RANDOM_AREA) for size, rng in zip(sizes, generators, strict=True)]
        if recipe.region == "global":
            return [np.ones(size, dtype=bool) for size in sizes]
        try:
            regions = regions_per_image(row.get("key_regions"), len(images))
            if recipe.region == "key" and not any(regions):
                if self.region != "key":
                    raise ValueError(
                        "is empty, and the row's recipe asks for region 'key'; its 'global' means the whole image"
                    )
                raise ValueError(
                    "is empty; corruption_region='key' needs a region in every row with an image: `mfpo build` finds them, "
                    "and 'auto' takes the whole image"
                )
            # In a row with several images, those without a region stay clean beside one that has some.
            whole = not any(regions)
            return [
                region_mask(own, *size) if own else np.full(size, whole)
                for own, size in zip(regions, sizes, strict=True)
            ]
        except (ValueError, TypeError, OSError) as error:
            raise row_error(row, "key_regions", str(error)) from error

    def _corrupted(
        self,
        row: Mapping[str, Any],
        image: Image.Image,
        mask: np.ndarray,
        recipe: Recipe,
        digest: bytes,
        position: int,
        variant: int,
    ) -> Image.Image:
        rng = row_generator(digest, recipe.seed, recipe.corruption, position)
        pixels = np.asarray(image)
        kwargs = dict(recipe.kwargs)
        if recipe.corruption == "mask" and isinstance(kwargs.get("share"), Sequence):
            if variant > len(kwargs["share"]):
                problem = f"image {variant} of a row is asked for, and 'share' of the mask has {len(kwargs['share'])} numbers"
                raise row_error(row, RECIPE, problem)
            kwargs["share"] = kwargs["share"][variant - 1]
        if recipe.corruption == "diffusion" and self.resolution is not None:
            kwargs.setdefault("resolution", self.resolution(image.height, image.width))
        if recipe.corruption == "swap":
            kwargs["donor"] = self._donor(row, pixels, rng)
        return Image.fromarray(corrupt(pixels, mask, rng, recipe.corruption, **kwargs))

    def _donor(self, row: Mapping[str, Any], pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.donors:
            raise row_error(
                row, "images", "corruption='swap' needs stored rows with images to take another image from"
            )
        first = int(rng.integers(len(self.donors)))
        for step in range(min(DONOR_TRIES, len(self.donors))):
            other = load_images(self.donors[(first + step) % len(self.donors)], "image")
            if other and not np.array_equal(np.asarray(other[0]), pixels):
                return np.asarray(other[0])
        raise row_error(row, "images", f"no other image to swap in was found in {step + 1} rows")


def check_rejected_images(row: Mapping[str, Any], images: int, variant: int = 1) -> None:
    """Refuse a row that brings dispreferred images, but not one for each of its images.

    Raises:
        RowError: names the row and the field.
    """
    column = dispreferred_column(variant)
    given = image_list(row, column)
    if given is not None and len(given) != images:
        field = column if row.get(column) is not None else plural_of(column)
        raise row_error(row, field, f"holds {len(given)} image(s) for the {images} of 'images'; give one for each")
