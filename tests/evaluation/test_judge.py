"""Judges: verdicts are asked for once and never lost; what MMHal-Bench, HallusionBench and Object HalBench make of them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from stand_in_chat import KEY, StandInChat, text_of

from mfpo_trl.endpoint.client import Endpoint, EndpointError
from mfpo_trl.endpoint.kept import Judge, Question, Verdicts, digest
from mfpo_trl.evaluation import main
from mfpo_trl.evaluation.benchmarks import hallusionbench, mmhal
from mfpo_trl.evaluation.benchmarks.coco import Objects
from mfpo_trl.evaluation.benchmarks.judge import filled
from mfpo_trl.evaluation.benchmarks.objhal import listed

QUESTIONS = [Question(str(n), f"prompt {n}", f"answer {n}") for n in range(20)]


@pytest.fixture
def server():
    with StandInChat(answer=lambda body: f"verdict on {text_of(body)}") as own:
        yield own


def judge(server, path, **more):
    endpoint = server and Endpoint(server.url, "judge", timeout=60, first_wait=0.01, **more)
    return Judge("judge", Verdicts(path), endpoint)


def scored(capsys, *argv):
    capsys.readouterr()
    status = main([*map(str, argv), "--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return json.loads(captured.out)


def refused(capsys, *argv):
    capsys.readouterr()
    assert main([*map(str, argv)]) == 1
    return capsys.readouterr().err


# The cache


def test_a_verdict_is_asked_for_once(server, tmp_path):
    path = tmp_path / "verdicts.jsonl"
    expected = [f"verdict on prompt {n}" for n in range(20)]
    assert judge(server, path).judge(QUESTIONS[:5]) == expected[:5]
    assert judge(server, path).judge(random.Random(0).sample(QUESTIONS, 20)) != expected
    assert judge(server, path).judge(QUESTIONS) == judge(None, path).judge(QUESTIONS) == expected
    assert judge(server, None).judge([*QUESTIONS[:2], QUESTIONS[0]]) == [*expected[:2], expected[0]]
    times = {f"prompt {n}": 2 if n < 2 else 1 for n in range(20)}
    assert Counter(text_of(one["body"]) for one in server.seen) == times
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 20
    assert {"judge": "judge", "prompt": digest("prompt 3"), "answer": "answer 3", "verdict": expected[3]} in rows


# What a verdict depends on
OTHERS = {
    "judge": lambda path: (Judge("another", Verdicts(path)), QUESTIONS[0]),
    "prompt": lambda path: (Judge("judge", Verdicts(path)), QUESTIONS[0]._replace(prompt="prompt  0")),
    "answer": lambda path: (Judge("judge", Verdicts(path)), QUESTIONS[0]._replace(answer="answer  0")),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_question_has_no_verdict_yet(what, server, tmp_path):
    path = tmp_path / "verdicts.jsonl"
    judge(server, path).judge(QUESTIONS)
    own, question = OTHERS[what](path)
    with pytest.raises(
        ValueError, match=r"1 of 1 answers, the first of them 0, have no verdict of .*; add --judge-url"
    ):
        own.judge([question])


@pytest.mark.parametrize("cut", [1, 5, 40, "all but the line break"])
def test_a_line_that_was_cut_off(cut, server, tmp_path, caplog):
    path = tmp_path / "verdicts.jsonl"
    judge(server, path).judge(QUESTIONS)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    kept = len(lines[-1]) - 1 if cut == "all but the line break" else cut
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:kept])
    asked = len(server.seen)
    assert judge(None, path).verdicts.known.keys() == Verdicts(path).known.keys()
    assert path.stat().st_size == len(whole) - len(lines[-1]) + kept, "reading changes no file"
    judge(server, path).judge([*QUESTIONS, Question("new", "new", "new")])
    assert len(server.seen) == asked + (1 if cut == "all but the line break" else 2)
    assert ("dropped" in caplog.text) == (cut != "all but the line break")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 21


def test_odd_texts_come_back_as_they_were(server, tmp_path):
    path = tmp_path / "verdicts.jsonl"
    odd = ["", " ", "ü\u2028\n", "\ud800", "x" * 100_000]
    questions = [Question(str(n), f"p {n}", text) for n, text in enumerate(odd)]
    server.answer = lambda body: odd[int(text_of(body)[2:])]
    assert judge(server, path).judge(questions) == judge(None, path).judge(questions) == odd


@pytest.mark.parametrize(
    "content, words",
    [
        (b'{"judge": "a"}\n', "line 1 is .*; expected a verdict with the fields judge, prompt, answer, verdict"),
        (b"\n[]\n", "line 2 is"),
        (b"{broken\n", "line 1 is not JSON"),
        (b'"caf\xe9"\n', "line 1 is not UTF-8"),
    ],
)
def test_a_bad_cache(content, words, tmp_path):
    (tmp_path / "v.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        Verdicts(tmp_path / "v.jsonl")


def test_what_the_judge_said_before_it_failed_is_kept(server, tmp_path):
    path = tmp_path / "verdicts.jsonl"
    server.faults["prompt 10"] = ["400"]
    with pytest.raises(EndpointError, match="request '10': .*the prompt is too long"):
        judge(server, path).judge(QUESTIONS)
    answered = {text_of(one["body"]) for one in server.seen} - {"prompt 10"}
    assert len(answered) >= 10
    assert {key.prompt for key in Verdicts(path).known} == {digest(prompt) for prompt in answered}
    before = len(server.seen)
    assert len(judge(server, path).judge(QUESTIONS)) == 20
    assert len(server.seen) == before + 20 - len(answered)


def test_a_slow_verdict_keeps_no_other_waiting(server, tmp_path):
    """The first comes when all others are written: a kill would lose those under way only."""
    path = tmp_path / "verdicts.jsonl"

    def answer(body):
        until = time.monotonic() + (20 if text_of(body) == "prompt 0" else 0)
        while time.monotonic() < until and (not path.exists() or path.read_bytes().count(b"\n") < 19):
            time.sleep(0.01)
        return "Yes"

    server.answer = answer
    Judge("judge", Verdicts(path), Endpoint(server.url, "judge", timeout=60)).judge(QUESTIONS)
    assert [json.loads(line)["answer"] for line in path.read_text().splitlines()].index("answer 0") == 19


def template():
    return [
        {
            "question_type": ["attribute", "adversarial"][n % 2],
            "image_id": f"image{n:02}",
            "image_content": ["Dog", "Ball"],
            "question": f"What is it, {n}?",
            "gt_answer": "A dog.",
            "model_answer": f"Answer {n}.",
        }
        for n in range(96)
    ]


def test_killed_and_resumed(tmp_path):
    """The command is killed while its judge answers; a second one asks for the rest only, and the key is in neither file."""
    (tmp_path / "answers.json").write_text(json.dumps(template()))
    path = tmp_path / "verdicts.jsonl"
    command = [sys.executable, "-m", "mfpo_trl.cli", "score", "mmhal", "--responses", tmp_path / "answers.json"]
    with StandInChat(answer=lambda body: "Rating: 4", key=KEY, pause=0.05) as server:
        command += [
            "--judge-url",
            server.url,
            "--judge-model",
            "judge",
            "--verdicts",
            path,
            "--judge-concurrency",
            "2",
        ]
        environment = {**os.environ, "OPENAI_API_KEY": KEY}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        until = time.monotonic() + 60
        while not path.exists() or path.read_bytes().count(b"\n") < 8:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept = path.read_bytes().count(b"\n")
        assert 8 <= kept < 90
        with path.open("ab") as file:
            file.write(b'{"judge": "judge", "pro')
        server.pause = 0.0
        server.seen.clear()
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert second.returncode == 0, second.stderr
        assert len(server.seen) == 96 - kept
    assert "judge: judge" in second.stdout and "4.00" in second.stdout
    assert len(Verdicts(path).known) == 96
    assert KEY not in second.stdout + second.stderr + path.read_text()


# MMHal-Bench


@pytest.mark.parametrize(
    "verdict, rating",
    {
        "Rating: 6": 6,
        "It is fine.\n\nRATING: 0, very": 0,
        "rating: 3 ... and so Rating: 3": 3,
        "Rating: 4, or Rating: 2": None,
        "Rating: 45": 4,
        "**Rating:** 3": None,
        "Rating: **3**": None,
        "**Rating: 3**": 3,
        "Rating:3": None,
        "Rating: 7": None,
        "Rating - 3": None,
        "no hallucination": None,
        "": None,
    }.items(),
)
def test_ratings(verdict, rating):
    assert mmhal.rating(verdict) == rating


def mmhal_server(ratings):
    """A judge that gives the answer "Answer 7." its rating."""

    def answer(body):
        prompt = text_of(body)
        own = int(prompt.split("Answer of the model: Answer ")[1].split(".")[0])
        return ratings[own]

    return StandInChat(answer=answer)


RATINGS = [["Rating: 5", "Rating: 2", "none", "Rating: 1, Rating: 4"][n % 4] for n in range(96)]


def test_mmhal(tmp_path, capsys):
    """Of each four answers: 5, 2, and two that count as 0; the types alternate."""
    path, cache = tmp_path / "answers.json", tmp_path / "verdicts.jsonl"
    path.write_text(json.dumps(template()))
    with mmhal_server(RATINGS) as server:
        asked = ["--judge-url", server.url, "--judge-model", "gpt-4-0314", "--verdicts", cache]
        found = scored(capsys, "mmhal", "--responses", path, *asked)
        prompt = text_of(server.seen[0]["body"])
        assert "Dog, Ball" in prompt and "A dog." in prompt and "What is it, " in prompt
        assert server.seen[0]["body"]["temperature"] == 0.0
    values = {
        group: {name: own["value"] for name, own in found[group].items()}
        for group in ("all", "attribute", "adversarial")
    }
    assert values == {
        "all": {"score": 7 / 4, "hallucination_rate": 0.75, "words": 2.0},
        "attribute": {"score": 2.5, "hallucination_rate": 0.5, "words": 2.0},
        "adversarial": {"score": 1.0, "hallucination_rate": 1.0, "words": 2.0},
    }
    assert found["all"]["score"]["n"] == 96
    assert found["settings"]["judge"] == "gpt-4-0314" and "own wording" in found["settings"]["judge's prompt"]
    assert any("48 verdicts hold no rating or several" in note for note in found["notes"])
    # The same from the cache alone, in another order, and with the questions in a file of their own.
    rows = random.Random(1).sample(template(), 96)
    path.write_text(json.dumps(rows))
    assert scored(capsys, "mmhal", "--responses", path, "--verdicts", cache) == found
    path.write_text("\n".join(json.dumps({"id": row["image_id"], "response": row["model_answer"]}) for row in rows))
    (tmp_path / "response_template.json").write_text(json.dumps([{**row, "model_answer": ""} for row in template()]))
    assert scored(capsys, "mmhal", "--responses", path, "--verdicts", cache, "--data", tmp_path) == found
    # Fewer answers
    path.write_text(json.dumps(rows[:90]))
    notes = scored(capsys, "mmhal", "--responses", path, "--verdicts", cache)["notes"]
    assert "6 questions without an answer, left out" in notes


def test_a_prompt_of_ones_own(tmp_path, capsys):
    (tmp_path / "answers.json").write_text(json.dumps(template()[:1]))
    prompt = tmp_path / "prompt.txt"
    seen = []
    for text in (
        '{} | {} | {} | {} | {"json": 1}',
        '{answer} | {gt_answer} | {question} | {image_content} | {"json": 1}',
    ):
        prompt.write_text(text)
        with StandInChat(answer=lambda body: "Rating: 3") as server:
            more = ["--judge-url", server.url, "--judge-model", "j", "--judge-prompt", prompt]
            found = scored(capsys, "mmhal", "--responses", tmp_path / "answers.json", *more)
            seen.append(text_of(server.seen[0]["body"]))
        assert "prompt.txt (SHA-256 " in found["settings"]["judge's prompt"]
    assert seen == [
        'Dog, Ball | What is it, 0? | A dog. | Answer 0. | {"json": 1}',
        'Answer 0. | A dog. | What is it, 0? | Dog, Ball | {"json": 1}',
    ]
    prompt.write_text("{question} {} {}")
    said = refused(capsys, "mmhal", "--responses", tmp_path / "answers.json", *more)
    assert (
        "no blank {image_content}; expected {image_content}, {question}, {gt_answer}, {answer}, or as many {}" in said
    )


def test_what_the_judge_is_asked_with(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps([ROW]))
    with StandInChat(answer=lambda body: "Rating: 3") as server:
        common = ["mmhal", "--responses", tmp_path / "a.json", "--judge-url", server.url, "--judge-model", "j"]
        scored(capsys, *common)
        scored(capsys, *common, "--judge-temperature", "server", "--judge-max-tokens", "server")
        scored(capsys, *common, "--judge-temperature", "0.2", "--judge-max-tokens", "64")
        sent = [{name: value for name, value in one["body"].items() if name != "messages"} for one in server.seen]
    assert sent == [
        {"model": "j", "max_tokens": 1024, "temperature": 0.0},
        {"model": "j"},
        {"model": "j", "max_tokens": 64, "temperature": 0.2},
    ]
    with pytest.raises(SystemExit):
        main([*map(str, common), "--judge-temperature", "nan"])
    assert "argument --judge-temperature: invalid" in capsys.readouterr().err


def test_blanks_within_values_stay():
    assert filled("{a} {b} {c}", a="{b}", b="{a}") == "{b} {a} {c}"


ROW = template()[0]


@pytest.mark.parametrize(
    "rows, options, words",
    [
        ([ROW], [], "a judge is needed: give --judge-url and --judge-model, or --verdicts"),
        ([ROW], ["--judge-url", "http://127.0.0.1:9"], "--judge-url needs --judge-model"),
        ([ROW], ["--judge-url", "127.0.0.1:9", "--judge-model", "j"], "is no address of a server"),
        ([ROW], ["--verdicts", "nothing.jsonl"], "holds no verdicts; add --judge-url"),
        ([ROW], ["--verdicts", "two.jsonl"], "holds verdicts of a, b; choose with --judge-model"),
        ([ROW], ["--verdicts", "two.jsonl", "--judge-model", "a"], "1 of 1 answers, the first of them image00, have no verdict of a"),
        ([ROW, ROW], ["--verdicts", "two.jsonl", "--judge-model", "a"], "'image00' has an answer already"),
        ([{**ROW, "gt_answer": None}], ["--verdicts", "two.jsonl", "--judge-model", "a"], "'gt_answer' is missing"),
        ([{"id": "x", "response": "a"}], ["--verdicts", "two.jsonl", "--judge-model", "a"], "give the questions with --data"),
        ([{**ROW, "model_answer": 3}], ["--verdicts", "two.jsonl", "--judge-model", "a"], "'model_answer' is 3; expected the answer"),
        ([ROW], ["--verdicts", "two.jsonl", "--judge-model", "a", "--data", "."], "there is no response_template.json; get it from https"),
    ],
)  # fmt: skip
def test_what_mmhal_refuses(rows, options, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verdicts = [{"judge": own, "prompt": "", "answer": "", "verdict": ""} for own in "ab"]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in verdicts))
    (tmp_path / "answers.json").write_text(json.dumps(rows))
    assert words in refused(capsys, "mmhal", "--responses", "answers.json", *options)


def test_a_judge_that_is_not_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mfpo_trl.endpoint.client.LONGEST_WAIT", 0.01)
    (tmp_path / "a.json").write_text(json.dumps([ROW]))
    options = ["--judge-url", "http://127.0.0.1:9", "--judge-model", "j"]
    assert "refused; tried 8 times" in refused(capsys, "mmhal", "--responses", tmp_path / "a.json", *options)


# HallusionBench


def asked(category, figure, question, truth, said, set_id=0):
    ids = {"category": category, "subcategory": "map", "set_id": set_id, "figure_id": figure, "question_id": question}
    more = {"question": f"q{question}?", "gt_answer": truth, "gt_answer_details": f"details {truth}"}
    return {**ids, **more, "model_prediction": said}


HALLUSION = [
    asked("VD", "0", "0", "1", "Yes."),
    asked("VD", "0", "1", "0", "No, it is not."),
    asked("VD", "1", "0", "0", "yes"),
    asked("VD", "1", "1", "0", "The answer is no"),
    asked("VS", "0", "0", "1", "I cannot say"),
    asked("VS", "1", "0", "1", "Yes"),
    asked("VS", "1", "1", "1", "It is unclear"),
]


def test_hallusionbench_by_hand(tmp_path, capsys):
    """a_acc 5 of 7 (VS without a figure: not knowing is right); f_acc: the first of VD's two and VS's one; q_acc: VD q1 and VS q0 of four."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps(HALLUSION))
    found = scored(capsys, "hallusionbench", "--responses", path)
    values = [found[group][name]["value"] for group, name in NAMES]
    assert values == pytest.approx([5 / 7, 1 / 3, 2 / 4])
    assert "none: the word yes or no" in found["settings"]["judge"]
    assert any("2 answers say neither yes nor no" in note for note in found["notes"])
    path.write_text(json.dumps(random.Random(3).sample(HALLUSION, 7)))
    assert scored(capsys, "hallusionbench", "--responses", path) == found
    # Joined with the questions; one is not answered, and right nowhere.
    (tmp_path / "HallusionBench.json").write_text(json.dumps([{**row, "model_prediction": ""} for row in HALLUSION]))
    ids = [hallusionbench.name(row, "") for row in HALLUSION]
    assert ids[0] == "VD_map_0_0_0"
    rows = [{"id": own, "response": row["model_prediction"]} for own, row in zip(ids, HALLUSION, strict=True)]
    path.write_text(json.dumps(rows))
    assert scored(capsys, "hallusionbench", "--responses", path, "--data", tmp_path) == found
    path.write_text(json.dumps(rows[1:]))
    found = scored(capsys, "hallusionbench", "--responses", path, "--data", tmp_path)
    assert [found[group][name]["value"] for group, name in NAMES] == pytest.approx([4 / 7, 0, 2 / 4])
    assert "1 questions without an answer, which is never right" in found["notes"]


NAMES = [("questions", "a_acc"), ("figures", "f_acc"), ("questions over figures", "q_acc")]


@pytest.mark.parametrize("seed", range(3))
def test_hallusionbench_in_a_straight_line(seed, tmp_path, capsys):
    draw = random.Random(seed)
    rows = [
        asked(category, str(figure), str(question), draw.choice("01"), draw.choice(["Yes", "No", "?"]), set_id=group)
        for category in ("VD", "VS")
        for group in range(6)
        for figure in range(draw.randrange(1, 4))
        for question in range(draw.randrange(1, 3))
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    right, figures, pairs = [], {}, {}
    for row in rows:
        said = {"Yes": "1", "No": "0", "?": "?"}[row["model_prediction"]]
        correct = said == row["gt_answer"]
        if row["category"] == "VS" and row["figure_id"] == "0":
            correct = correct or said == "?"
        else:
            figures.setdefault((row["category"], row["set_id"], row["figure_id"]), []).append(correct)
        right.append(correct)
        pairs.setdefault((row["category"], row["set_id"], row["question_id"]), []).append(correct)
    expected = [sum(right) / len(rows), *(sum(map(all, own.values())) / len(own) for own in (figures, pairs))]
    found = scored(capsys, "hallusionbench", "--responses", path)
    assert [found[group][name]["value"] for group, name in NAMES] == pytest.approx(expected)


@pytest.mark.parametrize(
    "text, truth, expected",
    [
        ("Yes", "1", 1), ("Yes.", "0", 0), ("no, there isn't", "0", 1), ("No", "1", 0), ("I think so, yes", "1", 1),
        ("not sure", "1", 2), ("", "0", 2), ("yes and no", "0", 0), ("Either yes or no", "0", 2), ("Nobody knows", "0", 2),
        ("yesterday", "1", 2), ("**Yes**", "1", 1), ("Yes, there is no dog", "1", 1),
    ],
)  # fmt: skip
def test_yes_and_no(text, truth, expected):
    assert hallusionbench.compared(text, truth) == expected


def test_hallusionbench_with_a_judge(tmp_path, capsys):
    said = {
        "Yes.": "Correct",
        "No, it is not.": "CORRECT.",
        "yes": "incorrect",
        "It is unclear": "unclear",
        "Yes": "It is correct",
    }
    said |= {"The answer is no": "This is Incorrect", "I cannot say": "unclear"}
    (tmp_path / "a.json").write_text(json.dumps(HALLUSION))
    with StandInChat(answer=lambda body: said[text_of(body).split("Prediction: ")[1].split("\n")[0]]) as server:
        more = ["--judge-url", server.url, "--judge-model", "gpt-4"]
        found = scored(capsys, "hallusionbench", "--responses", tmp_path / "a.json", *more)
        assert all("Reference answer: details" in text_of(one["body"]) for one in server.seen)
    assert [found[group][name]["value"] for group, name in NAMES] == pytest.approx([4 / 7, 1 / 3, 1 / 4])
    assert found["settings"]["judge"] == "gpt-4"


@pytest.mark.parametrize(
    "row, words",
    [
        ({**HALLUSION[0], "gt_answer": "yes"}, "'gt_answer' is 'yes'; expected '0' for no or '1' for yes"),
        ({**HALLUSION[0], "figure_id": None}, "'figure_id' is missing"),
        ({"response": "Yes"}, "'category' is missing"),
    ],
)
def test_what_hallusionbench_refuses(row, words, tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps([row]))
    assert words in refused(capsys, "hallusionbench", "--responses", tmp_path / "a.json")


# Object HalBench


@pytest.mark.parametrize(
    "verdict, phrases",
    {
        "dog\nfire hydrant": ["dog", "fire hydrant"],
        "- a dog\n* cat\n1. car\n2) bus": ["a dog", "cat", "car", "bus"],
        '["dog", "cat"]': ["dog", "cat"],
        "dog, cat; car.": ["dog", "cat", "car"],
        "```json\n[\n  \"dog\"\n]\n```": ["dog"],
        "none": [], "None.": [], "": [], "[]": [],
    }.items(),
)  # fmt: skip
def test_what_a_judge_lists(verdict, phrases):
    assert listed(verdict) == phrases


def test_things_of_a_list_are_known_by_their_heads():
    """Officially a run of nouns is looked up as a whole: a dog's collar is no dog. Without a tagger, its last word stands for it."""
    found = {
        "leather dog collar": [], "brown dog": ["dog"], "two dogs": ["dog"], "dining table": ["dining table"], "baby elephant": ["elephant"],
        "toilet seat": ["toilet"], "slice of pizza": ["pizza"], "man in a suit": ["man"], "cup and saucer": ["cup"], "dog bed": ["bed"], "": [],
    }  # fmt: skip
    assert {phrase: Objects().heads(phrase) for phrase in found} == found


def test_a_short_answer_names_nothing_to_a_judge(tmp_path, capsys):
    (tmp_path / "gt.json").write_text('{"1": ["cat"]}')
    (tmp_path / "a.jsonl").write_text(
        '{"image_id": 1, "prompt": "a", "response": "A dog there"}\n{"image_id": 1, "prompt": "b", "response": "A dog is there"}'
    )
    argv = [
        "objhal",
        "--responses",
        tmp_path / "a.jsonl",
        "--ground-truth",
        tmp_path / "gt.json",
        "--extractor",
        "llm",
    ]
    with StandInChat(answer=lambda body: "dog") as server:
        found = scored(capsys, *argv, "--judge-url", server.url, "--judge-model", "reader")
        assert len(server.seen) == 1
    assert (found["all"]["chair_s"]["n"], found["all"]["chair_s_all"]["n"]) == (1, 2)


def test_objects_by_a_judge(tmp_path, capsys):
    """The judge does not list the dog that is denied, and the rules count it: dog is not in the picture."""
    (tmp_path / "gt.json").write_text('{"1": ["cat"]}')
    (tmp_path / "a.jsonl").write_text('{"image_id": 1, "response": "A cat, and no dog."}')
    common = ["objhal", "--responses", tmp_path / "a.jsonl", "--ground-truth", tmp_path / "gt.json"]
    found = scored(capsys, *common)
    assert found["all"]["chair_s"]["value"] == 1.0 and "rules" in found["settings"]["extractor"]
    cache = tmp_path / "v.jsonl"
    with StandInChat(answer=lambda body: "cat") as server:
        judged = [*common, "--extractor", "llm", "--verdicts", cache]
        found = scored(capsys, *judged, "--judge-url", server.url, "--judge-model", "reader")
        assert "A cat, and no dog." in text_of(server.seen[0]["body"])
    assert found["all"]["chair_s"]["value"] == 0.0 and found["settings"]["extractor"] == "language model reader"
    assert scored(capsys, *judged) == found
    assert "--extractor rules asks none; add --extractor llm" in refused(capsys, *common, "--verdicts", cache)
    assert "a judge is needed" in refused(capsys, *common, "--extractor", "llm")
