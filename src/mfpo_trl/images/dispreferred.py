"""A row's dispreferred images: which recipe, which region, which randomness."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ..rows import (
    RECIPE,
    RowError,
    dispreferred_column,
    image_list,
    load_images,
    plural_of,
    row_digest,
    row_error,
    row_generator,
)
from .corruptions import (
    GENERATE,
    NO_CORRUPTION,
    check_corruption,
    corrupt,
    corruption_defaults,
    middle,
    needs_outside,
    of_variant,
    takes_from_others,
)
from .donors import Donors, another_image, another_region
from .recipe import Recipe, row_recipe
from .regions import random_region, region_mask, regions_per_image

AUTO = "auto"
"""As a corruption: the row's own recipe, the paper's diffusion where it has none."""

RANDOM_AREA = 0.2
"""Share of the image that `corruption_region="random"` covers; 20 % in the ablation of arXiv 2410.15334."""


@dataclass
class DispreferredImages:
    """Makes the dispreferred images of a row, the same ones whenever and wherever it is asked.

    Args:
        corruption, kwargs, region, seed: as `corruption`, `corruption_kwargs`, `corruption_region` and `corruption_seed`
            of `MFPOConfig`.
        resolution: for `diffusion` and `inpaint` without a `resolution` of their own: from (height, width) of an image to the shorter
            side, in pixels, at which the model sees it. None: the noise is drawn for each pixel.
        donors: the rows among which `swap` finds another image, and `transplant` another region.
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
        otherwise = self.corruption in (NO_CORRUPTION, "swap") or needs_outside(self.corruption)
        return self.region in ("auto", "partial") and not otherwise

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
        makes = start.corruption not in (NO_CORRUPTION, GENERATE)
        recipe = Recipe(
            start.corruption,
            {**start.kwargs, **(self.kwargs if makes else {})},
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
        regions = self._regions(row, images, recipe, digest, variant)
        if variant > 1:
            digest += variant.to_bytes(2, "big")
        generators = [row_generator(digest, recipe.seed, recipe.corruption, n) for n in range(len(images))]
        try:
            kwargs = of_variant(recipe.corruption, recipe.kwargs, variant)
        except ValueError as error:
            raise row_error(row, RECIPE, str(error)) from error
        return [
            self._corrupted(row, image, masks, recipe.corruption, kwargs, rng)
            for image, masks, rng in zip(images, regions, generators, strict=True)
        ]

    def masks(self, row: Mapping[str, Any], images: Sequence[Image.Image], variant: int = 1) -> list[np.ndarray]:
        """Where each image is corrupted, one (H, W) bool mask an image.

        Raises:
            RowError: regions that cannot be used, or none where they are asked for.
        """
        regions = self._regions(row, images, self.recipe(row), row_digest(row.get("prompt"), images), variant)
        return [_union(own, image) for own, image in zip(regions, images, strict=True)]

    def _regions(
        self, row: Mapping[str, Any], images: Sequence[Image.Image], recipe: Recipe, digest: bytes, variant: int
    ) -> list[list[np.ndarray]]:
        """The regions of each image that are corrupted, (H, W) bool each; no region keeps an image clean."""
        sizes = [(image.height, image.width) for image in images]
        if recipe.region == "random":
            own = digest if variant == 1 else digest + variant.to_bytes(2, "big")
            generators = [row_generator(own, recipe.seed, "region", n) for n in range(len(images))]
            return [[random_region(*size, rng, RANDOM_AREA)] for size, rng in zip(sizes, generators, strict=True)]
        try:
            regions = [] if recipe.region == "global" else regions_per_image(row.get("key_regions"), len(images))
            if recipe.region == "key" and not any(regions):
                if self.region != "key":
                    raise ValueError(
                        "is empty, and the row's recipe asks for region 'key'; its 'global' means the whole image"
                    )
                raise ValueError(
                    "is empty; corruption_region='key' needs a region in every row with an image: `mfpo build` finds them, "
                    "and 'auto' takes the whole image"
                )
            if not any(regions):
                if needs_outside(recipe.corruption):
                    raise ValueError(f"{WHOLE.format(recipe.corruption)}")
                return [[np.ones(size, dtype=bool)] for size in sizes]
            # In a row with several images, those without a region stay clean beside one that has some.
            masks = [[region_mask([one], *size) for one in own] for own, size in zip(regions, sizes, strict=True)]
        except (ValueError, TypeError, OSError) as error:
            raise row_error(row, "key_regions", str(error)) from error
        return (
            masks
            if recipe.region != "partial"
            else _one_of(masks, row_generator(digest, recipe.seed, "partial"), variant)
        )

    def _corrupted(
        self,
        row: Mapping[str, Any],
        image: Image.Image,
        regions: Sequence[np.ndarray],
        corruption: str,
        kwargs: dict[str, Any],
        rng: np.random.Generator,
    ) -> Image.Image:
        """The image, corrupted in the regions: in each by itself where something is taken for it from another row."""
        pixels, picture = np.asarray(image), np.asarray(image)
        if "resolution" in corruption_defaults(corruption) and self.resolution is not None:
            kwargs = {"resolution": self.resolution(image.height, image.width), **kwargs}
        try:
            if corruption == "mask":
                # The middle of each region, and not one middle of all of them, which may lie in none.
                regions = [middle(own, kwargs.get("share", 1.0)) for own in regions]
                kwargs = {**kwargs, "share": 1.0}
            for region in regions if corruption == "transplant" else [_union(regions, image)]:
                given: dict[str, Any] = {}
                if needs_outside(corruption) and region.all():
                    raise ValueError(
                        f"the regions cover the whole image; corruption {corruption!r} needs something around them"
                    )
                if corruption == "transplant":
                    given = dict(zip(GIVEN, another_region(row, pixels, region, self.donors, rng), strict=True))
                elif takes_from_others(corruption):
                    given = {"donor": another_image(row, pixels, self.donors, rng)}
                picture = corrupt(picture, region, rng, corruption, **kwargs, **given)
        except RowError:
            raise
        except ValueError as error:
            raise row_error(row, "key_regions", str(error)) from error
        return Image.fromarray(picture)


GIVEN = ("donor", "donor_region")

WHOLE = (
    "is empty, which means the whole image; corruption {!r} needs something around a region: leave such rows out, or set "
    "corruption_region to 'random'"
)


def _union(regions: Sequence[np.ndarray], image: Image.Image) -> np.ndarray:
    return np.logical_or.reduce([np.zeros((image.height, image.width), dtype=bool), *regions])


def _one_of(masks: list[list[np.ndarray]], rng: np.random.Generator, variant: int) -> list[list[np.ndarray]]:
    """One of all regions of a row's images, a different one for each variant while there are any."""
    places = [(image, place) for image, own in enumerate(masks) for place in range(len(own))]
    chosen = places[rng.permutation(len(places))[(variant - 1) % len(places)]]
    return [[mask for place, mask in enumerate(own) if (image, place) == chosen] for image, own in enumerate(masks)]


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
