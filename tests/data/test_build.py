"""`mfpo build` from source to training: the same rows however it runs, bad rows named, nothing lost by a kill."""

import errno
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import MISSING, fields
from pathlib import Path

import launches
import numpy as np
import pyarrow.parquet as pq
import pytest
import test_mirror
import tiny
from datasets import Dataset, Image, List, load_dataset
from test_grounding import save_dino, save_sam
from test_trainer import CPU

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl.cli import build_parser, main
from mfpo_trl.data.build import BuildOptions, Pipeline, run
from mfpo_trl.data.keywords.extraction import KeywordOptions, keywords, phrase_graph
from mfpo_trl.data.keywords.phrases import candidates
from mfpo_trl.data.writing import parts as parts_module
from mfpo_trl.data.writing.report import kind, show
from mfpo_trl.demo.pairs import preference_row
from mfpo_trl.demo.scenes import make_scenes
from mfpo_trl.images.regions import decode_rle, region_mask
from mfpo_trl.rows.schema import to_rgb

CAPTION = "A red car stands beside a tall tree, and two dogs lie on the grass."


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Forty pairs as JSON lines with pictures in files, every fifth with boxes of its own."""
    folder = tmp_path_factory.mktemp("source")
    with (folder / "rows.jsonl").open("w") as file:
        for n in range(40):
            tiny.picture(n, 60 + n % 3, 50).save(folder / f"{n}.jpg", quality=90)
            row = {
                "id": f"pair {n}",
                "image": f"{n}.jpg",
                "prompt": "What is here?",
                "chosen": CAPTION,
                "rejected": "A cat.",
            }
            if n % 5 == 0:
                row["key_regions"] = [[5, 5, 25, 20]]
            file.write(json.dumps(row) + "\n")
    return folder / "rows.jsonl"


def options(source: Path, output: Path, **changes) -> BuildOptions:
    settings = {"grounder": "random", "difficulty": "mask-area", "part_rows": 8, "progress": False, **changes}
    return BuildOptions(dataset=str(source), output=output, **settings)


def contents(folder: Path) -> dict[str, str]:
    """A digest of every part file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("data/*.parquet"))}


@pytest.fixture(scope="module")
def built(source, tmp_path_factory) -> Path:
    return run(options(source, tmp_path_factory.mktemp("built") / "set", materialize=True))


def test_rows_of_a_built_data_set(source, built):
    data = load_dataset(str(built), split="train").cast_column("images", List(Image(decode=False)))
    assert len(data) == 40 and len(contents(built)) == 5
    for n, row in enumerate(data):
        assert row["id"] == f"pair {n}" and row["grounded"]
        assert row["images"][0]["bytes"] == (source.parent / f"{n}.jpg").read_bytes()
        assert row["keywords"][:2] == ["tall tree", "dogs"]
        original, changed = (np.asarray(to_rgb(row[name][0])) for name in ("images", "rejected_images"))
        mask = decode_rle(row["key_regions"][0][0]["rle"])
        assert (original == changed)[~mask].all() and not (original == changed)[mask].all()
        if n % 5 == 0:
            expected = np.zeros_like(mask)
            expected[5:20, 5:25] = True
            assert (mask == expected).all()
        assert row["difficulty"] == pytest.approx(1 - mask.mean())
        assert json.loads(row["corruption"]) == {
            "corruption": "diffusion",
            "kwargs": {"step": 500, "schedule": "vcd_sigmoid", "resolution": 336},
            "region": "key",
            "seed": 0,
        }
    order = np.argsort(data[:]["difficulty"], kind="stable")
    assert [data[:]["stage"][n] for n in order] == [0] * 14 + [1] * 13 + [2] * 13


def test_a_built_data_set_trains_as_it_is(built, tmp_path):
    """With its stored dispreferred images, and with those that the collator makes by its recipes."""
    data = load_dataset(str(built), split="train")
    losses = []
    for rows in (data, data.remove_columns("rejected_images")):
        args = MFPOConfig(output_dir=str(tmp_path), **{**CPU, "max_steps": 2})
        trainer = MFPOTrainer(tiny.model(1), tiny.model(), args, train_dataset=rows, processing_class=tiny.processor())
        trainer.train()
        losses.append([line["loss/image"] for line in trainer.state.log_history if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and len(losses[0]) == 2


def test_the_demos_world_goes_through_it(tmp_path):
    """Its renderer's boxes through `column`: the same regions and dispreferred images as the demo trains on."""
    scenes = make_scenes(6, seed=0, company=0.5)
    rows = [preference_row(scene, "a green star .") for scene in scenes]
    Dataset.from_list(rows).to_parquet(tmp_path / "pairs.parquet")
    own = options(tmp_path / "pairs.parquet", tmp_path / "set", grounder="column", materialize=True, resolution=48)
    data = load_dataset(str(run(own)), split="train")
    for row, scene in zip(data, scenes, strict=True):
        expected = region_mask([list(thing.box) for thing in scene.things], scene.image.height, scene.image.width)
        union = np.logical_or.reduce([decode_rle(region["rle"]) for region in row["key_regions"][0]])
        original, changed = (np.asarray(to_rgb(row[name][0])) for name in ("images", "rejected_images"))
        assert (union == expected).all() and (original == np.asarray(scene.image)).all()
        assert (original == changed)[~expected].all() and not (original == changed)[expected].all()


def test_many_processes_and_ray_build_the_same_bytes(source, built, tmp_path):
    for engine in ("local", "ray"):
        own = options(source, tmp_path / engine, materialize=True, num_proc=2, engine=engine)
        assert contents(run(own)) == contents(built)
    # Ray is up now. Twins as well, whose objects are those of other rows.
    path = test_mirror.source(tmp_path)
    twins = [
        run(test_mirror.options(path, tmp_path / f"twins {engine}", mirror_editor="transplant", engine=engine))
        for engine in ("local", "ray")
    ]
    assert contents(twins[0]) == contents(twins[1]) and len(load_dataset(str(twins[0]), split="train")) == 24


def test_shards_and_ranks_build_the_same_bytes(source, built, tmp_path, capsys):
    """Two jobs of an array, the second of them with two ranks."""
    arguments = ["build", f"--dataset={source}", "--grounder=random", "--difficulty=mask-area", "--part-rows=8"]
    arguments += ["--materialize", f"--output={tmp_path / 'set'}", "--shards=2"]
    assert main([*arguments, "--shard-index=0"]) == 0
    assert "belong to other shards" in capsys.readouterr().out and not contents(tmp_path / "set")
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--num_processes=2",
        "--cpu",
        "--num_machines=1",
        "--mixed_precision=no",
    ]
    command = [*launch, "--dynamo_backend=no", "-m", "mfpo_trl.cli", *arguments, "--shard-index=1"]
    (done,) = launches.run_warm(command)
    assert done.returncode == 0, done.stderr[-2000:]
    assert contents(tmp_path / "set") == contents(built)


def test_a_killed_build_goes_on(source, built, tmp_path):
    """Killed after its second part; the finished parts are not touched, the others come out as ever."""
    command = [sys.executable, "-m", "mfpo_trl.cli", "build", f"--dataset={source}", "--grounder=random"]
    command += ["--difficulty=mask-area", "--part-rows=8", "--materialize", f"--output={tmp_path / 'set'}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    work = tmp_path / "set" / "build"
    while len(list(work.glob("part-*.json"))) < 2 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = list(work.glob("part-*.json"))
    pipeline = Pipeline(options(source, tmp_path / "set", materialize=True))
    assert not contents(tmp_path / "set") and set(pipeline.parts.missing()) == set(range(5)) - set(range(len(before)))
    (done,) = launches.run_warm(command[1:])
    assert done.returncode == 0
    assert contents(tmp_path / "set") == contents(built) and len(before) >= 2


def test_a_killed_end_leaves_nothing_in_the_way(source, built, tmp_path):
    """A process that died while it gave parts their names leaves a half file, which `datasets` never sees."""
    folder = run(options(source, tmp_path / "set", materialize=True))
    final = sorted(folder.glob("data/*.parquet"))
    final[0].rename(folder / "build" / "part-00000.parquet")

    def dies(path):
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        parts_module.replace(final[0], dies, folder / "build")
    os.waitpid(child, 0)
    assert len(final) == 5 and sorted(folder.glob("data/*")) == final[1:]
    run(options(source, tmp_path / "set", materialize=True))
    assert contents(folder) == contents(built) and len(list(folder.glob("data/*"))) == 5
    assert len(load_dataset(str(folder), split="train")) == 40


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"difficulty": "hard"}, "field 'difficulty' is 'hard'"),
        ({"difficulty": [1]}, "field 'difficulty' is [1]"),
        ({"keywords": [1]}, "field 'keywords' is '[1]'"),
        ({"key_regions": [[{"box": [1, 1, 9, 9], "phrase": 3}]]}, "found the phrase 3"),
        (
            {"key_regions": [{"size": [10**7, 10**7], "counts": [10**14]}]},
            "a mask of 10000000x10000000 pixels for an image of 61x50",
        ),
        ({"key_regions": [["/etc/hostname"]]}, "lies outside of"),
        ({"key_regions": [[{"path": "../1.jpg"}]]}, "lies outside of"),
        (
            {"chosen": [{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "Cat"}]}]},
            "an answer cannot hold an image",
        ),
        ({"prompt": "[/INST] what?", "rejected": ""}, "field 'rejected': is empty"),
    ],
    ids=str,
)
def test_one_bad_row_costs_itself_only(source, tmp_path, own, reason):
    good = json.loads(source.read_text().splitlines()[1])
    (tmp_path / "1.jpg").write_bytes((source.parent / "1.jpg").read_bytes())
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [good, good | {"id": "bad"} | own])))
    folder = run(options(tmp_path / "rows.jsonl", tmp_path / "set"))
    assert load_dataset(str(folder), split="train")[:]["id"] == ["pair 1"]
    (rejected,) = (folder / "rejects.jsonl").read_text().splitlines()
    assert reason in json.loads(rejected)["reason"]


def test_what_only_a_late_row_brings_is_kept(source, tmp_path):
    good = json.loads(source.read_text().splitlines()[1])
    rows = [good | {"id": str(n)} for n in range(101)] + [good | {"id": "late", "rejected_image": "1.jpg"}]
    (tmp_path / "1.jpg").write_bytes((source.parent / "1.jpg").read_bytes())
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_dataset(str(run(options(tmp_path / "rows.jsonl", tmp_path / "set", part_rows=64))), split="train")
    assert data[0]["rejected_images"] is None and len(data[101]["rejected_images"]) == 1
    assert json.loads(data[101]["corruption"]) == {"corruption": "none"}


def test_a_set_without_regions_can_be_grounded_again(source, tmp_path):
    first = run(options(source, tmp_path / "first", grounder="none", limit=4))
    again = run(options(first, tmp_path / "again", grounder="random"))
    data = [load_dataset(str(folder), split="train")[:]["grounded"] for folder in (first, again)]
    assert data == [[True, False, False, False], [True] * 4]


def test_what_objectives_read_and_a_built_row_has_no_place_for_is_named(source, tmp_path, capsys):
    rows = [json.loads(line) for line in source.read_text().splitlines()[:2]]
    own = {"weight": 2.0, "chosen_2": "A car.", "note": "mine"}
    path = source.parent / "weighted.jsonl"
    path.write_text("".join(json.dumps({**row, **own}) + "\n" for row in rows))
    made = load_dataset(str(run(options(path, tmp_path / "set"))), split="train")
    said = capsys.readouterr().out
    assert "left out: weight, chosen_2; add them to the built rows again" in said
    assert not set(own) & set(made.column_names)
    run(options(source, tmp_path / "other"))
    assert "left out" not in capsys.readouterr().out


def test_another_build_in_the_same_folder_is_refused(source, built, capsys):
    arguments = ["build", f"--dataset={source}", "--grounder=random", "--difficulty=mask-area", "--part-rows=8"]
    assert main([*arguments, "--materialize", f"--output={built}", "--step=700"]) == 1
    assert "step was 500, is 700" in capsys.readouterr().err
    before = contents(built)
    assert main([*arguments, "--materialize", f"--output={built}"]) == 0
    assert "0 of 5 parts to build" in capsys.readouterr().out and contents(built) == before


def test_bad_rows_are_set_aside_and_named(source, tmp_path):
    good = json.loads(source.read_text().splitlines()[1]) | {"image": str(source.parent / "1.jpg")}
    (tmp_path / "broken.jpg").write_bytes((source.parent / "1.jpg").read_bytes()[:200])
    (tmp_path / "1.jpg").write_bytes((source.parent / "1.jpg").read_bytes())
    good["image"] = "1.jpg"
    bad = [
        (good | {"image": "nowhere.jpg"}, "'nowhere.jpg' is not a file in"),
        (good | {"image": "https://example.org/1.jpg"}, "is a URL; download the images first"),
        (good | {"image": "../1.jpg"}, "lies outside of"),
        (good | {"image": "broken.jpg"}, "image 0 cannot be read"),
        (good | {"prompt": "<image> and <image>"}, "has 2 place(s) for an image, and the row has 1 image(s)"),
        (good | {"rejected": " "}, "field 'rejected': is empty"),
        (good | {"chosen": "<image> of a dog"}, "holds an image or '<image>'"),
        (good | {"prompt": ""}, "field 'prompt' is empty"),
        (good | {"key_regions": [[900, 900, 950, 950]]}, "lies outside the image of 61x50 pixels"),
        ("{not JSON", "the line is not JSON"),
    ]
    kept = [good, good | {"chosen": "两只狗躺在草地上。"}, good | {"prompt": "<image>\nWhat?"}]
    lines = [row if isinstance(row, str) else json.dumps(row) for row in [*(own for own, _ in bad), *kept]]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    folder = run(options(tmp_path / "rows.jsonl", tmp_path / "set"))
    rejects = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    assert [one["row"] for one in rejects] == list(range(len(bad)))
    for one, (_, reason) in zip(rejects, bad, strict=True):
        assert reason in one["reason"]
    data = load_dataset(str(folder), split="train")
    assert data[:]["id"] == ["pair 1#10", "pair 1#11", "pair 1#12"]  # nine rows before them have the same id
    assert data[:]["keywords"][1] == [] and data[:]["grounded"] == [True] * 3
    report = json.loads((folder / "report.json").read_text())
    assert (report["rows_in"], report["rows_out"], report["rejected"]) == (13, 3, 10)


def test_where_nothing_grounds_the_whole_image_is_corrupted_and_marked(source, tmp_path):
    folder = run(options(source, tmp_path / "set", grounder="column", materialize=True, limit=2))
    data = load_dataset(str(folder), split="train")
    assert data[:]["grounded"] == [True, False] and data[:]["key_regions"][1] == [[]]
    assert json.loads(data[:]["corruption"][1])["region"] == "global"
    original, changed = (np.asarray(to_rgb(data[1][name][0])).astype(int) for name in ("images", "rejected_images"))
    assert (original != changed).any(axis=-1).mean() > 0.95
    assert json.loads((folder / "report.json").read_text())["grounding_failure_rate"] == 0.5


def test_a_full_disk_leaves_no_half_part(source, tmp_path, monkeypatch, capsys):
    def full(table, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    assert main(["build", f"--dataset={source}", "--grounder=random", f"--output={tmp_path / 'set'}"]) == 1
    assert "the disk is full; part-00000.parquet was not written" in capsys.readouterr().err
    assert not list((tmp_path / "set").rglob("*.parquet*"))


def test_difficulty_by_a_model_and_a_stage_for_every_row(source, tmp_path):
    model = tiny.save_pretrained(tmp_path / "model")
    folder = run(options(source, tmp_path / "set", difficulty=None, model=str(model), limit=6))
    data = load_dataset(str(folder), split="train")
    assert sorted(data[:]["stage"]) == [0, 0, 1, 1, 2, 2] and all(3 < value < 9 for value in data[:]["difficulty"])


def test_semantic_entropy_from_the_command_line(source, tmp_path):
    """With two stages; every drawn answer of a random model is a cluster of its own."""
    model = tiny.save_pretrained(tmp_path / "model")
    arguments = [
        f"--dataset={source}",
        f"--output={tmp_path / 'set'}",
        "--grounder=none",
        "--limit=2",
        f"--model={model}",
    ]
    assert main(["build", *arguments, "--difficulty=semantic-entropy", "--samples=4", "--stages=2"]) == 0
    data = load_dataset(str(tmp_path / "set"), split="train")[:]
    assert data["difficulty"] == pytest.approx([math.log(4)] * 2) and data["stage"] == [0, 1]


def test_recipes_and_their_mistakes(source, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"dataset: {source}\ngrounder: random\nmaterialize: true\nlimit: 3\ntop-k: 1\n")
    assert main(["build", f"--config={recipe}", f"--output={tmp_path / 'set'}", "--limit=2"]) == 0
    data = load_dataset(str(tmp_path / "set"), split="train")
    assert (
        len(data) == 2 and all(len(words) == 1 for words in data[:]["keywords"]) and "rejected_images" in data.features
    )
    for text, problem in (
        ("grouder: random", "unknown key 'grouder', did you mean 'grounder'?"),
        ("- a\n- b", "holds a list"),
        ("a: [", "cannot be read"),
    ):
        recipe.write_text(text)
        assert main(["build", f"--config={recipe}"]) == 1
        assert problem in capsys.readouterr().err
    for arguments, problem in (
        ([], "--dataset is missing"),
        ([f"--dataset={source}", f"--output={tmp_path}", "--grounder=ransom"], "random"),
        ([f"--dataset={tmp_path / 'none.jsonl'}", f"--output={tmp_path}"], "cannot be loaded"),
        ([f"--dataset={source}", f"--output={tmp_path / 'x'}", "--schedule=cosin"], "cosine"),
        ([f"--dataset={source}", f"--output={tmp_path / 'x'}", "--shards=2", "--shard-index=2"], "count from 0"),
        (
            [f"--dataset={source}", f"--output={tmp_path / 'x'}", "--difficulty=nll"],
            "needs a model that measures it: --model",
        ),
        (
            [f"--dataset={source}", f"--output={tmp_path / 'x'}", "--difficulty=hard"],
            "'hard' is unknown; expected nll",
        ),
    ):
        assert main(["build", *arguments]) == 1
        assert problem in capsys.readouterr().err


def test_reasons_are_counted_without_what_is_particular():
    reasons = ["field 'images': '/a/b 1.jpg' is not a file in /x", "field 'images': '/c/d.jpg' is not a file in /x"]
    assert len({kind(reason) for reason in reasons}) == 1
    reasons = [f"field 'images': the file '{name}' is empty (0 bytes)" for name in ("a.png", "b/c.png")]
    assert len({kind(reason) for reason in reasons}) == 1
    reasons = [f"a row (prompt {text!r}), field 'rejected': is empty" for text in ("what's this", "why, field 'x'?")]
    assert {kind(reason) for reason in [*reasons, "row 3, field 'rejected': is empty"]} == {
        "field 'rejected': is empty"
    }


def test_the_card_says_what_was_built(built):
    card = (built / "README.md").read_text()
    assert "| rows | 40, 40 of them with images |" in card
    assert "only in rectangles drawn at random, a control for key regions, built by" in card
    assert str(built) not in card and "/rows.jsonl" not in card and "jiang2025modality" in card


def test_stages_need_every_part(source, tmp_path):
    pipeline = Pipeline(options(source, tmp_path / "set"))
    assert pipeline.parts.missing() == [0, 1, 2, 3, 4]
    pipeline.build(3)
    assert pipeline.parts.missing() == [0, 1, 2, 4]
    assert parts_module.WORK == "build" and not (tmp_path / "set" / "data").exists()


def test_the_defaults_of_the_command_are_those_of_the_options():
    parsed = vars(build_parser().parse_args(["build", "--dataset=x", "--output=y"]))
    for kind_ in (BuildOptions, KeywordOptions):
        for own in fields(kind_):
            if own.name in parsed and own.default is not MISSING:
                assert parsed[own.name] == own.default, own.name
    assert {own.name for own in fields(KeywordOptions)} <= set(parsed)


def test_a_grounder_that_is_there_tells_which_words_are_alike(source, tmp_path):
    """With vectors from the grounder's text encoder the ranking is that of `keywords` with the same vectors."""
    weights = {"grounder_model": save_dino(tmp_path / "dino"), "segmenter_model": save_sam(tmp_path / "sam")}
    own = options(source, tmp_path / "set", grounder="grounding-dino-sam", limit=1, difficulty="none", **weights)
    words = load_dataset(str(run(own)), split="train")[0]["keywords"]
    stage = Pipeline(own).stages["keywords"]
    assert words == [word.phrase for word in keywords(CAPTION, stage.options, stage.vectors)]
    plain, alike = (
        phrase_graph(candidates(CAPTION), stage.options, own).size(weight="weight") for own in (None, stage.vectors)
    )
    assert alike > plain > 0


def test_a_second_run_keeps_the_time_of_the_first(source, tmp_path, capsys):
    own = options(source, tmp_path / "set", grounder="none", limit=4)
    report = run(own) / "report.json"
    first = json.loads(report.read_text())
    assert first["wall_seconds"] > 0 and first["grounding_failure_rate"] is None and not first["warnings"]
    assert "nothing was grounded" in " ".join(capsys.readouterr().out.split())
    run(own)
    assert json.loads(report.read_text()) == first


def test_rejected_rows_say_why_where_there_are_no_others(tmp_path, capsys):
    """The commonest of their reasons, and how many have it."""
    bad = [{"prompt": "what?", "chosen": "a", "rejected": ""}] * 2 + [
        {"prompt": "what?", "chosen": "", "rejected": "a"}
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in bad))
    assert (
        main(["build", f"--dataset={tmp_path / 'rows.jsonl'}", f"--output={tmp_path / 'set'}", "--grounder=none"]) == 1
    )
    said = capsys.readouterr().err
    assert "every row was rejected, 2 of 3 because: field 'rejected': is empty" in said and "rejects.jsonl" in said
    assert "the first" not in said


def test_of_missing_images_one_is_named(tmp_path, capsys):
    """The path that was looked for; and a root that is no folder costs no build."""
    rows, out = tmp_path / "rows.jsonl", tmp_path / "set"
    rows.write_text(
        "".join(f'{{"image": "img/{n}.png", "prompt": "what?", "chosen": "a", "rejected": "b"}}\n' for n in "01")
    )
    argv = ["build", f"--dataset={rows}", f"--output={out}", "--grounder=none"]
    assert main([*argv, f"--image-root={tmp_path / 'img'}"]) == 1 and not out.exists()
    assert "must be a folder, and is not there" in capsys.readouterr().err
    assert main(argv) == 1
    said = capsys.readouterr().err
    assert f"the first: row 0, field 'images': 'img/0.png' is not a file in '{tmp_path}'; see --image-root" in said


def test_the_table_fits_a_terminal(capsys, monkeypatch):
    """Of eighty columns, with every quantile at its longest on a line of its own."""
    monkeypatch.setenv("COLUMNS", "80")
    counts = dict.fromkeys(("rows_in", "rows_out", "with_images", "rejected", "equal_answers", "keywords_per_row"), 1)
    quantiles = {f"{n}%": 1.0 for n in (5, 25, 50, 75, 95)}
    show(
        {**counts, "mask_area_quantiles": quantiles, "rejected_by_reason": {}, "grounding_failure_rate": 0.5}
        | {"seconds_per_stage": {}, "warnings": []},
        Path("set"),
    )
    lines = capsys.readouterr().out.splitlines()
    for name in quantiles:
        assert any(f"{name:>3} of them at most 100.0% of the image" in line for line in lines)


def test_weights_that_are_not_there_are_named(source, tmp_path, capsys):
    arguments = [f"--dataset={source}", f"--output={tmp_path / 'set'}", f"--grounder-model={tmp_path / 'none'}"]
    assert main(["build", *arguments]) == 1
    said = capsys.readouterr().err
    assert "none' cannot be loaded; --grounder-model and --segmenter-model name others" in said
    assert all(f"--grounder {name}" in said for name in ("clipseg", "column", "random"))
