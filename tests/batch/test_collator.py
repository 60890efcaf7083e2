"""Rows -> batch: layout, endings, dispreferred images, and errors that name row and field."""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from mfpo_trl.batch.collator import MFPOCollator
from mfpo_trl.batch.endings import end_completion
from mfpo_trl.batch.layouts import Branch, EncodedPrompt, lay_flat
from mfpo_trl.batch.resolution import model_resolution
from mfpo_trl.images.dispreferred import DispreferredImages


@pytest.fixture(scope="module")
def processor():
    return tiny.processor()


def tokens_of(batch, row):
    return batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()


def labels_of(batch, row):
    labels = batch["labels"][row]
    return labels[labels != -100].tolist()


def test_rows_are_prompt_and_completion(processor):
    example = tiny.rows(1)[0]
    batch = MFPOCollator(processor)([example])
    text = "USER: <image>\nwhat is in image 0? ASSISTANT:"
    prompt = processor(images=[[example["images"][0]]], text=[text], add_special_tokens=False)["input_ids"][0]
    for row, answer in enumerate([tiny.ANSWERS[0][0], tiny.ANSWERS[0][1], tiny.ANSWERS[0][0]]):
        completion = processor.tokenizer(f" {answer} </s>", add_special_tokens=False)["input_ids"]
        assert tokens_of(batch, row) == prompt + completion
        assert labels_of(batch, row) == completion
        assert batch["branches"][row].tolist() == [row, len(prompt) - 1, len(completion)]
    assert batch["pairs"].tolist() == [[0, 1, 2]]
    assert next(iter(batch)) == "pairs"


def test_images_of_the_branches(processor):
    example = tiny.rows(1)[0]
    batch = MFPOCollator(processor)([example])
    clean, again, corrupted = batch["pixel_values"]
    own = processor.image_processor(example["images"][0], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(clean, own) and torch.equal(again, own)
    assert not torch.equal(corrupted, own)


def test_only_the_wanted_branches(processor):
    batch = MFPOCollator(processor, branches=("chosen", "corrupted"))(tiny.rows(2))
    assert batch["pairs"].tolist() == [[0, -1, 2], [1, -1, 3]]
    assert len(batch["input_ids"]) == len(batch["pixel_values"]) == 4


def test_rows_without_an_image(processor):
    """The second row has none: no corrupted branch, no image token; the third has two."""
    rows = tiny.rows(3)
    rows[1]["images"] = []
    rows[2]["images"] = [tiny.picture(5), tiny.picture(6, 33, 35)]
    batch = MFPOCollator(processor)(rows)
    assert batch["pairs"].tolist() == [[0, 3, 6], [1, 4, -1], [2, 5, 7]]
    assert (batch["input_ids"] == 4).sum(dim=1).tolist() == [4, 0, 8, 4, 0, 8, 4, 8]
    assert len(batch["pixel_values"]) == 1 + 2 + 1 + 2 + 1 + 2
    rows[0]["images"], rows[2]["images"] = [], None
    batch = MFPOCollator(processor)(rows)
    assert "pixel_values" not in batch and batch["pairs"][:, 2].tolist() == [-1, -1, -1]


def test_plain_format_and_implicit_prompt(processor):
    image = tiny.picture(0)
    plain = {"image": image, "prompt": "<image> what? ", "chosen": "a dog", "rejected": "a cat"}
    batch = MFPOCollator(processor)([plain])
    assert processor.tokenizer.decode(labels_of(batch, 0)) == "a dog</s>"
    implicit = {"image": image, "chosen": "<image> what? a dog", "rejected": "<image> what? two cats"}
    batch = MFPOCollator(processor)([implicit])
    assert processor.tokenizer.decode(labels_of(batch, 1)).strip() == "two cats</s>"
    conversation = tiny.rows(1)[0]
    conversation["chosen"] = conversation["prompt"] + conversation["chosen"]
    conversation["rejected"] = conversation.pop("prompt") + conversation["rejected"]
    assert torch.equal(
        MFPOCollator(processor)([conversation])["input_ids"], MFPOCollator(processor)(tiny.rows(1))["input_ids"]
    )


def test_pad_to_multiple_and_cut(processor, caplog):
    batch = MFPOCollator(processor, pad_to_multiple_of=16)(tiny.rows(2))
    assert batch["input_ids"].size(1) % 16 == 0
    full = MFPOCollator(processor)(tiny.rows(1))
    limit = int(full["branches"][0, 1]) + 4
    with caplog.at_level("WARNING"):
        cut = MFPOCollator(processor, max_length=limit)(tiny.rows(1))
    assert cut["input_ids"].size(1) == limit and cut["branches"][:, 2].tolist() == [3, 3, 3]
    assert labels_of(cut, 0) == labels_of(full, 0)[:3]
    assert "cuts the end of answers" in caplog.text


@pytest.mark.parametrize(
    ("template", "ending"),
    [
        (tiny.LLAVA_TEMPLATE, "a cat</s>"),
        (tiny.ENDING_TEMPLATE, "a cat </s>"),
        (
            tiny.LLAVA_TEMPLATE.replace(
                "+ ' ' }}{% endfor %}{% endfor %}", "+ '<|end|>\\n' }}{% endfor %}{% endfor %}"
            ),
            "a cat<|end|>\n",
        ),
    ],
    ids=["none", "eos", "end-of-turn"],
)
def test_every_answer_is_closed_once(template, ending):
    processor = tiny.processor(template)
    batch = MFPOCollator(processor)(tiny.rows(3)[2:])
    assert processor.tokenizer.decode(labels_of(batch, 0)) == f" {ending}"
    open_end = MFPOCollator(processor, add_eos=False)(tiny.rows(3)[2:])
    expected = ending.removesuffix("</s>") + " " if template is tiny.LLAVA_TEMPLATE else ending
    assert processor.tokenizer.decode(labels_of(open_end, 0)) == f" {expected}"


def test_end_completion_needs_an_end():
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="add_eos=True needs a tokenizer with an end-of-sequence token"):
        end_completion([7, 8], tokenizer)


def test_given_rejected_images_are_used(processor):
    row = {**tiny.rows(1)[0], "rejected_images": [tiny.picture(9, 64, 48)]}
    batch = MFPOCollator(processor)([row])
    own = processor.image_processor(row["rejected_images"][0], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(batch["pixel_values"][2], own)
    single = {**tiny.rows(1)[0], "rejected_image": tiny.picture(9, 64, 48)}
    assert torch.equal(MFPOCollator(processor)([single])["pixel_values"], batch["pixel_values"])


def test_corruption_stays_in_the_key_region():
    row = {**tiny.rows(1)[0], "key_regions": [[4, 4, 20, 20]]}
    (found,) = DispreferredImages()(row, row["images"])
    before, after = np.asarray(row["images"][0]), np.asarray(found)
    changed = (before != after).any(axis=2)
    assert changed[4:20, 4:20].mean() > 0.9
    assert not changed[:4].any() and not changed[20:].any() and not changed[:, :4].any() and not changed[:, 20:].any()


@pytest.mark.parametrize(("region", "share"), [("auto", 1.0), ("global", 1.0), ("random", 0.2)])
def test_regions_without_key_regions(region, share):
    row = tiny.rows(1)[0]
    masks = DispreferredImages(region=region).masks(row, row["images"])
    assert masks[0].mean() == pytest.approx(share, abs=0.03)


def test_global_and_random_ignore_key_regions():
    row = {**tiny.rows(1)[0], "key_regions": [[4, 4, 6, 6]]}
    assert DispreferredImages(region="global").masks(row, row["images"])[0].all()
    assert DispreferredImages(region="random").masks(row, row["images"])[0].sum() > 50
    assert DispreferredImages(region="auto").masks(row, row["images"])[0].sum() == 4


def test_an_image_without_a_region_stays_clean_beside_one_that_has_some():
    images = [tiny.picture(0), tiny.picture(1)]
    row = {"prompt": "?", "images": images, "key_regions": [[[4, 4, 20, 20]], []]}
    first, second = DispreferredImages()(row, images)
    assert np.asarray(second).tolist() == np.asarray(images[1]).tolist()
    assert np.asarray(first).tolist() != np.asarray(images[0]).tolist()


def test_the_same_row_gets_the_same_image_wherever_it_stands(processor):
    rows = tiny.rows(4)
    together = MFPOCollator(processor)(rows)["pixel_values"][8:]
    alone = torch.cat([MFPOCollator(processor)([row])["pixel_values"][2:] for row in reversed(rows)]).flip(0)
    assert torch.equal(together, alone)
    other = MFPOCollator(processor, dispreferred=DispreferredImages(seed=1))(rows)["pixel_values"][8:]
    assert (together != other).flatten(1).any(dim=1).all()


def test_swap_takes_another_rows_image(processor):
    rows = tiny.rows(4)
    dispreferred = DispreferredImages(corruption="swap", donors=rows)
    found = np.asarray(dispreferred(rows[0], rows[0]["images"])[0])
    resized = [np.asarray(row["images"][0].resize((40, 32), Image.Resampling.BICUBIC)).tolist() for row in rows[1:]]
    assert found.tolist() in resized
    assert found.tolist() == np.asarray(dispreferred(rows[0], rows[0]["images"])[0]).tolist()
    mixed = [{"images": []}] * 50 + rows[1:2]
    found = DispreferredImages(corruption="swap", donors=mixed)(rows[0], rows[0]["images"])
    assert np.asarray(found[0]).tolist() == resized[0]
    with pytest.raises(ValueError, match="no other image to swap in"):
        DispreferredImages(corruption="swap", donors=rows[:1])(rows[0], rows[0]["images"])


def test_one_pixel_image(processor):
    row = {**tiny.rows(1)[0], "images": [Image.new("RGB", (1, 1), "red")]}
    batch = MFPOCollator(processor)([row])
    assert batch["pixel_values"].isfinite().all() and len(batch["pixel_values"]) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": None}, "field 'rejected': is missing"),
        ({"chosen": [{"role": "assistant", "content": ""}]}, "field 'chosen': is empty"),
        ({"rejected_images": []}, r"field 'rejected_images': holds 0 image\(s\) for the 1"),
        ({"rejected_images": [tiny.picture(1)] * 2}, r"field 'rejected_images': holds 2 image\(s\) for the 1"),
        ({"images": [{"bytes": b"", "path": None}]}, "field 'images': image 0 cannot be read: the file is empty"),
        (
            {"images": ["no/a.png"]},
            "field 'images': image 0 cannot be read: .*no/a.png'; a relative path is one from the working directory",
        ),
        ({"key_regions": [[50, 50, 60, 60]]}, "field 'key_regions': the box .* lies outside the image of 40x32"),
        ({"key_regions": [[5, 5, 5, 9]]}, "field 'key_regions': the box .* is empty"),
        ({"prompt": [{"role": "user", "content": "<image>\nwhat?"}]}, "field 'prompt': holds a literal '<image>'"),
        ({"chosen": [{"role": "assistant", "content": "an <image>"}]}, "field 'chosen': holds a literal '<image>'"),
        ({"prompt": "what?", "chosen": "a", "rejected": "b"}, "field 'prompt': the processor .* 0 <image> tokens"),
        (
            {"prompt": "<image><image> what?", "chosen": "a", "rejected": "b"},
            "field 'prompt': the processor .* 2 <image> tokens",
        ),
        (
            {"prompt": "<image>?", "images": [], "chosen": "a", "rejected": "b"},
            "field 'prompt': the processor .* 1 <image> tokens",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "text", "text": "what?"}]}]},
            "field 'prompt': the chat template cannot write it: Number of images provided",
        ),
        (
            {"images": [], "rejected_images": [tiny.picture(1)]},
            r"field 'rejected_images': holds 1 image\(s\) for the 0",
        ),
        ({"prompt": None}, "field 'prompt': is empty"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "field 'prompt': is empty"),
        ({"chosen": ["a cat"]}, "field 'chosen': is .*expected a string or a list of messages"),
        ({"prompt": [{"role": "narrator", "content": "what?"}]}, "field 'prompt': .*Invalid role"),
    ],
)
def test_bad_rows(processor, change, message):
    row = {**tiny.rows(1)[0], "row_number": 41, **change}
    with pytest.raises(ValueError, match=rf"row 41.*, {message}"):
        MFPOCollator(processor)([*tiny.rows(1), row])


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        ("a dog", "two cats", "field 'chosen': shares no prompt"),
        ("<image> what? a dog", "<image> what? a dog", "field 'chosen': and 'rejected' begin alike"),
        ("<image> what?", "<image> what? a dog", "field 'chosen': and 'rejected' begin alike"),
        (
            [{"role": "user", "content": "what?"}, {"role": "assistant", "content": ""}],
            [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "a cat"}],
            "field 'chosen': is empty",
        ),
    ],
)
def test_bad_rows_without_a_prompt(processor, chosen, rejected, message):
    row = {"row_number": 41, "images": [tiny.picture(0)], "chosen": chosen, "rejected": rejected}
    with pytest.raises(ValueError, match=f"row 41.*({message})"):
        MFPOCollator(processor)([row])


def test_bad_rejected_images_are_refused_also_where_no_term_reads_them(processor):
    row = {**tiny.rows(1)[0], "rejected_images": [tiny.picture(1)] * 2}
    with pytest.raises(ValueError, match="holds 2 image"):
        MFPOCollator(processor, branches=("chosen", "rejected"))([row])


def test_equal_answers_are_said_once(processor, caplog):
    rows = tiny.rows(3)
    for row in rows:
        row["rejected"] = row["chosen"]
    collator = MFPOCollator(processor)
    with caplog.at_level("WARNING"):
        collator(rows), collator(rows)
    assert caplog.text.count("'chosen' equals 'rejected'") == 1


def test_key_region_is_needed(processor):
    row = {**tiny.rows(1)[0], "row_number": 8}
    with pytest.raises(ValueError, match="row 8 .*'key_regions'.*corruption_region='key' needs a region"):
        MFPOCollator(processor, dispreferred=DispreferredImages(region="key"))([row])


@pytest.mark.parametrize(("limit", "message"), [(6, "would cut .* 4 of which are the image"), (9, "would cut")])
def test_max_length_never_cuts_images(processor, limit, message):
    with pytest.raises(
        ValueError, match=f"'prompt': max_length={limit} {message}.*raise max_length or set it to None"
    ):
        MFPOCollator(processor, max_length=limit)(tiny.rows(1))
    text_only = {**tiny.rows(1)[0], "images": []}
    with pytest.raises(ValueError, match="leaves no room for the answer"):
        MFPOCollator(processor, max_length=limit)([text_only])


def test_image_tensors_of_different_sizes_are_joined():
    """Tiles of 2 and 3 images a row, of 4 x 2 and 2 x 5 pixels: padded with zeros to the largest."""

    def row(n, height, width):
        return Branch(
            EncodedPrompt({"input_ids": torch.ones(3)}, {"pixel_values": torch.full((n, height, width), 7.0)}), [1]
        )

    joined = lay_flat([row(2, 4, 2), row(3, 2, 5)], 0)["pixel_values"]
    assert joined.shape == (5, 4, 5)
    assert joined[:2, :4, :2].eq(7).all() and joined[2:, :2, :5].eq(7).all() and joined.sum() == 7 * (2 * 8 + 3 * 10)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"shortest_edge": 336}, 336),
        ({"height": 384, "width": 384}, 384),
        ({"longest_edge": 1000}, 500),
        ({"shortest_edge": 56 * 56, "longest_edge": 100 * 200}, 100),
        ({"shortest_edge": 56 * 56, "longest_edge": 4000 * 4000}, 400),
        (None, None),
    ],
)
def test_resolution_that_the_model_sees(size, expected):
    """Of an image of 400 x 800 pixels."""

    class Processor:
        image_processor = type("ImageProcessor", (), {"size": size})

    resolution = model_resolution(Processor)
    assert (resolution(400, 800) if resolution else None) == expected


def test_what_is_said_once_is_said_once_over_workers_and_epochs(caplog):
    """Data workers are made anew in each epoch, and what one of them has said nobody says again."""
    collator = MFPOCollator(tiny.processor(), max_length=24)
    long = [{"role": "assistant", "content": "a very long answer that goes on and on and on until it is cut"}]
    rows = tiny.rows(4, chosen=lambda number: long)
    for _ in torch.utils.data.DataLoader(rows, 2, collate_fn=collator, num_workers=1):
        pass
    caplog.clear()
    assert collator(rows)["cut"].any() and not caplog.records
    MFPOCollator(tiny.processor(), max_length=24)(rows)
    assert len(caplog.records) == 1 and "cuts the end of answers" in caplog.text
