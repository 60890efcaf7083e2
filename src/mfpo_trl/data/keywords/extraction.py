"""Key words of a chosen answer: the things it names, ranked by PageRank over a graph of its phrases."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ...weights import safetensors_only
from .phrases import Candidate, candidates

TOPIC_CUT = 0.74
"""Jaccard distance up to which two clusters of phrases are one topic (MultipartiteRank)."""

FIRST_BOOST = 1.1
"""alpha of MultipartiteRank: how much the first phrase of a topic gains from its topic."""

Vectors = Callable[[Sequence[str]], np.ndarray]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real)


@dataclass(frozen=True)
class Keyword:
    """A phrase in lower case, its PageRank score in (0, 1], and the index of its first word in the answer."""

    phrase: str
    score: float
    position: int


@dataclass(frozen=True)
class KeywordOptions:
    """How key words are ranked. MFPO does not publish phi, gamma, lambda or K: the defaults are our choice.

    Args:
        top_k: how many key words are kept, at least 1.
        phi: exponent of the distance between two words, > 0; the larger, the less do distant words count.
        gamma: weight of the cosine similarity of word vectors, >= 0; without vectors it counts as 0.
        lambda_: decay per word of position, >= 0; the larger, the more do early words count.
        damping: of PageRank, in [0, 1).
        variant: `mfpo` or `multipartite`; the latter uses top_k and damping only.

    Raises:
        ValueError: an option out of range, naming it.
    """

    top_k: int = 5
    phi: float = 1.0
    gamma: float = 0.5
    lambda_: float = 0.02
    damping: float = 0.85
    variant: str = "mfpo"

    def __post_init__(self) -> None:
        rules: dict[str, tuple[Callable[[Any], bool], str]] = {
            "top_k": (lambda value: isinstance(value, int) and value >= 1, "a whole number of at least 1"),
            "phi": (lambda value: _is_number(value) and 0 < value < np.inf, "a finite number above 0"),
            "gamma": (lambda value: _is_number(value) and 0 <= value < np.inf, "a finite number from 0 up"),
            "lambda_": (lambda value: _is_number(value) and 0 <= value < np.inf, "a finite number from 0 up"),
            "damping": (lambda value: _is_number(value) and 0 <= value < 1, "a number in [0, 1)"),
            "variant": (lambda value: value in tuple(WEIGHTS), f"one of {', '.join(WEIGHTS)}"),
        }
        for name, (fits, expected) in rules.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not fits(value):
                raise ValueError(f"{name} is {value!r}; expected {expected}")


def keywords(
    text: str, options: KeywordOptions | None = None, vectors: Vectors | None = None, nlp: Any = None
) -> list[Keyword]:
    """The `top_k` candidates of the text with the highest weighted PageRank, best first, earlier ones first in a tie.

    Args:
        text: the chosen answer.
        options: see `KeywordOptions`; None for its defaults.
        vectors: n phrases -> (n, D) word vectors, for example of `embedding_vectors`. Without them gamma counts as 0.
        nlp: see `candidates`.

    Returns:
        an empty list when nothing is found, for example in a text without Latin letters.

    Raises:
        ValueError: vectors of the wrong shape, or not finite.
        ImportError: networkx or scipy, on which its PageRank builds, is missing.

    Source: MFPO, step 1 of building the image preference data (key words); MultipartiteRank (Boudin, NAACL 2018).
    """
    options = KeywordOptions() if options is None else options
    found = candidates(text, nlp)
    if not found:
        return []
    try:
        import networkx
        import scipy  # noqa: F401  networkx.pagerank imports it
    except ImportError as error:
        raise ImportError(
            "key words are ranked with networkx.pagerank, which needs networkx and scipy; install them with: "
            'pip install "mfpo_trl[data]"'
        ) from error
    ranks = networkx.pagerank(phrase_graph(found, options, vectors), alpha=options.damping, max_iter=1000, tol=1e-7)
    # Equal ranks differ in their last bits; rounding lets the position decide.
    order = sorted(ranks, key=lambda i: (-round(ranks[i], 9), found[i].positions[0]))
    return [Keyword(found[i].phrase, float(ranks[i]), found[i].positions[0]) for i in order[: options.top_k]]


def phrase_graph(found: Sequence[Candidate], options: KeywordOptions, vectors: Vectors | None = None) -> Any:
    """The graph that PageRank runs on: a `networkx.DiGraph` whose nodes are the indices of `found`, with `weight`s."""
    import networkx

    weights = WEIGHTS[options.variant](found, options, vectors)
    sources, targets = np.nonzero(weights)
    graph: networkx.DiGraph[int] = networkx.DiGraph()
    graph.add_nodes_from(range(len(found)))
    graph.add_weighted_edges_from(
        zip(sources.tolist(), targets.tolist(), weights[sources, targets].tolist(), strict=True)
    )
    return graph


def mfpo_weights(found: Sequence[Candidate], options: KeywordOptions, vectors: Vectors | None = None) -> np.ndarray:
    """Edge weights `w[i, j]` from candidate i to candidate j, (n, n), zero on the diagonal.

    `w[i, j] = kappa_j * (P_ij + gamma * max(0, cos_ij))` with the positional influence
    `P_ij = sum over occurrences of 1 / (1 + |l_i - l_j|^phi)`, the cosine of the two word vectors, and
    `kappa_j = exp(-lambda * l_j)`, where l_j is the first occurrence of j. MFPO names these three factors but not how it
    combines them; this combination is ours. The decay sits on the candidate that an edge leads to, because PageRank
    divides a node's outgoing edges by their sum, which would cancel a factor of the node they come from.

    Raises:
        ValueError: the vectors are not one finite row a candidate.
    """
    gaps, starts = _gaps(found)
    influence = _sum_occurrences(1 / (1 + np.abs(gaps) ** options.phi), starts)
    if vectors is not None and options.gamma > 0:
        influence = influence + options.gamma * np.maximum(0, _cosines([c.phrase for c in found], vectors))
    weights = influence * np.exp([-options.lambda_ * c.positions[0] for c in found])
    np.fill_diagonal(weights, 0)
    return weights


def multipartite_weights(found: Sequence[Candidate]) -> np.ndarray:
    """Edge weights of MultipartiteRank, (n, n): the sum over occurrences of 1 / gap, none between phrases of a topic.

    The gap is counted from the last word of the earlier phrase to the first one of the later. The edges that lead to
    the first phrase j of a topic gain `alpha * exp(1 / (1 + pos_j)) * sum of w[k, i]` over the other phrases k of its
    topic.

    Source: Boudin 2018, equations 1 and 2, with the position taken as in the author's program, pke.
    """
    gaps, starts = _gaps(found)
    lengths = np.concatenate([[len(c.stems)] * len(c.positions) for c in found])
    # gaps[a, b] = l_b - l_a: the earlier of the two is a where it is positive.
    between = np.abs(gaps) - np.where(gaps > 0, lengths[:, None], lengths[None, :]) + 1
    weights = _sum_occurrences(1 / np.maximum(between, 1), starts)
    labels = np.array(topics(found))
    weights[labels[:, None] == labels[None, :]] = 0
    boosted = weights.copy()
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        first = min(members.tolist(), key=lambda i: found[i].positions[0])
        others = members[members != first]
        boost = FIRST_BOOST * np.exp(1 / (1 + found[first].positions[0]))
        boosted[:, first] += boost * weights[others].sum(axis=0)
    return boosted


def topics(found: Sequence[Candidate]) -> list[int]:
    """A number for each candidate, the same for those that share enough stems.

    Average-linkage clustering of the Jaccard distances between the sets of stems: the two nearest clusters are joined
    while their mean distance is at most 0.74.
    """
    sets = [frozenset(c.stems) for c in found]
    distance = np.array([[1 - len(a & b) / len(a | b) for b in sets] for a in sets])
    np.fill_diagonal(distance, np.inf)
    labels = list(range(len(found)))
    sizes = np.ones(len(found))
    while distance.min() <= TOPIC_CUT:
        keep, gone = sorted(divmod(int(distance.argmin()), len(found)))
        merged = (sizes[keep] * distance[keep] + sizes[gone] * distance[gone]) / (sizes[keep] + sizes[gone])
        distance[keep], distance[:, keep] = merged, merged
        distance[gone], distance[:, gone] = np.inf, np.inf
        sizes[keep] += sizes[gone]
        labels = [keep if label == gone else label for label in labels]
    return labels


def _gaps(found: Sequence[Candidate]) -> tuple[np.ndarray, np.ndarray]:
    """l_b - l_a for all pairs of occurrences, (M, M), and where each candidate's occurrences begin, (n,)."""
    places = np.concatenate([np.array(c.positions, dtype=np.float64) for c in found])
    starts = np.cumsum([0] + [len(c.positions) for c in found[:-1]])
    return places[None, :] - places[:, None], starts


def _sum_occurrences(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.add.reduceat(np.add.reduceat(values, starts, axis=0), starts, axis=1)


def _cosines(phrases: Sequence[str], vectors: Vectors) -> np.ndarray:
    values = np.asarray(vectors(phrases), dtype=np.float64)
    if values.ndim != 2 or len(values) != len(phrases) or not np.isfinite(values).all():
        raise ValueError(
            f"vectors returned shape {values.shape} for {len(phrases)} phrases; expected one finite vector a phrase, (n, D)"
        )
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit = values / np.where(lengths > 0, lengths, 1)
    return unit @ unit.T


def load_tagger(name: str | None) -> Any:
    """A spaCy pipeline by the name of its model, for `nlp`; None for None.

    Raises:
        ImportError: spaCy is missing.
        ValueError: spaCy has no model of that name.
    """
    if name is None:
        return None
    try:
        import spacy
    except ImportError as error:
        raise ImportError(
            f"the tagger {name!r} needs spaCy; install it with: pip install spacy && python -m spacy download {name}"
        ) from error
    try:
        return spacy.load(name)
    except OSError as error:
        raise ValueError(
            f"spaCy cannot load the model {name!r}; install it with: python -m spacy download {name}"
        ) from error


def embedding_vectors(model_or_path: Any, tokenizer: Any) -> Vectors:
    """Word vectors from a model's input embeddings: phrases -> (n, D), the mean over each phrase's tokens.

    Args:
        model_or_path: a transformers model or its embedding, or the folder or name of a vision-language model; from the
            latter the whole model is read once and only its embeddings are kept.
        tokenizer: the model's tokenizer, or a processor that holds one. A phrase without tokens gets zeros.

    Raises:
        ValueError: the model's weights are pickles only.
    """
    if isinstance(model_or_path, str) or hasattr(model_or_path, "__fspath__"):
        from transformers import AutoModelForImageTextToText

        with safetensors_only(model_or_path):
            model_or_path = AutoModelForImageTextToText.from_pretrained(model_or_path, use_safetensors=True)
    embedding = getattr(model_or_path, "get_input_embeddings", lambda: model_or_path)()
    table = embedding.weight.detach()
    encode = getattr(tokenizer, "tokenizer", tokenizer)

    def vectors(phrases: Sequence[str]) -> np.ndarray:
        rows = encode(list(phrases), add_special_tokens=False)["input_ids"]
        means = [table[ids].float().mean(dim=0) if ids else table.new_zeros(table.shape[1]).float() for ids in rows]
        return np.stack([mean.cpu().numpy() for mean in means])

    return vectors


WEIGHTS: dict[str, Callable[..., np.ndarray]] = {
    "mfpo": mfpo_weights,
    "multipartite": lambda found, options, vectors: multipartite_weights(found),
}
