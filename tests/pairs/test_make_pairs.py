"""`mfpo pairs` from images and prompts to rows that train: true pairs, the same however they are made, nothing lost and nothing invented."""

import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import world
from datasets import Image, List, load_dataset
from peft import LoraConfig, get_peft_model
from stand_in_chat import KEY, StandInChat
from test_trainer import CPU
from transformers import AutoModelForImageTextToText

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl.cli import main
from mfpo_trl.data import Rejected
from mfpo_trl.data.build import run
from mfpo_trl.data.preview import preview
from mfpo_trl.demo.scoring import hallucinated, mentions
from mfpo_trl.endpoint import client
from mfpo_trl.evaluation.generation import Drawing
from mfpo_trl.images.regions import decode_rle
from mfpo_trl.pairs.asking import Asking, ReadPrompt, seeds_of
from mfpo_trl.pairs.options import SHIPPED, PairOptions
from mfpo_trl.pairs.pipeline import PairsPipeline
from mfpo_trl.pairs.policies import Loaded
from mfpo_trl.rows.schema import plain_text

COUNT, SAMPLES = 30, 6


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch):
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.05)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return folder / "world.parquet", world.write_world(folder / "world.parquet", COUNT)


@pytest.fixture(scope="module")
def server(scenes):
    with StandInChat(world.Captioner(scenes[1])) as own:
        yield own


def options(source: Path, output: Path, **changes) -> PairOptions:
    settings = {"samples": SAMPLES, "verifier": "labels", "part_rows": 8, "progress": False, **changes}
    return PairOptions(dataset=str(source), output=output, **settings)


def make(own: PairOptions) -> Path:
    return run(own, PairsPipeline)


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file of rows."""
    paths = sorted([*folder.glob("data/*.parquet"), *folder.glob("samples/*.parquet")])
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def rows_of(folder: Path):
    return load_dataset(str(folder), split="train").cast_column("images", List(Image(decode=False)))


def served(server, **changes):
    return {"endpoint": server.url, "served_model": "captioner", **changes}


@pytest.fixture(scope="module")
def made(scenes, server, tmp_path_factory) -> Path:
    return make(options(scenes[0], tmp_path_factory.mktemp("made") / "set", **served(server)))


def truly_better(rows, scenes) -> float:
    """Share of the pairs whose chosen caption invents less, by the demo's own scorer: fewer objects, and a smaller share of them."""
    better = []
    for row in rows:
        names = scenes[int(row["id"].removeprefix("row ").partition("-")[0])].names
        (bad, said), (worse, more) = (
            (len(set(hallucinated(text, names))), len(set(mentions(text))))
            for text in (plain_text(row["chosen"]), plain_text(row["rejected"]))
        )
        better.append(bad < worse and bad / said < worse / more)
    return float(np.mean(better))


def test_rows_of_our_schema(made, scenes):
    rows, known = rows_of(made), scenes[1]
    assert len(rows) >= COUNT - 2 and truly_better(rows, known) == 1
    for row in rows:
        scene = known[int(row["id"].removeprefix("row "))]
        chosen = plain_text(row["chosen"])
        assert row["images"][0]["bytes"] and plain_text(row["prompt"]).endswith("describe")
        there = [name for name in dict.fromkeys(mentions(chosen)) if name in scene.names]
        assert row["keywords"] == there and row["grounded"]
        boxes = {thing.name: thing.box for thing in scene.things}
        assert sorted(region["phrase"] for region in row["key_regions"][0]) == sorted(there)
        for region in row["key_regions"][0]:
            x0, y0, x1, y1 = boxes[region["phrase"]]
            expected = np.zeros((48, 48), dtype=bool)
            expected[y0:y1, x0:x1] = True
            assert (decode_rle(region["rle"]) == expected).all()
        assert json.loads(row["corruption"])["region"] == "key"


def test_the_report_counts_rules_lengths_and_coverage(made, scenes, capsys):
    report = json.loads((made / "report.json").read_text())
    own, rows = report["pairs"], rows_of(made)
    chosen, rejected = ([plain_text(text) for text in rows[name]] for name in ("chosen", "rejected"))
    assert own["answers"] == COUNT * SAMPLES and own["pairs_by_rule"]["kept"] == len(rows) == report["rows_out"]
    passed = list(own["pairs_by_rule"].values())
    assert passed == sorted(passed, reverse=True)
    words = [[len(text.replace(",", "").replace(".", "").split()) for text in some] for some in (chosen, rejected)]
    assert own["chosen"]["words"] == pytest.approx(np.mean(words[0]))
    assert own["chosen_shorter"] == pytest.approx(np.mean(np.less(*words)))
    there = [scenes[1][int(name.removeprefix("row "))].names for name in rows["id"]]
    covered = [len({*mentions(text)} & {*names}) for text, names in zip(chosen, there, strict=True)]
    assert own["chosen"]["present"] == pytest.approx(np.mean(covered))
    card = (made / "README.md").read_text()
    assert "## Pairs" in card and "drawn from `captioner` behind a server" in card and "key words |" not in card


def test_pairs_train_as_they_are(made, tmp_path):
    args = MFPOConfig(output_dir=str(tmp_path), **{**CPU, "max_steps": 1})
    data = load_dataset(str(made), split="train")
    trainer = MFPOTrainer(tiny.model(1), tiny.model(), args, train_dataset=data, processing_class=tiny.processor())
    trainer.train()
    assert np.isfinite(trainer.state.log_history[0]["loss/image"])


def test_regions_are_where_the_first_detector_found_the_claims(scenes, server, tmp_path):
    detectors = ("world:perfect", "world:second")
    own = options(scenes[0], tmp_path / "set", verifier="detector", detector=detectors, limit=8, **served(server))
    for row in rows_of(make(own)):
        boxes = {thing.name: thing.box for thing in scenes[1][int(row["id"].removeprefix("row "))].things}
        for region in row["key_regions"][0]:
            x0, y0, x1, y1 = boxes[region["phrase"]]
            assert decode_rle(region["rle"])[y0:y1, x0:x1].all() and region["phrase"] in row["keywords"]
        assert len(row["key_regions"][0]) == len(row["keywords"]) > 0


# The same however it is made


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny.save_pretrained(tmp_path_factory.mktemp("model"))


LOCAL = {
    "verifier": "world:words_by_hash",
    "max_new_tokens": 8,
    "samples": 4,
    "limit": 12,
    "part_rows": 4,
    "batch_size": 2,
}


@pytest.fixture(scope="module")
def local(scenes, folder, tmp_path_factory) -> Path:
    return make(options(scenes[0], tmp_path_factory.mktemp("local") / "set", model=folder, **LOCAL))


def test_two_processes(scenes, folder, local, tmp_path):
    assert contents(make(options(scenes[0], tmp_path / "two", model=folder, num_proc=2, **LOCAL))) == contents(local)
    assert len(contents(local)) == 6


def test_batches_of_another_size_draw_the_same(scenes, folder, local, tmp_path):
    other = make(options(scenes[0], tmp_path / "one", model=folder, **{**LOCAL, "batch_size": 1, "part_rows": 12}))
    assert rows_of(other)["chosen"] == rows_of(local)["chosen"]


def test_a_server_that_replays(scenes, local, tmp_path):
    """Each request holds the seed of its answer: a server that says the same makes the same pairs."""
    samples = [row for path in sorted(local.glob("samples/*")) for row in pq.read_table(path).to_pylist()]
    read = ReadPrompt([scenes[0].parent])
    source = pq.read_table(scenes[0]).to_pylist()
    said = {}
    for raw, own in zip(source[:12], samples, strict=True):
        seeds = seeds_of(read(raw, 0)[0], 0, 4)
        said |= {seed: sample["text"] for seed, sample in zip(seeds, own["samples"], strict=True)}
    with StandInChat(lambda body: said[body["seed"]]) as server:
        own = make(options(scenes[0], tmp_path / "served", **served(server, **LOCAL)))
        assert all(one["body"]["temperature"] == 1 and one["body"]["max_tokens"] == 8 for one in server.seen)
    assert contents(own) == contents(local)


def test_other_weights_are_another_build(scenes, folder, local, tmp_path, capsys):
    own = options(scenes[0], local, model=tiny.save_pretrained(tmp_path / "other", seed=1), **LOCAL)
    with pytest.raises(ValueError, match="other options: model was"):
        make(own)


@pytest.mark.parametrize("four_bits", [False, True])
def test_an_adapter_answers_unmerged_and_on_four_bits(four_bits, scenes, folder, local, tmp_path):
    """Its answers are not those of the model that it lies on; the build knows both by their weights."""
    base = AutoModelForImageTextToText.from_pretrained(folder)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, r=4)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    if four_bits:
        tiny.allow_four_bits()
    own = options(
        scenes[0], tmp_path / "set", model=folder, adapter=str(tmp_path / "adapter"), load_in_4bit=four_bits, **LOCAL
    )
    made = make(own)
    told = json.loads((made / "build" / "options.json").read_text())
    assert told["adapter"]["files"] == 1 and told["load_in_4bit"] is four_bits
    # An adapter alone names the model that it lies on, which may hold other weights tomorrow.
    alone = replace(own, model=str(tmp_path / "adapter"), adapter=None)
    assert alone.remembered(0)["model"]["base"] == told["model"] and json.dumps(told["model"]) in alone.who
    assert rows_of(made)["chosen"] != rows_of(local)["chosen"]


# Nothing is lost, and nothing is asked twice


def test_a_killed_run_goes_on(scenes, made, tmp_path):
    """The process is killed while answers come in: those that were there are not asked for again."""
    with StandInChat(world.Captioner(scenes[1]), pause=0.02) as server:
        words = ["--verifier", "labels", "--samples", str(SAMPLES), "--part-rows", "8", "--concurrency", "2"]
        argv = ["pairs", "--dataset", str(scenes[0]), "--output", str(tmp_path / "set"), "--endpoint", server.url]
        argv += ["--served-model", "captioner", *words]
        process = subprocess.Popen([sys.executable, "-m", "mfpo_trl.cli", *argv], stderr=subprocess.DEVNULL)
        while len(server.seen) < 60 and process.poll() is None:
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        build, before = tmp_path / "set" / "build", len(server.seen)
        done = {path.stem for path in build.glob("part-*[0-9].json")}
        under_way = [path for path in build.glob("*answers*.jsonl") if path.name[: len("part-00000")] not in done]
        there = 8 * SAMPLES * len(done) + sum(path.read_bytes().count(b"\n") for path in under_way)
        assert under_way and there < COUNT * SAMPLES
        server.pause = 0.0
        assert main(argv) == 0
        # By their seeds, because what was under way when the process died may be counted late, and is asked for again.
        asked = {one["body"]["seed"] for one in server.seen[before:]}
        assert len(asked) == COUNT * SAMPLES - there
    assert contents(tmp_path / "set") == contents(made) and not list(tmp_path.glob("set/build/*answers*"))


def test_answers_of_a_loaded_model_are_kept_by_the_batch(scenes, folder, local, tmp_path, monkeypatch):
    own, whole, asked = options(scenes[0], tmp_path / "set", model=folder, **LOCAL), Loaded.answer, []

    def stopping(self, prompts, drawing):
        for found in whole(self, prompts, drawing):
            if len(asked) == 5:
                raise KeyboardInterrupt
            asked.append(found)
            yield found

    monkeypatch.setattr(Loaded, "answer", stopping)
    with pytest.raises(KeyboardInterrupt):
        make(own)
    monkeypatch.setattr(Loaded, "answer", lambda *args: (asked.append(own) or own for own in whole(*args)))
    make(own)
    assert len(asked) == 12 and contents(tmp_path / "set") == contents(local)


def test_a_server_with_faults(scenes, made, tmp_path, monkeypatch, capsys):
    """What passes is tried again; what does not ends the run, and the next one goes on. The key is in no file."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    argv = ["pairs", "--dataset", str(scenes[0]), "--output", str(tmp_path / "set"), "--served-model", "captioner"]
    argv += [
        "--verifier",
        "labels",
        "--samples",
        str(SAMPLES),
        "--part-rows",
        "8",
        "--concurrency",
        "2",
        "--timeout",
        "1",
    ]
    with StandInChat(world.Captioner(scenes[1]), key=KEY) as server:
        server.faults["describe"] = ["429", "429", "broken", "drop", "cut", "hang", *[None] * 40, "400"]
        argv += ["--endpoint", server.url]
        assert main(argv) == 1
        said = capsys.readouterr().err
        assert "the prompt is too long" in said and KEY not in said
        failed = len(server.seen)
        assert main(argv) == 0
        # Six were tried again; of those under way when the seventh failed none is lost.
        assert failed < len(server.seen) <= COUNT * SAMPLES + 7 + 2
    assert contents(tmp_path / "set") == contents(made)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10 and not any(KEY.encode() in path.read_bytes() for path in written)


# Bad input: counted and said, nothing invented


def reasons(folder: Path) -> dict[int, str]:
    return {own["row"]: own["reason"] for own in map(json.loads, (folder / "rejects.jsonl").read_text().splitlines())}


def test_bad_rows_cost_themselves_only(scenes, server, tmp_path):
    known, folder = scenes[1], tmp_path / "source"
    folder.mkdir()
    for number in range(3):
        known[number].image.save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    whole = {"prompt": "describe", "objects": known[0].names}
    rows = [
        {"image": "0.png", **whole},
        {"image": "1.png", "objects": known[1].names},
        {"prompt": "describe", "objects": []},
        {"image": "gone.png", **whole},
        {"image": "../world.parquet", **whole},
        {"image": "broken.png", **whole},
        {"image": "2.png", "prompt": "describe"},
        {"image": "2.png", "prompt": " ", "objects": []},
        {"image": "2.png", "prompt": "describe <image> <image>", "objects": []},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{nonsense\n")
    own = make(options(folder / "rows.jsonl", tmp_path / "set", **served(server)))
    assert rows_of(own)["id"] == ["row 0"]
    expected = {
        1: "ask with --questions",
        2: "no image",
        3: "'gone.png' is not a file",
        4: "lies outside",
        5: "image 0 cannot be read",
        6: "field 'objects' is 'None'",
        7: "is empty",
        8: "2 place(s) for an image",
        9: "is not JSON",
    }
    found = reasons(own)
    assert found.keys() == expected.keys()
    for number, words in expected.items():
        assert words in found[number], (number, found[number])


@pytest.mark.parametrize(
    ("answer", "changes", "words"),
    [
        (lambda body: " ", {}, "the model answered nothing"),
        (lambda body: "a red circle .", {}, "all 6 answers are the same"),
        (lambda body: f"hello {body['seed']}", {}, "found no claim in any answer"),
        (None, {"verifier": "world:nothing"}, "found no claim in any answer"),
        (None, {"verifier": "world:all_unsure"}, "the verifier decided nothing about any answer"),
        (None, {"margin": 9}, "no answer is more faithful than another by 9"),
        (lambda body: " ", {"by": "sentence"}, "the model answered nothing"),
        (lambda body: "a red circle .", {"by": "sentence"}, "all 6 answers are the same"),
        (None, {"by": "sentence", "verifier": "world:nothing"}, "found no claim in any answer"),
    ],
)
def test_without_a_pair_the_reason_is_said(answer, changes, words, scenes, tmp_path):
    with StandInChat(answer or world.Captioner(scenes[1])) as server:
        own = options(scenes[0], tmp_path / "set", **served(server, limit=3, **changes))
        with pytest.raises(ValueError, match="every row was rejected, 3 of 3 because"):
            make(own)
    assert all(words in reason for reason in reasons(tmp_path / "set").values()) and not list(
        tmp_path.glob("set/data/*")
    )


def test_images_without_any_prompt(scenes, tmp_path, capsys):
    """A folder of images alone: what to do is said, nothing is asked and nothing is built."""
    (tmp_path / "photos").mkdir()
    scenes[1][0].image.save(tmp_path / "photos" / "0.png")
    with StandInChat(world.Captioner(scenes[1])) as server:
        argv = ["pairs", "--dataset", str(tmp_path / "photos"), "--output", str(tmp_path / "set"), "--verifier"]
        assert main([*argv, "world:words_by_hash", "--endpoint", server.url, "--served-model", "captioner"]) == 1
        assert not server.seen
    said = capsys.readouterr().err
    assert "every row was rejected, 1 of 1" in said and "--questions" in said
    assert "--questions" in reasons(tmp_path / "set")[0] and not list(tmp_path.glob("set/data/*"))


def test_a_folder_of_images_and_the_shipped_questions(scenes, server, tmp_path):
    """Each image is asked one of them, the same one wherever the image stands."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        scenes[1][number].image.save(folder / f"{number}.png")
    own = make(
        options(
            folder,
            tmp_path / "set",
            questions="shipped",
            verifier="detector",
            detector=("world:perfect",),
            **served(server),
        )
    )
    asked = {plain_text(text).removeprefix("<image>").strip() for text in rows_of(own)["prompt"]}
    assert asked <= set(SHIPPED.read_text().splitlines()) and len(asked) > 1
    with pytest.raises(ValueError, match="every row was rejected, 6 of 6 because: has no 'prompt' or 'question'"):
        make(options(folder, tmp_path / "none", **served(server, verifier="world:nothing")))


@pytest.mark.parametrize("prompt", [None, "", " \n", "<image>", "<image>\n", [], "what is it?"])
def test_what_asks_nothing_gets_a_question(prompt, scenes, tmp_path):
    scenes[1][0].image.save(tmp_path / "0.png")
    (row,) = ReadPrompt([tmp_path], ["describe it"])({"image": str(tmp_path / "0.png"), "prompt": prompt}, 0)
    assert plain_text(row["prompt"]).removeprefix("<image>").strip() == (
        "what is it?" if prompt == "what is it?" else "describe it"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "name who answers"),
        ({"model": "a", "endpoint": "http://b"}, "name who answers"),
        ({"endpoint": "http://b"}, "needs --served-model"),
        ({"endpoint": "nowhere", "served_model": "m"}, "no address of a server"),
        ({"endpoint": "http://b", "served_model": "m", "load_in_4bit": True}, "of a model that is loaded here"),
        ({"model": "a", "samples": 1}, "a pair needs 2"),
        ({"model": "a", "temperature": -1}, "temperature is -1"),
        ({"model": "a", "top_p": 0}, "top_p is 0"),
        ({"model": "a", "by": "word"}, "expected answer or sentence"),
        ({"model": "a", "verifier": "guess"}, "expected detector, judge, labels, confidence"),
        ({"model": "a", "verifier": "judge"}, "needs --judge-url"),
        ({"model": "a", "detector_model": ("x", "y")}, "weights for each"),
        ({"model": "a", "margin": 0}, "margin is 0"),
        ({"model": "a", "grounder": "clipsig"}, "did you mean 'clipseg'"),
    ],
)
def test_options_that_make_no_sense(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        options(tmp_path, tmp_path / "set", **changes)


@pytest.mark.parametrize(
    ("verifier", "words"),
    [
        ("world:nonsense", "expected Claim or"),
        ("world:gone", "cannot be imported"),
        ("world:COUNT", "cannot be imported"),
    ],
)
def test_a_verifier_that_is_none(verifier, words, scenes, server, tmp_path):
    with pytest.raises(ValueError, match=words):
        make(options(scenes[0], tmp_path / "set", **served(server, verifier=verifier, limit=2)))


@pytest.mark.parametrize("by", ["answer", "sentence"])
def test_a_verifier_that_cannot_be_loaded_is_told_before_anybody_is_asked(by, scenes, tmp_path):
    """And the folder takes the right one."""
    with StandInChat(world.Captioner(scenes[1])) as own:
        changes = served(own, by=by, limit=8, sentences=1)
        with pytest.raises(ValueError, match="cannot be imported"):
            make(options(scenes[0], tmp_path / "set", **changes, verifier="world:gone"))
        assert not own.seen
        make(options(scenes[0], tmp_path / "set", **changes))


def test_the_preview_marks_claims(made, scenes, tmp_path):
    page = preview(made, 4, tmp_path / "samples.html", samples=True).read_text()
    assert page.count('<mark class="present"') > 8 and page.count('<mark class="absent"') > 2
    assert page.count("+ answer") == page.count("- answer") == 4
    assert preview(made, 4, tmp_path / "samples.png", samples=True).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="holds no samples"):
        preview(scenes[0].parent, 4, tmp_path / "none.png", samples=True)


# Kept answers are of whom they are, to what they answer


def stopped_after(monkeypatch, own: PairOptions, rows: int) -> list[int]:
    """A run that is killed after so many prompts -> the numbers of rows that a later run asks."""
    whole, asked = Loaded.answer, []

    def stopping(self, prompts, drawing):
        for found in whole(self, prompts, drawing):
            if len(asked) == rows:
                raise KeyboardInterrupt
            asked.append(prompts[found[0]].prompt.row["row"])
            yield found

    def counting(self, prompts, drawing):
        for found in whole(self, prompts, drawing):
            asked.append(prompts[found[0]].prompt.row["row"])
            yield found

    monkeypatch.setattr(Loaded, "answer", stopping)
    with pytest.raises(KeyboardInterrupt):
        make(own)
    asked.clear()
    monkeypatch.setattr(Loaded, "answer", counting)
    return asked


def test_a_run_killed_within_its_first_part_is_not_gone_on_by_another(scenes, folder, local, tmp_path, monkeypatch):
    """Refused by what was remembered; and where that was deleted, or the answers were carried elsewhere, by the answers themselves."""
    own = options(scenes[0], tmp_path / "set", model=folder, **LOCAL)
    asked = stopped_after(monkeypatch, own, 2)
    other = tiny.save_pretrained(tmp_path / "other", seed=1)
    assert not list(tmp_path.glob("set/build/*.parquet"))
    for changes in ({"model": other}, {"temperature": 0.5}, {"seed": 1}, {"samples": 3}, {"questions": "shipped"}):
        with pytest.raises(ValueError, match=f"other options: {next(iter(changes))} was"):
            make(options(scenes[0], tmp_path / "set", **{"model": folder, **LOCAL, **changes}))
    assert not asked
    for name, changes in {"model": {"model": other}, "temperature": {"temperature": 0.5}, "seed": {"seed": 1}}.items():
        kept = tmp_path / name / "build" / "part-00000-answers.jsonl"
        kept.parent.mkdir(parents=True)
        kept.write_bytes((tmp_path / "set" / "build" / kept.name).read_bytes())
        make(options(scenes[0], tmp_path / name, **{"model": folder, **LOCAL, **changes}))
        assert sorted(asked) == list(range(12)), name
        asked.clear()
    make(own)
    assert sorted(asked) == list(range(2, 12)) and contents(tmp_path / "set") == contents(local)


def test_a_lower_batch_size_goes_on_with_the_same_answers(scenes, folder, local, tmp_path, monkeypatch):
    """As the message about memory advises; within the first part, and behind it."""
    for stopped in (3, 6):
        own = options(scenes[0], tmp_path / str(stopped), model=folder, **{**LOCAL, "batch_size": 3})
        asked = stopped_after(monkeypatch, own, stopped)
        make(options(scenes[0], tmp_path / str(stopped), model=folder, **{**LOCAL, "batch_size": 1}))
        assert asked == list(range(stopped, 12)) and contents(tmp_path / str(stopped)) == contents(local)
        monkeypatch.undo()


def test_the_content_of_files_counts(scenes, server, tmp_path):
    names = tmp_path / "names.json"
    names.write_text(json.dumps({str(n): scene.names for n, scene in enumerate(scenes[1])}))
    annotations = tmp_path / "coco"
    annotations.mkdir()
    (annotations / "instances_val2014.json").write_text("{}")
    (annotations / "captions_val2014.json").write_text("{}")
    lines = tmp_path / "lines.txt"
    lines.write_text("dog\n")
    for name, path, changed in (
        ("ground_truth", names, names),
        ("coco_annotations", annotations, annotations / "captions_val2014.json"),
        ("synonyms", lines, lines),
        ("questions", lines, lines),
    ):
        given = path if name != "questions" else str(path)
        own = options(scenes[0], tmp_path / "set", **served(server, **{name: given}))
        before = own.remembered(1)
        assert json.loads(json.dumps(before[name])) == before[name] and before == own.remembered(1)
        changed.write_text(changed.read_text() + " ")
        assert {key for key, told in own.remembered(1).items() if told != before[key]} == {name}
    assert options(scenes[0], tmp_path, **served(server, synonyms=tmp_path / "none")).remembered(1)["synonyms"] == str(
        tmp_path / "none"
    )


def test_a_pipeline_gives_its_model_back(scenes, folder, tmp_path):
    """At once, and not when Python next looks for cycles: the model fills a GPU that another needs."""
    pipeline = PairsPipeline(options(scenes[0], tmp_path, model=folder, **{**LOCAL, "verifier": "confidence"}))
    policy = weakref.ref(pipeline.policy())
    assert pipeline.policy() is policy() is pipeline.asking.policy() is pipeline.verifier.policy()
    gc.disable()
    try:
        del pipeline
        assert policy() is None
    finally:
        gc.enable()


def test_a_part_that_is_built_again_has_its_answers_once(scenes, server, tmp_path, monkeypatch):
    pipeline = PairsPipeline(options(scenes[0], tmp_path / "set", **served(server, limit=8)))

    def full(part, rows, columns):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(pipeline.parts, "write", full)
        pipeline.build(0)
    pipeline.build(0)
    assert [own["id"] for own in pipeline.samples] == [f"row {n}" for n in range(8)]


def test_an_answer_that_is_not_there_is_not_an_empty_one(scenes, tmp_path):
    class Silent:
        def answer(self, asked, drawing):
            yield from ((n, [(0, "a"), (1, "")] if n else [(0, "a")]) for n in range(len(asked)))

    rows = [
        ReadPrompt([scenes[0].parent])(raw, n)[0] for n, raw in enumerate(pq.read_table(scenes[0]).to_pylist()[:2])
    ]
    for number, row in enumerate(rows):
        row["number"] = number
    found = Asking(Silent, "nobody", Drawing(), 0, 2).answers(rows, tmp_path / "answers.jsonl")
    assert isinstance(found[0], Rejected) and "gave 1 of 2 answers" in str(found[0]) and found[1] == ["a", ""]


def test_modules_of_the_working_folder_hide_none_that_is_installed(scenes, server, tmp_path, monkeypatch):
    """And are looked for where a plug-in is named only."""
    (tmp_path / "mine.py").write_text("def verify(images, answers, row):\n    return [[] for _ in answers]\n")
    (tmp_path / "json.py").write_text("raise RuntimeError\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [own for own in sys.path if own not in ("", str(tmp_path))])
    argv = ["pairs", "--dataset", str(scenes[0]), "--output", "set", "--endpoint", server.url, "--limit", "1"]
    argv += ["--served-model", "captioner", "--samples", "2"]
    before = list(sys.path)
    main([*argv, "--verifier", "labels"])
    assert sys.path == before
    assert main([*argv, "--verifier", "mine:verify", "--output", "other"]) == 1
    assert sys.path == [*before, str(tmp_path)] and "no claim" in (tmp_path / "other" / "rejects.jsonl").read_text()
