"""How alike two words are, for AMBER: a table from a file, or the word vectors of a spaCy model."""

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from ..figures import read_json, shown

Similarity = Callable[[str, str], float]


def read_similarity(path: Path) -> Similarity:
    """How alike two words are, by a table of either order; a word is like itself, and words that it does not name are not alike.

    Raises:
        ValueError: it is no such table, or says two things of one pair.
    """
    table = read_json(path)
    if not isinstance(table, dict) or not all(isinstance(own, dict) for own in table.values()):
        raise ValueError(f'{path} is no table of similarities; expected {{"word": {{"other": 0.83}}}}')
    known: dict[frozenset[str], float] = {}
    for word, others in table.items():
        for other, value in others.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(
                    f"{path}: the similarity of {word!r} and {other!r} is {shown(value)}; expected a number"
                )
            if known.setdefault(frozenset((word, other)), value) != value:
                raise ValueError(
                    f"{path} says two things of {word!r} and {other!r}: {value} and {known[frozenset((word, other))]}"
                )
    return lambda one, other: 1.0 if one == other else known.get(frozenset((one, other)), 0.0)


def load_spacy(name: str | None) -> Any:
    """A spaCy pipeline; None for None.

    Raises:
        ImportError: spaCy is missing.
        ValueError: there is no such model.
    """
    if name is None:
        return None
    try:
        import spacy
    except ImportError as error:
        raise ImportError(
            f"--spacy-model needs spaCy: pip install spacy && python -m spacy download {name}"
        ) from error
    try:
        return spacy.load(name)
    except OSError as error:
        raise ValueError(f"spaCy cannot load {name!r}; install it with: python -m spacy download {name}") from error


def spacy_similarity(nlp: Any) -> Similarity:
    """The cosine of the word vectors of a pipeline, each pair once.

    Raises:
        ValueError: the pipeline has no word vectors, as the small models of spaCy have none.
    """
    if not len(nlp.vocab.vectors):
        raise ValueError(
            "this spaCy model has no word vectors, so that it cannot say how alike words are; take en_core_web_lg"
        )
    # The vectors are those of the words alone; tagging and parsing them would add nothing but seconds.
    document = cache(nlp.make_doc)

    @cache
    def similarity(one: str, other: str) -> float:
        with warnings.catch_warnings():
            # A word without a vector is similar to none but itself.
            warnings.filterwarnings("ignore", message=r"\[W008\]")
            return float(document(one).similarity(document(other)))

    return similarity
