"""Pairs sentence by sentence, behind what of the answer is clean so far (SENTINEL, arXiv 2507.12455)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..data import Rejected, Row
from ..data.writing import PartReport
from ..evaluation.generation import first_sentence
from .asking import ANSWERS
from .claims import Answer


def by_sentence(
    pipeline: Any, rows: Sequence[Row], paths: Callable[[str], Path], report: PartReport
) -> list[list[Row | Rejected]]:
    """The pairs of each row, or why it has none.

    In each round the policy writes the next sentence several times; a clean one is chosen against one that is not; and the clean one
    becomes a part of the prefix behind which the next round goes on. A row ends when no sentence is clean, when the policy ends its
    answer there, or after `sentences` rounds.

    Args:
        pipeline: a `PairsPipeline`.
        paths: name -> path beside the part.
    """
    prefixes, active = [""] * len(rows), list(range(len(rows)))
    found: list[list[Row]] = [[] for _ in rows]
    reasons: dict[int, Rejected] = {}
    for turn in range(pipeline.options.sentences):
        some, begun = [rows[n] for n in active], [prefixes[n].rstrip() for n in active]
        with report.timed("answering"):
            raw = pipeline.asking.answers(some, paths(ANSWERS), begun, f"sentence {turn}")
        cut = [own if isinstance(own, Rejected) else [first_sentence(text) for text in own] for own in raw]
        sentences = [own if isinstance(own, Rejected) else [one.strip() for one, _ in own] for own in cut]
        judged = pipeline.judged(some, sentences, paths("verdicts.jsonl"), report)
        on = []
        for n, answers, parts in zip(active, judged, cut, strict=True):
            if isinstance(answers, Rejected) or isinstance(parts, Rejected):
                reasons.setdefault(n, answers)
                continue
            for own in pipeline.chosen(rows[n], answers, report, prefixes[n]):
                if isinstance(own, Rejected):
                    reasons.setdefault(n, own)
                else:
                    found[n].append(own)
            following = _following(answers)
            if following is not None and len(found[n]) < pipeline.options.most:
                prefixes[n] += f"{answers[following].text} "
                if parts[following][1].strip():
                    on.append(n)
        active = on
        if not active:
            break
    return [_named(own) if own else [reasons[n]] for n, own in enumerate(found)]


def _following(answers: Sequence[Answer]) -> int | None:
    """The clean sentence that says most; None where there is none."""
    clean = [n for n, own in enumerate(answers) if own.text and not own.absent]
    return max(clean, key=lambda n: (len(answers[n].present), -n), default=None)


def _named(rows: list[Row]) -> list[Row | Rejected]:
    return [{**row, "id": f"{row['id']}-{n}"} for n, row in enumerate(rows)] if len(rows) > 1 else list(rows)
