"""What is shown of a preference row, whatever it is shown on: its images, its regions and its texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ...images import region_mask, regions_per_image
from ...rows import PREFIX, ROW_NUMBER, dispreferred_column, image_list, load_images, plain_text, row_error
from .outlines import COLOURS, display_mask, displayed, fitted, outlined

CONTROL = {code: " " for code in (*range(10), *range(11, 32), *range(127, 160))}
SIGNS = {"chosen": "+", "rejected": "-"}
"""What stands before the label of a text."""


@dataclass(frozen=True)
class Pair:
    """An image and its dispreferred one, at the size at which they are shown.

    Args:
        image: with its regions outlined and numbered.
        dispreferred: as it is; None where there is none to show.
        sizes: the full sizes of both, in words.
        legend: colour (None for a remark) and words of each region.
    """

    image: Image.Image
    dispreferred: Image.Image | None
    sizes: tuple[str, ...]
    legend: Sequence[tuple[str | None, str]]


@dataclass(frozen=True)
class Exhibit:
    """What is shown of a row: its name, a pair an image, and labelled texts; of these, which phrases are marked as what."""

    name: str
    pairs: Sequence[Pair]
    texts: Mapping[str, str]
    marks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def exhibit(row: Mapping[str, Any], donors: Sequence[Mapping[str, Any]]) -> Exhibit:
    """What is shown of a row.

    Args:
        row: a preference row; without `rejected_images` they are made as a training makes them that names no corruption:
            by the row's own recipe, else by default.
        donors: the rows among which the corruption `swap` finds another image.

    Raises:
        ValueError: an image, a region or a recipe that cannot be used, naming the row.
    """
    # It needs PyTorch, which takes seconds to import.
    from ...images import USUAL_RESOLUTION, DispreferredImages

    images = load_images(row, "image") or []
    making = DispreferredImages(resolution=lambda height, width: USUAL_RESOLUTION, donors=donors)
    own = load_images(row, "rejected_image") is not None
    others = making(row, images) if images or own else []
    further = [making(row, images, variant) for variant in range(2, _variants(row, making, own) + 1)]
    count = 1 + len(further)
    which = [_which(row, making, own, variant, count) for variant in range(1, count + 1)] if further else []
    try:
        regions = regions_per_image(row.get("key_regions"), len(images))
        masks = [
            [region_mask([region], image.height, image.width) for region in some]
            for some, image in zip(regions, images, strict=True)
        ]
    except (ValueError, TypeError, OSError) as error:
        raise row_error(row, "key_regions", str(error)) from error
    if any(regions):
        bare = "no region; stays as it is beside images that have one"
    else:
        bare = "no regions given" if own and row.get("key_regions") is None else "whole image"
    pairs = [
        Pair(
            outlined(displayed(image), [display_mask(mask, fitted(image.size)) for mask in some]),
            displayed(other),
            (f"{image.width} x {image.height} px", f"{other.width} x {other.height} px"),
            [*(_legend(given) or [(None, bare)]), *((None, words) for words in which[:1])],
        )
        for image, other, some, given in zip(images, others, masks, regions, strict=True)
    ]
    pairs += [
        Pair(
            displayed(image),
            displayed(other),
            (f"{image.width} x {image.height} px", f"{other.width} x {other.height} px"),
            [(None, words)],
        )
        for words, made in zip(which[1:], further, strict=True)
        for image, other in zip(images, made, strict=True)
    ]
    return Exhibit(_name(row), pairs, _texts(row, making, own))


def _legend(regions: Sequence[Any]) -> list[tuple[str | None, str]]:
    return [(COLOURS[n % len(COLOURS)], _region_words(n, region)) for n, region in enumerate(regions)]


def _which(row: Mapping[str, Any], making: Any, own: bool, variant: int, count: int) -> str:
    """Which of several dispreferred images this is; of a ladder, how strong."""
    from ...images import STRENGTHS, of_variant

    said = f"dispreferred image {variant} of {count}"
    if own:
        return said
    recipe = making.recipe(row)
    strength = STRENGTHS[recipe.corruption]
    return f"{said}: {strength} {of_variant(recipe.corruption, recipe.kwargs, variant)[strength]}"


def _variants(row: Mapping[str, Any], making: Any, own: bool) -> int:
    """How many dispreferred images each image of a row has: those that it brings, or the rungs of its recipe's ladder."""
    from ...images import rungs

    if not own:
        recipe = making.recipe(row)
        return rungs(recipe.corruption, recipe.kwargs)
    count = 1
    while image_list(row, dispreferred_column(count + 1)) is not None:
        count += 1
    return count


def _name(row: Mapping[str, Any]) -> str:
    """The row's number, and its id where that says something else."""
    name, known = f"row {row[ROW_NUMBER]}", cleaned(str(row.get("id") or ""))
    return name if known in ("", name, str(row[ROW_NUMBER])) else f"{name}  ·  {known}"


def _region_words(position: int, region: Any) -> str:
    region = region if isinstance(region, Mapping) else {}
    score = f" ({region['score']:.2f})" if region.get("score") is not None else ""
    return f"{position + 1}  {cleaned(region.get('phrase') or 'no phrase')}{score}"


def _texts(row: Mapping[str, Any], making: Any, own: bool) -> dict[str, str]:
    names = ("prompt", PREFIX, "chosen", "rejected") if row.get(PREFIX) else ("prompt", "chosen", "rejected")
    texts = {
        "begun" if name == PREFIX else name: cleaned(plain_text(row.get(name))).strip() or "(no text)"
        for name in names
    }
    if row.get("rejected_image_chosen"):
        # Of a row and its twin: what is true of the other image.
        texts["of the other"] = cleaned(plain_text(row["rejected_image_chosen"])).strip()
    if row.get("mirror_of"):
        texts["mirror of"] = cleaned(str(row["mirror_of"]))
    words = row.get("keywords")
    if words is not None:
        texts["key words"] = cleaned(words if isinstance(words, str) else ", ".join(map(str, words))) or "none"
    for name, form in (("difficulty", "{:.4g}"), ("stage", "{}")):
        if row.get(name) is not None:
            texts[name] = form.format(row[name])
    texts["corruption"] = _corruption(row, making, own)
    return texts


def _corruption(row: Mapping[str, Any], making: Any, own: bool) -> str:
    """How the dispreferred images of a row are made, or were where it brings them."""
    from ...images import NO_CORRUPTION, USUAL_RESOLUTION, row_recipe

    try:
        recipe = row_recipe(row)
    except ValueError:
        # Which nobody reads where the row brings its images.
        recipe = None
    if own and (recipe is None or recipe.corruption == NO_CORRUPTION):
        return "the row brings its dispreferred images"
    used = making.recipe(row)
    grid = f"; noise for {USUAL_RESOLUTION} pixels, in training for what the model sees"
    grid = grid if used.corruption == "diffusion" and "resolution" not in used.kwargs else ""
    return f"{used}{grid}{'; the default, since the row names none' if recipe is None else ''}"


def cleaned(text: str) -> str:
    """Control characters but the line feed to blanks."""
    return "\n".join(text.splitlines()).translate(CONTROL)
