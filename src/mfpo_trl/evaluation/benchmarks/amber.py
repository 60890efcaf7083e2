"""AMBER (Wang et al., arXiv 2311.07397): what descriptions name of a picture, and yes-or-no questions on it."""

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..figures import (
    Answer,
    Group,
    Measure,
    Result,
    check_known,
    counted,
    id_of,
    read_answers,
    read_json,
    read_rows,
    shown,
)
from .nouns import finder
from .similarity import Similarity, load_spacy, read_similarity, spacy_similarity

TITLE = "AMBER"
HELP = "what descriptions name of a picture, and yes-or-no questions on it"
DESCRIPTION = (
    'Scores descriptions and yes-or-no questions, {"id": 1, "response": …} a row. The quirks of the official script are kept: '
    "denominators start at 0.001 (those of attribute, a sum of three, at 0.003); F1 is made of rounded precision and recall, with "
    "0.0001 in its denominator (0.001 for existence); all is rounded to 0.1 per cent; No is the positive class; only exactly Yes "
    "and No are answers; words associated with any true word are looked up before the true words themselves; an empty "
    "description counts as one without hallucination; capitalised words are not found."
)

SOURCE = "https://github.com/junyangwang0410/AMBER (folder data, Apache-2.0)"
FILES = ("annotations.json", "relation.json", "safe_words.txt")

SIMILAR = 0.8
"""Similarity above which two words are one."""

START = 0.001
"""What the official script begins to count denominators from."""

KINDS = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
"""A question's `type`, and the dimension that it is of."""

DIMENSIONS = {
    "discriminative": frozenset(KINDS.values()),
    "existence": frozenset({"existence"}),
    "attribute": frozenset({"state", "number", "action"}),
    "state": frozenset({"state"}),
    "number": frozenset({"number"}),
    "action": frozenset({"action"}),
    "relation": frozenset({"relation"}),
}


@dataclass(frozen=True)
class Words:
    """What AMBER knows of words: `association` word -> words that mean the same in a picture, and the `neutral` ones."""

    association: Mapping[str, Sequence[str]]
    neutral: Collection[str]

    @property
    def vocabulary(self) -> frozenset[str]:
        """The words that count at all."""
        return frozenset(self.association).union(*self.association.values())


def add_options(parser: argparse.ArgumentParser) -> None:
    """Of `mfpo score amber`, beside those of every benchmark."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=f"{', '.join(FILES)} of {SOURCE}")
    similar = parser.add_mutually_exclusive_group()
    similar.add_argument(
        "--similarity", type=Path, metavar="FILE", help='how alike words are: {"word": {"other": 0.83}}'
    )
    similar.add_argument(
        "--spacy-model", metavar="NAME", help="the same from a spaCy model; the official one is en_core_web_lg"
    )
    parser.add_argument(
        "--nouns",
        choices=("rules", "words", "spacy"),
        default="rules",
        help="what counts as named: nouns by rules (default), every word as it stands, or what the spaCy model tags as a noun",
    )


def score(args: argparse.Namespace, responses: Sequence[Path]) -> Result:
    """The figures of one file of answers, rows {"id": 1, "response": "..."}.

    Raises:
        ValueError: what of the files cannot be read or does not fit together.
        ImportError: spaCy is asked for and missing.
    """
    annotations, words = read_annotations(args.data)
    nlp = load_spacy(args.spacy_model)
    if args.nouns == "spacy" and nlp is None:
        raise ValueError("--nouns spacy needs the name of a spaCy model: add --spacy-model en_core_web_lg")
    similar, told = None, "none: exact associations only, which finds more hallucinations than the official scorer"
    if nlp is not None:
        similar, told = spacy_similarity(nlp), f"spaCy {args.spacy_model}"
    elif args.similarity is not None:
        similar, told = read_similarity(args.similarity), str(args.similarity)
    answers = read_answers(responses[0], "id")
    check_known(answers, annotations, f"the {len(annotations):,} of {args.data}")
    named = finder(args.nouns, words.vocabulary, nlp)
    groups, notes = {}, list[str]()
    for name in ("generative", *DIMENSIONS):
        asked = {own for own, row in annotations.items() if name in _parts_of(row["type"])}
        own = [answers[one] for one in sorted(answers.keys() & asked, key=int)]
        if own and name == "generative":
            groups[name] = _group(own, descriptions(own, annotations, words, named, similar))
        elif own:
            groups[name] = _group(own, questions(own, annotations, name))
        if name in ("generative", "discriminative"):
            notes += _notes(name, own, len(asked))
    settings = {
        "nouns": args.nouns,
        "similarity": told,
        "quirks of the official script": "kept (mfpo score amber --help)",
    }
    return Result(TITLE, groups, settings, notes)


def _group(answers: Sequence[Answer], measures: Sequence[Measure]) -> Group:
    return Group([one.id for one in answers], measures, [one.words for one in answers])


def _parts_of(kind: str) -> set[str]:
    if kind == "generative":
        return {"generative"}
    return {name for name, dimensions in DIMENSIONS.items() if KINDS[kind] in dimensions}


def _notes(name: str, answers: Sequence[Answer], asked: int) -> list[str]:
    if not answers:
        return [f"no answers to the {asked:,} {name} questions, which are left out"]
    notes = counted(answers, asked - len(answers), f"{name} questions")
    notes = [f"{note}, left out as officially" if "without" in note else note for note in notes]
    odd = sum(one.text not in ("Yes", "No") for one in answers)
    if name == "discriminative" and odd:
        notes.append(f"{odd:,} answers are neither exactly Yes nor exactly No; officially they are wrong and no No")
    if name == "generative" and any(not one.text.strip() for one in answers):
        notes.append("an empty description counts as one without hallucination, as officially")
    return notes


# Descriptions


def descriptions(
    answers: Sequence[Answer],
    annotations: Mapping[str, Mapping[str, Any]],
    words: Words,
    named: Callable[[str], Sequence[str]],
    similar: Similarity | None = None,
) -> list[Measure]:
    """CHAIR, Cover, Hal and Cog.

    Args:
        answers: to questions of the type `generative`.
        annotations: by id, with `truth` and `hallu`.
        words: associations and neutral words.
        named: text -> words of the vocabulary.
        similar: of two words; None for none but equal ones.
    """
    rows = [look(named(one.text), annotations[one.id], words, similar) for one in answers]
    counts = np.array(rows, dtype=np.int64).reshape(-1, 6)
    free = np.stack([counts[:, 0] == 0, np.ones(len(counts), dtype=bool)], axis=-1).astype(np.int64)
    return [
        Measure("chair", counts[:, [0, 1]], fraction(percent), higher_is_better=False),
        Measure("cover", counts[:, [2, 3]], fraction(percent)),
        # Hits are the descriptions with a hallucination; the official script subtracts those without.
        Measure("hal", free ^ np.array([1, 0]), fraction(percent_with_any), kind="rate", higher_is_better=False),
        Measure("cog", counts[:, [4, 5]], fraction(percent), higher_is_better=False),
    ]


def look(
    nouns: Sequence[str], annotation: Mapping[str, Any], words: Words, similar: Similarity | None = None
) -> tuple[int, int, int, int, int, int]:
    """One description: hallucinated and named words, covered and true ones, imagined and listed hallucinations."""
    truth, hallu = annotation["truth"], annotation["hallu"]
    true, false = _checks(truth, words), _checks(hallu, words)
    true_at, false_at = _first(true), _first(false)
    covered, imagined, wrong = set(), set(), 0
    for noun in nouns:
        if noun in words.neutral:
            continue
        if noun in true_at:
            covered.add(true_at[noun])
            continue
        if noun in false_at:
            imagined.add(false_at[noun])
        if similar is not None:
            like = _alike(noun, false, similar)
            imagined |= like
            like = _alike(noun, true, similar)
            covered |= like
            if like:
                continue
        wrong += 1
    return wrong, len(nouns), len(covered), len(truth), len(imagined), len(hallu)


Checks = Sequence[tuple[str, int]]


def _checks(annotated: Sequence[str], words: Words) -> Checks:
    """What is looked up, in its order, each with the place of the annotated word that it stands for."""
    associated = [(other, place) for place, word in enumerate(annotated) for other in words.association[word]]
    return [*associated, *((word, place) for place, word in enumerate(annotated))]


def _first(checks: Checks) -> dict[str, int]:
    return dict(reversed(checks))


def _alike(noun: str, checks: Checks, similar: Similarity) -> set[int]:
    """The place of the first word that is similar, if there is one."""
    return set(next(([place] for word, place in checks if similar(noun, word) > SIMILAR), []))


# Questions


def questions(
    answers: Sequence[Answer], annotations: Mapping[str, Mapping[str, Any]], dimension: str
) -> list[Measure]:
    """Accuracy, precision, recall and F1 of exact "Yes" and "No".

    Args:
        answers: to questions of that dimension.
        annotations: by id, with `truth` "yes" or "no".
        dimension: one of `DIMENSIONS`.
    """
    said_no = np.array([one.text == "No" for one in answers], dtype=bool)
    said_yes = np.array([one.text == "Yes" for one in answers], dtype=bool)
    is_no = np.array([annotations[one.id]["truth"] != "yes" for one in answers], dtype=bool)
    right = np.where(is_no, said_no, said_yes)
    rows = [right, np.ones_like(right), said_no & is_no, said_no, is_no]
    right, all_, hits, said, true = (np.stack([row], axis=-1).astype(np.int64) for row in rows)
    start = START * (3 if dimension == "attribute" else 1)
    more = START if dimension == "existence" else START / 10

    def shares(sums: np.ndarray) -> np.ndarray:
        return percent(sums, start)

    def f1(sums: np.ndarray) -> np.ndarray:
        precision, recall = percent(sums[..., [0, 1]], start) / 100, percent(sums[..., [0, 2]], start) / 100
        return tenths(2 * precision * recall / (precision + recall + more) * 100)

    return [
        Measure("accuracy", np.concatenate([right, all_], axis=-1), fraction(shares), kind="rate"),
        Measure("precision", np.concatenate([hits, said], axis=-1), fraction(shares), kind="rate"),
        Measure("recall", np.concatenate([hits, true], axis=-1), fraction(shares), kind="rate"),
        Measure("f1", np.concatenate([hits, said, true], axis=-1), fraction(f1)),
    ]


# The official arithmetic


@np.vectorize(otypes=[float])
def tenths(percent: float) -> float:
    """Rounded to 0.1 as Python rounds; NumPy's rounding differs."""
    return round(percent, 1)


def percent(sums: np.ndarray, start: float = START) -> np.ndarray:
    """(..., 2) numerators and denominators -> (...) per cent."""
    return tenths(sums[..., 0] / (sums[..., 1] + start) * 100)


def percent_with_any(sums: np.ndarray) -> np.ndarray:
    """The same of what the official script subtracts from 100."""
    return tenths(100 - (sums[..., 1] - sums[..., 0]) / (sums[..., 1] + START) * 100)


def fraction(percent: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """The same figure between 0 and 1."""
    return lambda sums: np.round(percent(sums) / 100, 3)


# What is read


def read_annotations(folder: Path) -> tuple[dict[str, dict[str, Any]], Words]:
    """AMBER's annotations by their ids, and its words.

    Raises:
        ValueError: a file is missing or not as it must be, and where to get it.
    """
    folder = folder / "data" if (folder / "data" / FILES[0]).is_file() else folder
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} has no {', no '.join(missing)}; get {'it' if len(missing) == 1 else 'them'} from {SOURCE}"
        )
    association = read_json(folder / "relation.json")
    if not isinstance(association, dict) or not all(_is_words(own) for own in association.values()):
        raise ValueError(f'{folder / "relation.json"} is not {{"word": ["other", …]}}')
    found: dict[str, dict[str, Any]] = {}
    for where, row in read_rows(folder / "annotations.json"):
        found[id_of(row, "id", where)] = row
        if row.get("type") == "generative":
            for field in ("truth", "hallu"):
                if not _is_words(row.get(field)) or not association.keys() >= set(row[field]):
                    raise ValueError(f"{where}: {field!r} is {shown(row.get(field))}; expected words of relation.json")
        elif row.get("type") not in KINDS or row.get("truth") not in ("yes", "no"):
            raise ValueError(
                f"{where}: type {shown(row.get('type'))} with truth {shown(row.get('truth'))} is none of AMBER's"
            )
    neutral = (folder / "safe_words.txt").read_text(encoding="utf-8").split("\n")
    return found, Words(association, frozenset(neutral))


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
