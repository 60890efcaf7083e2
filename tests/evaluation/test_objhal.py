"""Object HalBench by hand: each word of an answer once, several answers to one picture, both ways to count CHAIRi."""

import json

import pytest

from mfpo_trl.evaluation.benchmarks.command import build_parser
from mfpo_trl.evaluation.benchmarks.objhal import score

TRUTH = {"1": ["person", "dog"], "2": ["cat"], "3": ["bus"]}


def scored(tmp_path, rows: list[dict]):
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    argv = ["objhal", "--responses", str(path), "--ground-truth", str(tmp_path / "truth.json")]
    args = build_parser().parse_args(argv)
    return score(args, args.responses)


def test_by_hand(tmp_path):
    result = scored(
        tmp_path,
        [
            {"image_id": 1, "prompt": "Describe.", "response": "A man and a woman with dogs, a dog, a cat and a cat."},
            {"image_id": 1, "prompt": "What is there?", "response": "People."},
            {"image_id": 2, "prompt": "Describe.", "response": "A scene, quiet and calm."},
            {"image_id": 2, "prompt": "What is there?", "response": "A dog, a dog and a cat."},
        ],
    )
    found = result.figures()["all"]
    # Words once: man, woman, dog, cat / person / none / dog, cat: 7, of them the cat of 1 and the dog of 2 wrong. With repeats:
    # man, woman, dog, dog, cat, cat / person / none / dog, dog, cat: 10, 4 wrong. 2 answers of the 3 that name anything.
    # Of 2 + 2 + 1 + 1 objects, 2 + 1 + 0 + 1 are named.
    assert {name: own.value for name, own in found.items()} == pytest.approx(
        {
            "chair_s": 2 / 3,
            "chair_s_all": 2 / 4,
            "chair_i": 2 / 7,
            "chair_i_mentions": 4 / 10,
            "coverage": 4 / 6,
            "f1": 2 * (5 / 7) * (2 / 3) / (5 / 7 + 2 / 3),
            "words": (14 + 1 + 5 + 7) / 4,
        }
    )
    assert (found["chair_s"].n, found["chair_s_all"].n) == (3, 4)
    assert result.notes == ["1 images without an answer"] and "rules" in result.settings["extractor"]


def test_answers_to_one_picture_are_told_apart_by_their_prompt(tmp_path):
    rows = [{"image_id": 1, "question": f"Prompt {n}", "response": "A dog."} for n in range(8)]
    assert scored(tmp_path, rows).figures()["all"]["chair_s"].n == 8
    with pytest.raises(ValueError, match="line 2: 'image_id' 2 has an answer already, at .* line 1"):
        scored(tmp_path, [{"image_id": 2, "response": "A cat."}] * 2)
