"""CHAIR (Rohrbach et al., Object Hallucination in Image Captioning, 2018): objects of COCO that captions name and pictures do not show."""

import argparse
from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np

from ..figures import Group, Measure, Result, check_known, counted, harmonic, rate, ratio, read_answers, share
from .truth import Truth, add_truth_options, image_id

TITLE = "CHAIR"
HELP = "objects of COCO that captions name and pictures do not show"
DESCRIPTION = (
    'Scores captions, {"image_id": …, "response": …} a row, as the official script does: CHAIRs is the share of captions '
    "that name an object that is not there, CHAIRi the share of all named objects, repeats counted. Beside them stand what "
    "they cost: coverage, the share of the pictures' objects that are named, and F1 of 1 - CHAIRi and coverage."
)

add_options = add_truth_options


def score(args: argparse.Namespace, responses: Sequence[Path]) -> Result:
    """The figures of one file of captions.

    Raises:
        ValueError: what of the files cannot be read or does not fit together.
    """
    source = Truth(args)
    answers = read_answers(responses[0], "image_id", key=lambda own, _: image_id(own))
    truth = source.of(answers)
    check_known(answers, truth, source.what)
    ids = sorted(answers)
    named = [source.objects.find(answers[own].text) for own in ids]
    group = Group(ids, measures(named, [truth[own] for own in ids]), [answers[own].words for own in ids])
    return Result(TITLE, {"all": group}, source.settings, counted(answers.values(), source.missing(answers), "images"))


def measures(named: Sequence[Sequence[str]], truth: Sequence[Set[str]]) -> list[Measure]:
    """CHAIRs, CHAIRi, coverage and F1 of captions.

    Args:
        named: objects of each caption, repeats kept.
        truth: objects of each picture.
    """
    pairs = list(zip(named, truth, strict=True))
    wrong = [sum(name not in own for name in names) for names, own in pairs]
    said = [len(names) for names in named]
    hits = [len(own & set(names)) for names, own in pairs]
    there = [len(own) for own in truth]
    return [
        rate("chair_s", np.asarray(wrong) > 0, higher_is_better=False),
        ratio("chair_i", wrong, said, higher_is_better=False),
        ratio("coverage", hits, there),
        Measure("f1", np.stack([wrong, said, hits, there], axis=-1), of=f1),
    ]


def f1(sums: np.ndarray) -> np.ndarray:
    """Of `1 - chair_i` and coverage; (..., 4) hallucinated, named, covered and present objects -> (...)."""
    return harmonic(1 - share(sums[..., :2]), share(sums[..., 2:]))
