"""`mfpo score` from its command line: what it prints and writes, and what it says of bad files."""

import json
import re
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from mfpo_trl.cli import main
from mfpo_trl.evaluation.benchmarks import coco

TRUTH = {"1": ["dog"], "2": ["cat"], "3": ["bus"], "04": ["car"]}
ROWS = [
    {"image_id": 1, "response": "A dog and a cat."},
    {"image_id": "2", "response": "Cats."},
    {"image_id": 4, "response": ""},
]


@pytest.fixture
def files(tmp_path):
    """A file of answers, one of another model, a truth, and the arguments that score the first."""
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    (tmp_path / "other.json").write_text(json.dumps([{**row, "response": "A dog."} for row in ROWS[:2]]))
    arguments = ["score", "chair", "--responses", str(tmp_path / "answers.jsonl")]
    return tmp_path, [*arguments, "--ground-truth", str(tmp_path / "truth.json")]


def test_the_table(files, capsys):
    folder, argv = files
    assert main([*argv, "--compare", str(folder / "other.json"), "--published"]) == 0
    printed = capsys.readouterr().out
    lines = [re.split(r"  +", line.strip()) for line in printed.splitlines()]
    assert ["all", "chair_s", "33.3", "6.1 to 79.2", "3", "2.0"] in lines
    assert ["all", "chair_i", "33.3", "0.0 to 50.0", "3", "2.0"] in lines
    # Of the two that both answered: one of two is wrong in both.
    assert ["all", "chair_s", "+0.0", "-100.0 to +100.0", "2", "1.000 (McNemar)"] in lines
    assert "Note: 1 images without an answer." in printed and "Note: 1 answers are empty." in printed
    assert "other.json: 2 images without an answer" in printed
    assert "No published rows of CHAIR" in printed


def test_the_json(files, capsys):
    folder, argv = files
    assert main([*argv, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    figure = printed["all"]["chair_s"]
    assert figure == {
        "value": 1 / 3,
        "low": pytest.approx(0.0615, abs=1e-3),
        "high": pytest.approx(0.792, abs=1e-3),
        "n": 3,
    }
    assert list(printed["all"]) == ["chair_s", "chair_i", "coverage", "f1", "words"]
    assert printed["benchmark"] == "CHAIR" and printed["notes"] == [
        "1 images without an answer",
        "1 answers are empty",
    ]
    assert main([*argv, "--json", str(folder / "report.json"), "--scores", str(folder / "model")]) == 0
    assert "95 % interval" in capsys.readouterr().out
    for path in (folder / "report.json", folder / "model" / "scores" / "chair.json"):
        assert json.loads(path.read_text()) == printed


def test_the_order_of_answers_says_nothing(files, capsys):
    folder, argv = files
    main([*argv, "--json"])
    first = json.loads(capsys.readouterr().out)
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, ROWS[::-1])))
    main([*argv, "--json"])
    assert json.loads(capsys.readouterr().out) == first


def test_figures_over_nothing(files, capsys):
    folder, argv = files
    (folder / "answers.jsonl").write_text(json.dumps({"image_id": 1, "response": "Nothing."}))
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["all"]["chair_i"] == {"value": None, "low": None, "high": None, "n": 1}
    assert main(argv) == 0
    assert re.search(r"chair_i +– +– to – ", capsys.readouterr().out)


GOOD = json.dumps(ROWS[0])
BAD = {
    "a word": (b"dog", "line 1 is not JSON"),
    "a cut line": (GOOD.encode() + b'\n{"image_id": 2, "resp', "line 2 is not JSON"),
    "a number": (b"1", "line 1 holds int; expected an object"),
    "a list of words": (b'["dog"]', "row 1 holds str; expected an object"),
    "nothing": (b"\n\n", "holds no answers"),
    "no id": (b'{"response": "A dog"}', "line 1: 'image_id' is missing"),
    "an id of another kind": (b'{"image_id": 1.5, "response": "A dog"}', "line 1: 'image_id' is 1.5"),
    "no answer": (b'{"image_id": 1}', "line 1: 'response' is missing"),
    "an answer of another kind": (b'{"image_id": 1, "response": ["a"]}', r"line 1: 'response' is \['a'\]"),
    "an id twice": (f"{GOOD}\n\n{GOOD}".encode(), "line 3: 'image_id' 1 has an answer already, at .*line 1"),
    "an id twice, in two forms": (GOOD.encode() + b'\n{"image_id": "01", "response": ""}', "line 2: 'image_id' 1 has"),
    "unknown ids": (b'{"image_id": 9, "response": ""}\n{"image_id": 8, "response": ""}', "line 1: id '9' .*1 more"),
    "not UTF-8": (GOOD.encode() + b'\n{"image_id": 2, "response": "caf\xe9"}', "line 2 is not UTF-8: byte .* is 0xe9"),
    "nested": (b"[" * 100_000, "is not JSON"),
}


@pytest.mark.parametrize(("content", "said"), BAD.values(), ids=BAD)
def test_bad_answers(files, capsys, content, said):
    """One sentence, with the file."""
    folder, argv = files
    (folder / "answers.jsonl").write_bytes(content)
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert error.startswith("mfpo score chair: error: ") and error.count("\n") == 1
    assert re.search(f"answers.jsonl.*{said}", error) or re.search(said, error)


BAD_TRUTH = {
    "a list": ("[1]", "holds no images"),
    "a name": ('{"1": "dog"}', "image 1: 'dog'; expected a list"),
    "another object": ('{"1": ["dog", "unicorn"]}', "image 1: 'unicorn' is not among the objects"),
    "an image twice": ('{"1": ["dog"], "01": []}', "image 01 comes twice"),
}


@pytest.mark.parametrize(("content", "said"), BAD_TRUTH.values(), ids=BAD_TRUTH)
def test_bad_truth(files, capsys, content, said):
    folder, argv = files
    (folder / "truth.json").write_text(content)
    assert main(argv) == 1
    assert said in capsys.readouterr().err


def test_a_long_answer(files, capsys):
    """100 kB, of words and of one word."""
    folder, argv = files
    rows = [
        {"image_id": 1, "response": "A cat. " * 15_000},
        {"image_id": 2, "response": "dog" * 34_000 + ")." * 5_000},
    ]
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["all"]["chair_i"]["value"] == 1.0


def test_the_annotations_of_coco(files, capsys):
    """Objects of both instances and captions; an image that has none of either is one with nothing in it."""
    folder, argv = files
    images = [{"id": n} for n in range(1, 5)]
    instances = {
        "images": images,
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 18}, {"image_id": 99, "category_id": 18}],
    }
    captions = {"images": images, "annotations": [{"image_id": 1, "caption": "Two kittens."}]}
    (folder / "instances_val2014.json").write_text(json.dumps(instances))
    argv = [*argv[:4], "--coco-annotations", str(folder), "--json"]
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert "has no captions_*.json" in error and "annotations_trainval2014.zip" in error and "CC BY" in error
    (folder / "captions_val2014.json").write_text(json.dumps(captions))
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    # Dog and cat are right; the cats of image 2 are not; two of two objects are named.
    assert (found["all"]["chair_i"]["value"], found["all"]["coverage"]["value"]) == (1 / 3, 1.0)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("instances", {"annotations": [{"image_id": 1, "category_id": 99}]}, "annotation 1: 'category_id' is 99, which is none of"),
        ("instances", {"annotations": [{"image_id": 1}]}, "annotation 1: 'category_id' is missing"),
        ("instances", {"annotations": [3]}, "is no annotation file of COCO"),
        ("instances", {"images": {"a": 1}}, "is no annotation file of COCO"),
        ("instances", {"categories": [{"id": 18}]}, "category missing is not among the objects"),
        ("captions", {"annotations": [{"image_id": 1}]}, "annotation 1: 'caption' is missing; expected a text"),
        ("captions", {"annotations": [{"image_id": 1, "caption": None}]}, "annotation 1: 'caption' is missing; expected a text"),
    ],
)  # fmt: skip
def test_annotations_of_coco_that_are_none(kind, change, said, tmp_path, capsys):
    content = {
        "instances": {
            "images": [{"id": 1}],
            "categories": [{"id": 18, "name": "dog"}],
            "annotations": [{"image_id": 1, "category_id": 18}],
        },
        "captions": {"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "A cat."}]},
    }
    content[kind] |= change
    for name, own in content.items():
        (tmp_path / f"{name}_val2014.json").write_text(json.dumps(own))
    (tmp_path / "a.jsonl").write_text('{"image_id": 1, "response": "A dog."}')
    assert main(["score", "chair", "--responses", str(tmp_path / "a.jsonl"), "--coco-annotations", str(tmp_path)]) == 1
    assert said in capsys.readouterr().err


def test_answers_to_other_items_are_not_compared(tmp_path, capsys):
    (tmp_path / "gt.json").write_text('{"1": ["dog"], "2": ["dog"]}')
    for name, own in {"a.jsonl": 1, "b.jsonl": 2}.items():
        (tmp_path / name).write_text(json.dumps({"image_id": own, "response": "A dog."}))
    argv = [
        "score",
        "chair",
        "--responses",
        tmp_path / "a.jsonl",
        "--ground-truth",
        tmp_path / "gt.json",
        "--compare",
        tmp_path / "b.jsonl",
    ]
    assert main(list(map(str, argv))) == 1
    assert "--compare b.jsonl: no item has an answer there and in --responses as well" in capsys.readouterr().err


def test_what_has_to_be_installed(files, capsys, monkeypatch):
    _, argv = files
    monkeypatch.setattr(coco, "find_spec", lambda name: None)
    coco._rules.cache_clear()
    coco._singular_words.cache_clear()
    assert main(argv) == 1
    assert "needs textblob: pip install 'mfpo_trl[evaluation]'" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(argv) == 0


def test_files_of_answers_and_questions_go_together(tmp_path, capsys):
    question = {"question_id": 1, "text": "Is there a dog?", "label": "yes"}
    for name in ("coco_pope_random", "coco_pope_popular"):
        (tmp_path / f"{name}.json").write_text(json.dumps(question))
    (tmp_path / "a.jsonl").write_text('{"question_id": 1, "response": "Yes"}')
    (tmp_path / "b.jsonl").write_text('{"question_id": 1, "response": "No"}')
    a, b, questions = (
        str(tmp_path / "a.jsonl"),
        str(tmp_path / "b.jsonl"),
        [*map(str, sorted(tmp_path.glob("*.json")))],
    )
    assert main(["score", "pope", "--responses", a, b, "--questions", *questions, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [found[name]["accuracy"]["value"] for name in ("popular", "random", "macro")] == [1.0, 0.0, 0.5]
    assert main(["score", "pope", "--responses", a, "--questions", *questions]) == 1
    assert "1 files of answers and 2 of questions" in capsys.readouterr().err
    assert main(["score", "pope", "--responses", a, b, "--questions", *[questions[0]] * 2]) == 1
    assert "another split is called 'popular'" in capsys.readouterr().err
    (tmp_path / "coco_pope_random.json").write_text(json.dumps({**question, "label": "maybe"}))
    assert main(["score", "pope", "--responses", a, "--questions", questions[1]]) == 1
    assert "line 1: 'label' is 'maybe'" in capsys.readouterr().err


def test_the_card(files, capsys):
    """Into its table and its metadata, twice the same; what else is there stays."""
    folder, argv = files
    model = folder / "model"
    assert main([*argv, "--update-card", str(model)]) == 1
    assert "has no README.md" in capsys.readouterr().err
    model.mkdir(exist_ok=True)
    index = {
        "name": "mine",
        "results": [
            {
                "task": {"type": "image-text-to-text"},
                "dataset": {"name": "MME", "type": "mme"},
                "metrics": [{"type": "score", "value": 1500}],
            }
        ],
    }
    head = f"---\nlicense: mit\nown: [1]\nmodel-index: {json.dumps([index])}\n---\n"
    (model / "README.md").write_text(f"{head}# Mine\n\nText.\n\n## Licence\n\nMIT\n")
    for _ in range(2):
        assert main([*argv, "--update-card", str(model)]) == 0
    card = ModelCard.load(model / "README.md")
    assert (card.data.license, card.data.own, card.data.model_name) == ("mit", [1], "mine")
    assert card.text.startswith("# Mine\n\nText.\n\n## Evaluation\n\n") and card.text.endswith(
        "\n\n## Licence\n\nMIT\n"
    )
    assert card.text.count("| CHAIR | chair\\_s | 33.3 % | 6.1 % to 79.2 % | 3 |") == 1
    assert "| CHAIR | words | 2.00 | 0.00 to 5.00 | 3 |" in card.text
    results = {(own.dataset_name, own.metric_name): own.metric_value for own in card.data.eval_results}
    assert results["CHAIR", "chair_s"] == 1 / 3 and results["MME", None] == 1500
    assert len(card.data.eval_results) == 6


def test_it_is_light(files):
    """Nothing that takes seconds is loaded, but what finds objects in captions."""
    _, argv = files
    heavy = ("torch", "transformers", "trl", "datasets", "peft", "PIL", "huggingface_hub")
    code = (
        f"import sys; from mfpo_trl.cli import main; main({argv!r}); print([m for m in {heavy!r} if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
    code = "import sys; from mfpo_trl.cli import main\ntry: main(['score', '--help'])\nfinally: print('nltk' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False" and "objhal" in run.stdout
