"""What `mfpo loop` reads: one YAML file with the options of its three commands.

```yaml
output: rounds
model: llava-hf/llava-1.5-7b-hf
rounds: 3
figure: chair_s            # that must improve; which way is better is the figure's own
pairs:                     # of mfpo pairs, without model and output
  dataset: photos
  questions: shipped
train:                     # of mfpo train, without model_name_or_path, dataset_name and output_dir
  config: methods/mfpo
  use_peft: true
score:                     # held out: none of the images of the pairs
  benchmark: chair
  data: coco
  rows: 500
```
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..evaluation import DURING

OURS = {
    "pairs": ("model", "adapter", "output"),
    "train": ("model_name_or_path", "dataset_name", "output_dir", "resume_from_checkpoint"),
}
"""Fields that each round sets itself."""

KINDS = {
    "output": str,
    "model": str,
    "pairs": Mapping,
    "train": Mapping,
    "score": Mapping,
    "figure": str,
    "rounds": int,
    "least_gain": (int, float),
    "merge": bool,
}
SCORE = {
    **{"benchmark": str, "data": str, "rows": int, "max_new_tokens": int, "batch_size": int},
    "load_in_4bit": bool,
}
WORDS = {str: "a text", int: "a whole number", (int, float): "a number", bool: "true or false"}
"""What the values of keys are, and how that is said."""


@dataclass(frozen=True)
class LoopRecipe:
    """Rounds, and the options of what a round does.

    Attributes:
        output: folder of the rounds.
        model: folder or id of the policy that the first round begins with, or of an adapter.
        pairs, train: options of `mfpo pairs` and fields of `mfpo train`.
        score: `benchmark` and `data` as `mfpo generate` takes them, and perhaps `rows`, `max_new_tokens`, `batch_size`,
            `load_in_4bit`.
        figure: of the benchmark, which has to improve.
        rounds: at most, at least 1.
        least_gain: by which the figure improves at least, else the rounds end.
        merge: write the weights of an adapter into its model after each round, and begin the next with a new adapter.

    Raises:
        ValueError: an option that is missing, or that each round sets itself.
    """

    output: Path
    model: str
    pairs: Mapping[str, Any]
    train: Mapping[str, Any]
    score: Mapping[str, Any]
    figure: str
    rounds: int = 3
    least_gain: float = 0.0
    merge: bool = False
    source: Path = field(default=Path("loop.yaml"), compare=False)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}; expected a number from 1 up")
        if not math.isfinite(self.least_gain):
            raise ValueError(f"least_gain is {self.least_gain}; expected a number")
        for name, ours in OURS.items():
            strange = [key for key in getattr(self, name) if not isinstance(key, str)]
            if strange:
                raise ValueError(f"{name}: the key {strange[0]!r} is no text")
            own = [key for key in getattr(self, name) if spelt(key) in ours]
            if own:
                raise ValueError(f"{name}: {own[0]!r} is set by each round itself; leave it out")
        missing = [name for name in ("benchmark", "data") if name not in self.score]
        if missing:
            raise ValueError(f"score: {missing[0]!r} is missing; the rounds end by a score on what is held out")
        unknown = [name for name in self.score if name not in SCORE]
        if unknown:
            raise ValueError(f"score: unknown key {unknown[0]!r}; expected {', '.join(SCORE)}")
        if self.score["benchmark"] not in DURING:
            raise ValueError(f"score: benchmark is {self.score['benchmark']!r}; expected {', '.join(DURING)}")
        for name in ("rows", "max_new_tokens", "batch_size"):
            if self.score.get(name, 1) < 1:
                raise ValueError(f"score: {name} is {self.score[name]}; expected a number from 1 up")


def spelt(key: str) -> str:
    """A key as its field is called."""
    return key.replace("-", "_")


def read_recipe(path: Path) -> LoopRecipe:
    """The recipe in a file.

    Raises:
        ValueError: a file that is none, an unknown key, or one that is missing.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"the recipe {path} cannot be read: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"the recipe {path} holds a {type(content).__name__}; expected keys and values")
    known = {own.name for own in fields(LoopRecipe)} - {"source"}
    for name in content:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            raise ValueError(
                f"the recipe {path}: unknown key {name!r}{f', did you mean {near[0]!r}?' if near else ''}"
            )
    for name in ("output", "model", "pairs", "train", "score", "figure"):
        if content.get(name) is None:
            raise ValueError(f"the recipe {path} lacks {name!r}")
    for name in ("pairs", "train", "score"):
        if not isinstance(content[name], Mapping):
            raise ValueError(
                f"the recipe {path}: {name!r} is a {type(content[name]).__name__}; expected keys and values"
            )
    try:
        _check_kinds(content, KINDS)
        _check_kinds(content["score"], SCORE, "score: ")
        return LoopRecipe(**{**content, "output": Path(content["output"]), "source": path})
    except ValueError as error:
        raise ValueError(f"the recipe {path}: {error}") from None


def _check_kinds(given: Mapping[str, Any], kinds: Mapping[str, Any], where: str = "") -> None:
    for name, kind in kinds.items():
        value = given.get(name)
        # To Python, true is a whole number.
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if name in given and not fits:
            raise ValueError(f"{where}{name} is {value!r}; expected {WORDS[kind]}")
