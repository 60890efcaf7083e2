"""Verifier "detector": the things that an answer names are looked for in its picture."""

from collections.abc import Sequence
from typing import Any

from ...data import Row
from ...data.grounding import INSTEAD, build_grounder
from ...data.keywords import Candidate, candidates
from ..claims import ABSENT, PRESENT, UNCERTAIN, Claim

CERTAIN = {
    "grounding-dino": (0.25, 0.35),
    "grounding-dino-sam": (0.25, 0.35),
    "owlv2": (0.1, 0.2),
    "owlv2-sam": (0.1, 0.2),
    "clipseg": (0.4, 0.5),
    "sam3": (0.3, 0.5),
}
"""Below the first score a phrase is absent, from the second on it is present: where each grounder draws a box, and well below."""

DETECTORS_INSTEAD = (
    "--detector-model and --segmenter-model name others, as an id or a folder; --detector clipseg needs one small model, and the "
    "verifiers labels, judge and confidence none"
)
"""What `mfpo pairs` can do without weights that cannot be loaded."""

LONGEST = 20_000
"""Letters of an answer that are read."""


def named_things(texts: Sequence[str], tagger: Any = None) -> list[list[tuple[str, str]]]:
    """The noun phrases of each text, and what each counts as: its words in the singular."""
    found: list[list[Candidate]] = [candidates(text[:LONGEST], tagger) for text in texts]
    return [[(own.phrase, " ".join(own.stems)) for own in some] for some in found]


def distinct(named: Sequence[Sequence[tuple[str, str]]]) -> dict[str, str]:
    """Each name that several texts have, with the phrase that says it first."""
    found: dict[str, str] = {}
    for phrase, name in (one for some in named for one in some):
        found.setdefault(name, phrase)
    return found


class Detected:
    """A phrase is present where every detector finds it, absent where none does, else uncertain.

    Args:
        detectors: each a grounder with the scores below which a phrase is absent and from which it is present; where a grounder
            gives no score, what it finds is present.
        tagger: as `keywords.candidates` takes it.
    """

    def __init__(self, detectors: Sequence[tuple[Any, float, float]], tagger: Any = None):
        self.detectors, self.tagger = detectors, tagger

    def verify(self, rows: Sequence[Row], answers: Sequence[Sequence[str]], kept: Any) -> list[list[list[Claim]]]:
        """See `Verifier`; each thing is looked for once in a picture, however many answers name it."""
        named = [named_things(texts, self.tagger) for texts in answers]
        asked = [distinct(own) for own in named]
        verdicts = self._verdicts(rows, asked)
        return [
            [[Claim(phrase, verdict[name][0], name, verdict[name][1]) for phrase, name in some] for some in own]
            for own, verdict in zip(named, verdicts, strict=True)
        ]

    def _verdicts(
        self, rows: Sequence[Row], asked: Sequence[dict[str, str]]
    ) -> list[dict[str, tuple[str, list[Any]]]]:
        """For each row and name its verdict, and where the first detector found it."""
        pictures = [picture for row in rows for picture in row["pictures"]]
        phrases = [list(own.values()) for row, own in zip(rows, asked, strict=True) for _ in row["pictures"]]
        votes: list[dict[str, list[str]]] = [{name: [] for name in own} for own in asked]
        places: list[dict[str, list[Any]]] = [{name: [] for name in own} for own in asked]
        for number, (grounder, low, high) in enumerate(self.detectors):
            found = iter(grounder.ground(pictures, phrases))
            for row, own, vote, place in zip(rows, asked, votes, places, strict=True):
                some = [next(found) for _ in row["pictures"]]
                for name, phrase in own.items():
                    seen = [(n, one) for n, image in enumerate(some) for one in image if one.phrase == phrase]
                    best = max((1.0 if one.score is None else one.score for _, one in seen), default=0.0)
                    vote[name].append(PRESENT if best >= high else ABSENT if best < low else UNCERTAIN)
                    if number == 0:
                        place[name] = [
                            (n, one.mask, one.score) for n, one in seen if one.score is None or one.score >= high
                        ]
        return [
            {name: (own[0] if len(set(own)) == 1 else UNCERTAIN, place[name]) for name, own in vote.items()}
            for vote, place in zip(votes, places, strict=True)
        ]


def build_detected(options: Any, device: str | None, tagger: Any) -> Detected:
    """The detectors that the options name, loaded.

    Raises:
        ValueError: a score out of range, or a grounder that cannot be loaded.
    """
    found = []
    for number, name in enumerate(options.detector):
        low, high = CERTAIN.get(name, (0.5, 0.5))
        low = low if options.absent_below is None else options.absent_below
        high = high if options.present_from is None else options.present_from
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"--absent-below is {low} and --present-from {high} for {name}; expected shares, the first not above the second"
            )
        threshold = {"box_threshold": low, "text_threshold": low} if name in CERTAIN else {}
        model = options.detector_model[number] if options.detector_model else None
        try:
            grounder = build_grounder(
                name,
                model=model,
                segmenter=options.segmenter_model,
                device=device,
                batch_size=options.batch_size,
                seed=options.seed,
                **threshold,
            )
        except ValueError as error:
            raise ValueError(str(error).replace(INSTEAD, DETECTORS_INSTEAD)) from error
        found.append((grounder, low, high))
    return Detected(found, tagger)
