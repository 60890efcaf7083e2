"""What `mfpo build` builds, and everything that builds one part of it."""

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import __version__
from ..endpoint import Endpoint, EndpointError
from ..images import (
    GENERATE,
    REGION_CHOICES,
    USUAL_RESOLUTION,
    DispreferredImages,
    check_corruption,
    check_options,
    corruption_defaults,
    needs_outside,
    region_mask,
    regions_per_image,
    rungs,
)
from .difficulty import DIFFICULTIES
from .grounding import GROUNDERS
from .keywords import KeywordOptions
from .mirror import CHOICES, EDITORS, Asked, Example, Left, Mirror, Pool, build_editor, listed, with_twins
from .reading import SOURCES, Source, check_unread, image_roots, open_rows, recognise, repeated
from .stages import Corrupt, Keywords, Read, Regions, Rejected, Row, Score
from .writing import PartReport, Parts, Said, beside, features

PART_ROWS = 512
"""Rows of the source that a part is made from: what a killed build has to do again at most, per process."""

ELSEWHERE = (
    "output",
    "num_proc",
    "engine",
    "shards",
    "shard_index",
    "push_to_hub",
    "private",
    "progress",
    "device",
    "endpoint",
    "concurrency",
    "timeout",
    "api_key_env",
)
"""Options that say where and how fast, not what is built."""


@dataclass(frozen=True)
class BuildOptions:
    """What is built from what; the fields are the options of `mfpo build`.

    Raises:
        ValueError: an unknown source, corruption, schedule or option, or numbers that make no sense.
    """

    dataset: str
    output: Path
    source: str = "auto"
    split: str = "train"
    image_root: Path | None = None
    limit: int | None = None
    grounder: str = "grounding-dino-sam"
    grounder_model: str | None = None
    segmenter_model: str | None = None
    keywords: KeywordOptions = field(default_factory=KeywordOptions)
    tagger: str | None = None
    corruption: str = "diffusion"
    corruption_kwargs: dict[str, Any] | str | None = None
    corruption_region: str = "auto"
    schedule: str = "vcd_sigmoid"
    step: int = 500
    resolution: int = USUAL_RESOLUTION
    seed: int = 0
    materialize: bool = False
    mirror: bool = False
    mirror_choice: str = "rare"
    mirror_editor: str = "transplant"
    mirror_replacement: str = "pool"
    mirror_answer: str = "rule"
    mirror_kwargs: dict[str, Any] | str | None = None
    endpoint: str | None = None
    served_model: str | None = None
    concurrency: int = 8
    timeout: float = 300.0
    api_key_env: str = "OPENAI_API_KEY"
    difficulty: str | None = None
    model: str | None = None
    samples: int = 10
    nli_model: str | None = None
    rao_blackwell: bool = False
    stages: int = 3
    device: str | None = None
    batch_size: int = 8
    part_rows: int = PART_ROWS
    num_proc: int = 1
    engine: str = "local"
    shards: int = 1
    shard_index: int = 0
    push_to_hub: str | None = None
    private: bool = False
    progress: bool = True

    def __post_init__(self):
        if self.source not in ("auto", *SOURCES):
            raise ValueError(f"--source {self.source!r} is unknown; expected auto, {', '.join(SOURCES)}")
        if not 0 <= self.shard_index < self.shards:
            raise ValueError(
                f"--shard-index {self.shard_index} is not one of --shards {self.shards}, which count from 0"
            )
        if self.grounder not in (known := (*GROUNDERS, "column")) and ":" not in self.grounder:
            near = difflib.get_close_matches(self.grounder, known, 1)
            hint = (
                f", did you mean {near[0]!r}?"
                if near
                else f"; expected {', '.join(known)}, or package.module:function"
            )
            raise ValueError(f"--grounder {self.grounder!r} is unknown{hint}")
        for name in ("batch_size", "part_rows", "num_proc", "shards", "resolution", "samples", "stages"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; expected a number from 1 up")
        if self.scorer not in DIFFICULTIES:
            raise ValueError(f"--difficulty {self.difficulty!r} is unknown; expected {', '.join(DIFFICULTIES)}")
        if self.scorer not in ("mask-area", "none") and not self.model:
            raise ValueError(f"--difficulty {self.scorer} needs a model that measures it: --model")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit is {self.limit}; expected a number from 1 up")
        self._check_corruption()
        self._check_mirror()
        self._check_endpoint()

    def _check_mirror(self) -> None:
        if self.mirror_choice not in CHOICES:
            raise ValueError(f"--mirror-choice {self.mirror_choice!r} is unknown; expected {' or '.join(CHOICES)}")
        if self.mirror_editor not in EDITORS and ":" not in self.mirror_editor:
            raise ValueError(
                f"--mirror-editor {self.mirror_editor!r} is unknown; expected {', '.join(EDITORS)}, or package.module:function"
            )
        if self.mirror_replacement not in ("pool", "endpoint") and not Path(self.mirror_replacement).is_file():
            raise ValueError(
                f"--mirror-replacement {self.mirror_replacement!r} is neither pool nor endpoint, nor a file of phrases"
            )
        if self.mirror_answer not in ("rule", "endpoint"):
            raise ValueError(f"--mirror-answer {self.mirror_answer!r} is unknown; expected rule or endpoint")
        if not self.mirror:
            for own in fields(BuildOptions):
                if own.name.startswith("mirror_") and getattr(self, own.name) != own.default:
                    raise ValueError(f"--{own.name.replace('_', '-')} is of --mirror; add it")
        if self.mirror_editor == "generate":
            check_options(GENERATE, self.generate_kwargs)
        elif self.mirror_kwargs:
            raise ValueError("--mirror-kwargs are options of --mirror-editor generate")

    def _check_endpoint(self) -> None:
        asks = self.mirror and "endpoint" in (self.mirror_replacement, self.mirror_answer)
        if asks and not (self.endpoint and self.served_model):
            raise ValueError(
                "--mirror-replacement endpoint and --mirror-answer endpoint need --endpoint URL and --served-model NAME, the name under "
                "which the server has the model"
            )
        if not asks and (self.endpoint or self.served_model):
            raise ValueError("nothing asks --endpoint; --mirror-replacement endpoint and --mirror-answer endpoint do")
        if asks:
            self.server  # noqa: B018  raises

    @property
    def server(self) -> Endpoint:
        """The server that is asked."""
        assert self.endpoint is not None and self.served_model is not None
        return Endpoint(
            self.endpoint, self.served_model, self.api_key_env, concurrency=self.concurrency, timeout=self.timeout
        )

    @property
    def generate_kwargs(self) -> dict[str, Any]:
        """Options of the pipeline that puts a replacement into an image; its texts are the two phrases.

        Raises:
            ValueError: `mirror_kwargs` is no mapping.
        """
        known = corruption_defaults(GENERATE)
        given = _mapping("--mirror-kwargs", self.mirror_kwargs)
        return {name: own for name, own in {**known, **given}.items() if "prompt" not in name or name in given}

    def _check_corruption(self) -> None:
        if self.corruption == "swap":
            raise ValueError(
                "--corruption swap needs other rows; set `corruption: swap` in the training recipe instead"
            )
        if self.corruption == "transplant" and self.materialize:
            raise ValueError(
                "--corruption transplant takes regions of other rows, which are not there while rows are built; leave "
                "--materialize out, and the trainer makes these images from the rows that it trains on"
            )
        if self.corruption == GENERATE and not self.materialize:
            raise ValueError(
                "--corruption generate makes images once and for all: add --materialize, which stores them"
            )
        if self.corruption_region not in REGION_CHOICES:
            raise ValueError(
                f"--corruption-region {self.corruption_region!r} is unknown; expected {', '.join(REGION_CHOICES)}"
            )
        if needs_outside(self.corruption) and self.corruption_region == "global":
            raise ValueError(
                f"--corruption {self.corruption} needs something around a region; --corruption-region global has none"
            )
        (check_options if self.corruption == GENERATE else check_corruption)(self.corruption, self.recipe_kwargs)

    @property
    def recipe_kwargs(self) -> dict[str, Any]:
        """Options of the corruption, all of them, so that a row's recipe means the same under other defaults.

        Raises:
            ValueError: `corruption_kwargs` is no mapping.
        """
        given = _mapping("--corruption-kwargs", self.corruption_kwargs)
        own = {"step": self.step, "schedule": self.schedule, "resolution": self.resolution}
        known = corruption_defaults(self.corruption)
        return {**known, **{name: value for name, value in own.items() if name in known}, **given}

    @property
    def stored_images(self) -> int:
        """How many dispreferred images of each image are stored."""
        return rungs(self.corruption, self.recipe_kwargs) if self.materialize else 0

    @property
    def detects(self) -> bool:
        """Whether there is a grounder that says what is in an image."""
        return self.grounder not in ("column", "random", "none")

    @property
    def scorer(self) -> str:
        """How difficulty is measured: as asked for, else by likelihood where there is a model."""
        return self.difficulty or ("nll" if self.model else "none")

    def remembered(self, rows: int) -> dict[str, Any]:
        """What decides the parts' content."""
        kept = {own.name: getattr(self, own.name) for own in fields(self) if own.name not in ELSEWHERE}
        kept |= {"keywords": asdict(self.keywords), "difficulty": self.scorer, "corruption_kwargs": self.recipe_kwargs}
        kept["mirror_kwargs"] = self.generate_kwargs if self.mirror_editor == GENERATE else None
        if (phrases := Path(self.mirror_replacement)).is_file():
            # A file counts by what is in it.
            kept["mirror_replacement"] = {
                "name": phrases.name,
                "digest": hashlib.sha256(phrases.read_bytes()).hexdigest(),
            }
        kept["image_root"] = str(self.image_root.resolve()) if self.image_root else None
        return {**kept, "rows": rows, "version": __version__}


def _mapping(option: str, given: Any) -> Mapping[str, Any]:
    """The options that a command line gives as JSON, or a recipe as a mapping.

    Raises:
        ValueError: something else.
    """
    try:
        found = json.loads(given) if isinstance(given, str) else given or {}
    except ValueError as error:
        raise ValueError(f"{option} {given!r} is not JSON: {error}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{option} is {given!r}; expected options by their names, such as '{{\"share\": 0.5}}'")
    return found


class Pipeline:
    """Everything that builds a part; models are loaded once.

    Args:
        options: what to build.
        device: of the models; None takes a GPU where there is one.

    Raises:
        ValueError: the data set cannot be read, has no rows, is of no known source, or has its images in a column that nobody
            reads; or `image_root` is no folder.
    """

    def __init__(self, options: BuildOptions, device: str | None = None):
        self.options, self.device = options, options.device or device
        self.rows = open_rows(options.dataset, options.split)
        self.count = min(len(self.rows), options.limit or len(self.rows))
        if not self.count:
            raise ValueError(f"the data set {options.dataset!r} has no rows")
        columns = self.columns()
        self.source = self.recognised(columns)
        self.roots = image_roots(options.dataset, options.image_root)
        check_unread(self.rows, options.dataset, self.roots, self.convention.images)
        self.parts = Parts(options.output, self.count, options.part_rows)
        brings = {"rejected_image", "rejected_images"} & set(columns)
        begun = "answer_prefix" in {*columns, *self.convention.texts}
        twins = options.mirror or not {"mirror_of", "rejected_image_chosen"}.isdisjoint(columns)
        self.features = features(max(options.stored_images, int(bool(brings) or options.mirror)), begun, twins)

    @property
    def told(self) -> str:
        """What is read, for who looks on, and what of that objectives read and a built row has no place for."""
        from ..objective.terms import TERMS, Weighted, row_columns

        read = row_columns(Weighted(term, 1.0) for term in TERMS.values())
        left = [name for name in self.columns() if name in read and name not in self.features]
        said = f" (left out: {', '.join(left)}; add them to the built rows again, by `id`)" if left else ""
        return f"{self.options.dataset}: {self.count} rows, read as {self.source}{said}"

    @property
    def remembered(self) -> dict[str, Any]:
        """What decides the parts' content."""
        identity = {"source": self.source, "source_content": self.rows.identity}
        return self.options.remembered(self.count) | identity

    def more(self, reports: Sequence[Mapping[str, Any]]) -> Said:
        """What is said beside what every build counts, from the reports of the parts."""
        return Said()

    def recognised(self, columns: Sequence[str]) -> str:
        """The convention that the source is read by.

        Raises:
            ValueError: it is of none that is known.
        """
        return recognise(columns) if self.options.source == "auto" else self.options.source

    @property
    def convention(self) -> Source:
        """How rows of the source are published."""
        return SOURCES[self.source]

    def columns(self) -> list[str]:
        """Those of the source, as far as its first rows tell."""
        if hasattr(self.rows, "dataset"):
            return self.rows.dataset.column_names
        rows = [row for row in self.rows.read(range(min(100, self.count))) if not isinstance(row, Exception)]
        return list(dict.fromkeys([*(column for row in rows for column in row), *sorted(self.rows.optional)]))

    @cached_property
    def repeated(self) -> dict[int, int]:
        """The rows whose id an earlier row has, and the how-manieth they are."""
        starts = range(0, self.count, 4096) if "id" in self.columns() else ()
        return repeated(own for start in starts for own in self._ids(start))

    def _ids(self, start: int) -> list[Any]:
        rows = range(start, min(start + 4096, self.count))
        if hasattr(self.rows, "dataset"):
            return self.rows.dataset.select_columns("id")[rows.start : rows.stop]["id"].to_pylist()
        return [None if isinstance(row, Exception) else row.get("id") for row in self.rows.read(rows)]

    @cached_property
    def stages(self) -> dict[str, Any]:
        """The stages behind reading, by name, in their order."""
        from .difficulty import build_difficulty
        from .grounding import build_grounder
        from .keywords import embedding_vectors, load_tagger

        own = self.options
        grounder = None
        if own.grounder != "column":
            grounder = build_grounder(
                own.grounder,
                model=own.grounder_model,
                segmenter=own.segmenter_model,
                device=self.device,
                batch_size=own.batch_size,
                seed=own.seed,
            )
        dispreferred = DispreferredImages(own.corruption, own.recipe_kwargs, own.corruption_region, own.seed)
        fill = None
        if own.corruption == GENERATE:
            from .editing import Inpainter

            fill = Inpainter(own.recipe_kwargs["model"], self.device)
        score: Any = build_difficulty(
            own.scorer,
            model=own.model,
            device=self.device,
            samples=own.samples,
            nli_model=own.nli_model,
            rao_blackwell=own.rao_blackwell,
            seed=own.seed,
        )
        # A model that is there anyway tells which words are alike: the policy, or the grounder's text encoder.
        reader = getattr(grounder, "words", None)
        if hasattr(score, "collator"):
            reader = score.model, score.collator.processor.tokenizer
        vectors = embedding_vectors(*reader) if reader else None
        return {
            "keywords": Keywords(own.keywords, vectors, load_tagger(own.tagger)),
            "grounding": Regions(grounder),
            **({"mirror": self._mirror(grounder)} if own.mirror else {}),
            "corruption": Corrupt(dispreferred, own.stored_images, fill),
            "difficulty": Score(score),
        }

    def _mirror(self, grounder: Any) -> Mirror:
        """The stage that makes twins, with what the source's own regions show to choose from."""
        own = self.options
        fill = None
        options = dict(own.generate_kwargs) if own.mirror_editor == GENERATE else {}
        if options:
            from .editing import Inpainter

            fill = Inpainter(options.pop("model"), self.device)
        asked = Asked(own.server, self._kept_answers) if own.endpoint else None
        needed = own.mirror_replacement == "pool" or own.mirror_editor == "transplant"
        return Mirror(
            Pool.of(self.rows, self.count, self.source, self.roots, needed),
            build_editor(own.mirror_editor, fill, options),
            self._example if own.mirror_editor == "transplant" else None,
            grounder if own.detects else None,
            own.mirror_choice,
            listed(Path(own.mirror_replacement)) if own.mirror_replacement not in ("pool", "endpoint") else None,
            asked.replacements if asked and own.mirror_replacement == "endpoint" else None,
            asked.answers if asked and own.mirror_answer == "endpoint" else None,
            own.seed,
        )

    def _kept_answers(self, number: int) -> Path:
        """Where what a server says of this row of the source is kept."""
        return beside(self.options.output, number // self.options.part_rows, "mirror.jsonl")

    def _example(self, place: Example) -> tuple[Image.Image, np.ndarray]:
        """A picture of the source, and the mask of what it is an example of."""
        raw = self.rows.read(range(place.row, place.row + 1))[0]
        row = Read(self.source, self.roots)(raw, place.row)[0]
        if isinstance(row, Rejected):
            raise Left("the example cannot be read")
        picture = row["pictures"][place.image]
        region = regions_per_image(row["key_regions"], len(row["pictures"]))[place.image][place.region]
        return picture, region_mask([region], picture.height, picture.width)

    def build(self, part: int, progress: Callable[[int], Any] = lambda rows: None) -> None:
        """Build a part and store it."""
        rows, report = self.parts.ranges[part], PartReport()
        done: list[Row] = []
        for start in range(rows.start, rows.stop, self.options.batch_size):
            numbers = range(start, min(start + self.options.batch_size, rows.stop))
            done += self._batch(numbers, report)
            progress(len(numbers))
        with report.timed("storage"):
            self.store(part, done)
        self.parts.note(part, report.summary(done, len(rows)))

    def store(self, part: int, rows: Sequence[Row]) -> None:
        """Write the rows of a part down."""
        stored = [{name: row.get(name) for name in self.features} for row in rows]
        self.parts.write(part, stored, self.features)

    def _batch(self, numbers: range, report: PartReport) -> list[Row]:
        rows = self.preference_rows(numbers, report)
        for name, stage in self.stages.items():
            with report.timed(name):
                rows = report.kept(each(stage, rows), [row["number"] for row in rows])
            rows = with_twins(rows)
        for row in rows:
            # What is no longer needed would fill the memory until the part is written.
            del row["pictures"]
        return rows

    def preference_rows(self, numbers: range, report: PartReport) -> list[Row]:
        """What these rows of the source hold, for the stages."""
        return self.read(numbers, Read(self.source, self.roots), report)

    def read(self, numbers: range, read: Callable[[Any, int], list[Row | Rejected]], report: PartReport) -> list[Row]:
        """Rows of the source as `read` takes them, each under an id of its own."""
        with report.timed("reading"):
            rows = []
            for number, raw in zip(numbers, self.rows.read(numbers), strict=True):
                found = read(raw, number)
                if number in self.repeated:
                    found = [_renamed(row, self.repeated[number]) for row in found]
                rows += report.kept(found, [number] * len(found))
        return rows


def each(
    stage: Callable[[list[Row]], list[Row | Rejected]],
    rows: list[Row],
    fatal: tuple[type[Exception], ...] = (ImportError, EndpointError),
) -> list[Row | Rejected]:
    """A stage on a batch; where it fails, on each row alone, so that a bad one costs itself only.

    Args:
        fatal: errors that are no row's fault.

    Raises:
        Exception: one of these, or every row of the batch fails in the same way.
    """
    try:
        return stage([{**row} for row in rows])
    except fatal:
        raise
    except Exception as error:
        found = [own for row in rows for own in _alone(stage, row)]
        if len(rows) > 1 and {str(own) if isinstance(own, Rejected) else None for own in found} == {str(error)}:
            raise
        return found


def _alone(stage: Callable[[list[Row]], list[Row | Rejected]], row: Row) -> list[Row | Rejected]:
    try:
        return stage([{**row}])
    except Exception as error:
        return [Rejected(str(error) or type(error).__name__)]


def _renamed(row: Row | Rejected, times: int) -> Row | Rejected:
    return row if isinstance(row, Rejected) else {**row, "id": f"{row['id']}#{times}"}
