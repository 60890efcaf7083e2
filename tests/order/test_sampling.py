"""Pairs on the same image and prompt fall into one micro-batch, in the same order whenever and wherever it is asked."""

import logging

import pytest
import tiny
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from test_trainer import CPU

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl.order.sampling import keep_together, prompt_groups


def test_groups_by_hand():
    """Batches of 4: group 0 keeps its three rows, the single row 3 fills up, groups 2 and 3 make the second batch."""
    groups = [0, 2, 0, 1, 2, 0, 3, 3]
    assert keep_together([0, 1, 2, 3, 4, 5, 6, 7], groups, 4) == [0, 2, 5, 3, 1, 4, 6, 7]


@given(groups=st.lists(st.integers(0, 6), min_size=1, max_size=60), batch=st.integers(1, 8), random=st.randoms())
def test_nothing_is_lost_and_order_decides(groups, batch, random):
    order = list(range(len(groups)))
    random.shuffle(order)
    found = keep_together(order, groups, batch)
    assert sorted(found) == sorted(order) and found[0] == order[0]
    assert found == keep_together(order, groups, batch)


@given(sizes=st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=30))
def test_groups_that_fit_are_never_cut(sizes):
    """Sizes that divide the batch of 4, with singles enough to fill up."""
    groups = [n for n, size in enumerate(sizes) for _ in range(size)] + list(range(100, 100 + 3 * len(sizes)))
    found = keep_together(range(len(groups)), groups, 4)
    batches = {}
    for place, row in enumerate(found):
        batches.setdefault(groups[row], set()).add(place // 4)
    assert all(len(places) == 1 for places in batches.values())


def pairs_on_shared_prompts(count: int = 12) -> Dataset:
    """Row n has the image and prompt of row n % 4."""
    rows = tiny.rows(count)
    for n, row in enumerate(rows):
        row |= {"images": rows[n % 4]["images"], "prompt": rows[n % 4]["prompt"]}
    return Dataset.from_list(rows, features=tiny.dataset(1).features)


def test_rows_are_grouped_by_image_and_prompt():
    data = pairs_on_shared_prompts()
    assert prompt_groups(data) == [0, 1, 2, 3] * 3
    assert prompt_groups(data.select([4, 1, 0])) == [0, 1, 0]
    assert prompt_groups(data.remove_columns("images")) == [0, 1, 2, 3] * 3


class Watching(MFPOTrainer):
    """Keeps the number of branches and the rows of every micro-batch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen, self.rows, collate = [], [], self.data_collator
        self.data_collator = lambda rows: {**collate(rows), "rows": tuple(row["row_number"] for row in rows)}

    def _compute_loss(self, model, inputs, return_outputs):
        self.rows.append(inputs.pop("rows"))
        self.seen.append((len(inputs["pairs"]), len(inputs["branches"])))
        return super()._compute_loss(model, inputs, return_outputs)


def trained(tmp_path, resume: str | None = None, **settings) -> Watching:
    settings = {**CPU, "group_by_prompt": True, "per_device_train_batch_size": 3, "max_steps": 6, **settings}
    trainer = Watching(
        model=tiny.model(1),
        ref_model=tiny.model(),
        args=MFPOConfig(output_dir=str(tmp_path), **settings),
        train_dataset=pairs_on_shared_prompts(),
        processing_class=tiny.processor(),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_shared_branch_is_scored_once(tmp_path):
    """Three pairs with one image and prompt whose answers are equal in every row: three branches instead of nine."""
    assert trained(tmp_path).seen == [(3, 3)] * 6


def test_resume_inside_of_the_second_epoch_sees_the_same_rows(tmp_path):
    """Four batches an epoch; a run that stopped before the seventh goes on with the rows of the second epoch."""
    whole = trained(tmp_path / "whole", save_strategy="steps", save_steps=6, max_steps=12)
    again = trained(tmp_path / "again", resume=str(tmp_path / "whole" / "checkpoint-6"), max_steps=12)
    assert again.rows == whole.rows[6:]
    epochs = [whole.rows[n : n + 4] for n in (0, 4, 8)]
    assert all(sorted(sum(epoch, ())) == list(range(12)) for epoch in epochs)
    # Were the epochs alike in what is compared, nothing would be.
    assert epochs[1][2:] != epochs[0][2:] and epochs[2] != epochs[1]


@pytest.mark.parametrize("stored", ["paths", "bytes", "one path"])
def test_images_are_told_apart_however_they_are_stored(tmp_path, stored):
    files = []
    for n in range(3):
        tiny.picture(n).save(tmp_path / f"{n}.png")
        path = tmp_path / f"{n}.png"
        files.append(path.read_bytes() if stored == "bytes" else str(path))
    rows = [{"prompt": "what?", "chosen": "a", "rejected": "b"} for _ in range(4)]
    column = "image" if stored == "one path" else "images"
    for n, row in enumerate(rows):
        row[column] = files[n % 3] if column == "image" else [files[n % 3]]
    assert prompt_groups(Dataset.from_list(rows)) == [0, 1, 2, 0]


def test_grouping_that_shares_nothing_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trained(tmp_path, prefix_sharing="off", max_steps=1)
    assert "nothing is shared between them: prefix_sharing='off'" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        trained(tmp_path, per_device_train_batch_size=1, max_steps=1)
    assert "per_device_train_batch_size is 1" in caplog.text


def test_what_cannot_be_grouped_is_refused(tmp_path):
    with pytest.raises(ValueError, match="group_by_prompt=True needs a map-style data set"):
        Watching(
            model=tiny.model(),
            args=MFPOConfig(output_dir=str(tmp_path), **{**CPU, "group_by_prompt": True, "max_steps": 1}),
            train_dataset=pairs_on_shared_prompts().to_iterable_dataset(),
            processing_class=tiny.processor(),
        )
    with pytest.raises(ValueError, match="train_sampling_strategy='group_by_length'"):
        trained(tmp_path, train_sampling_strategy="group_by_length")
