"""HallusionBench (Guan et al., CVPR 2024, arXiv 2310.14566): yes-or-no questions in groups by figure and by question."""

import argparse
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...endpoint import Question
from ..figures import Group, Result, counted, id_of, rate, shown
from .asked import Row, read_asked
from .judge import add_judge_options, filled, judge_of, template_of

TITLE = "HallusionBench"
HELP = "yes-or-no questions: right one by one, all of a figure, and all of a question over its figures"
DESCRIPTION = (
    "Scores the published HallusionBench.json with the answers filled in (model_prediction), or with --data rows "
    '{"id": "<category>_<subcategory>_<set_id>_<figure_id>_<question_id>", "response": …}. a_acc is over questions, f_acc over '
    "figures all of whose questions are right, q_acc over questions that are right on all their figures. As officially, not "
    "knowing is right where a question of the category VS comes without a figure, and such rows are no figure. Officially a "
    "language model compares answer and reference; without one, the word yes or no in the answer is taken."
)

SOURCE = "https://github.com/tianyi-lab/HallusionBench (BSD-3-Clause)"
FILE = "HallusionBench.json"
FIELDS = ("category", "subcategory", "set_id", "figure_id", "question_id", "gt_answer")
TEXTS = ("model_prediction", "response")

WRONG, RIGHT, UNCLEAR = range(3)
"""A verdict, numbered as officially."""

BLANKS = ("question", "reference", "answer")

PROMPT = """Compare a prediction with the reference answer to a question.

Question: {question}
Reference answer: {reference}
Prediction: {answer}

Reply with one word: "correct" if the prediction agrees with the reference answer, "incorrect" if it contradicts it, "unclear" if it \
does not say."""


class Verdict(NamedTuple):
    """A question and whether it was answered right."""

    row: Row
    right: bool
    words: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """Of `mfpo score hallusionbench`, beside those of every benchmark."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help=f"{FILE} or its folder, for answers without their questions; of {SOURCE}",
    )
    add_judge_options(parser)


def score(args: argparse.Namespace, responses: Sequence[Path]) -> Result:
    """The figures of one file of answers.

    Raises:
        ValueError: what of the files cannot be read or does not fit together, or verdicts that are missing.
        EndpointError: the judge did not answer.
    """
    data = None if args.data is None else data_file(args.data)
    asked = read_asked(responses[0], data, name, FIELDS, TEXTS)
    answers = [asked.answers[own] for own in sorted(asked.answers)]
    for answer in answers:
        if str(answer.row["gt_answer"]) not in ("0", "1"):
            raise ValueError(
                f"{answer.where}: 'gt_answer' is {shown(answer.row['gt_answer'])}; expected '0' for no or '1' for yes"
            )
    if args.judge_url is None and args.verdicts is None:
        settings = {"judge": "none: the word yes or no in the answer"}
        found = [compared(one.text, str(one.row["gt_answer"])) for one in answers]
    else:
        template, told = template_of(args, PROMPT, BLANKS)
        judge = judge_of(args)
        settings = {"judge": judge.model, "judge's prompt": told}
        questions = [Question(one.id, prompt(template, one.row, one.text, one.where), one.text) for one in answers]
        found = [read_verdict(one) for one in judge.judge(questions)]
    verdicts = {
        one.id: Verdict(one.row, is_right(own, one.row), one.words) for one, own in zip(answers, found, strict=True)
    }
    verdicts |= {own: Verdict(row, False, float("nan")) for own, row in asked.unanswered.items()}
    notes = counted(answers, len(asked.unanswered), "questions")
    notes = [f"{note}, which is never right" if "without" in note else note for note in notes]
    unclear = sum(own == UNCLEAR for own in found)
    if unclear:
        notes.append(
            f"{unclear:,} answers say neither yes nor no, which is right without a figure only (VS), as officially"
        )
    return Result(TITLE, groups(verdicts), settings, notes)


def groups(verdicts: Mapping[str, Verdict]) -> dict[str, Group]:
    """Questions one by one, by figure, and by question over its figures."""
    figures: dict[str, list[Verdict]] = defaultdict(list)
    pairs: dict[str, list[Verdict]] = defaultdict(list)
    for own in sorted(verdicts):
        verdict = verdicts[own]
        if not without_figure(verdict.row):
            figures[part(verdict.row, "figure_id")].append(verdict)
        pairs[part(verdict.row, "question_id")].append(verdict)
    ids = sorted(verdicts)
    found = {
        "questions": Group(
            ids, [rate("a_acc", [verdicts[own].right for own in ids])], [verdicts[own].words for own in ids]
        ),
        "figures": _all_right("f_acc", figures),
        "questions over figures": _all_right("q_acc", pairs),
    }
    return {own: group for own, group in found.items() if group.ids}


def _all_right(measure: str, parts: Mapping[str, Sequence[Verdict]]) -> Group:
    ids = sorted(parts)
    words = [sum(one.words for one in parts[own]) / len(parts[own]) for own in ids]
    return Group(ids, [rate(measure, [all(one.right for one in parts[own]) for own in ids])], words)


def is_right(verdict: int, row: Row) -> bool:
    """Whether an answer counts as right."""
    return verdict == RIGHT or (verdict == UNCLEAR and without_figure(row))


def without_figure(row: Row) -> bool:
    """Whether a question of the category VS ("visual supplement") comes without its figure."""
    return row["category"] == "VS" and str(row["figure_id"]) == "0"


def compared(text: str, truth: str) -> int:
    """A verdict by the words of an answer: its first word if that is yes or no, else the only one of both that it holds."""
    words = re.findall(r"[a-z]+", text.lower())
    said = {"yes", "no"} & {*(words[:1])} or {"yes", "no"} & {*words}
    if len(said) != 1:
        return UNCLEAR
    return RIGHT if said == {"yes" if truth == "1" else "no"} else WRONG


def read_verdict(text: str) -> int:
    """A judge's verdict, as the official script reads it."""
    text = text.lower()
    return WRONG if "incorrect" in text else RIGHT if "correct" in text else UNCLEAR


def prompt(template: str, row: Mapping[str, Any], answer: str, where: str) -> str:
    """What the judge reads of one answer.

    Raises:
        ValueError: the question or its reference is missing.
    """
    for field in ("question", "gt_answer_details"):
        if not isinstance(row.get(field), str):
            raise ValueError(f"{where}: {field!r} is {shown(row.get(field))}; a judge needs it as text")
    return filled(template, question=row["question"], reference=row["gt_answer_details"], answer=answer)


def part(row: Row, field: str) -> str:
    """What names all questions of a figure, or one question over its figures."""
    return "_".join(str(row[one]) for one in ("category", "subcategory", "set_id", field))


def name(row: Row, where: str) -> str:
    """What names a question: category, subcategory, set, figure and question."""
    for field in FIELDS[:5]:
        id_of(row, field, where)
    return f"{part(row, 'figure_id')}_{row['question_id']}"


def data_file(path: Path) -> Path:
    """The file of questions that `--data` names, or that lies in the folder that it names.

    Raises:
        ValueError: there is none, and where to get it.
    """
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"there is no {path}; get it from {SOURCE}")
    return path
