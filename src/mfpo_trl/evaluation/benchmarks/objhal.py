"""Object HalBench (Yu et al., RLHF-V, 2024): objects of COCO that long descriptions name and pictures do not show."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from ...endpoint import Judge, Question
from ..figures import Answer, Group, Measure, Result, check_known, counted, rate, ratio, read_answers
from .chair import f1
from .coco import Objects
from .judge import add_judge_options, filled, judge_of, template_of
from .truth import Truth, add_truth_options, image_id

TITLE = "Object HalBench"
HELP = "objects of COCO that descriptions name and pictures do not show, each word once"
DESCRIPTION = (
    'Scores descriptions, {"image_id": …, "prompt": …, "response": …} a row; the prompt (or question) tells several answers '
    "about one picture apart. CHAIRs is the share of answers that name an object that is not there, of those that name any "
    "(chair_s; of all answers: chair_s_all). Two figures go by the name of CHAIRi: chair_i counts each word of an answer "
    "once, as the official script does; chair_i_mentions counts repeats, as CHAIR does, and is smaller."
)

Extractor = Callable[[Sequence[Answer]], list[list[str]]]
"""Answers -> the words of each that name objects, in its order with repeats."""

SHORT = 3
"""Words of an answer that the official script asks no judge about, and takes to name nothing; so few or fewer."""


def by_rules(objects: Objects) -> Extractor:
    """The words of the whole answer that the synonym list has."""
    return lambda answers: [objects.words(answer.text) for answer in answers]


PROMPT = """Below is a description of a picture. Write down every physical object, person and animal that it says is in the picture: \
the noun in the singular, one a line, in the order of the text, and again for each time that it is named. Leave out what it \
says is absent or only possible, and words for the picture itself. Write nothing else; if there is none, write: none

Description:
{answer}"""


def by_judge(judge: Judge, template: str, objects: Objects) -> Extractor:
    """A language model reads the answer and writes down what it names, and the synonym list has the head of each."""

    def extract(answers: Sequence[Answer]) -> list[list[str]]:
        long = [one for one in answers if one.words > SHORT]
        questions = [Question(one.id.split(SEPARATOR)[0], filled(template, answer=one.text), one.text) for one in long]
        phrases = {one.id: listed(verdict) for one, verdict in zip(long, judge.judge(questions), strict=True)}
        return [[word for phrase in phrases.get(one.id, ()) for word in objects.heads(phrase)] for one in answers]

    return extract


def listed(verdict: str) -> list[str]:
    """The lines of a list without bullets and numbers, or the entries of a JSON list."""
    lines = [re.sub(r"^\s*(?:[-*•]|\d+[.)])\s*", "", line).strip(" .,\"'`[]") for line in re.split(r"[\n,;]", verdict)]
    return [line for line in lines if line and line.lower() not in ("none", "json")]


SEPARATOR = "\n"


def item(image: str, row: Mapping[str, Any]) -> str:
    """What an answer is known by: its picture, and its prompt where the row has one."""
    prompt = row.get("prompt", row.get("question", ""))
    return f"{image_id(image)}{SEPARATOR}{prompt}" if prompt else image_id(image)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Of `mfpo score objhal`, beside those of every benchmark."""
    add_truth_options(parser)
    parser.add_argument(
        "--extractor",
        choices=("rules", "llm"),
        default="rules",
        help="who finds the objects in an answer: CHAIR's rules, or a language model; that of the official script exists no more",
    )
    add_judge_options(parser)


def score(args: argparse.Namespace, responses: Sequence[Path]) -> Result:
    """The figures of one file of descriptions.

    Raises:
        ValueError: what of the files cannot be read or does not fit together.
    """
    source = Truth(args)
    answers = read_answers(responses[0], "image_id", key=item)
    images = {own: own.split(SEPARATOR)[0] for own in answers}
    truth = source.of(set(images.values()))
    check_known({images[own]: answer for own, answer in answers.items()}, truth, source.what)
    ids = sorted(answers)
    extract = by_rules(source.objects)
    told = {"extractor": "rules of CHAIR, no judge"}
    if args.extractor == "llm":
        template, wording = template_of(args, PROMPT, ("answer",))
        judge = judge_of(args)
        extract = by_judge(judge, template, source.objects)
        told = {"extractor": f"language model {judge.model}", "its prompt": wording}
    elif args.judge_url is not None or args.verdicts is not None:
        raise ValueError("a judge is given, and --extractor rules asks none; add --extractor llm")
    words = extract([answers[own] for own in ids])
    named = [[(word, source.objects.name_of[word]) for word in own] for own in words]
    group = Group(
        ids,
        measures(named, [truth[images[own]] for own in ids]),
        [answers[own].words for own in ids],
        clusters=[images[own] for own in ids],
    )
    settings = {**told, **source.settings}
    notes = counted(answers.values(), source.missing(set(images.values())), "images")
    return Result(TITLE, {"all": group}, settings, notes)


def measures(named: Sequence[Sequence[tuple[str, str]]], truth: Sequence[Set[str]]) -> list[Measure]:
    """CHAIRs, CHAIRi in both ways, coverage and F1 of descriptions.

    Args:
        named: (word, its object) of each answer, repeats kept.
        truth: objects of each answer's picture.
    """
    once = [list(dict.fromkeys(pairs)) for pairs in named]
    wrong, mentions = _wrong(once, truth), _wrong(named, truth)
    said = [len(pairs) for pairs in once]
    hits = [len(own & {name for _, name in pairs}) for pairs, own in zip(once, truth, strict=True)]
    there = [len(own) for own in truth]
    hallucinated = np.asarray(wrong) > 0
    return [
        rate("chair_s", hallucinated, np.asarray(said) > 0, higher_is_better=False),
        rate("chair_s_all", hallucinated, higher_is_better=False),
        ratio("chair_i", wrong, said, higher_is_better=False),
        ratio("chair_i_mentions", mentions, [len(pairs) for pairs in named], higher_is_better=False),
        ratio("coverage", hits, there),
        Measure("f1", np.stack([wrong, said, hits, there], axis=-1), of=f1),
    ]


def _wrong(named: Sequence[Sequence[tuple[str, str]]], truth: Sequence[Set[str]]) -> list[int]:
    """How many of each answer's words name what is not there."""
    return [sum(name not in own for _, name in pairs) for pairs, own in zip(named, truth, strict=True)]
