"""CHAIR (Rohrbach et al., Object Hallucination in Image Captioning, 2018): objects of COCO that captions name and pictures do not show."""

import argparse
from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np

from .answers import check_known, counted, read_answers, read_json, shown
from .coco import Objects, read_synonyms
from .figures import Measure, rate, ratio, share
from .report import Group, Result

TITLE = "CHAIR"
HELP = "objects that captions name and pictures do not show, by the synonym list of CHAIR"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Of `mfpo score chair`, beside those of every benchmark."""
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument("--ground-truth", type=Path, metavar="FILE", help='{"<image_id>": ["dog", …]}')
    truth.add_argument(
        "--coco-annotations", type=Path, metavar="DIR", help="folder of instances_*.json and captions_*.json"
    )
    parser.add_argument(
        "--synonyms", type=Path, metavar="FILE", help="a line an object, its names separated by commas"
    )


def score(args: argparse.Namespace, responses: Sequence[Path]) -> Result:
    """The figures of one file of captions.

    Raises:
        ValueError: what of the files cannot be read or does not fit together.
    """
    objects = Objects(read_synonyms(args.synonyms) if args.synonyms else None)
    answers = read_answers(responses[0], "image_id")
    truth = ground_truth(args.ground_truth, objects)
    check_known(answers, truth, f"the images of {args.ground_truth}")
    ids = sorted(answers)
    group = Group(
        ids,
        measures([objects.find(answers[own].text) for own in ids], [truth[own] for own in ids]),
        [answers[own].words for own in ids],
    )
    notes = counted(answers.values(), len(truth.keys() - answers.keys()), "images")
    return Result(TITLE, {"all": group}, {"synonyms": str(args.synonyms or "CHAIR's")}, notes)


def measures(named: Sequence[Sequence[str]], truth: Sequence[Set[str]]) -> list[Measure]:
    """CHAIRs, CHAIRi, coverage and F1 of captions.

    Args:
        named: objects of each caption, repeats kept.
        truth: objects of each picture.
    """
    wrong = [sum(name not in own for name in names) for names, own in zip(named, truth, strict=True)]
    said = [len(names) for names in named]
    hits = [len(own & set(names)) for names, own in zip(named, truth, strict=True)]
    there = [len(own) for own in truth]
    return [
        rate("chair_s", np.asarray(wrong) > 0, higher_is_better=False),
        ratio("chair_i", wrong, said, higher_is_better=False),
        ratio("coverage", hits, there),
        Measure("f1", np.stack([wrong, said, hits, there], axis=-1), of=f1),
    ]


def f1(sums: np.ndarray) -> np.ndarray:
    """Harmonic mean of `1 - chair_i` and coverage; (..., 4) hallucinated, named, covered and present objects -> (...)."""
    precision, recall = 1 - share(sums[..., :2]), share(sums[..., 2:])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(precision + recall > 0, 2 * precision * recall / (precision + recall), precision + recall)


def ground_truth(path: Path, objects: Objects) -> dict[str, frozenset[str]]:
    """The objects of each image, by the names of the synonym list.

    Raises:
        ValueError: what is not as it must be, and where.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(f'{path} is no object of images; expected {{"<image_id>": ["dog", …]}}')
    found = {}
    for image, names in content.items():
        if not isinstance(names, list):
            raise ValueError(f"{path} image {image} is {shown(names)}; expected a list of names")
        for name in names:
            if name not in objects.name_of:
                raise ValueError(f"{path} image {image}: {shown(name)} is not among the objects of the synonym list")
        found[image] = frozenset(objects.name_of[name] for name in names)
    return found
