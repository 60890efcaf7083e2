"""What `mfpo check` finds in the data: its columns, and what the looks at its rows say together."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..config import MFPOConfig
from ..images import AUTO, DispreferredImages, overruled, used_recipes
from ..rows import COLUMNS, ROW_NUMBER
from .rows import Look
from .table import OK, PROBLEM, WARNING, Finding, some

RANKING = ("difficulty", "stage")
"""Columns that order the rows of a curriculum, beside those that the collator reads."""

LIKENESS = 0.85
"""From which likeness on, by `difflib`, an unread column is taken for a misspelt one."""

VISIBLE = 4.0
"""Mean difference, of 255, from which on an image counts as changed outside of its regions: storing a photo again as JPEG of
quality 75 stays just below."""


def columns(dataset: Any) -> Finding:
    """The columns: those that are needed, those that nobody reads, and those that look misspelt."""
    names = dataset.column_names or list(next(iter(dataset), {}))
    known = {*COLUMNS, *RANKING} - {ROW_NUMBER}
    unread = [name for name in names if name not in known]
    near = {name: difflib.get_close_matches(name.lower(), known - set(names), 1, LIKENESS) for name in unread}
    misspelt = {name: found[0] for name, found in near.items() if found}
    missing = [name for name in ("chosen", "rejected") if name not in names]
    value = f"read: {', '.join(name for name in names if name in known) or 'none'}"
    if unread:
        value += f"; not read: {', '.join(unread)}"
    details = {"columns": names, "not_read": unread, "misspelt": misspelt, "missing": missing}
    advice = [f"column {name!r} is not read; rename it to {right!r}" for name, right in misspelt.items()]
    advice += [f"there is no column {name!r}; every row needs 'chosen' and 'rejected'" for name in missing]
    return Finding("columns", PROBLEM if advice else OK, value, "; ".join(advice), details)


def recipes(dataset: Any, training: MFPOConfig) -> list[Finding]:
    """How dispreferred images are made, over all rows: by which recipes, and whether `training` overrules those of the rows."""
    if not any(branch.variant for branch in training.branches):
        return []
    images = DispreferredImages.of(training)
    used = used_recipes(images, dataset)
    details = {"used": None if used is None else [{"recipe": str(recipe), "rows": rows} for recipe, rows in used]}
    if used is None:
        value = f"each row's own recipe, or without one {images.recipe({})}"
    else:
        value = some([f"{recipe}" + (f" ({rows} rows)" if rows else "") for recipe, rows in used]) or "none to make"
    if won := overruled(images, "the data set", dataset):
        asked = ", ".join(images.asked)
        value += f"\n{asked}: wins over the rows' own recipes in {won}"
        advice = f"leave out {asked} (corruption: {AUTO}) to train on what the rows were built for"
        return [Finding("corruption", WARNING, value, advice, {**details, "overruled": won})]
    return [Finding("corruption", OK, value, details=details)]


def findings(
    looks: Sequence[Look], rows: int | None, training: MFPOConfig, tokens: bool, context: int | None
) -> list[Finding]:
    """Everything that the rows say.

    Args:
        looks: at the rows that were read.
        rows: of the data set; None for a stream.
        training: says which terms have weight, and the lengths.
        tokens: whether tokens were counted.
        context: positions that the model was made for, where known.
    """
    good = [look for look in looks if look.error is None]
    found = [_valid(looks, rows)]
    if good and tokens:
        found += [_lengths(good, training.max_length, context), _ends(good, training.add_eos, training.max_length)]
    if any(look.begun for look in good):
        found.append(_beginnings(good))
    if good:
        found += [_answers(good, training.term_weights.get("text", 0.0)), *_images(good, training)]
    return found


def evaluation(looks: Sequence[Look], rows: int | None, max_length: int | None) -> Finding:
    """Whether the rows to evaluate on can be used."""
    found = _valid(looks, rows, "evaluation rows", "dataset_test_split")
    lost = [look for look in looks if look.error is None and not look.has_room(max_length)]
    if not lost:
        return found
    value = f"{found.value}\nno room for the answer, or not even for the image: {len(lost)} of {len(looks)} ({_named(lost)})"
    advice = f"raise max_length to at least {max(look.length for look in lost)}, or set it to null"
    advice = "; ".join(filter(None, [found.advice, advice]))
    return Finding(
        found.check, PROBLEM, value, advice, {**found.details, "without_room": [look.number for look in lost]}
    )


def _valid(looks: Sequence[Look], rows: int | None, name: str = "rows", split: str = "dataset_train_split") -> Finding:
    bad = [(look.number, look.error) for look in looks if look.error is not None]
    of = "of a stream" if rows is None else f"of {rows}"
    details = {
        "read": len(looks),
        "rows": rows,
        "invalid": [{"row": number, "field": _field(error), "error": error} for number, error in bad],
    }
    if not looks:
        return Finding(name, PROBLEM, "the data set has no rows", f"check dataset_name and {split}", details)
    if not bad:
        return Finding(name, OK, f"{len(looks)} {of} read, all valid", details=details)
    errors = some(list(dict.fromkeys(error for _, error in bad)))
    value = f"{len(bad)} of the {len(looks)} rows that were read ({of}) cannot be used:\n{errors}"
    return Finding(name, PROBLEM, value, "training stops at the first of them; mend or remove them", details)


def _field(error: str) -> str | None:
    found = re.search(r"field '(\w+)': ", error)
    return found and found[1]


def _named(looks: Sequence[Look]) -> str:
    """The numbers of the first rows, and how many more there are."""
    numbers = [str(look.number) for look in looks]
    return ("row " if len(numbers) == 1 else "rows ") + ", ".join(numbers[:8]) + (", ..." if len(numbers) > 8 else "")


def _lengths(looks: Sequence[Look], max_length: int | None, context: int | None) -> Finding:
    longest = max(looks, key=lambda look: look.length)
    lengths = [look.length for look in looks]
    value = (
        f"median {int(np.median(lengths))}, longest {longest.length} (row {longest.number}: {longest.image} of the image, "
        f"{longest.prompt - longest.image} of the prompt, {longest.length - longest.prompt} of the answer)"
    )
    lost = [look for look in looks if not look.has_room(max_length)]
    cut = [look for look in looks if look.has_room(max_length) and look.length > (max_length or look.length)]
    details = {
        "max_length": max_length,
        "median": float(np.median(lengths)),
        "longest": longest.length,
        "longest_row": longest.number,
        "image_tokens": longest.image,
        "without_room": [look.number for look in lost],
        "cut": [look.number for look in cut],
    }
    value += "; max_length cuts nothing" if max_length is None else f"; max_length {max_length}"
    if lost:
        value += f"\nno room for the answer, or not even for the image: {len(lost)} of {len(looks)} ({_named(lost)})"
    if cut:
        value += f"\nthe end of an answer is cut, and not scored: {len(cut)} of {len(looks)} ({_named(cut)})"
    room = max(look.length for look in [*lost, *cut]) if lost or cut else 0
    advice = f"raise max_length to at least {room}, or set it to null, which cuts nothing" if room else ""
    status = PROBLEM if lost else WARNING if cut else OK
    if context is not None and min(longest.length, max_length or longest.length) > context:
        status = max(status, WARNING, key=(OK, WARNING, PROBLEM).index)
        value += f"\nthe model was made for {context} positions"
        advice = "; ".join(filter(None, [advice, f"shorten the rows that are longer than {context} tokens"]))
    return Finding("token lengths", status, value, advice, details)


def _ends(looks: Sequence[Look], add_eos: bool, max_length: int | None) -> Finding:
    begun = sum(look.begun for look in looks)
    looks = [look for look in looks if not look.begun]
    if not looks:
        return Finding(
            "end of answers", OK, "not scored behind an answer_prefix, in any row", details={"begun": begun}
        )
    bare = [look for look in looks if look.unended]
    details = {"add_eos": add_eos, "unended": [{"row": look.number, "answers": look.unended} for look in bare]}
    if not bare:
        by = "add_eos" if add_eos else "the chat template"
        cut = sum(max_length is not None and look.length > max_length for look in looks)
        rows = f"in the {len(looks) - cut} rows that are not cut" if cut else f"in all {len(looks)} rows"
        rows += f" without an answer_prefix, not in the {begun} with one" if begun else ""
        return Finding("end of answers", OK, f"scored {rows} ({by})", details=details)
    value = f"not scored in {len(bare)} of {len(looks)} rows ({_named(bare)}): nothing teaches the model to stop there"
    return Finding("end of answers", WARNING, value, "set add_eos: true", details)


def _beginnings(looks: Sequence[Look]) -> Finding:
    begun = [look for look in looks if look.begun]
    joined = [look for look in begun if look.joined]
    value = f"{len(begun)} of {len(looks)} rows go on from an answer_prefix, which is not scored"
    details = {"begun": [look.number for look in begun], "joined": [look.number for look in joined]}
    if not joined:
        return Finding("begun answers", OK, value, details=details)
    value += f"\nno blank between beginning and answer: {len(joined)} of {len(begun)} ({_named(joined)})"
    return Finding("begun answers", WARNING, value, "end answer_prefix with a blank where a new word follows", details)


def _answers(looks: Sequence[Look], weight: float) -> Finding:
    equal = [look for look in looks if look.same_answer]
    details = {"equal": [look.number for look in equal]}
    if not equal:
        return Finding("answers", OK, "chosen differs from rejected in every row", details=details)
    value = f"chosen equals rejected in {len(equal)} of {len(looks)} rows ({_named(equal)})"
    advice = "their text term teaches nothing; remove these rows" if weight else "no text term has weight; harmless"
    return Finding("answers", PROBLEM if weight else WARNING, value, advice, details)


def _images(looks: Sequence[Look], training: MFPOConfig) -> list[Finding]:
    shown = [look for look in looks if look.images]
    without = len(looks) - len(shown)
    details: dict[str, Any] = {"with_images": len(shown), "without_images": without}
    if not any(branch.variant for branch in training.branches):
        value = "none are made: the image term has no weight"
        return [Finding("rejected images", OK, value, details=details)]
    if not shown:
        alone = not ({"text", "anchor"} & set(training.term_weights))
        rest = "" if alone else ", the others are trained"
        value = f"no row has an image: the image term has nothing to read{rest}"
        advice = "set image_loss_weight: 0, or use rows with images"
        return [Finding("rejected images", PROBLEM if alone else WARNING, value, advice, details)]
    return [_differences(shown, without, details), _regions(shown, training)]


def _differences(shown: Sequence[Look], without: int, details: dict[str, Any]) -> Finding:
    same = [look for look in shown if look.identical]
    spilt = [look for look in shown if look.outside is not None and look.outside >= VISIBLE]
    inside = [look.inside for look in shown if look.inside is not None]
    outside = [look.outside for look in shown if look.outside is not None]
    details |= {
        "inside": float(np.mean(inside)) if inside else None,
        "outside": float(np.mean(outside)) if outside else None,
        "identical": [look.number for look in same],
        "changed_outside": [look.number for look in spilt],
    }
    where = "inside of the regions" if outside else "of the whole image"
    value = f"mean difference {np.mean(inside):.1f} of 255 {where}" if inside else "no pixel is compared"
    value += f", {np.mean(outside):.1f} outside" if outside else ""
    value += f"; {without} rows have no image" if without else ""
    advice = []
    if same:
        value += f"\nequal to the image: {len(same)} of {len(shown)} ({_named(same)})"
        advice.append(
            "an image that equals its rejected one teaches the image term nothing; mend or remove these rows"
        )
    if spilt:
        value += f"\nchanged outside of the key regions too: {len(spilt)} of {len(shown)} ({_named(spilt)})"
        advice.append("the model may tell these images apart by something else than their key regions")
    return Finding("rejected images", PROBLEM if same else WARNING if spilt else OK, value, "; ".join(advice), details)


def _regions(shown: Sequence[Look], training: MFPOConfig) -> Finding:
    bare = [look for look in shown if not (look.regions or look.own)]
    details = {"without_regions": [look.number for look in bare], "corruption_region": training.corruption_region}
    own = sum(look.own for look in shown)
    value = f"{sum(look.regions for look in shown)} of {len(shown)} rows with an image have some"
    value += f"; {own} bring their rejected images" if own else ""
    if not bare or training.corruption_region in ("global", "random"):
        return Finding("key regions", OK, f"{value}; corruption_region {training.corruption_region}", details=details)
    advice = (
        "without, the whole image is corrupted; `mfpo build` finds regions, and corruption_region: global says that the "
        "whole image is meant"
    )
    return Finding("key regions", WARNING, f"{value}; without: {_named(bare)}", advice, details)
