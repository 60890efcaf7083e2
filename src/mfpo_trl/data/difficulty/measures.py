"""How hard a preference row is: one number a row, higher for harder, and the stages of a curriculum made of them.

Shape: n rows.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...objective import CHOSEN
from ...rows import row_error
from ...weights import safetensors_only
from .semantic_entropy import Sampling, SemanticEntropy, entailment, placed

Scorer = Callable[[Sequence[Mapping[str, Any]]], list[float]]
"""Rows -> one number each. A row has `images` (PIL or `{"bytes", "path"}`), `prompt`, `chosen`, `rejected`, and where it is
known `mask_area`, the share of the image that its regions cover, in [0, 1]."""

ROWS_AT_ONCE = 8
"""Rows of one forward; the numbers do not depend on it."""


@dataclass(frozen=True)
class Options:
    """What `build_difficulty` was given; each difficulty reads its own."""

    model: str | None
    device: str | None
    samples: int
    temperature: float
    max_new_tokens: int
    nli_model: str | None
    rao_blackwell: bool
    seed: int


def build_difficulty(
    name: str,
    *,
    model: str | None = None,
    device: str | None = None,
    samples: int = 10,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    nli_model: str | None = None,
    rao_blackwell: bool = False,
    seed: int = 0,
) -> Scorer | None:
    """The scorer of that name, with its models loaded; None for "none".

    Args:
        name: a key of `DIFFICULTIES`.
        model: folder or id of a vision-language model with safetensors weights; not read by "mask-area".
        device: where the models run; by default the GPU where there is one. On a GPU `model` runs in bfloat16.
        samples, temperature, max_new_tokens: of "semantic-entropy": M answers a row, at least 2; T > 0; their longest.
        nli_model: of "semantic-entropy": a text classifier with a label "entailment" that says which answers mean the
            same; by default equal words do.
        rao_blackwell: of "semantic-entropy": weigh the samples by their probability instead of counting them.
        seed: of "semantic-entropy": other seeds give other samples.

    Raises:
        ValueError: an unknown name, a model that is needed and not given or cannot be loaded, or a setting out of range.
    """
    if name not in DIFFICULTIES:
        nearest = difflib.get_close_matches(name, DIFFICULTIES, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown difficulty {name!r}; did you mean {nearest!r}? Known: {', '.join(DIFFICULTIES)}")
    options = Options(model, device, samples, temperature, max_new_tokens, nli_model, rao_blackwell, seed)
    return DIFFICULTIES[name](options)


class AnswerLikelihood:
    """Scorer "nll": negative log-likelihood of the chosen answer given images and prompt, divided by its number of tokens,
    in nats a token. The token that ends the answer counts.

    Raises:
        ValueError: the model cannot be loaded.
    """

    outputs: tuple[str, ...] = ("log_probs",)

    def __init__(self, options: Options):
        from ... import _trl
        from ...batch import prepare

        model, self.collator = _load(options)
        self.model = _trl.scored(model, self.outputs)
        prepare(self.model)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        values: list[float] = []
        for start in range(0, len(rows), ROWS_AT_ONCE):
            values += self._score(rows[start : start + ROWS_AT_ONCE])
        for row, value in zip(rows, values, strict=True):
            if not math.isfinite(value):
                raise row_error(row, "chosen", f"its difficulty is {value}; the model gives no finite number for it")
        return values

    def _score(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        import torch

        from ..._trl import Replay
        from ...objective import of_pairs, split_batch

        inputs, branches, pairs = split_batch(self.collator(list(rows)))
        replay = Replay(self.model, placed(inputs, self.model), branches, pairs)
        with torch.inference_mode():
            replay.score()
        mean = self.per_token(replay.outputs).sum(dim=1).double().cpu() / branches[:, 2]
        return of_pairs(mean, pairs, "chosen").tolist()

    def per_token(self, outputs: Any) -> Any:
        """What is averaged, (N, C), 0 behind the end of an answer."""
        return -outputs.log_probs


class TokenEntropy(AnswerLikelihood):
    """Scorer "token-entropy": mean entropy of the next-token distribution over the positions that predict the chosen
    answer's tokens, in nats, in [0, log(vocabulary size)]."""

    outputs = ("log_probs", "entropy")

    def per_token(self, outputs: Any) -> Any:
        """What is averaged, (N, C), 0 behind the end of an answer."""
        return outputs.entropy


def uncovered_share(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Scorer "mask-area": 1 - `mask_area`, in [0, 1]. This reading is ours, no paper's: an answer and its dispreferred
    image are harder to tell apart where only a small region of the image differs.

    A row without `mask_area` counts as corrupted all over, and gives 0.

    Raises:
        ValueError: a share outside of [0, 1].
    """
    values = []
    for row in rows:
        area = 1.0 if row.get("mask_area") is None else float(row["mask_area"])
        if not 0 <= area <= 1:
            raise row_error(row, "mask_area", f"is {area}; expected the covered share of the image, 0 to 1")
        values.append(1 - area)
    return values


def _semantic_entropy(options: Options) -> Scorer:
    sampling = Sampling(options.samples, options.temperature, options.max_new_tokens, options.seed)
    model, collator = _load(options)
    entails = None if options.nli_model is None else entailment(options.nli_model, str(model.device))
    return SemanticEntropy(model, collator, sampling, options.rao_blackwell, entails)


def _load(options: Options) -> tuple[Any, Any]:
    """The model in evaluation mode, and a collator that makes batches of chosen answers for it."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from ...batch import MFPOCollator

    if options.model is None:
        raise ValueError(
            "this difficulty needs a model; give the folder or id of a vision-language model as model=..."
        )
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        with safetensors_only(options.model):
            model = AutoModelForImageTextToText.from_pretrained(
                options.model, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
        processor = AutoProcessor.from_pretrained(options.model, trust_remote_code=False)
    except OSError as error:
        raise ValueError(f"model {options.model!r} cannot be loaded: {error}") from error
    return model.to(device).eval(), MFPOCollator(processor, branches=(CHOSEN,))


DIFFICULTIES: dict[str, Callable[[Options], Scorer | None]] = {
    "nll": AnswerLikelihood,
    "token-entropy": TokenEntropy,
    "semantic-entropy": _semantic_entropy,
    "mask-area": lambda options: uncovered_share,
    "none": lambda options: None,
}
