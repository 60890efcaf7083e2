"""What a benchmark asks: its files, where they come from, and a model's turn for each of its questions."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..benchmarks import BENCHMARKS as SCORED
from ..figures import id_of, read_rows, shown
from .pictures import Pictures, coco_pictures

Row = Mapping[str, Any]

FOLDERS = ("", "data", "query", "data/query", "annotations", "eval/data", "output/coco")
"""Where under the folder of a benchmark the files of its questions may lie, as its publisher lays them out or flat."""

COCO_PICTURES = "val2014.zip of http://images.cocodataset.org/zips/ (pictures of Flickr, each under its own terms)"


@dataclass(frozen=True)
class Prompt:
    """One question.

    Attributes:
        row: what is written beside its answer, and names it.
        messages: the conversation up to the answer, each content a list of parts of type `image` or `text`.
        pictures: of its image parts, in their order, read when they are needed.
        part: of the benchmark.
    """

    row: Row
    messages: Sequence[Mapping[str, Any]]
    pictures: Callable[[], Sequence[Any]] = field(repr=False)
    part: str = ""

    @property
    def text(self) -> str:
        """The last turn, without its pictures."""
        return "\n".join(own["text"] for own in self.messages[-1]["content"] if own["type"] == "text")

    @property
    def shown(self) -> int:
        """How many pictures it has."""
        return sum(own["type"] == "image" for message in self.messages for own in message["content"])


def one_turn(text: str, pictures: int) -> list[dict[str, Any]]:
    """The messages of a question behind its pictures."""
    parts: list[dict[str, Any]] = [{"type": "image"}] * pictures
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@dataclass(frozen=True)
class Benchmark:
    """Where the questions are, and what is asked.

    Attributes:
        files: name of the file of each part; empty where every picture is asked the same.
        source: where these come from, and their licence.
        pictures: the same of the pictures; empty where they are in the files.
        question: field of the question, or, without files, the question.
        row: (question, where) -> what `mfpo score` knows its answer by.
        picture: question -> name of its picture or the picture itself; None without one.
        behind: words behind the questions of a part, where their scorer takes nothing but the word that they ask for.
        apart: whether each part has a file of answers of its own, because ids repeat.
    """

    files: Mapping[str, str]
    source: str
    pictures: str
    question: str
    row: Callable[[Row, str], Row]
    picture: Callable[[Row], str | bytes | None]
    behind: Mapping[str, str] = field(default_factory=dict)
    apart: bool = False


def _named(name: str) -> Callable[[Row, str], Row]:
    """The id of a row as it stands there, under its name."""

    def named(row: Row, where: str) -> Row:
        id_of(row, name, where)
        return {name: row[name]}

    return named


def _of_objhal(row: Row, where: str) -> Row:
    id_of(row, "image_id", where)
    return {"image_id": row["image_id"], "prompt": row["question"]}


def _embedded(row: Row) -> bytes:
    try:
        return base64.b64decode(row["image"], validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"'image' is no picture in base64 ({error})") from None


def _of_hallusionbench(row: Row) -> str | None:
    without = str(row.get("visual_input")) == "0" or not row.get("filename")
    return None if without else str(row["filename"])


BENCHMARKS: Mapping[str, Benchmark] = {
    "amber": Benchmark(
        files={"generative": "query_generative.json", "discriminative": "query_discriminative.json"},
        source="https://github.com/junyangwang0410/AMBER (folder data/query, Apache-2.0)",
        pictures="the archive that the README of https://github.com/junyangwang0410/AMBER links, into a folder image",
        question="query",
        row=_named("id"),
        picture=lambda row: row["image"],
        behind={"discriminative": "Answer with one word, Yes or No."},
    ),
    "chair": Benchmark(
        files={},
        source="",
        pictures=COCO_PICTURES,
        question="Please describe this image in detail.",
        row=_named("image_id"),
        picture=lambda row: row["image"],
    ),
    "objhal": Benchmark(
        files={"": "obj_halbench_300_with_image.jsonl"},
        source="https://github.com/RLHF-V/RLAIF-V (folder eval/data, CC BY-NC 4.0, for research)",
        pictures="",
        question="question",
        row=_of_objhal,
        picture=_embedded,
    ),
    "pope": Benchmark(
        files={name: f"coco_pope_{name}.json" for name in ("random", "popular", "adversarial")},
        source="https://github.com/AoiDragon/POPE (folder output/coco, MIT)",
        pictures=COCO_PICTURES,
        question="text",
        row=_named("question_id"),
        picture=lambda row: row["image"],
        apart=True,
    ),
    "mmhal": Benchmark(
        files={"": SCORED["mmhal"].FILE},
        source=SCORED["mmhal"].SOURCE,
        pictures="the same data set (of OpenImages, CC BY 2.0), into a folder images",
        question="question",
        row=lambda row, where: {"id": SCORED["mmhal"].name(row, where)},
        picture=lambda row: PurePosixPath(str(row["image_src"])).name,
    ),
    "hallusionbench": Benchmark(
        files={"": SCORED["hallusionbench"].FILE},
        source=SCORED["hallusionbench"].SOURCE,
        pictures="hallusion_bench.zip, which the README there links",
        question="question",
        row=lambda row, where: {"id": SCORED["hallusionbench"].name(row, where)},
        picture=_of_hallusionbench,
    ),
}


def read_prompts(
    name: str, folder: Path, parts: Sequence[str] = (), question: str | None = None, behind: str | None = None
) -> list[Prompt]:
    """The questions of a benchmark, in the order of its files.

    Args:
        name: of the benchmark.
        folder: with the files that it is published in.
        parts: only these; all when empty.
        question: asked in place of every question.
        behind: words behind every question, in place of those of the benchmark.

    Raises:
        ValueError: what is missing and where to get it, or what cannot be read.
    """
    benchmark = BENCHMARKS[name]
    unknown = [part for part in parts if part not in benchmark.files]
    if unknown:
        there = ", ".join(filter(None, benchmark.files))
        raise ValueError(
            f"{name} has no part {unknown[0]!r}{f'; it has {there}' if there else ' and no parts at all'}"
        )
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; get {needed(name)}")
    asked = []
    if not benchmark.files:
        asked = [
            ("", {"image_id": own, "image": path}, str(path))
            for own, path in coco_pictures(folder, benchmark.pictures)
        ]
    for part, file in question_files(name, folder, parts).items():
        asked += [(part, row, where) for where, row in read_rows(file)]
    if not asked:
        raise ValueError(f"the files of {name} in {folder} hold no questions")
    pictures = Pictures(folder)
    found = [_prompt(benchmark, part, row, where, pictures, question, behind) for part, row, where in asked]
    if pictures.missing:
        total = len(pictures.missing) + len(pictures.found)
        raise ValueError(
            f"{folder} lacks {len(pictures.missing):,} of the {total:,} pictures of {name}, the first of them "
            f"{next(iter(pictures.missing))}; get them from {benchmark.pictures}"
        )
    return found


def needed(name: str) -> str:
    """What the folder of a benchmark must hold, from where and under which licence."""
    own = BENCHMARKS[name]
    questions = f"{', '.join(own.files.values())} of {own.source}" if own.files else ""
    pictures = f"its pictures: {own.pictures}" if own.pictures else ""
    return "; ".join(filter(None, (questions, pictures)))


def question_files(name: str, folder: Path, parts: Sequence[str] = ()) -> dict[str, Path]:
    """The files of the questions of these parts, of all when there are none.

    Raises:
        ValueError: which are missing, and where to get them.
    """
    benchmark, found, missing = BENCHMARKS[name], {}, []
    for part, file in benchmark.files.items():
        if not parts or part in parts:
            path = next((folder / own / file for own in FOLDERS if (folder / own / file).is_file()), None)
            if path is None:
                missing.append(file)
            else:
                found[part] = path
    if missing:
        there = f", or ask only what is there: --parts {' '.join(found)}" if found else ""
        raise ValueError(f"{folder} has no {', no '.join(missing)}; get that from {benchmark.source}{there}")
    return found


def _prompt(
    benchmark: Benchmark,
    part: str,
    row: Row,
    where: str,
    pictures: Pictures,
    question: str | None,
    behind: str | None,
) -> Prompt:
    text = question or (row.get(benchmark.question) if benchmark.files else benchmark.question)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: {benchmark.question!r} is {shown(text)}; expected a question")
    try:
        picture = benchmark.picture(row)
    except (KeyError, ValueError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{where}: {said}") from None
    if not isinstance(picture, str | bytes | Path | None):
        raise ValueError(f"{where}: the picture is {shown(picture)}; expected the name of its file")
    more = benchmark.behind.get(part) if behind is None else behind
    messages = one_turn(f"{text}\n{more}" if more else text, int(picture is not None))
    own = pictures.of(picture, where)
    return Prompt(benchmark.row(row, where), messages, lambda: own, part)


def spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """At most this many, from every part alike, evenly spread over its order."""
    parts = list(dict.fromkeys(prompt.part for prompt in prompts))
    found: list[Prompt] = []
    for number, part in enumerate(parts):
        own = [prompt for prompt in prompts if prompt.part == part]
        room = (count - len(found)) // (len(parts) - number)
        taken = min(room, len(own))
        found += [own[place * len(own) // taken] for place in range(taken)]
    return found
