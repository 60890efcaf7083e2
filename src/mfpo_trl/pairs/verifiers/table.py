"""Which verifiers there are.

| name | how it knows |
|---|---|
| `detector` | open-vocabulary detectors look for the noun phrases of the answers |
| `judge` | a model behind an OpenAI-compatible server is asked about each noun phrase in its sentence |
| `labels` | the objects of each picture are known: the row's column `objects`, a file, or the annotations of COCO |
| `confidence` | the policy itself is asked about each noun phrase |
| `package.module:function` | a function of yours |

A function of yours is called as `function(images, answers, row)` for each row: a list of RGB pictures, a list of texts, and the row as it
was published. It returns one list a text of `Claim` or of `(phrase, verdict)`, the verdict "present", "absent" or "uncertain".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...data import Row, plugged
from ...rows import VERDICTS
from ..claims import Claim
from ..policies import Policy


class Verifier(Protocol):
    """Tells which claims of answers are true."""

    def verify(self, rows: Sequence[Row], answers: Sequence[Sequence[str]], kept: Path) -> list[list[list[Claim]]]:
        """The claims of each answer.

        Args:
            rows: with `pictures` (RGB), `images` (their files) and `published`, the row as it was published.
            answers: texts of each row.
            kept: a file where verdicts may be kept that cost something; one of this part alone.

        Returns:
            one list a row, with a list of claims a text.

        Raises:
            ValueError: a row about which nothing can be said.
        """
        ...


@dataclass(frozen=True)
class Given:
    """What `build_verifier` was given."""

    options: Any
    device: str | None
    policy: Callable[[], Policy]
    rows: Any
    count: int


class Plugged:
    """A function from outside of this package; the module's docstring says what it gets and returns.

    Raises:
        ValueError: there is no such function.
    """

    def __init__(self, name: str):
        self.function = plugged(name, "verifier", "package.module:function")
        self.name = name

    def verify(self, rows: Sequence[Row], answers: Sequence[Sequence[str]], kept: Path) -> list[list[list[Claim]]]:
        """See `Verifier`.

        Raises:
            ValueError: what the function returned has not the promised form.
        """
        return [
            self._checked(self.function(row["pictures"], list(texts), row["published"]), len(texts))
            for row, texts in zip(rows, answers, strict=True)
        ]

    def _checked(self, found: Any, count: int) -> list[list[Claim]]:
        if isinstance(found, str) or not isinstance(found, Sequence) or len(found) != count:
            size = f" of {len(found)}" if isinstance(found, Sequence) else ""
            raise ValueError(
                f"{self.name} returned a {type(found).__name__}{size} for {count} texts; expected one list of claims a text"
            )
        return [[self._claim(one) for one in own] for own in found]

    def _claim(self, one: Any) -> Claim:
        if isinstance(one, tuple) and len(one) == 2:
            one = Claim(*one)
        if not isinstance(one, Claim) or not isinstance(one.phrase, str) or one.verdict not in VERDICTS:
            raise ValueError(
                f"{self.name} returned the claim {one!r:.80}; expected Claim or (phrase, verdict), the verdict {', '.join(VERDICTS)}"
            )
        return one


def build_verifier(given: Given) -> Verifier:
    """The verifier that the options name, its models loaded.

    Raises:
        ValueError: it cannot be loaded, or lacks what it needs to know.
    """
    name = given.options.verifier
    return VERIFIERS[name](given) if name in VERIFIERS else Plugged(name)


def _tagger(given: Given) -> Any:
    from ...data.keywords import load_tagger

    return load_tagger(given.options.tagger)


def _detector(given: Given) -> Verifier:
    from .detector import build_detected

    return build_detected(given.options, given.device, _tagger(given))


def _judge(given: Given) -> Verifier:
    from ...endpoint import Endpoint
    from .asked import Judged

    own = given.options
    endpoint = Endpoint(
        own.judge_url, own.judge_model, own.judge_key_env, concurrency=own.judge_concurrency, timeout=own.judge_timeout
    )
    return Judged(own.judge_model, endpoint, _tagger(given))


def _labels(given: Given) -> Verifier:
    from .labels import of_column, of_truth

    own = given.options
    if own.ground_truth is not None or own.coco_annotations is not None:
        return of_truth(own, given.rows, given.count)
    return of_column(given.rows, given.count, own.synonyms)


def _confidence(given: Given) -> Verifier:
    from .asked import Confided

    return Confided(given.policy, given.options.who, _tagger(given))


VERIFIERS: dict[str, Callable[[Given], Verifier]] = {
    "detector": _detector,
    "judge": _judge,
    "labels": _labels,
    "confidence": _confidence,
}
