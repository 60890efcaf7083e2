"""The options of `mfpo pairs`."""

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..data import BuildOptions
from ..evaluation.generation import Drawing, weights_told
from ..evaluation.models import DTYPES
from .claims import Rule
from .verifiers import VERIFIERS

SHIPPED = Path(__file__).with_name("questions.txt")
"""A few questions that ask for a description, each in words of its own."""

ELSEWHERE = (
    "batch_size",
    "judge_url",
    "judge_concurrency",
    "judge_timeout",
    "judge_key_env",
)
"""Options that say where and how fast, not what is drawn, beside those of `mfpo build`; an answer depends on no batch."""

FILES = ("questions", "ground_truth", "coco_annotations", "synonyms")
"""Options that name files or folders, which count by what is in them."""


@dataclass(frozen=True, kw_only=True)
class PairOptions(BuildOptions):
    """What pairs are made from what; the fields are the options of `mfpo pairs`, and those of `mfpo build` that it reads.

    Raises:
        ValueError: options that do not go together, or numbers that make no sense.
    """

    grounder: str = "column"
    part_rows: int = 64
    questions: str | None = None
    adapter: str | None = None
    dtype: str = "auto"
    load_in_4bit: bool = False
    samples: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    by: str = "answer"
    sentences: int = 8
    verifier: str = "detector"
    detector: tuple[str, ...] = ("grounding-dino",)
    detector_model: tuple[str, ...] = ()
    present_from: float | None = None
    absent_below: float | None = None
    judge_url: str | None = None
    judge_model: str | None = None
    judge_concurrency: int = 8
    judge_timeout: float = 300.0
    judge_key_env: str = "OPENAI_API_KEY"
    ground_truth: Path | None = None
    coco_annotations: Path | None = None
    synonyms: Path | None = None
    margin: int = 1
    length_ratio: float = 2.0
    pairs_per_prompt: int | None = None

    def __post_init__(self):
        super().__post_init__()
        self._check_pairs()

    def _check_endpoint(self) -> None:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("name who answers: --model MODEL, or --endpoint URL with --served-model NAME")
        if self.endpoint is not None and self.served_model is None:
            raise ValueError("--endpoint needs --served-model, the name under which the server has the model")
        if self.endpoint is not None and (self.adapter or self.load_in_4bit or self.dtype != "auto"):
            raise ValueError(
                "--adapter, --load-in-4bit and --dtype are of a model that is loaded here; the server has its own"
            )
        if self.endpoint is not None:
            self.server  # noqa: B018  raises

    def _check_pairs(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype {self.dtype!r} is unknown; expected {', '.join(DTYPES)}")
        if self.by not in ("answer", "sentence"):
            raise ValueError(f"--by {self.by!r} is unknown; expected answer or sentence")
        if self.samples < 2:
            raise ValueError(f"--samples is {self.samples}; a pair needs 2 at least")
        if self.sentences < 1:
            raise ValueError(f"--sentences is {self.sentences}; expected a number from 1 up")
        if self.most < 1:
            raise ValueError(f"--pairs-per-prompt is {self.most}; expected a number from 1 up")
        if self.verifier not in VERIFIERS and ":" not in self.verifier:
            raise ValueError(
                f"--verifier {self.verifier!r} is unknown; expected {', '.join(VERIFIERS)}, or package.module:function"
            )
        if self.verifier == "judge" and not (self.judge_url and self.judge_model):
            raise ValueError("--verifier judge needs --judge-url and --judge-model, the judge's name on its server")
        if not self.detector or (self.detector_model and len(self.detector_model) != len(self.detector)):
            raise ValueError(
                "--detector names one detector or more, and --detector-model weights for each or for none"
            )
        if self.ground_truth is not None and self.coco_annotations is not None:
            raise ValueError("--ground-truth and --coco-annotations say the same; give one")
        self.drawing  # noqa: B018  raises
        self.rule  # noqa: B018  raises

    @property
    def scorer(self) -> str:
        """Difficulty is measured where it is asked for only: the model is here to answer."""
        return self.difficulty or "none"

    @property
    def drawing(self) -> Drawing:
        """How answers are drawn."""
        return Drawing(self.temperature, self.top_p, self.max_new_tokens, self.by == "sentence")

    @property
    def rule(self) -> Rule:
        """Which two answers make a pair; by sentence, one in each round."""
        if self.by == "sentence":
            return Rule(self.margin, self.length_ratio, 1, clean=True)
        return Rule(self.margin, self.length_ratio, self.most)

    @property
    def most(self) -> int:
        """Pairs of a prompt: one by default, or one for each sentence."""
        default = self.sentences if self.by == "sentence" else 1
        return default if self.pairs_per_prompt is None else self.pairs_per_prompt

    @property
    def who(self) -> str:
        """What tells who answers from others: the weights, wherever they lie, and how they are held; or the name on a server."""
        told = [own and (weights_told(own) or own) for own in (self.model, self.adapter)]
        return json.dumps([*told, self.served_model, self.dtype, self.load_in_4bit])

    def remembered(self, rows: int) -> dict[str, Any]:
        """What decides the parts' content."""
        kept = {name: own for name, own in super().remembered(rows).items() if name not in ELSEWHERE}
        for own in fields(self):
            if isinstance(value := kept.get(own.name), Path | tuple):
                kept[own.name] = str(value) if isinstance(value, Path) else list(value)
        for name in ("model", "adapter"):
            if kept[name] is not None:
                # A folder may be called otherwise, and may hold other weights tomorrow.
                kept[name] = weights_told(kept[name]) or kept[name]
        for name in FILES:
            if kept[name] is not None:
                kept[name] = _content_told(SHIPPED if kept[name] == "shipped" else Path(kept[name])) or kept[name]
        return kept


def _content_told(path: Path) -> dict[str, str] | None:
    """The name of a file, or of a folder of COCO's annotations, and a digest of what is in it; None where there is none."""
    named = (own for kind in ("instances", "captions") for own in path.glob(f"{kind}_*.json"))
    files = sorted(named) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        return None
    digest = hashlib.blake2b(digest_size=12)
    for own in files:
        with own.open("rb") as file:
            digest.update(own.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return {"name": path.name, "digest": digest.hexdigest()}
