"""POPE (Li et al., Evaluating Object Hallucination in Large Vision-Language Models, 2023): is there such an object, yes or no."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..figures import (
    Answer,
    Group,
    Measure,
    Result,
    check_known,
    counted,
    harmonic,
    id_of,
    rate,
    read_answers,
    read_rows,
    share,
    shown,
)

TITLE = "POPE"
HELP = "questions whether a picture shows an object, answered with yes or no"
DESCRIPTION = (
    'Scores answers, {"question_id": …, "response": …} a row, as the official script does: the first sentence of an answer '
    "is no where it has the word No, no or not, and yes otherwise. Several splits are several files of answers and of "
    "questions in the same order; the figures are those of each, and their mean."
)
SPLITS = True

NO = {"No", "no", "not"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Of `mfpo score pope`, beside those of every benchmark."""
    parser.add_argument(
        "--questions",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="the published questions of each split, such as coco_pope_adversarial.json",
    )


def score(args: argparse.Namespace, responses: Sequence[Path]) -> Result:
    """The figures of each split, and their mean.

    Raises:
        ValueError: what of the files cannot be read or does not fit together.
    """
    if len(responses) != len(args.questions):
        raise ValueError(
            f"there are {len(responses)} files of answers and {len(args.questions)} of questions; name one of each for every "
            "split, in the same order"
        )
    groups: dict[str, Group] = {}
    notes: list[str] = []
    for path, questions in zip(responses, args.questions, strict=True):
        name = questions.stem.removeprefix("coco_pope_")
        if name in groups or name == "macro":
            raise ValueError(f"--questions {questions}: another split is called {name!r} as well; name each file once")
        labels = read_questions(questions)
        answers = read_answers(path, "question_id")
        check_known(answers, labels, f"the questions of {questions}")
        groups[name] = split(labels, answers)
        said = counted(answers.values(), len(labels.keys() - answers.keys()), "questions")
        said = [
            f"{note}, which is never right" if "without" in note else f"{note}, which reads as yes" for note in said
        ]
        notes += [note if len(responses) == 1 else f"{name}: {note}" for note in said]
    if len(groups) > 1:
        groups["macro"] = macro(groups)
    return Result(TITLE, groups, {"yes ratio": "of the answers"}, notes)


def says_yes(text: str) -> bool:
    """As the official script reads an answer."""
    return NO.isdisjoint(text.split(".")[0].replace(",", "").split(" "))


def read_questions(path: Path) -> dict[str, bool]:
    """Of each question's id, whether its answer is yes.

    Raises:
        ValueError: what is not as it must be, and where.
    """
    found: dict[str, bool] = {}
    for where, row in read_rows(path):
        own, label = id_of(row, "question_id", where), row.get("label")
        if label not in ("yes", "no"):
            raise ValueError(f"{where}: 'label' is {shown(label)}; expected 'yes' or 'no'")
        if own in found:
            raise ValueError(f"{where}: 'question_id' {own} comes twice")
        found[own] = label == "yes"
    if not found:
        raise ValueError(f"{path} holds no questions")
    return found


def split(labels: Mapping[str, bool], answers: Mapping[str, Answer]) -> Group:
    """The figures of one split; a question without an answer is neither yes nor no, and never right."""
    ids = sorted(labels)
    truth = np.array([labels[own] for own in ids])
    said = np.array([says_yes(answers[own].text) if own in answers else None for own in ids], dtype=object)
    yes, no = said == True, said == False  # noqa: E712
    words = [answers[own].words if own in answers else np.nan for own in ids]
    return Group(
        ids,
        [
            rate("accuracy", (yes & truth) | (no & ~truth)),
            rate("precision", yes & truth, yes),
            rate("recall", yes & truth, truth),
            Measure("f1", np.stack([yes & truth, yes, yes & truth, truth], axis=-1).astype(np.int64), of=f1),
            rate("yes_ratio", yes, higher_is_better=None),
        ],
        words,
    )


def f1(sums: np.ndarray) -> np.ndarray:
    """(..., 4) right yes, said yes, right yes, true yes -> (...)"""
    return harmonic(share(sums[..., :2]), share(sums[..., 2:]))


def macro(groups: Mapping[str, Group]) -> Group:
    """The mean over splits of every figure; its items are those of all splits."""
    ids = [f"{name}/{own}" for name, group in groups.items() for own in group.ids]
    words = [own for group in groups.values() for own in group.words]
    return Group(
        ids, [_mean_of(same) for same in zip(*(group.measures for group in groups.values()), strict=True)], words
    )


def _mean_of(measures: Sequence[Measure]) -> Measure:
    """Of one measure in every split: their counts side by side, (all items, splits * k)."""
    total, k = sum(len(one.counts) for one in measures), measures[0].counts.shape[1]
    counts = np.zeros((total, k * len(measures)), dtype=np.int64)
    first = 0
    for n, one in enumerate(measures):
        counts[first : first + len(one.counts), n * k : (n + 1) * k] = one.counts
        first += len(one.counts)
    of: Callable[[np.ndarray], np.ndarray] = measures[0].of

    def mean(sums: np.ndarray) -> np.ndarray:
        return np.stack([of(sums[..., n * k : (n + 1) * k]) for n in range(len(measures))]).mean(axis=0)

    return replace(measures[0], counts=counts, of=mean, kind="ratio")
