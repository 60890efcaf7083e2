"""What benchmarks ask: the files as they are published, rows that `mfpo score` reads, and where to get what is missing."""

import base64
import io
import json
import os
from pathlib import Path

import pytest
import tiny

from mfpo_trl.evaluation import main as score
from mfpo_trl.evaluation.generation.command import build_parser, read, run_generate, told
from mfpo_trl.evaluation.generation.generate import opened
from mfpo_trl.evaluation.generation.kept import Kept
from mfpo_trl.evaluation.generation.prompts import BENCHMARKS, read_prompts, spread

REAL = os.environ.get("MFPO_BENCHMARKS", "")
real = pytest.mark.skipif(not REAL, reason="MFPO_BENCHMARKS names the folder with the benchmarks' files")


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny.picture(1).save(path)


def as_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def amber(folder):
    for n in (1, 2):
        picture(folder / "image" / f"AMBER_{n}.jpg")
    asked = {
        "generative": [(1, "Describe this image."), (2, "Describe this image.")],
        "discriminative": [(1005, "Is it sunny?")],
    }
    (folder / "data" / "query").mkdir(parents=True)
    for part, rows in asked.items():
        content = [{"id": own, "image": f"AMBER_{1 + own % 2}.jpg", "query": text} for own, text in rows]
        (folder / "data" / "query" / f"query_{part}.json").write_text(json.dumps(content))
    truth = [{"id": own, "type": "generative", "truth": ["sky"], "hallu": ["cloud"]} for own in (1, 2)]
    truth += [{"id": 1005, "type": "discriminative-attribute-state", "truth": "yes"}]
    (folder / "data" / "annotations.json").write_text(json.dumps(truth))
    (folder / "data" / "relation.json").write_text('{"sky": [], "cloud": []}')
    (folder / "data" / "safe_words.txt").write_text("line\n")


def coco(folder):
    for n in (42, 139):
        picture(folder / "val2014" / f"COCO_val2014_{n:012d}.jpg")
    (folder / "ground_truth.json").write_text('{"139": ["dog"], "42": []}')


def objhal(folder):
    coco(folder)
    held = io.BytesIO()
    tiny.picture(2).save(held, "JPEG")
    image = base64.b64encode(held.getvalue()).decode()
    rows = [{"image_id": n, "question": f"Describe {n}.", "image": image, "org_idx": n} for n in (139, 42)]
    (folder / "obj_halbench_300_with_image.jsonl").write_text(as_lines(rows))


def pope(folder):
    picture(folder / "val2014" / "COCO_val2014_000000000042.jpg")
    (folder / "output" / "coco").mkdir(parents=True)
    for part in ("random", "popular", "adversarial"):
        row = {"image": "COCO_val2014_000000000042.jpg", "text": "Is there a dog in the image?", "label": "yes"}
        content = as_lines({"question_id": n, **row} for n in (1, 2))
        (folder / "output" / "coco" / f"coco_pope_{part}.json").write_text(content)


def mmhal(folder):
    picture(folder / "images" / "123_abc_o.jpg")
    row = {"question_type": "attribute", "image_id": "ab", "image_src": "https://c2.flickr.com/1/123_abc_o.jpg"}
    row |= {"image_content": ["dog"], "question": "What?", "gt_answer": "A dog.", "model_answer": ""}
    (folder / "response_template.json").write_text(json.dumps([row]))


def hallusionbench(folder):
    picture(folder / "hallusion_bench" / "VS" / "chart" / "0_1.png")
    row = {
        "category": "VS",
        "subcategory": "chart",
        "set_id": "0",
        "question_id": "0",
        "question": "Is it?",
        "gt_answer": "1",
    }
    shown = {"visual_input": "1", "figure_id": "1", "filename": "./hallusion_bench/VS/chart/0_1.png"}
    rows = [{**row, "visual_input": "0", "figure_id": "0", "filename": None}, {**row, **shown}]
    (folder / "HallusionBench.json").write_text(json.dumps(rows))


MADE = {
    "amber": amber,
    "chair": coco,
    "objhal": objhal,
    "pope": pope,
    "mmhal": mmhal,
    "hallusionbench": hallusionbench,
}

ROWS = {
    "amber": [{"id": 1}, {"id": 2}, {"id": 1005}],
    "chair": [{"image_id": 139}, {"image_id": 42}],
    "objhal": [{"image_id": 139, "prompt": "Describe 139."}, {"image_id": 42, "prompt": "Describe 42."}],
    "pope": [{"question_id": 1}, {"question_id": 2}] * 3,
    "mmhal": [{"id": "ab"}],
    "hallusionbench": [{"id": "VS_chart_0_0_0"}, {"id": "VS_chart_0_1_0"}],
}
LAST = {
    "amber": "Is it sunny?\nAnswer with one word, Yes or No.",
    "chair": "Please describe this image in detail.",
    "objhal": "Describe 42.",
    "pope": "Is there a dog in the image?",
    "mmhal": "What?",
    "hallusionbench": "Is it?",
}
NEEDS_A_JUDGE = {"mmhal"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    for name, make in MADE.items():
        (folder / name).mkdir()
        make(folder / name)
    return folder


@pytest.mark.parametrize("name", BENCHMARKS)
def test_rows_and_questions(name, folder):
    prompts = read_prompts(name, folder / name)
    assert [prompt.row for prompt in prompts] == ROWS[name]
    assert prompts[-1].text == LAST[name]
    shown = [len(prompt.pictures()) for prompt in prompts]
    assert (
        shown == [prompt.shown for prompt in prompts] == ([0, 1] if name == "hallusionbench" else [1] * len(prompts))
    )
    assert all(own.mode == "RGB" for prompt in prompts for own in opened(prompt))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_score_reads_what_is_written(name, folder, tmp_path, capsys):
    """By the command that is said in the end."""
    args = build_parser().parse_args(
        [
            "--benchmark",
            name,
            "--data",
            str(folder / name),
            "--model",
            "m",
            "--output",
            str(tmp_path / "answers.jsonl"),
        ]
    )
    prompts = read(args)
    kept = Kept(args.output, prompts, BENCHMARKS[name].apart)
    kept.begin({}, {})
    assert kept.pending() == prompts
    kept.add((prompt, "Yes") for prompt in reversed(prompts))
    kept.finish()
    (command,) = [line for line in told(args, kept, 1, 1).splitlines() if line.startswith("Score them: mfpo score ")]
    (tmp_path / "verdicts.jsonl").write_text('{"judge": "j", "prompt": "p", "answer": "a", "verdict": "rating: 3"}\n')
    more = ["--verdicts", str(tmp_path / "verdicts.jsonl"), "--judge-model", "j"] if name in NEEDS_A_JUDGE else []
    status = score([*command.removeprefix("Score them: mfpo score ").split(), *more])
    said = capsys.readouterr()
    if more:
        assert "1 of 1 answers, the first of them ab, have no verdict of j" in said.err
    else:
        assert status == 0, said.err
        assert "without an answer" not in said.out


def test_parts(folder, tmp_path):
    assert [prompt.row["id"] for prompt in read_prompts("amber", folder / "amber", ["generative"])] == [1, 2]
    assert len(read_prompts("pope", folder / "pope", ["popular", "random"])) == 4
    prompts = read_prompts("pope", folder / "pope")
    assert sorted(path.name for path in Kept(tmp_path / "a.jsonl", prompts, apart=True).order) == [
        "a-adversarial.jsonl",
        "a-popular.jsonl",
        "a-random.jsonl",
    ]
    one = read_prompts("pope", folder / "pope", ["popular"])
    assert [path.name for path in Kept(tmp_path / "a.jsonl", one, apart=True).order] == ["a.jsonl"]
    with pytest.raises(ValueError, match="amber has no part 'all'; it has generative, discriminative"):
        read_prompts("amber", folder / "amber", ["all"])


def test_another_question_and_words_behind_it(folder):
    prompts = read_prompts("amber", folder / "amber", question="What is this?", behind="")
    assert {prompt.text for prompt in prompts} == {"What is this?"}


def test_rows_are_spread_over_the_parts(folder):
    prompts = read_prompts("pope", folder / "pope")
    assert [(own.part, own.row["question_id"]) for own in spread(prompts, 3)] == [
        (part, 1) for part in ("random", "popular", "adversarial")
    ]
    assert spread(prompts, 100) == prompts and len(spread(prompts, 5)) == 5
    assert [own.row["id"] for own in spread(read_prompts("amber", folder / "amber"), 2)] == [1, 1005]


# Missing

WITHOUT = {
    "amber": (
        "data/query/query_discriminative.json",
        "https://github.com/junyangwang0410/AMBER (folder data/query, Apache-2.0), or ask",
    ),
    "objhal": (
        "obj_halbench_300_with_image.jsonl",
        "https://github.com/RLHF-V/RLAIF-V (folder eval/data, CC BY-NC 4.0",
    ),
    "pope": (
        "output/coco/coco_pope_popular.json",
        "https://github.com/AoiDragon/POPE (folder output/coco, MIT), or ask",
    ),
    "mmhal": ("response_template.json", "https://huggingface.co/datasets/Shengcao1006/MMHal-Bench (Apache-2.0)"),
    "hallusionbench": ("HallusionBench.json", "https://github.com/tianyi-lab/HallusionBench (BSD-3-Clause)"),
}
BARE = {
    "amber": (
        "image/AMBER_1.jpg",
        "lacks 1 of the 2 pictures of amber, the first of them AMBER_1.jpg; get them from the archive",
    ),
    "chair": ("val2014/COCO_val2014_000000000042.jpg", "image 42: its file is named by that number"),
    "pope": ("val2014/COCO_val2014_000000000042.jpg", "get them from val2014.zip of http://images.cocodataset.org"),
    "mmhal": ("images/123_abc_o.jpg", "the first of them 123_abc_o.jpg; get them from the same data set"),
    "hallusionbench": ("hallusion_bench/VS/chart/0_1.png", "get them from hallusion_bench.zip"),
}


@pytest.mark.parametrize(
    ("name", "lost"), [*((name, own) for table in (WITHOUT, BARE) for name, own in table.items())]
)
def test_what_is_missing_is_told_with_its_source(name, lost, tmp_path):
    path, words = lost
    MADE[name](tmp_path)
    (tmp_path / path).unlink()
    with pytest.raises(ValueError) as error:
        read_prompts(name, tmp_path)
    assert words in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_no_folder_at_all(name, tmp_path, capsys):
    """Neither named, nor there: which files it needs, from where, under which licence."""
    for more in ([], ["--data", str(tmp_path / "nowhere")]):
        assert run_generate(["--benchmark", name, "--model", "m", "--output", str(tmp_path / "a.jsonl"), *more]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert all(
            own in said
            for own in (*BENCHMARKS[name].files.values(), BENCHMARKS[name].source, BENCHMARKS[name].pictures)
        )


@pytest.mark.parametrize(
    ("name", "file", "content", "words"),
    [
        (
            "amber",
            "data/query/query_generative.json",
            '[{"id": 1, "image": "AMBER_1.jpg"}]',
            "row 1: 'query' is missing",
        ),
        ("amber", "data/query/query_generative.json", '[{"id": 1, "query": "q"}]', "row 1: 'image' is missing"),
        (
            "amber",
            "data/query/query_generative.json",
            '[{"image": "AMBER_1.jpg", "query": "q"}]',
            "row 1: 'id' is missing",
        ),
        (
            "amber",
            "data/query/query_generative.json",
            '[{"id": 1, "image": "/etc/x", "query": "q"}]',
            "lies outside of",
        ),
        (
            "amber",
            "data/query/query_generative.json",
            '[{"id": 1, "image": 7, "query": "q"}]',
            "row 1: the picture is 7; expected the name of its file",
        ),
        ("mmhal", "response_template.json", "[]", "hold no questions"),
        ("pope", "output/coco/coco_pope_random.json", '{"question_id": 1', "line 1 is not JSON"),
        (
            "objhal",
            "obj_halbench_300_with_image.jsonl",
            '{"image_id": 1, "question": "q", "image": "é"}',
            "no picture in base64",
        ),
        ("chair", "ground_truth.json", '{"scene": ["dog"]}', "with numbers of images: 'scene'"),
        ("chair", "ground_truth.json", "[]", "is not {"),
    ],
)
def test_files_that_are_not_as_they_must_be(name, file, content, words, tmp_path):
    MADE[name](tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError) as error:
        read_prompts(name, tmp_path)
    assert words in str(error.value)


def test_all_pictures_where_no_file_names_them(tmp_path):
    coco(tmp_path)
    (tmp_path / "ground_truth.json").unlink()
    assert [prompt.row for prompt in read_prompts("chair", tmp_path)] == [{"image_id": 42}, {"image_id": 139}]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no pictures that are named by a number"):
        read_prompts("chair", tmp_path / "empty")


OPTIONS = {
    "name who answers": [],
    "name who answers:": ["--model", "m", "--endpoint", "http://x"],
    "needs --served-model": ["--endpoint", "http://x"],
    "are of a model that is loaded here": ["--endpoint", "http://x", "--served-model", "n", "--num-beams", "2"],
    "--batch-size is 0": ["--model", "m", "--batch-size", "0"],
    "--rows is -1": ["--model", "m", "--rows", "-1"],
    "max_new_tokens is 0": ["--model", "m", "--max-new-tokens", "0"],
    "is no address of a server": ["--endpoint", "localhost", "--served-model", "n"],
}


@pytest.mark.parametrize("words", OPTIONS)
def test_options_that_say_nothing(words, folder, tmp_path, capsys):
    asked = ["--benchmark", "amber", "--data", str(folder / "amber"), "--output", str(tmp_path / "a.jsonl")]
    assert run_generate([*asked, *OPTIONS[words]]) == 1
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


@real
def test_the_published_files(tmp_path):
    """Every question of AMBER, and the one split of POPE that is there; pictures stand for theirs."""
    bench = Path(REAL)
    for part in ("generative", "discriminative"):
        (tmp_path / f"query_{part}.json").symlink_to(bench / "amber" / f"query_{part}.json")
    (tmp_path / "image").mkdir()
    for n in range(1, 1005):
        (tmp_path / "image" / f"AMBER_{n}.jpg").touch()
    prompts = read_prompts("amber", tmp_path)
    assert len(prompts) == 1004 + 14216 and [own.row["id"] for own in prompts] == list(range(1, 15221))
    assert prompts[1004].text == "Is the sky sunny in this image?\nAnswer with one word, Yes or No."
    folder = bench / "pope"
    with pytest.raises(
        ValueError, match=r"no coco_pope_random.json, no coco_pope_popular.json; .*--parts adversarial"
    ):
        read_prompts("pope", folder)
    with pytest.raises(ValueError, match="lacks 500 of the 500 pictures of pope"):
        read_prompts("pope", folder, ["adversarial"])
