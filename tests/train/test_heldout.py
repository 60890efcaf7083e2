"""Rows that are held out to evaluate on: how many, which, and never one that is trained on."""

import json

import pytest
import tiny
from datasets import Dataset
from test_read_rows import splits


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """60 rows of 20 prompts with images: the first has 5 rows, the others 2 to 4, all mixed."""
    prompts = [n % 20 for n in range(60)]
    prompts[20], prompts[21] = 0, 0
    order = sorted(range(60), key=lambda n: n * 37 % 60)
    made = []
    for n in order:
        own = prompts[n]
        # The same question on ten images, and each image under two questions.
        made.append(
            {
                "image": tiny.picture(own % 10, 8, 8),
                "prompt": [{"role": "user", "content": f"what? {own // 10}"}],
                "chosen": [{"role": "assistant", "content": f"yes {n}"}],
                "rejected": [{"role": "assistant", "content": "no"}],
            }
        )
    file = tmp_path_factory.mktemp("heldout") / "rows.parquet"
    Dataset.from_list(made).to_parquet(file)
    return file


def sides(path, *fields):
    """The number in the chosen answers, and what was asked on which image, of both sides."""
    own = splits(path, "--eval_strategy", "epoch", *fields)
    found = []
    for dataset in (own.train, own.evaluation):
        rows = list(dataset)
        numbers = [row["chosen"][0]["content"] for row in rows]
        found.append((numbers, {(row["prompt"][0]["content"], row["image"].tobytes()) for row in rows}))
    return found


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.25, 0.5, 0.9])
def test_the_share_and_the_prompts(ratio, path):
    """As near to the share as whole prompts allow, below it; nothing asked is on both sides, and every row is on one."""
    (train, asked), (held, unseen) = sides(path, "--eval_split_ratio", str(ratio))
    assert len(train) + len(held) == 60 == len({*train, *held})
    assert ratio * 60 - 5 < len(held) <= max(ratio * 60, 2)
    assert not asked & unseen and len(asked | unseen) == 20


def test_the_seed_alone_decides(path):
    """That of the data, else that of the training; the rows keep their order."""
    ratio = ["--eval_split_ratio", "0.25"]
    every = [row["chosen"][0]["content"] for row in splits(path).train]
    (train, _), (held, _) = first = sides(path, *ratio, "--seed", "1")
    assert [own for own in every if own in held] == held and [own for own in every if own in train] == train
    assert sides(path, *ratio, "--seed", "1", "--learning_rate", "1e-3") == first
    assert sides(path, *ratio, "--seed", "2", "--data_seed", "1") == first
    assert (
        sides(path, *ratio, "--seed", "2") != first and sides(path, *ratio, "--seed", "1", "--data_seed", "2") != first
    )


def test_two_rows(tmp_path):
    """One on each side, however small the share; and none where nothing is held out."""
    lines = [{"prompt": f"q {n}", "chosen": f"yes {n}", "rejected": "no"} for n in range(2)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for ratio in ("0.01", "0.99"):
        own = splits(tmp_path / "rows.jsonl", "--eval_split_ratio", ratio, "--eval_strategy", "epoch")
        assert len(own.train) == len(own.evaluation) == 1
    assert len(splits(tmp_path / "rows.jsonl", "--eval_split_ratio", "0").train) == 2


def test_pairs_of_one_published_row_stay_together(tmp_path):
    def rated(text, rating):
        return {"response": text, "annotations": {"Helpfulness": {"Rating": rating}}}

    lines = [
        {"prompt": f"q {n}", "completions": [rated("a", "1"), rated("b", "2"), rated("c", "3")]} for n in range(6)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    own = splits(tmp_path / "rows.jsonl", "--eval_split_ratio", "0.4", "--eval_strategy", "epoch")
    asked = [{row["prompt"][0]["content"][0]["text"] for row in side} for side in (own.train, own.evaluation)]
    assert len(own.evaluation) == 6 and len(own.train) == 12 and not asked[0] & asked[1]
