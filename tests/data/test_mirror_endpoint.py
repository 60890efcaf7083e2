"""Replacements and answers from a server: what it is asked, what of it is used, what stops it, and the key nowhere."""

import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from datasets import load_dataset
from stand_in_chat import KEY, StandInChat, text_of
from test_mirror import asking, contents, helpful, options, source, told

from mfpo_trl.cli import main
from mfpo_trl.data.build import run
from mfpo_trl.data.mirror.answer import checked
from mfpo_trl.data.mirror.asked import ANSWER, REPLACEMENT, named
from mfpo_trl.data.mirror.words import Left
from mfpo_trl.demo.scoring import mentions
from mfpo_trl.endpoint import EndpointError
from mfpo_trl.rows.schema import plain_text


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with StandInChat(helpful, key=KEY) as own:
        yield own


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return source(tmp_path_factory.mktemp("rows"))


def agrees(folder: Path) -> bool:
    """Whether each twin names what its regions show, which is what its row shows but for one thing."""
    rows = list(load_dataset(str(folder), split="train"))
    shown = [sorted(own["phrase"] for own in row["key_regions"][0]) for row in rows]
    one = all(len(set(a) - set(b)) == len(set(b) - set(a)) == 1 for a, b in zip(shown[::2], shown[1::2], strict=True))
    return one and all(
        sorted(mentions(plain_text(row["chosen"]))) == own for row, own in zip(rows, shown, strict=True)
    )


def test_a_server_names_and_writes(path, server, tmp_path):
    """Every twin says what its regions show; the image goes with the question for a replacement, and no image with the other."""
    folder = run(asking(path, tmp_path / "built", server))
    report = json.loads((folder / "report.json").read_text())
    assert report["mirror"]["check"] == report["mirror"]["rows"] == 12 and report["rows_out"] == 24
    assert agrees(folder)
    contents_asked = [one["body"]["messages"][0]["content"] for one in server.seen]
    kinds = Counter("names" if isinstance(own, list) else "writes" for own in contents_asked)
    assert kinds == {"names": 12, "writes": 12}
    kept = [own.read_text().count("\n") for own in sorted((folder / "build").glob("part-*-mirror.jsonl"))]
    assert kept == [10, 10, 4], "beside the part of the row"
    assert all(
        [part["type"] for part in own] == ["image_url", "text"] for own in contents_asked if isinstance(own, list)
    )
    assert {one["body"]["model"] for one in server.seen} == {"writer"}
    assert all(one["body"]["temperature"] == 0 for one in server.seen)
    assert report["options"]["served_model"] == "writer" and server.url not in json.dumps(report)
    assert "with its name replaced (written by writer)" in (folder / "README.md").read_text()


@pytest.mark.parametrize("kind", ["replacement", "answer"])
def test_one_of_the_two_is_enough(kind, path, server, tmp_path):
    changes = {f"mirror_{kind}": {"replacement": "pool", "answer": "rule"}[kind]}
    folder = run(asking(path, tmp_path / "built", server, **changes))
    assert json.loads((folder / "report.json").read_text())["mirror"]["check"] == 12 == len(server.seen)
    assert agrees(folder)


def test_faults_change_nothing(path, server, tmp_path, monkeypatch):
    """429, a hung connection, broken JSON, no text, 500: tried again; the rows are those of a build without any."""
    clean = contents(run(asking(path, tmp_path / "clean", server)))
    prompts = [text_of(one["body"]) for one in server.seen]
    for n, fault in enumerate(("429", "hang", "broken", "empty", "null", "500", "drop", "cut")):
        server.faults[prompts[n]] = [fault]
        server.faults[prompts[-1 - n]] = [fault]
    monkeypatch.setattr("mfpo_trl.endpoint.client.LONGEST_WAIT", 0.01)
    assert contents(run(asking(path, tmp_path / "faults", server))) == clean
    assert not any(server.faults.values())


def test_what_a_server_said_before_it_failed_is_kept(path, server, tmp_path, capsys):
    """A refusal ends the build, costs no row, says no key, and what was said is not asked for again."""
    clean = contents(run(asking(path, tmp_path / "clean", server)))
    asked = [text_of(one["body"]) for one in server.seen]
    server.faults[asked[15]] = ["400"]
    with pytest.raises(EndpointError, match="the prompt is too long"):
        run(asking(path, tmp_path / "built", server))
    assert not (tmp_path / "built" / "data").exists()
    kept = sum(own.read_text().count("\n") for own in (tmp_path / "built" / "build").glob("*-mirror.jsonl"))
    before = len(server.seen)
    assert contents(run(asking(path, tmp_path / "built", server))) == clean
    assert kept > 8 and len(server.seen) - before == 24 - kept


def test_a_killed_build_asks_for_nothing_twice(path, server, tmp_path):
    """Killed while a request is under way; what was kept by then is not asked for again."""
    said, released = server.answer, threading.Event()

    def until_the_kill(body):
        assert len(server.seen) <= 14 or released.wait(120)
        return said(body)

    # From the fifteenth request on none is answered while the build lives, however late the kill comes.
    server.answer = until_the_kill
    own = asking(path, tmp_path / "built", server, timeout=100.0)
    child = os.fork()
    if not child:
        try:
            run(own)
        finally:
            os._exit(1)
    work, until = tmp_path / "built" / "build", time.monotonic() + 90
    while len(server.seen) < 15 or not any(own.stat().st_size for own in work.glob("*-mirror.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    released.set()
    kept = [line for own in work.glob("*-mirror.jsonl") for line in own.read_bytes().splitlines(True)]
    whole = sum(line.endswith(b"\n") for line in kept)
    before = len(server.seen)
    assert 0 < whole < 24 and not (tmp_path / "built" / "data").exists()
    built = contents(run(own))
    assert len(server.seen) - before == 24 - whole
    assert built == contents(run(asking(path, tmp_path / "clean", server)))


def test_regions_may_be_found_in_the_same_build(path, server, tmp_path):
    """The rows bring none, and what replaces an object and how it looks comes from elsewhere."""
    bare = tmp_path / "bare.parquet"
    load_dataset("parquet", data_files=str(path), split="train").remove_columns("key_regions").to_parquet(bare)
    folder = run(asking(bare, tmp_path / "built", server, grounder="mirror_rows:see"))
    report = json.loads((folder / "report.json").read_text())["mirror"]
    assert 0 < report["check"] <= report["object"] <= 12 and report["rows"] == 12
    assert sum(report["left_out_by_reason"].values()) == 12 - report["check"]
    with pytest.raises(ValueError, match="run mfpo build without --mirror first"):
        run(options(bare, tmp_path / "pool", grounder="mirror_rows:see"))


UNUSABLE = {
    "replacement: the endpoint names nothing": (
        "",
        "I'm sorry, but I cannot see an image.",
        "None.",
        "Here they are:",
    ),
    "replacement: the endpoint names the object itself": ("{old}", "1. The {old}s"),
    "replacement: the endpoint names it in another number": ("red dogs, kites",),
    "replacement: the endpoint names what the row speaks of": ("{other}",),
    "answer: the endpoint's answer is empty": (" \n",),
    "answer: the endpoint's answer still names the old object": ("{answer}", "{made} {old} ."),
    "answer: the endpoint's answer does not name the new object": ("I cannot help with that.",),
    "answer: the endpoint's answer leaves out another thing": ("a {new} .",),
    "answer: the endpoint's answer says something new": ("{made} and a zebra .",),
}


def test_what_cannot_be_used_costs_the_twin_and_is_counted(server, tmp_path):
    """Each row meets another unusable answer, and the last ones a good one; rows in are rows out, and nothing is invented."""
    replies = [(reason, reply) for reason, some in UNUSABLE.items() for reply in some]
    rows = load_dataset("parquet", data_files=str(source(tmp_path, 30)), split="train")
    distinct = {row["chosen"]: n for n, row in reversed(list(enumerate(rows)))}
    rows = rows.select(sorted(distinct.values())[: len(replies) + 2])
    rows.to_parquet(path := tmp_path / "distinct.parquet")
    texts = list(rows["chosen"])

    def answer(body):
        text, old, new = told(body)
        number = texts.index(text)
        reason, reply = replies[number] if number < len(replies) else ("", "")
        if not reason or reason.startswith("answer") == (not new):
            return helpful(body)
        other = next(own for own in rows[number]["keywords"] if own != old)
        return reply.format(old=old, new=new, other=other, answer=text, made=text.replace(old, new))

    server.answer = answer
    folder = run(asking(path, tmp_path / "built", server))
    report = json.loads((folder / "report.json").read_text())
    assert report["mirror"]["left_out_by_reason"] == {reason: len(some) for reason, some in UNUSABLE.items()}
    assert report["mirror"]["check"] == 2 and report["rows_out"] == len(rows) + 2
    built = list(load_dataset(str(folder), split="train"))
    kept = [plain_text(row["chosen"]) for row in built if row["mirror_of"] is None]
    assert kept == texts and [row["rejected_image_chosen"] is None for row in built[: len(replies)]] == [True] * len(
        replies
    )


@pytest.mark.parametrize(
    ("reply", "text", "old", "new", "rest", "made"),
    [
        ("A cat near a tree.", "A brown dog running near a tree.", "dog", "cat", ["tree"], "A cat near a tree."),
        (' "A cat near a tree."\n', "A dog near a tree.", "dog", "cat", ["tree"], "A cat near a tree."),
        ("A cat near trees.", "A dog near a tree.", "dog", "cat", [], "A cat near trees."),
        ("An cat near a owl.", "An owl near an owl.", "owl", "cat", [], "still names"),
        ("An cat near a tree.", "An owl near a tree.", "owl", "cat", [], "A cat near a tree."),
        ("A cat. Dogs bark.", "A dog barks.", "dog", "cat", [], "still names"),
        ("A hat. The ball rolls.", "A red ball. The ball rolls.", "red ball", "hat", [], "still names"),
        ("A hat , a blue ball .", "a red ball , a blue ball .", "red ball", "hat", ["blue ball"], "A hat , a blue ball ."),
        ("A dogma and a cat.", "A dogma and a dog.", "dog", "cat", [], "A dogma and a cat."),
        ("Two cats.", "A dog.", "dog", "cat", [], "does not name"),
        ("A catalogue.", "A dog.", "dog", "cat", [], "does not name"),
        ("A cat.", "A dog near a tree.", "dog", "cat", ["tree"], "leaves out"),
        ("A happy cat.", "A dog.", "dog", "cat", [], "says something new"),
        ("Eine Katze.", "Ein Hund.", "Hund", "Katze", [], "says something new"),
        ("…", "A dog.", "dog", "cat", [], "is empty"),
    ],
)  # fmt: skip
def test_answers_that_can_be_used(reply, text, old, new, rest, made):
    if made.endswith("."):
        assert checked(reply, text, old, new, rest) == made
        return
    with pytest.raises(Left, match=made):
        checked(reply, text, old, new, rest)


def test_names_in_what_a_server_says():
    assert named("Sure! Here are some:\n\n1. A red kite\n2) an umbrella\n- **Hair drier**\n* `frisbee`.\n\nI hope this helps") == [
        "red kite", "umbrella", "Hair drier", "frisbee"
    ]  # fmt: skip
    assert named('["kite", "stop sign"]') == ["kite", "stop sign"] and named("kite, kite; t-shirt") == [
        "kite",
        "t-shirt",
    ]
    assert named("Sorry, I can't.") == named("kite/umbrella") == named("a kite of the colour of the sky") == []


def test_no_key_in_any_file_or_line(path, server, tmp_path, capfd):
    """Neither after a good build nor after one whose key is wrong and is said back by the server."""
    argv = [
        "build",
        "--dataset",
        str(path),
        "--grounder",
        "column",
        "--mirror",
        "--mirror-editor",
        "mirror_rows:redraw",
    ]
    argv += ["--mirror-replacement", "endpoint", "--mirror-answer", "endpoint", "--endpoint", server.url]
    argv += ["--served-model", "writer", "--output", str(tmp_path / "built")]
    server.key = "sk-another"
    assert main(argv) == 1
    server.key = KEY
    assert main(argv) == 0
    said = "".join(capfd.readouterr())
    assert "wrong key Bearer ***" in said and "read from the environment variable OPENAI_API_KEY" in said
    files = [own for own in (tmp_path / "built").rglob("*") if own.is_file()]
    assert len(files) > 5 and any(own.name.endswith("mirror.jsonl") for own in files)
    assert KEY not in said and not any(KEY.encode() in own.read_bytes() for own in files)
    assert all(one["headers"]["Authorization"] == f"Bearer {KEY}" for one in server.seen)


def test_a_build_with_other_answers_is_another_build(path, server, tmp_path):
    """Whose server, what is asked of it and what a list holds decide the rows; where the server is and how fast do not."""
    phrases = tmp_path / "phrases.txt"
    phrases.write_text("red cross\n")
    given = asking(path, tmp_path / "built", server, mirror_replacement=str(phrases))
    first = given.remembered(12)
    phrases.write_text("blue cross\n")
    assert given.remembered(12)["mirror_replacement"] != first["mirror_replacement"]
    run(given)
    for changes in ({"served_model": "other"}, {"mirror_replacement": "endpoint"}, {"mirror_choice": "uniform"}):
        with pytest.raises(ValueError, match="holds a build with other options"):
            run(asking(path, tmp_path / "built", server, **{"mirror_replacement": str(phrases), **changes}))
    run(asking(path, tmp_path / "built", server, mirror_replacement=str(phrases), concurrency=2, timeout=9.0))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mirror-replacement", "endpoint"], "--mirror-replacement is of --mirror"),
        (["--mirror", "--mirror-replacement", "endpoint"], "need --endpoint URL and --served-model NAME"),
        (["--mirror", "--mirror-answer", "endpoint", "--endpoint", "http://a"], "need --endpoint URL and --served-model"),
        (["--mirror", "--mirror-answer", "endpoint", "--endpoint", "nowhere", "--served-model", "a"], "no address of a server"),
        (["--mirror", "--endpoint", "http://a", "--served-model", "a"], "nothing asks --endpoint"),
        (["--mirror", "--mirror-replacement", "nowhere.txt"], "neither pool nor endpoint, nor a file"),
        (["--mirror", "--mirror-replacement", "{tmp}/empty.txt"], "names no phrase"),
        (["--mirror", "--mirror-replacement", "{tmp}/latin.txt"], "is not UTF-8"),
    ],
)  # fmt: skip
def test_mistakes(arguments, said, path, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    argv = ["build", "--dataset", str(path), "--grounder", "column", "--output", str(tmp_path / "built")]
    assert main([*argv, *(own.format(tmp=tmp_path) for own in arguments)]) == 1
    assert said in " ".join(capsys.readouterr().err.split())


def test_the_prompts_are_those_of_the_page():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    for prompt in (REPLACEMENT, ANSWER):
        assert "> " + " ".join(prompt.partition('"{answer}"')[2].split()) in page
