"""A row's dispreferred images: which region, which corruption, which randomness."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from .corruptions import NO_CORRUPTION, corrupt
from .regions import random_region, region_mask, regions_per_image
from .rows import image_list, load_images, row_digest, row_error, row_generator

RANDOM_AREA = 0.2
"""Share of the image that `corruption_region="random"` covers; 20 % in the ablation of arXiv 2410.15334."""

DONOR_TRIES = 64


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

    corruption: str = "diffusion"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    region: str = "auto"
    seed: int = 0
    resolution: Any = None
    donors: Sequence[Mapping[str, Any]] | None = None

    @property
    def falls_back(self) -> bool:
        """Whether a row without regions is corrupted as a whole in their place."""
        return self.region == "auto" and self.corruption not in (NO_CORRUPTION, "swap")

    def __call__(self, row: Mapping[str, Any], images: Sequence[Image.Image]) -> list[Image.Image]:
        """The row's dispreferred images: its own `rejected_images`, else corrupted copies of `images`.

        Args:
            row: a preference row; `prompt`, `rejected_images` and `key_regions` are read.
            images: its images in RGB, as `rows.load_images` returns them.

        Returns:
            As many RGB images; made ones have the size of the originals.

        Raises:
            ValueError: `rejected_images` of another length, a region that is no region, no region where one is needed.
        """
        check_rejected_images(row, len(images))
        given = load_images(row, "rejected_image")
        if given is not None:
            return given
        if self.corruption == NO_CORRUPTION:
            raise row_error(row, "rejected_images", "is missing, and corruption='none' makes none")
        digest = row_digest(row.get("prompt"), images)
        masks = self.masks(row, images, digest)
        return [self._corrupted(row, image, masks[n], digest, n) for n, image in enumerate(images)]

    def masks(
        self, row: Mapping[str, Any], images: Sequence[Image.Image], digest: bytes | None = None
    ) -> list[np.ndarray]:
        """Where each image is corrupted, one (H, W) bool mask an image."""
        sizes = [(image.height, image.width) for image in images]
        if self.region == "random":
            digest = digest or row_digest(row.get("prompt"), images)
            generators = [row_generator(digest, self.seed, "region", n) for n in range(len(images))]
            return [random_region(*size, rng, RANDOM_AREA) for size, rng in zip(sizes, generators, strict=True)]
        if self.region == "global":
            return [np.ones(size, dtype=bool) for size in sizes]
        try:
            regions = regions_per_image(row.get("key_regions"), len(images))
            if self.region == "key" and not any(regions):
                raise ValueError(
                    "is empty; corruption_region='key' needs a region in every row with an image, 'auto' takes it whole"
                )
            # In a row with several images, those without a region stay clean beside one that has some.
            whole = not any(regions)
            return [
                region_mask(own, *size) if own else np.full(size, whole)
                for own, size in zip(regions, sizes, strict=True)
            ]
        except (ValueError, TypeError, OSError) as error:
            raise row_error(row, "key_regions", str(error)) from error

    def _corrupted(self, row, image: Image.Image, mask: np.ndarray, digest: bytes, position: int) -> Image.Image:
        rng = row_generator(digest, self.seed, self.corruption, position)
        pixels = np.asarray(image)
        kwargs = dict(self.kwargs)
        if self.corruption == "diffusion" and self.resolution is not None:
            kwargs.setdefault("resolution", self.resolution(image.height, image.width))
        if self.corruption == "swap":
            kwargs["donor"] = self._donor(row, pixels, rng)
        return Image.fromarray(corrupt(pixels, mask, rng, self.corruption, **kwargs))

    def _donor(self, row: Mapping[str, Any], pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.donors:
            raise ValueError("corruption='swap' needs rows with images to take another image from")
        first = int(rng.integers(len(self.donors)))
        for step in range(min(DONOR_TRIES, len(self.donors))):
            other = load_images(self.donors[(first + step) % len(self.donors)], "image")
            if other and not np.array_equal(np.asarray(other[0]), pixels):
                return np.asarray(other[0])
        raise row_error(row, "images", f"no other image to swap in was found in {step + 1} rows")


def check_rejected_images(row: Mapping[str, Any], images: int) -> None:
    """Raise ValueError when a row brings dispreferred images, but not one for each of its images."""
    given = image_list(row, "rejected_image")
    if given is not None and len(given) != images:
        field = "rejected_image" if row.get("rejected_image") is not None else "rejected_images"
        raise row_error(row, field, f"holds {len(given)} image(s) for the {images} of 'images'; give one for each")
