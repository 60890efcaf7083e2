"""`mfpo check --negatives`: whether the dispreferred images of a data set can teach anything.

Two ends teach nothing. Where noise is told from a photograph by looking at nothing else, the image term is won without reading the
answer. Where the policy finds the answer as likely as before, the evidence is still in the image.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from .. import _trl
from ..batch import MFPOCollator, build_collator, choose_layout, prepare, unwrapped
from ..config import MFPOConfig
from ..data.keywords import candidates
from ..evaluation.models import Quantisation, load_base, with_adapter
from ..images import SCHEDULES, DispreferredImages, regions_per_image
from ..objective import (
    CHOSEN,
    CORRUPTED,
    BranchName,
    columns_of,
    gather_branches,
    of_pairs,
    shifted_labels,
    split_batch,
)
from ..rows import image_list, load_images, plain_text, row_digest
from ..train import TrainModelConfig, adapter_folder
from .model import base_of
from .probe import Area, linear_probe
from .table import OK, WARNING, Finding

RECOGNISED = 0.95
"""Area from which on the dispreferred images are recognised as such."""
STILL_THERE = 0.05
"""Nats a token of the key words, or of the answer where none are known, up to which the image is worth nothing."""
STEPS = (100, 250, 500, 750, 999)
FEWEST = 10
ROWS_AT_ONCE = 4


@dataclass
class Shown:
    """What a model makes of images.

    Args:
        features: (n, D), of the vision tower.
        answers: for each row log p of the chosen answer's tokens, in nats.
        words: for each row which of these tokens are of key words.
    """

    features: np.ndarray
    answers: list[np.ndarray]
    words: list[np.ndarray]


@dataclass
class Worth:
    """What a way to make dispreferred images takes away, and how well it is recognised.

    Args:
        name: of the way.
        area: of the probe; None where there are too few different images.
        drop: of log p(chosen), a row, in nats.
        per_token: the same a token.
        per_word: a token of the key words; None where no row has any.
        error: standard error of `drop`.
        skipped: rows that it cannot be made of.
        kwargs: options of the corruption, where it is one of a sweep.
    """

    name: str
    area: Area | None
    drop: float
    per_token: float
    per_word: float | None
    error: float
    skipped: int = 0
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def taken(self) -> float:
        """Nats a token of the key words, of the answer where none are known."""
        return self.per_token if self.per_word is None else self.per_word

    @property
    def recognised(self) -> bool:
        """Whether the images are recognised as dispreferred ones."""
        return self.area is not None and self.area.value >= RECOGNISED

    @property
    def surely_not_recognised(self) -> bool:
        """Whether they are not, at the upper end of the area's interval too: few images leave it wide."""
        return self.area is not None and self.area.high < RECOGNISED

    @property
    def there(self) -> bool:
        """Whether the evidence is still in the image."""
        return self.taken < STILL_THERE or self.drop < 2 * self.error

    def __str__(self) -> str:
        area = (
            "too few images"
            if self.area is None
            else f"{self.area.value:.2f} ({self.area.low:.2f}-{self.area.high:.2f})"
        )
        words = "" if self.per_word is None else f", {self.per_word:.3f} a token of the key words"
        left = f"; {self.skipped} rows cannot be made so" if self.skipped else ""
        return f"area {area}, drop {self.drop:.2f} nats a row, {self.per_token:.3f} a token{words}{left}"


class Examiner:
    """Looks at rows with the policy as it is before training.

    Args:
        model: with TRL's fused LM head.
        processor: of the model.
        training: says how dispreferred images are made.
        dataset: whose rows they are.
    """

    def __init__(self, model: Any, processor: Any, training: MFPOConfig, dataset: Any):
        self.model = model
        layout = choose_layout(model, training.prefix_sharing)
        prepare(model, layout.name)
        self.collator = build_collator(training, processor, dataset, layout.name)
        self.making: DispreferredImages = self.collator.dispreferred

    def shown(
        self, rows: Sequence[Mapping[str, Any]], branch: BranchName, making: DispreferredImages | None = None
    ) -> Shown:
        """What the model makes of the images (`CHOSEN`) or of the dispreferred ones (`CORRUPTED`) of rows.

        Raises:
            RowError: a row that cannot be used.
        """
        collator = replace(self.collator, branches=(branch,), dispreferred=making or self.making)
        features, answers, words = [], [], []
        for start in range(0, len(rows), ROWS_AT_ONCE):
            batch = [dict(row) for row in rows[start : start + ROWS_AT_ONCE]]
            features += [self._features(collator, row, branch) for row in batch]
            for row, (logps, tokens) in zip(batch, self._scored(collator, batch, branch), strict=True):
                answers.append(logps)
                words.append(of_words(tokens, phrases_of(row), collator.processor.tokenizer))
        return Shown(np.stack(features), answers, words)

    @torch.inference_mode()
    def _features(self, collator: MFPOCollator, row: Mapping[str, Any], branch: BranchName) -> np.ndarray:
        """Mean and spread of the vision tower's features over the patches of a row's images, (2 D,)."""
        vision = collator.encode(row)[branch].prompt.vision
        model = unwrapped(self.model)
        inputs = {name: value.to(model.device) for name, value in vision.items()}
        inputs = {
            name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()
        }
        states = model.get_image_features(**inputs).last_hidden_state.float()
        states = states.reshape(-1, states.shape[-1])
        return torch.cat([states.mean(dim=0), states.std(dim=0, correction=0)]).cpu().numpy()

    @torch.inference_mode()
    def _scored(
        self, collator: MFPOCollator, rows: Sequence[dict[str, Any]], branch: BranchName
    ) -> Iterator[tuple[np.ndarray, list[int]]]:
        """Log-probabilities of the tokens of each row's chosen answer, and these tokens."""
        inputs, branches, pairs = split_batch(collator(list(rows)))
        device = self.model.device
        inputs, branches, pairs = {k: v.to(device) for k, v in inputs.items()}, branches.to(device), pairs.to(device)
        replay = _trl.Replay(self.model, inputs, branches, pairs)
        replay.score()
        every = columns_of(collator.branches)
        tokens = gather_branches(shifted_labels(inputs), branches)
        of = [
            of_pairs(values, pairs, branch, every).cpu()
            for values in (replay.outputs.log_probs, tokens, branches[:, 2])
        ]
        for logps, ids, length in zip(*of, strict=True):
            yield logps[:length].double().numpy(), ids[:length].tolist()


def phrases_of(row: Mapping[str, Any]) -> list[str]:
    """A row's key words: those that it brings, the phrases of its regions, or what its chosen answer names."""
    words = row.get("keywords")
    if words:
        return [words] if isinstance(words, str) else list(words)
    try:
        regions = regions_per_image(row.get("key_regions"), len(image_list(row, "image") or []))
    except (ValueError, TypeError):
        regions = []
    named = [own["phrase"] for some in regions for own in some if isinstance(own, Mapping) and own.get("phrase")]
    return named or [found.phrase for found in candidates(plain_text(row["chosen"]))]


def of_words(tokens: Sequence[int], phrases: Sequence[str], tokenizer: Any) -> np.ndarray:
    """Which tokens of an answer belong to a mention of a phrase, (T,) bool; case does not count."""
    ends = [len(tokenizer.decode(tokens[: n + 1])) for n in range(len(tokens))]
    text, starts = tokenizer.decode(tokens), [0, *ends[:-1]]
    found = np.zeros(len(tokens), dtype=bool)
    for phrase in filter(None, phrases):
        # Text that is folded first may be longer, and every place behind it another one.
        for match in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE):
            found |= np.array([a < match.end() and b > match.start() for a, b in zip(starts, ends, strict=True)])
    return found


def worth(name: str, real: Shown, other: Shown, groups: Sequence[str], skipped: int = 0, **kwargs: Any) -> Worth:
    """What the other images take away of what the real ones are worth to the policy.

    Args:
        real, other: of the same rows.
        groups: names of the real images, (n,).
    """
    drops = [a.sum() - b.sum() for a, b in zip(real.answers, other.answers, strict=True)]
    tokens = sum(map(len, real.answers))
    of_key = [(a - b)[mark] for a, b, mark in zip(real.answers, other.answers, real.words, strict=True)]
    words = np.concatenate(of_key)
    return Worth(
        name=name,
        area=linear_probe(real.features, other.features, groups),
        drop=float(np.mean(drops)),
        per_token=float(sum(drops) / max(tokens, 1)),
        per_word=float(words.mean()) if len(words) else None,
        error=float(np.std(drops) / max(len(drops) - 1, 1) ** 0.5),
        skipped=skipped,
        kwargs=kwargs,
    )


def of_setting(
    examiner: Examiner, rows: Sequence[Mapping[str, Any]], real: Shown, making: DispreferredImages, name: str
) -> Worth:
    """What one way to make dispreferred images is worth; rows that it cannot be made of are counted.

    Raises:
        ValueError: it can be made of no row.
    """
    places = []
    for place, row in enumerate(rows):
        try:
            making(row, load_images(row, "image") or [])
            places.append(place)
        except ValueError as error:
            refusal = error
    if not places:
        raise refusal
    some = [rows[place] for place in places]
    own = Shown(real.features[places], [real.answers[p] for p in places], [real.words[p] for p in places])
    groups = [row_digest(None, load_images(row, "image") or []).hex() for row in some]
    other = examiner.shown(some, CORRUPTED, making)
    return worth(name, own, other, groups, len(rows) - len(places), **dict(making.kwargs))


def sweep(examiner: Examiner, rows: Sequence[Mapping[str, Any]], real: Shown) -> tuple[list[Worth], dict[str, str]]:
    """The same for steps of noise under every schedule, and for what stays a photograph; with why one of these cannot be made."""
    bare = [
        {name: value for name, value in row.items() if not re.match(r"rejected_images?(_\d+)?$", name)} for row in rows
    ]
    resolution, donors, region = examiner.making.resolution, bare, examiner.making.region
    ways = [("diffusion", {"step": step, "schedule": schedule}) for schedule in SCHEDULES for step in STEPS]
    found: list[Worth] = []
    left_out: dict[str, str] = {}
    for corruption, kwargs in [*ways, ("inpaint", {}), ("transplant", {})]:
        making = DispreferredImages(corruption, kwargs, region, examiner.making.seed or 0, resolution, donors)
        name = f"{kwargs['schedule']}, step {kwargs['step']}" if kwargs else corruption
        try:
            found.append(of_setting(examiner, bare, real, making, name))
        except (ValueError, ImportError) as error:
            # Noise can be made of every row that got here.
            if kwargs:
                raise
            left_out[name] = " ".join(str(error).split())
    return found, left_out


def between(found: Sequence[Worth]) -> Worth | None:
    """The way that lies between the ends: of those that are not recognised, first of those of which the whole interval says so, the
    one that takes away most; None where what is not recognised takes nothing away."""
    unseen = [own for own in found if not own.recognised and not own.there]
    return max(unseen, key=lambda own: (own.surely_not_recognised, own.taken), default=None)


def finding(found: Worth) -> Finding:
    """What is said of the dispreferred images that a training would use."""
    value = f"{found.area.pairs if found.area else 0} pairs of image and dispreferred image: {found}"
    details = _details(found)
    if found.there:
        advice = (
            "the evidence is still in the dispreferred image: the policy finds the chosen answer as likely as before; take a higher "
            "step, or what takes the object out (inpaint, transplant); --negatives sweep tries them"
        )
        return Finding("negatives", WARNING, value, advice, details)
    if found.recognised:
        advice = (
            "dispreferred images are recognised as such by a straight line: the image term can be won without reading the answer; take "
            "a lower step, or what stays a photograph (inpaint, transplant, generate); --negatives sweep tries them"
        )
        return Finding("negatives", WARNING, value, advice, details)
    return Finding("negatives", OK, value, details=details)


def swept(found: Sequence[Worth], left_out: Mapping[str, str]) -> Finding:
    """What is said of a sweep, and of what cannot be made of any row."""
    value = "\n".join(
        [f"{own.name}: {own}" for own in found] + [f"{name}: not looked at, {why}" for name, why in left_out.items()]
    )
    details: dict[str, Any] = {
        "settings": [{"name": own.name, **_details(own)} for own in found],
        "left_out": dict(left_out),
    }
    best = between(found)
    if best is None:
        advice = (
            "none lies between: what takes the evidence away is recognised, and what is not leaves it there; generate, or "
            "rejected_images of your own, stay on the manifold of photographs"
        )
        return Finding("negatives, sweep", WARNING, value, advice, details)
    advice = f"between the ends lies {best.name}: set {_asked(best)}"
    noise = between([own for own in found if "step" in own.kwargs])
    if noise is not None and noise is not best:
        advice += f"; of the noise alone, {noise.name}: {_asked(noise)}"
    for own in {id(own): own for own in (best, noise) if own is not None and not own.surely_not_recognised}.values():
        advice += f"; {own.name} may be recognised on more images: look at more rows (--rows)"
    details |= {"best": best.name, "best_noise": noise and noise.name}
    return Finding("negatives, sweep", OK, value, advice, details)


def _asked(found: Worth) -> str:
    """The fields of a training that ask for it."""
    if "step" not in found.kwargs:
        return f"corruption: {found.name}"
    options = {name: found.kwargs[name] for name in ("step", "schedule")}
    return f"corruption: diffusion, corruption_kwargs: {options}"


def _details(found: Worth) -> dict[str, Any]:
    area = None if found.area is None else {"value": found.area.value, "low": found.area.low, "high": found.area.high}
    return {
        "area": area,
        "drop": found.drop,
        "drop_error": found.error,
        "drop_per_token": found.per_token,
        "drop_per_key_word_token": found.per_word,
        "skipped": found.skipped,
    }


def examined(
    settings: TrainModelConfig,
    training: MFPOConfig,
    processor: Any,
    dataset: Any,
    rows: Sequence[Mapping[str, Any]],
    sweeps: bool = False,
) -> list[Finding]:
    """What is found of a sample of rows.

    Args:
        rows: those among them that have an image are looked at.
        sweeps: try steps and schedules as well.

    Raises:
        RowError: a row that cannot be used.
    """
    rows = [row for row in rows if image_list(row, "image")]
    if len(rows) < FEWEST:
        return [
            Finding("negatives", WARNING, f"not looked at: {len(rows)} rows with images, at least {FEWEST} are needed")
        ]
    quantised = None
    if settings.load_in_4bit or settings.load_in_8bit:
        kind = settings.bnb_4bit_quant_type if settings.load_in_4bit else "int8"
        quantised = Quantisation(kind, bool(settings.use_bnb_nested_quant))
    name = settings.model_name_or_path
    try:
        model = load_base(base_of(settings), settings.dtype or "auto", quantised, revision=settings.model_revision)
        if adapter := adapter_folder(settings):
            model = with_adapter(model, adapter)
    except ValueError as error:
        value = f"not looked at: the weights of {name} are needed for it, and {' '.join(str(error).split())}"
        return [Finding("negatives", WARNING, value[:400], "run it where the weights are")]
    examiner = Examiner(model, processor, training, dataset)
    real = examiner.shown(rows, CHOSEN)
    found = [finding(of_setting(examiner, rows, real, examiner.making, "as trained"))]
    return [*found, swept(*sweep(examiner, rows, real))] if sweeps else found
