"""POPE against answers by hand, and against a straight-line reading of its script on the real questions."""

import json
import os
import random
from pathlib import Path

import pytest

from mfpo_trl.evaluation.benchmarks.pope import macro, read_questions, says_yes, split
from mfpo_trl.evaluation.figures.answers import Answer


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes.", True),
        ("yes", True),
        ("No.", False),
        ("no", False),
        ("no, there isn't", False),
        ("not sure", False),
        ("No, there is no dog in the image. Yes?", False),
        ("Yes, there is. No other is there.", True),
        ("There is no dog.", False),
        ("There isn't a dog", True),  # as in the official script, as are all below
        ("NO", True),
        ("No\n", True),
        ("No!", True),
        ("No;", True),
        ("Nothing", True),
        ("", True),
        (".No", True),
        ("Yes,no", True),
        ("Yes, not", False),
    ],
)
def test_an_answer(answer, yes):
    assert says_yes(answer) == yes


def answers(texts: dict[str, str]) -> dict[str, Answer]:
    return {own: Answer(own, text, {}, "") for own, text in texts.items()}


def figures(labels: dict[str, bool], texts: dict[str, str]) -> dict[str, float]:
    return {one.name: one.figure().value for one in split(labels, answers(texts)).measures}


LABELS = {"1": True, "2": True, "3": True, "4": False, "5": False}


def test_by_hand():
    found = figures(LABELS, {"1": "yes", "2": "yes", "3": "no", "4": "yes", "5": "no"})
    expected = {"accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 3 / 5}
    assert found == pytest.approx(expected)


def test_what_is_not_answered_is_never_right():
    found = figures(LABELS, {"1": "yes", "4": "no"})
    assert found == pytest.approx({"accuracy": 2 / 5, "precision": 1, "recall": 1 / 3, "f1": 0.5, "yes_ratio": 1 / 5})
    group = split(LABELS, answers({"1": "yes", "4": "no it is"}))
    assert group.all()["words"].figure().value == 2.0


def test_the_mean_of_splits():
    """Of splits of different sizes, each counts the same."""
    one = split(LABELS, answers(dict.fromkeys(LABELS, "yes")))
    other = split({"1": False, "2": True}, answers({"1": "no", "2": "yes"}))
    found = {own.name: own.figure() for own in macro({"a": one, "b": other}).measures}
    assert {name: own.value for name, own in found.items()} == pytest.approx(
        {"accuracy": (0.6 + 1) / 2, "precision": (0.6 + 1) / 2, "recall": 1, "f1": (0.75 + 1) / 2, "yes_ratio": 0.75}
    )
    assert found["accuracy"].n == 7 and found["accuracy"].low < 0.8 < found["accuracy"].high


@pytest.fixture(scope="module")
def questions():
    folder = os.environ.get("MFPO_BENCHMARKS")
    if folder is None:
        pytest.skip("MFPO_BENCHMARKS names no folder of benchmark files")
    return Path(folder) / "pope" / "coco_pope_adversarial.json"


def test_the_real_questions(questions):
    labels = read_questions(questions)
    assert len(labels) == 3000
    always = figures(labels, dict.fromkeys(labels, "Yes."))
    assert always == pytest.approx({"accuracy": 0.5, "precision": 0.5, "recall": 1, "f1": 2 / 3, "yes_ratio": 1})
    # Straight down the official script, on answers of all forms.
    rng = random.Random(0)
    texts = {own: rng.choice(["Yes.", "No, it is not.", "no", "I do not see it", "Sure", "NO"]) for own in labels}
    pred, label = [], []
    for line in questions.read_text().splitlines():
        row = json.loads(line)
        text = texts[str(row["question_id"])]
        if text.find(".") != -1:
            text = text.split(".")[0]
        words = text.replace(",", "").split(" ")
        pred.append(0 if "No" in words or "not" in words or "no" in words else 1)
        label.append(0 if row["label"] == "no" else 1)
    tp = sum(p == 1 and t == 1 for p, t in zip(pred, label, strict=True))
    fp = sum(p == 1 and t == 0 for p, t in zip(pred, label, strict=True))
    tn = sum(p == 0 and t == 0 for p, t in zip(pred, label, strict=True))
    precision, recall = tp / (tp + fp), tp / sum(label)
    assert figures(labels, texts) == {
        "accuracy": (tp + tn) / 3000,
        "precision": precision,
        "recall": recall,
        "f1": pytest.approx(2 * precision * recall / (precision + recall), rel=1e-15),
        "yes_ratio": sum(pred) / 3000,
    }
