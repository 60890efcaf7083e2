"""How many things a model says to one question: entropy over the meanings of its sampled answers.

Shape: M samples of a row.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...objective import CHOSEN
from ...rows import load_images, plain_text, row_digest, row_error, row_generator
from ...weights import safetensors_only


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Args:
        samples: M answers a row, at least 2.
        temperature: above 0.
        max_new_tokens: of an answer, at least 1.
        seed: other seeds give other answers.

    Raises:
        ValueError: a setting out of its range.
    """

    samples: int
    temperature: float
    max_new_tokens: int
    seed: int

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"samples={self.samples}; the entropy of fewer than 2 samples is always 0")
        if not (0 < self.temperature < math.inf) or self.max_new_tokens < 1:
            raise ValueError(
                f"temperature={self.temperature}, max_new_tokens={self.max_new_tokens}; expected a temperature above 0 "
                "and at least 1 token"
            )


def semantic_entropy(texts: Sequence[str], logps: Sequence[float] | None, same: Callable[[str, str], bool]) -> float:
    """Entropy over the meanings of a model's answers to one question.

    An answer joins the first cluster whose first member it has the same meaning as, else it opens one.

    Args:
        texts: M answers, M > 0.
        logps: log-probability of each answer, (M,), in nats. Its share of their summed probability is the answer's mass
            (Rao-Blackwellised). None counts every answer alike, 1 / M (discrete).
        same: whether two answers mean the same; called with a cluster's first member and an answer.

    Returns:
        `-sum_c p(c) log p(c)` in nats, in [0, log M], with p(c) the summed mass of cluster c.

    Raises:
        ValueError: no answer, or log-probabilities that are not one finite number an answer.

    Source: Kuhn et al. 2023 (arXiv 2302.09664), algorithm 1; Farquhar et al. 2024 (doi 10.1038/s41586-024-07421-0).
    """
    if not texts:
        raise ValueError("semantic entropy needs at least one answer")
    weights = np.zeros(len(texts)) if logps is None else np.asarray(logps, dtype=np.float64)
    if weights.shape != (len(texts),) or not np.isfinite(weights).all():
        raise ValueError(f"found {weights.tolist()} for {len(texts)} answers; expected a finite log-probability each")
    first: list[str] = []
    cluster = []
    for text in texts:
        number = next((n for n, other in enumerate(first) if same(other, text)), len(first))
        if number == len(first):
            first.append(text)
        cluster.append(number)
    # The largest is taken off before exp, so that the sum is at least 1 however small the probabilities are.
    mass = np.exp(weights - weights.max())
    share = np.bincount(cluster, weights=mass) / mass.sum()
    share = share[share > 0]
    return max(0.0, float(-(share * np.log(share)).sum()))


def same_words(one: str, other: str) -> bool:
    """Whether two answers are equal but for case, punctuation, blanks and the articles a, an, the."""
    return _normal_form(one) == _normal_form(other)


def _normal_form(text: str) -> list[str]:
    # A blank in place of a mark keeps "1.5" apart from "15".
    bare = "".join(" " if unicodedata.category(letter).startswith("P") else letter for letter in text.lower())
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


class SemanticEntropy:
    """Scorer "semantic-entropy": entropy over the meanings of M answers that the model samples to images and prompt, in
    nats, in [0, log M] (`semantic_entropy`).

    Long captions hardly ever mean the same twice: each of them is a cluster of its own, and the entropy saturates at
    log M for every row. It tells rows apart where answers are short.

    A row's samples depend on its prompt, its images and the seed, not on its place. They are drawn from the model's whole
    distribution at the temperature, without the cuts (top-k, top-p, penalties) that a published model may bring. The
    Rao-Blackwellised form weighs a sample by the mean log-probability of its tokens at that temperature, as Farquhar et
    al. do, because the sum would favour short answers.

    Args:
        model: in evaluation mode; its settings of generation are replaced.
        collator: encodes a row's prompt and images.
        rao_blackwell: weigh the samples by their probability instead of counting them.
        entails: says which answers mean the same, those that entail each other; None for `same_words`.
    """

    def __init__(
        self,
        model: Any,
        collator: Any,
        sampling: Sampling,
        rao_blackwell: bool,
        entails: Callable[[str, str], bool] | None,
    ):
        from transformers import GenerationConfig

        from ...batch import prepare

        self.model, self.collator, self.sampling = model, collator, sampling
        self.rao_blackwell, self.entails = rao_blackwell, entails
        self.tokenizer = collator.processor.tokenizer
        prepare(model)
        ends = self.model.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        self.ends = [] if ends is None else list(ends) if isinstance(ends, Sequence) else [ends]
        # Replaced and not only overridden, because `generate` takes what a call leaves open from the model's own.
        self.model.generation_config = GenerationConfig(
            do_sample=True,
            temperature=sampling.temperature,
            top_k=0,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self.ends or None,
            pad_token_id=self.tokenizer.pad_token_id,
        )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        return [self._score(row) for row in rows]

    def _score(self, row: Mapping[str, Any]) -> float:
        texts, logps = self.sample(row)
        try:
            return semantic_entropy(texts, logps, self._same(plain_text(row.get("prompt"))))
        except ValueError as error:
            raise row_error(row, "prompt", str(error)) from error

    def _same(self, question: str) -> Callable[[str, str], bool]:
        if self.entails is None:
            return same_words
        entails = self.entails

        def same(one: str, other: str) -> bool:
            if one == other:
                return True
            # Short answers say little without their question.
            asked, asked_other = f"{question} {one}", f"{question} {other}"
            return entails(asked, asked_other) and entails(asked_other, asked)

        return same

    def sample(self, row: Mapping[str, Any]) -> tuple[list[str], list[float] | None]:
        """M answers to a row, and with `rao_blackwell` the mean log-probability of each one's tokens, in nats."""
        import torch

        prompt, count = self.collator.encode(row)[CHOSEN].prompt, self.sampling.samples
        # Copies of the row instead of `num_return_sequences`, which for some models puts the images of a row with several
        # of them into the wrong order. The tower encodes equal images once.
        inputs = {name: values.repeat(count, 1) for name, values in prompt.tokens.items()}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs |= {name: torch.cat([values] * count) for name, values in prompt.vision.items()}
        digest = row_digest(row.get("prompt"), load_images(row, "image") or [])
        seed = int(row_generator(digest, self.sampling.seed, "semantic entropy").integers(2**63))
        device = self.model.device

        def check(tokens: Any, scores: Any) -> Any:
            if not scores.float().logsumexp(dim=-1).isfinite().all():
                raise row_error(row, "prompt", "the model gives no finite probabilities for its answer")
            return scores

        with torch.inference_mode(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            found = self.model.generate(
                **placed(inputs, self.model),
                logits_processor=[check],
                return_dict_in_generate=True,
                output_scores=self.rao_blackwell,
            )
        new = found.sequences[:, inputs["input_ids"].size(1) :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return texts, self._mean_logps(new, found.scores) if self.rao_blackwell else None

    def _mean_logps(self, tokens: Any, scores: Sequence[Any]) -> list[float]:
        """Mean over each sample's tokens up to and with its end, (M,), of `scores`, one (M, V) a token."""
        import torch

        logps = [s.float().log_softmax(dim=-1).gather(1, tokens[:, n, None]) for n, s in enumerate(scores)]
        ended = torch.isin(tokens, torch.tensor(self.ends, dtype=tokens.dtype, device=tokens.device)).long()
        inside = ended.cumsum(dim=1) - ended == 0
        return (torch.cat(logps, dim=1).masked_fill(~inside, 0).sum(dim=1) / inside.sum(dim=1)).tolist()


def placed(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Tensors on the model's device, pixels in its type."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }


def entailment(nli_model: str, device: str) -> Callable[[str, str], bool]:
    """A function that says whether a first text entails a second one, by a classifier's most probable label.

    Args:
        nli_model: folder or id of a text classifier with a label "entailment".

    Raises:
        ValueError: a classifier that cannot be loaded or has no such label; from the function, texts longer than it reads.
    """
    import torch
    from transformers import pipeline

    try:
        with safetensors_only(nli_model, failure=ValueError):
            classify = pipeline(
                "text-classification",
                model=nli_model,
                device=device,
                dtype=torch.float32,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
    except OSError as error:
        raise ValueError(f"nli_model {nli_model!r} cannot be loaded: {error}") from error
    labels = list(classify.model.config.id2label.values())
    if [label.lower() for label in labels].count("entailment") != 1:
        raise ValueError(f"nli_model {nli_model!r} has the labels {labels}; expected one of them to be 'entailment'")
    limit = classify.tokenizer.model_max_length

    def entails(premise: str, conclusion: str) -> bool:
        length = len(classify.tokenizer(premise, conclusion)["input_ids"])
        if length > limit:
            raise ValueError(
                f"two answers with their prompt are {length} tokens and nli_model reads {limit}; lower max_new_tokens"
            )
        return classify({"text": premise, "text_pair": conclusion})["label"].lower() == "entailment"

    return entails
