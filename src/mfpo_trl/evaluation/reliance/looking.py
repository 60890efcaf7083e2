"""Whether a model looks: what it answers and prefers with the image, without it, and with another one."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...rows import plain_text, row_digest
from ..figures import Group, Measure, mean, rate
from .variants import Row, Variants

NAN = float("nan")
LETTER = re.compile(r"\s*\(?([A-Za-z])[).:]")
"""The letter of an option at the beginning of an answer: "B.", "(B)"."""


@dataclass
class Seen:
    """What was measured on one row; log-probabilities in nats, of the chosen and the rejected answer where there are two.

    Attributes:
        number: of the row.
        picture: equal for rows with equal images.
        row, perturbed, hidden, wrong: the row and variants of it, whose images a page shows.
        words: of the chosen answer.
        tokens: of both answers, (2,).
        logps: by variant: `image`, `without`, `wrong`, (2,) each; `dispreferred`, (1,).
        reference: the same of the reference model; empty where there is none.
        key, random: log p(chosen) with the key region hidden, and its mean with random regions hidden; NaN without regions.
        answers: generated, with the image and with the perturbed one; empty where none were asked for.
    """

    number: int
    picture: str
    row: Row
    perturbed: Row | None
    hidden: Row | None
    wrong: Row | None
    words: int
    tokens: np.ndarray
    logps: Mapping[str, np.ndarray]
    reference: Mapping[str, np.ndarray]
    key: float
    random: float
    answers: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """Whether the parsed answer is another one with the perturbed image."""
        return parsed(self.answers[0]) != parsed(self.answers[1])


def parsed(answer: str) -> tuple[str, ...]:
    """What an answer says: yes or no where it begins so, the letter of an option, else its words without case and punctuation."""
    if letter := LETTER.match(answer):
        return (letter[1].lower(),)
    bare = "".join(" " if unicodedata.category(own).startswith("P") else own for own in answer.lower())
    words = tuple(bare.split())
    return words[:1] if words[:1] in (("yes",), ("no",)) else words


Score = Callable[[Sequence[Row], Sequence[str]], tuple[np.ndarray, np.ndarray]]
"""From rows and the names of answers to log-probabilities and numbers of tokens, (rows, answers) each."""


@dataclass
class Looker:
    """Looks at rows with a model.

    Args:
        variants: makes what is compared.
        policy: scores answers with the model.
        reference: scores with the reference model, where there is one.
        generate: from rows to the model's answers; None to ask for none.
        blind: whether the model can be asked without an image.
    """

    variants: Variants
    policy: Score
    reference: Score | None
    generate: Callable[[Sequence[Row]], list[str]] | None
    blind: bool = True

    def __call__(self, rows: Sequence[Row]) -> list[Seen]:
        """What is seen of these rows.

        Raises:
            RowError: a row that cannot be used.
        """
        make = self.variants
        plain = [make.plain(row) for row in rows]
        pairs: dict[str, Sequence[Row | None]] = {"image": plain, "wrong": [make.wrong(row) for row in plain]}
        if self.blind:
            pairs["without"] = [make.without(row) for row in plain]
        dispreferred = [make.dispreferred(row) for row in plain]
        found, tokens = self._scored(self.policy, pairs, dispreferred)
        reference = (
            [{} for _ in rows] if self.reference is None else self._scored(self.reference, pairs, dispreferred)[0]
        )
        masks = [make.masks(row) for row in plain]
        hidden = [None if own is None else make.hidden(row, own) for row, own in zip(plain, masks, strict=True)]
        key, random = self._hidden(plain, masks, hidden)
        perturbed: list[Row | None] = [make.perturbed(row) if self.generate else None for row in plain]
        answers = self._answers(plain, perturbed)
        return [
            Seen(
                number=row["row_number"],
                picture=row_digest(None, row["images"]).hex(),
                row=row,
                perturbed=perturbed[n],
                hidden=hidden[n],
                wrong=pairs["wrong"][n],
                words=len(plain_text(row["chosen"]).split()),
                tokens=tokens[n],
                logps=found[n],
                reference=reference[n],
                key=key[n],
                random=random[n],
                answers=answers[n],
            )
            for n, row in enumerate(plain)
        ]

    def _scored(
        self, score: Score, pairs: Mapping[str, Sequence[Row | None]], dispreferred: Sequence[Row | None]
    ) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
        """Of each row, log-probabilities by variant; and the tokens of its answers, (rows, 2)."""
        found: list[dict[str, np.ndarray]] = [{} for _ in dispreferred]
        tokens = np.zeros((len(dispreferred), 2))
        for name, rows in {**pairs, "dispreferred": dispreferred}.items():
            both = ("chosen",) if name == "dispreferred" else ("chosen", "rejected")
            there = [n for n, row in enumerate(rows) if row is not None]
            if not there:
                continue
            logps, counts = score([rows[n] or {} for n in there], both)
            for n, own in zip(there, logps, strict=True):
                found[n][name] = own
            if name == "image":
                tokens = counts
        return found, tokens

    def _hidden(
        self, rows: Sequence[Row], masks: Sequence[list[np.ndarray] | None], hidden: Sequence[Row | None]
    ) -> tuple[np.ndarray, np.ndarray]:
        """log p(chosen) with the key region hidden, and with random ones, (rows,) each; NaN where there is none."""
        key, random = np.full(len(rows), NAN), np.full(len(rows), NAN)
        there = [n for n, own in enumerate(masks) if own is not None]
        if not there:
            return key, random
        draws = [
            self.variants.hidden(rows[n], own)
            for n in there
            for own in self.variants.random_masks(rows[n], masks[n] or ())
        ]
        shown = [own for own in hidden if own is not None]
        logps = self.policy([*shown, *draws], ("chosen",))[0][:, 0]
        key[there] = logps[: len(there)]
        random[there] = logps[len(there) :].reshape(len(there), -1).mean(axis=1)
        return key, random

    def _answers(self, rows: Sequence[Row], perturbed: Sequence[Row | None]) -> list[tuple[str, ...]]:
        if self.generate is None:
            return [() for _ in rows]
        said = self.generate([own for pair in zip(rows, perturbed, strict=True) for own in pair if own is not None])
        return list(zip(said[::2], said[1::2], strict=True))


def groups(seen: Sequence[Seen]) -> dict[str, Group]:
    """The figures, by what they are over.

    Args:
        seen: what was measured, one a row.
    """
    found = {}
    if answered := [own for own in seen if own.answers]:
        changed = rate("answer_change", [own.changed for own in answered])
        found["answers"] = _group(answered, [changed], [len(own.answers[0].split()) for own in answered])
    found["preference"] = _preferences(seen, lambda own: own.logps)
    if seen and all(own.reference for own in seen):
        found["preference_by_reward"] = _preferences(seen, log_ratios)
        if ranked := [own for own in seen if "dispreferred" in own.logps]:
            found["rewards"] = _rewards(ranked)
    if shown := [own for own in seen if not np.isnan(own.key)]:
        clean = np.array([own.logps["image"][0] for own in shown])
        key, random = clean - [own.key for own in shown], clean - [own.random for own in shown]
        measures = [
            mean("key_drop", key, higher_is_better=None),
            mean("random_drop", random, higher_is_better=None),
            mean("key_region_reliance", key - random),
        ]
        found["key_regions"] = _group(shown, measures)
    return found


def log_ratios(own: Seen) -> dict[str, np.ndarray]:
    """log p of the policy less log p of the reference, by variant, in nats: implicit rewards before beta."""
    return {name: values - own.reference[name] for name, values in own.logps.items()}


def _group(seen: Sequence[Seen], measures: Sequence[Measure], words: Sequence[int] | None = None) -> Group:
    lengths = [own.words for own in seen] if words is None else words
    return Group([str(own.number) for own in seen], measures, lengths, [own.picture for own in seen])


def _preferences(seen: Sequence[Seen], values: Callable[[Seen], Mapping[str, np.ndarray]]) -> Group:
    """How often the chosen answer has more than the rejected one, with the image, without and with the wrong one."""
    found = [values(own) for own in seen]

    def right(variant: str) -> np.ndarray:
        return np.array([variant in own and own[variant][0] > own[variant][1] for own in found])

    measures = [rate("accuracy", right("image"))]
    if all("without" in own for own in found):
        counts = np.stack([right("image"), right("without"), np.ones(len(found), dtype=bool)], axis=-1).astype(
            np.int64
        )
        measures += [
            rate("accuracy_without_image", right("without"), higher_is_better=None),
            Measure("visual_gain", counts, of=_gain, kind="difference"),
        ]
    wrong = [("wrong" in own) for own in found]
    if any(wrong):
        measures.append(rate("blind_accuracy", right("wrong"), wrong, higher_is_better=False))
    return _group(seen, measures)


def _gain(sums: np.ndarray) -> np.ndarray:
    """(..., 3) right with the image, right without, rows -> (...)"""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[..., 2] > 0, (sums[..., 0] - sums[..., 1]) / sums[..., 2], NAN)


def _rewards(seen: Sequence[Seen]) -> Group:
    """Mean margins of text and image rewards before beta, in nats, whole and a token, and their balance."""
    found, tokens = [log_ratios(own) for own in seen], np.stack([own.tokens for own in seen])
    chosen, rejected = np.stack([own["image"] for own in found]).T
    corrupted = np.stack([own["dispreferred"] for own in found])[:, 0]
    text, image = chosen - rejected, chosen - corrupted
    return _group(
        seen,
        [
            mean("text_reward", text),
            mean("image_reward", image),
            mean("text_reward_per_token", chosen / tokens[:, 0] - rejected / tokens[:, 1]),
            mean("image_reward_per_token", image / tokens[:, 0]),
            Measure("balance", np.stack([text, image, np.ones_like(text)], axis=-1), of=_balance),
        ],
    )


def _balance(sums: np.ndarray) -> np.ndarray:
    """(..., 3) sums of text and image margins -> the smaller over the larger, 0 where one is not positive."""
    smaller, larger = sums[..., :2].min(axis=-1), sums[..., :2].max(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(smaller > 0, smaller / larger, 0.0)


def switched_off(model: Any) -> Any:
    """A context in which the adapter of a model is off."""
    return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
