"""Everything that makes one part of the pairs of `mfpo pairs`; reading, regions, recipes, storage and report are those of `mfpo build`."""

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..data import Pipeline, Rejected, Row, each
from ..data.reading import Source
from ..data.writing import PartReport, Said, beside, features
from ..evaluation.generation import IMAGES
from ..images import encode_rle, regions_per_image
from ..rows import plain_text
from .asking import ANSWERS, ENDS, Asking, ReadPrompt, read_questions
from .claims import PRESENT, RULES, Answer, Claim, choose_pairs, why_none
from .options import PairOptions
from .policies import Policy, build_policy
from .report import said
from .samples import THUMBNAIL, sample_features
from .sentences import by_sentence
from .verifiers import Given, Verifier, build_verifier


class PairsPipeline(Pipeline):
    """Builds parts; policy and verifier are loaded once, when the first part needs them.

    Args:
        options: what to make.
        device: of the models; None takes a GPU where there is one.

    Raises:
        ValueError: the data set or the questions cannot be read, or the verifier lacks what it needs.
    """

    options: PairOptions

    def __init__(self, options: PairOptions, device: str | None = None):
        self.questions = read_questions(options.questions)
        super().__init__(options, device)
        self.features = features(options.stored_images, answer_prefix=options.by == "sentence")
        self.samples: list[dict[str, Any]] = []
        # Who answers, loaded at the first call. Those who ask it hold it, and not this pipeline: in a cycle it would keep its memory.
        self.policy: Callable[[], Policy] = cache(partial(build_policy, options, self.device))

    def recognised(self, columns: Sequence[str]) -> str:
        """There is one convention: rows with images and prompts."""
        return "prompts"

    @property
    def convention(self) -> Source:
        """Rows without answers."""
        return Source((), lambda row: [], IMAGES)

    @cached_property
    def verifier(self) -> Verifier:
        """Who tells what is true."""
        return build_verifier(Given(self.options, self.device, self.policy, self.rows, self.count))

    @cached_property
    def asking(self) -> Asking:
        """Answers of the policy, kept until their part is built."""
        own = self.options
        return Asking(self.policy, own.who, own.drawing, own.seed, own.samples)

    def build(self, part: int, progress: Callable[[int], Any] = lambda rows: None) -> None:
        """Build a part and store it; its answers are then in `samples`."""
        self.samples = []
        super().build(part, progress)
        beside(self.options.output, part, ANSWERS).unlink(missing_ok=True)

    def preference_rows(self, numbers: range, report: PartReport) -> list[Row]:
        """The pairs of these rows of the source."""
        # One that cannot be loaded is told before the first answer is drawn.
        self.verifier  # noqa: B018  raises
        rows = self.read(numbers, ReadPrompt(self.roots, self.questions), report)
        part = next(n for n, own in enumerate(self.parts.ranges) if numbers.start in own)
        paths = partial(beside, self.options.output, part)
        if self.options.by == "sentence":
            found = by_sentence(self, rows, paths, report)
        else:
            with report.timed("answering"):
                texts = self.asking.answers(rows, paths(ANSWERS))
            found = self.pairs(rows, texts, paths("verdicts.jsonl"), report)
        return [
            pair for own, row in zip(found, rows, strict=True) for pair in report.kept(own, [row["number"]] * len(own))
        ]

    def pairs(
        self, rows: Sequence[Row], texts: Sequence[Sequence[str] | Rejected], kept: Path, report: PartReport
    ) -> list[list[Row | Rejected]]:
        """The pairs among the answers to each row, or why there is none."""
        judged = self.judged(rows, texts, kept, report)
        return [
            [own] if isinstance(own, Rejected) else self.chosen(row, own, report)
            for row, own in zip(rows, judged, strict=True)
        ]

    def judged(
        self, rows: Sequence[Row], texts: Sequence[Sequence[str] | Rejected], kept: Path, report: PartReport
    ) -> list[list[Answer] | Rejected]:
        """The answers to each row with their claims, or why it cannot be used."""
        usable = [
            {**row, "answers": own} for row, own in zip(rows, texts, strict=True) if not isinstance(own, Rejected)
        ]

        def verify(some: list[Row]) -> list[Row | Rejected]:
            claims = self.verifier.verify(some, [row["answers"] for row in some], kept)
            return [{**row, "claims": own} for row, own in zip(some, claims, strict=True)]

        with report.timed("verifying"):
            found = iter(each(verify, usable, ENDS) if usable else [])
        results: list[list[Answer] | Rejected] = []
        for own in texts:
            done = own if isinstance(own, Rejected) else next(found)
            results.append(
                done
                if isinstance(done, Rejected)
                else [Answer(text, claims) for text, claims in zip(done["answers"], done["claims"], strict=True)]
            )
        return results

    def chosen(
        self, row: Row, answers: Sequence[Answer], report: PartReport, prefix: str | None = None
    ) -> list[Row | Rejected]:
        """The pairs among the answers to one row, or why there is none; notes the answers and what the rules let pass.

        Args:
            prefix: how the answers begin, in rows that have such a column.
        """
        rule = self.options.rule
        places, counts = choose_pairs(answers, rule)
        report.counts.update({f"rule: {name}": counts[name] for name in RULES})
        used = {place: what for pair in places for place, what in zip(pair, ("chosen", "rejected"), strict=True)}
        self._note(row, answers, used, prefix or "", report)
        if not places:
            return [Rejected(why_none(answers, counts, rule))]
        for chosen, rejected in places:
            _measure(answers[chosen], answers[rejected], report.counts)
        return [self._row(row, answers[chosen], answers[rejected], prefix) for chosen, rejected in places]

    def _row(self, row: Row, chosen: Answer, rejected: Answer, prefix: str | None) -> Row:
        there = {own.counted_as: own for own in reversed(chosen.claims) if own.verdict == PRESENT}
        shown = list(reversed(there.values()))
        found: Row = {name: row[name] for name in ("id", "number", "images", "pictures", "prompt")}
        for name, answer in (("chosen", chosen), ("rejected", rejected)):
            found[name] = [{"role": "assistant", "content": [{"type": "text", "text": answer.text.strip()}]}]
        found["keywords"] = [own.phrase for own in shown]
        found["key_regions"] = _regions(row, shown)
        return found if prefix is None else {**found, "answer_prefix": prefix}

    def _note(
        self, row: Row, answers: Sequence[Answer], used: Mapping[int, str], prefix: str, report: PartReport
    ) -> None:
        report.counts["answers"] += len(answers)
        report.counts["empty answers"] += sum(not own.text.strip() for own in answers)
        report.counts.update(f"claims: {claim.verdict}" for own in answers for claim in own.claims)
        samples = [
            {
                "text": own.text.strip(),
                "claims": [{"phrase": claim.phrase, "verdict": claim.verdict} for claim in own.claims],
                "used": used.get(place),
            }
            for place, own in enumerate(answers)
        ]
        self.samples.append(
            {
                "id": row["id"],
                "image": {"bytes": _thumbnail(row["pictures"][0]), "path": None},
                "prompt": plain_text(row["prompt"]),
                "answer_prefix": prefix,
                "samples": samples,
            }
        )

    def store(self, part: int, rows: Sequence[Row]) -> None:
        """The pairs, and beside them every answer with its claims."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from ..data.writing import replace

        folder = self.options.output / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(self.samples, schema=sample_features().arrow_schema)
        replace(folder / f"part-{part:05d}.parquet", lambda path: pq.write_table(table, path))
        super().store(part, rows)

    def more(self, reports: Sequence[Mapping[str, Any]]) -> Said:
        """What the rules let pass, and how chosen and rejected answers differ in length and coverage."""
        return said(self.options, reports)


def _measure(chosen: Answer, rejected: Answer, counts: Counter[str]) -> None:
    for name, own in (("chosen", chosen), ("rejected", rejected)):
        counts[f"{name} words"] += len(own.words)
        counts[f"{name} present"] += len(own.present)
        counts[f"{name} absent"] += len(own.absent)
    counts["chosen shorter"] += len(chosen.words) < len(rejected.words)
    counts["chosen longer"] += len(chosen.words) > len(rejected.words)


def _regions(row: Row, shown: Sequence[Claim]) -> list[list[dict[str, Any]]]:
    """Where the claims are: where their verifier found them, else in the row's own regions of these phrases, or of none."""
    found: list[list[dict[str, Any]]] = [[] for _ in row["pictures"]]
    for claim in shown:
        for image, mask, score in claim.regions:
            found[image].append({"rle": encode_rle(mask), "phrase": claim.phrase, "score": score})
    if any(found) or not row.get("key_regions"):
        return found
    names = {word.lower() for own in shown for word in (own.phrase, own.counted_as)}
    own = regions_per_image(row["key_regions"], len(row["pictures"]))
    return [[region for region in regions if _phrase(region) in (None, *names)] for regions in own]


def _phrase(region: Any) -> str | None:
    phrase = (region.get("phrase") or region.get("label")) if isinstance(region, Mapping) else None
    return phrase.lower() if isinstance(phrase, str) else None


def _thumbnail(picture: Image.Image) -> bytes:
    small = picture.copy()
    small.thumbnail(THUMBNAIL)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return file.getvalue()
