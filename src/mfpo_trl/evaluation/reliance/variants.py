"""A preference row in the variants that tell whether a model looks: without its image, with a wrong one, with a corrupted one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...batch import model_resolution
from ...images import (
    NO_CORRUPTION,
    STRENGTHS,
    DispreferredImages,
    check_corruption,
    corruption_defaults,
    needs_outside,
    random_region,
    region_mask,
    regions_per_image,
)
from ...rows import (
    PREFIX,
    RECIPE,
    ROW_NUMBER,
    RowError,
    checked_texts,
    image_list,
    image_places,
    image_tokens,
    load_images,
    row_digest,
    row_error,
    row_generator,
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Perturbation:
    """How an image is perturbed.

    Attributes:
        corruption: a name of `mfpo_trl.images.corruptions.CORRUPTIONS`.
        kwargs: options of it.
    """

    corruption: str
    kwargs: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.corruption}{''.join(f', {name} {value}' for name, value in self.kwargs.items())}"


def perturbation(text: str) -> Perturbation:
    """Of `diffusion:500`, `black`, `swap`, `crop`, and every other corruption.

    Raises:
        ValueError: no corruption of that name, or a value that it does not take.
    """
    name, colon, value = text.partition(":")
    kwargs: dict[str, Any] = {}
    if name == NO_CORRUPTION:
        raise ValueError("--perturb none perturbs nothing; name a corruption, such as diffusion:500")
    corruption_defaults(name)
    if needs_outside(name):
        raise ValueError(
            f"--perturb {text}: {name} needs something around a region, and whole images are perturbed too"
        )
    if colon:
        option = STRENGTHS.get(name)  # as in diffusion:500
        if option is None:
            raise ValueError(f"--perturb {text}: {name} takes no value; write --perturb {name}")
        try:
            kwargs[option] = int(value) if option == "step" else float(value)
        except ValueError:
            raise ValueError(f"--perturb {text}: {value!r} is no number; {option} of {name} is one") from None
    check_corruption(name, kwargs)
    return Perturbation(name, kwargs)


@dataclass
class Variants:
    """Makes the variants of rows, the same ones whenever they are asked for.

    Args:
        processor: of the model.
        perturb: what is done to images, and to regions that are hidden.
        donors: rows whose images are taken for wrong ones.
        seed: of noise, wrong images and random regions.
        draws: random regions a row.
    """

    processor: Any
    perturb: Perturbation
    donors: Sequence[Row]
    seed: int = 0
    draws: int = 3

    def __post_init__(self) -> None:
        resolution = model_resolution(self.processor)
        names, kwargs = self.perturb.corruption, self.perturb.kwargs
        self._whole = DispreferredImages(names, kwargs, "global", self.seed, resolution, self.donors)
        self._hide = DispreferredImages(names, kwargs, "key", self.seed, resolution, self.donors)
        self._swap = DispreferredImages("swap", {}, "global", self.seed, None, self.donors)
        self._train = DispreferredImages(resolution=resolution, donors=self.donors)
        self._places = image_places(self.processor)

    def plain(self, row: Row) -> dict[str, Any]:
        """The row with its prompt, and its images in RGB under `images`.

        Raises:
            RowError: what of it cannot be used.
        """
        texts = checked_texts(row, image_tokens(self.processor))
        return {**row, **texts, "image": None, "images": load_images(row, "image")}

    def without(self, row: Row) -> dict[str, Any]:
        """Without images, and without their places in the prompt."""
        prompt: Any = row["prompt"]
        if not isinstance(prompt, str):
            prompt = [_without_parts(message) for message in prompt]
        elif self._places is not None:
            prompt = self._places.sub("", prompt)
        return {**_bare(row), "prompt": prompt, "images": None}

    def perturbed(self, row: Row) -> dict[str, Any]:
        """With its images perturbed all over."""
        return self._shown(row, self._whole)

    def wrong(self, row: Row) -> dict[str, Any] | None:
        """With the images of other rows; None where the rows have one image only."""
        try:
            return self._shown(row, self._swap)
        except RowError:
            return None

    def dispreferred(self, row: Row) -> dict[str, Any] | None:
        """With the dispreferred images of a training: the row's own, or as its recipe makes them; None where it has none."""
        if image_list(row, "rejected_image") is None and self._train.recipe(row).corruption == NO_CORRUPTION:
            return None
        return {**_bare(row), "images": self._train(row, row["images"])}

    def masks(self, row: Row) -> list[np.ndarray] | None:
        """The key regions, one (H, W) bool mask an image; None where the row has none.

        Raises:
            RowError: regions that cannot be used.
        """
        images = row["images"]
        try:
            regions = regions_per_image(row.get("key_regions"), len(images))
            if not any(regions):
                return None
            return [
                region_mask(own, image.height, image.width)
                if own
                else np.zeros((image.height, image.width), dtype=bool)
                for own, image in zip(regions, images, strict=True)
            ]
        except (ValueError, TypeError, OSError) as error:
            raise row_error(row, "key_regions", str(error)) from error

    def hidden(self, row: Row, masks: Sequence[np.ndarray]) -> dict[str, Any]:
        """With its images perturbed inside of these masks."""
        return self._shown({**row, "key_regions": [[mask] if mask.any() else [] for mask in masks]}, self._hide)

    def random_masks(self, row: Row, masks: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """For each draw, random rectangles of the area of each mask, up to rounding."""
        digest = row_digest(row["prompt"], row["images"])
        found = []
        for draw in range(self.draws):
            rngs = [row_generator(digest, self.seed, f"random region {n}", draw) for n in range(len(masks))]
            found.append(
                [
                    random_region(mask.shape[0], mask.shape[1], rng, float(mask.mean())) if mask.any() else mask
                    for mask, rng in zip(masks, rngs, strict=True)
                ]
            )
        return found

    def _shown(self, row: Row, making: DispreferredImages) -> dict[str, Any]:
        bare = _bare(row)
        return {**bare, "images": making({**bare, "key_regions": row.get("key_regions")}, row["images"])}


def _bare(row: Row) -> dict[str, Any]:
    """Texts and number of a row, without what says how its images are corrupted."""
    kept = ("prompt", PREFIX, "chosen", "rejected", "images", "tools", "chat_template_kwargs", ROW_NUMBER)
    assert RECIPE not in kept
    return {name: row[name] for name in kept if name in row}


def _without_parts(message: Row) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, str) or content is None:
        return dict(message)
    return {**message, "content": [part for part in content if part.get("type") != "image"]}
