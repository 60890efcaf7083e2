"""Objectives whose prompts are not the row's own (a begun answer, both images in one prompt), and rows of several images: through the
trainer, flat and packed, against one forward a branch, unpadded."""

import copy
import logging

import families
import pytest
import tiny
import torch
from datasets import Dataset, Features, Image, List, Value, load_from_disk
from test_objectives import alone
from test_presets import FORMULAS, l
from test_trainer import CPU, policy

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl.batch.both import own_image_first
from mfpo_trl.batch.choice import PACKED_FAMILIES, choose_layout
from mfpo_trl.batch.collator import MFPOCollator
from mfpo_trl.batch.packing import FLAT
from mfpo_trl.objective import COUNTERPART, PRESETS, REJECTED, BranchName
from mfpo_trl.objective.terms import TERMS

BETA = CPU["beta"]
PREFIXES = ("a red dog sits. ", "", "two birds ", "the grass. ")
RESTS = (
    ("it is green", "a blue cat and a tree."),
    ("a cat", "a red dog on the grass"),
    ("sit by a tree.", "on the green grass"),
    ("a tree", "the image is blue"),
)


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def begun_rows(images: bool = True) -> Dataset:
    """Four rows, the second without a beginning, the last without an image."""
    made = [
        {
            "images": [tiny.picture(n)] if images and n != 3 else [],
            "rejected_images": [tiny.picture(10 + n)] if images and n != 3 else [],
            "prompt": [{"role": "user", "content": f"what is in image {n}?"}],
            "answer_prefix": PREFIXES[n],
            **dict(zip(("chosen", "rejected"), map(said, RESTS[n]), strict=True)),
        }
        for n in range(4)
    ]
    extra = {"rejected_images": List(Image()), "answer_prefix": Value("string")}
    return Dataset.from_list(made, features=Features(tiny.FEATURES | extra))


def build(folder, data, **config) -> MFPOTrainer:
    args = MFPOConfig(str(folder), **{**CPU, "max_steps": 1, "corruption": "none", "add_eos": False, **config})
    # A template without an end, which a plain pair would have and a begun one not.
    processor = tiny.processor(tiny.LLAVA_TEMPLATE)
    return MFPOTrainer(policy(), tiny.model(), args, train_dataset=data, processing_class=processor)


def stored(data: Dataset, folder) -> Dataset:
    """The same rows on disk, where the cache of their reference lies beside them."""
    data.save_to_disk(folder)
    return load_from_disk(folder)


def loss_of(trainer: MFPOTrainer) -> float:
    rows = list(trainer.train_dataset)
    return trainer.compute_loss(trainer.model.eval(), trainer.data_collator(rows)).item()


def behind_its_beginning(model, processor, row, answer: str, images: list) -> float:
    """log pi(rest of the answer | prompt, images, beginning of the answer), by one forward of one row."""
    place = "<image>\n" if images else ""
    asked = f"USER: {place}{row['prompt'][0]['content']} ASSISTANT:"
    encoded = processor(
        images=[images] if images else None, text=[asked], add_special_tokens=False, return_tensors="pt"
    )
    words = processor.tokenizer
    beginning = f" {row['answer_prefix']}".rstrip()
    # The blank of a plain pair that the template writes behind it.
    rest = f" {row[answer][0]['content']}" + ("" if row["answer_prefix"] else " ")
    given, labels = (
        torch.tensor(words(own, add_special_tokens=False)["input_ids"]).long() for own in (beginning, rest)
    )
    ids = torch.cat([encoded["input_ids"][0], given, labels])[None]
    vision = {"pixel_values": encoded["pixel_values"]} if images else {}
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **vision).logits[0]
    scores = logits[-len(labels) - 1 : -1].double().log_softmax(-1)
    return scores.gather(1, labels[:, None]).sum().item()


@pytest.fixture(scope="module")
def begun_ratios():
    """r(answer | image) of every row, its images by the names of their columns."""
    models, processor, found = (policy().eval(), tiny.model().eval()), tiny.processor(tiny.LLAVA_TEMPLATE), {}
    for number, row in enumerate(begun_rows()):
        for answer, column in (("chosen", "images"), ("rejected", "images"), ("chosen", "rejected_images")):
            ours, theirs = (behind_its_beginning(own, processor, row, answer, row[column]) for own in models)
            found[number, answer, column] = ours - theirs
    return found


@pytest.mark.parametrize("objective", ["sentinel", "mfpo"])
@pytest.mark.parametrize("sharing", ["off", "on"])
def test_a_begun_answer_under_any_objective(objective, sharing, begun_ratios, tmp_path):
    """`l(b[r(y_w|m,x,c) - r(y_l|m,x,c)])`, and mfpo's other terms on such rows, one of them a text."""
    expected = 0.0
    for n in range(4):
        chosen, rejected, corrupted = (
            begun_ratios[n, *key]
            for key in (("chosen", "images"), ("rejected", "images"), ("chosen", "rejected_images"))
        )
        expected += l(BETA * (chosen - rejected))
        if objective == "mfpo":
            expected += l(BETA * chosen) + (l(BETA * (chosen - corrupted)) if n != 3 else 0)
    found = loss_of(build(tmp_path, begun_rows(), objective=objective, prefix_sharing=sharing))
    assert found == pytest.approx(expected / 4, rel=2e-4)


def test_the_cached_reference_of_begun_answers(tmp_path):
    """Live and cached, two steps; another beginning is another row of the cache."""
    histories, data = [], stored(begun_rows(), tmp_path / "data")
    for cached in (False, True):
        config = {"precompute_ref_log_probs": cached, "max_steps": 2, "learning_rate": 0.05}
        trainer = build(tmp_path, data, objective="sentinel", per_device_train_batch_size=2, **config)
        trainer.train()
        lines = [line for line in trainer.state.log_history if "loss" in line]
        histories.append([[line[key] for key in ("loss", "grad_norm")] for line in lines])
    assert len(histories[0]) == 2 and histories[1] == [pytest.approx(line, rel=1e-4) for line in histories[0]]
    other = data.map(lambda row: {"answer_prefix": f"two birds. {row['answer_prefix']}"})
    changed = build(tmp_path, other, objective="sentinel", precompute_ref_log_probs=True)
    before, after = trainer.references.of(trainer.train_dataset), changed.references.of(changed.train_dataset)
    assert (before[:, 0] != after[:, 0]).all()


def test_texts_alone_with_a_beginning(tmp_path):
    """TRL reads data without a column of images itself, and would leave the beginning out; with an empty one it is read."""
    data = begun_rows(images=False)
    words = (
        "train_dataset has a column 'answer_prefix' and none for images: .* add a column 'images' with an empty list"
    )
    with pytest.raises(ValueError, match=words):
        build(tmp_path, data.remove_columns(["images", "rejected_images"]), objective="sentinel")
    models, processor = (policy().eval(), tiny.model().eval()), tiny.processor(tiny.LLAVA_TEMPLATE)
    expected = 0.0
    for row in data:
        own = [[behind_its_beginning(m, processor, row, a, []) for a in ("chosen", "rejected")] for m in models]
        expected += l(BETA * (own[0][0] - own[1][0] - own[0][1] + own[1][1])) / 4
    assert loss_of(build(tmp_path, data, objective="sentinel")) == pytest.approx(expected, rel=2e-4)


# Several images a row


def several(n: int) -> dict:
    """A row of three images, whose places the prompt says, with a dispreferred one for each."""
    parts = [{"type": "text", "text": "first"}, {"type": "image"}, {"type": "text", "text": "then"}, {"type": "image"}]
    parts += [{"type": "image"}, {"type": "text", "text": "what differs?"}]
    return {
        "images": [tiny.picture(3 * n + k, 40 + 4 * k, 32) for k in range(3)],
        "rejected_images": [tiny.picture(50 + 3 * n + k) for k in range(3)],
        "prompt": [{"role": "user", "content": parts}],
        **dict(zip(("chosen", "rejected"), map(said, RESTS[n]), strict=True)),
    }


def several_rows() -> Dataset:
    part = List({"type": Value("string"), "text": Value("string")})
    asked = List({"role": Value("string"), "content": part})
    extra = {"rejected_images": List(Image()), "prompt": asked}
    return Dataset.from_list([several(n) for n in range(2)], features=Features(tiny.FEATURES | extra))


@pytest.mark.parametrize("objective", ["dpo", "mfpo"])
def test_rows_of_three_images(objective, tmp_path):
    """Plain DPO (MIA-DPO's rows), and the image term with all three images replaced: packed, flat and the straight line."""
    models, processor = (policy().eval(), tiny.model().eval()), tiny.processor(tiny.LLAVA_TEMPLATE)
    names = {"w": "chosen", "l": "rejected", "m": "image", "m1": "rejected_image"}
    expected = 0.0
    for n in range(2):

        def r(answer, image, n=n):
            ours, theirs = (alone(own, processor, several(n), names[image], names[answer]) for own in models)
            return ours - theirs

        expected += FORMULAS[objective](r, BETA, {}) / 2
    for sharing in ("off", "on"):
        trainer = build(tmp_path, several_rows(), objective=objective, prefix_sharing=sharing)
        assert loss_of(trainer) == pytest.approx(expected, rel=2e-4), sharing


# Both images in one prompt

BOTH = tuple(
    BranchName(image, answer)
    for image in ("image of both", "rejected_image of both")
    for answer in ("chosen", COUNTERPART)
)


def test_the_order_of_both_images_is_the_rows_own():
    """Half of the rows begin with their own image; a row always does or does not, whatever else is in it."""
    rows = [{"prompt": f"question {n}?"} for n in range(200)]
    images = [tiny.picture(0)]
    first = [own_image_first(row, images) for row in rows]
    assert 70 < sum(first) < 130
    assert first == [own_image_first(row | {"chosen": "x", "row_number": 3}, images) for row in rows]


@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_packed_prompts_of_both_images_are_flat_ones(family):
    """In every family that is packed: images of different sizes, log-probabilities of each branch."""
    from test_packing import prepared

    from mfpo_trl._trl import Replay
    from mfpo_trl.objective import split_batch

    model, processor = families.FAMILIES[family]()
    branches = (*BOTH, REJECTED)
    rows = tiny.rows(2, rejected_images=lambda n: [tiny.picture(60 + n, 56, 84)])
    for row in rows:
        row[COUNTERPART] = said("two birds by a tree")
    found = {}
    for layout in (FLAT, choose_layout(model, "auto").name):
        batch = MFPOCollator(processor, branches, layout=layout)(rows)
        replay = Replay(prepared(copy.deepcopy(model), layout).eval(), *split_batch(batch))
        with torch.no_grad():
            replay.score()
        columns = replay.pairs[:, (replay.pairs >= 0).all(dim=0)]
        found[layout] = replay.logps[columns]
        assert columns.size(1) == len(branches)
    flat, packed = found.values()
    torch.testing.assert_close(packed, flat, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "prompt", "written"),
    [
        ("llava", "USER: <image>\nwhat? ASSISTANT:", "USER: II Answer based on the NTH image.\nwhat? ASSISTANT:"),
        ("llava", "what is in <image>? ASSISTANT:", "what is in II Answer based on the NTH image. ? ASSISTANT:"),
        (
            "qwen2_vl",
            "<|vision_start|><|image_pad|><|vision_end|>what?",
            "II Answer based on the NTH image. what?",
        ),
    ],
)
def test_a_plain_prompt_of_both_images(family, prompt, written):
    """The sentence stands behind the places of the images, which are written as they were."""
    processor = families.FAMILIES[family]()[1]
    row = {
        "image": tiny.picture(0),
        "rejected_image": tiny.picture(1),
        "prompt": prompt,
        "chosen": "a",
        "rejected": "b",
    }
    row[COUNTERPART] = "c"
    sample = MFPOCollator(processor, BOTH).encode(row)
    place = {"llava": "<image>" * 4, "qwen2_vl": "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>"}[family]
    for image, own in (("image of both", True), ("rejected_image of both", False)):
        position = "first" if own == own_image_first(row, [row["image"]]) else "second"
        text = processor.tokenizer.decode(sample[image, "chosen"].prompt.tokens["input_ids"])
        assert text == written.replace("II", place * 2).replace("NTH", position)
    pixels = [sample[branch].prompt.vision["pixel_values"] for branch in BOTH]
    assert all(torch.equal(own, pixels[0]) for own in pixels)


def counterparts(**changed) -> Dataset:
    made = [
        {
            "images": [tiny.picture(n)],
            "rejected_images": [tiny.picture(10 + n)],
            "prompt": [{"role": "user", "content": f"what is in image {n}?"}],
            **dict(zip(("chosen", "rejected"), map(said, RESTS[n]), strict=True)),
            COUNTERPART: said("two birds"),
            **changed,
        }
        for n in range(2)
    ]
    extra = {"rejected_images": List(Image()), COUNTERPART: tiny.MESSAGES}
    return Dataset.from_list(made, features=Features(tiny.FEATURES | extra))


def test_the_sentence_of_both_images(tmp_path, caplog):
    """One's own wording is written, and the cached reference is computed again with it."""
    data = stored(counterparts(), tmp_path / "data")
    trainer = build(tmp_path, data, objective="icvco", precompute_ref_log_probs=True)
    first = trainer.references.of(trainer.train_dataset)
    with caplog.at_level(logging.WARNING, "mfpo_trl"):
        wording = "Look at the {position} picture only."
        other = build(tmp_path, data, objective="icvco", precompute_ref_log_probs=True, image_instruction=wording)
    assert (
        "image_instruction was Answer based on the {position} image., is Look at the {position} picture only."
        in caplog.text
    )
    assert (first != other.references.of(other.train_dataset)).any()
    sample = other.data_collator.encode(data[0])
    texts = [other.processing_class.tokenizer.decode(sample[own].prompt.tokens["input_ids"]) for own in BOTH[::2]]
    assert sorted(own.split("Look at the ")[1] for own in texts) == [
        "first picture only. ASSISTANT:",
        "second picture only. ASSISTANT:",
    ]


@pytest.mark.parametrize("value", ["Look at the image.", 3, None])
def test_a_sentence_that_does_not_say_which(value, tmp_path):
    with pytest.raises(ValueError, match=r"image_instruction is .*; expected a sentence with \{position\}"):
        MFPOConfig(str(tmp_path), use_cpu=True, bf16=False, image_instruction=value)


def test_a_row_of_several_images_cannot_be_one_of_two(tmp_path):
    pictures = [tiny.picture(0), tiny.picture(1)]
    data = counterparts(images=pictures, rejected_images=pictures)
    words = "row 0 .*field 'images': holds 2, and of both images the first or the second is asked about; give the row one image"
    with pytest.raises(ValueError, match=words):
        build(tmp_path, data, objective="icvco", train_sampling_strategy="sequential").train()


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("what is there?", "field 'prompt': has no place for its image, behind which the other one would stand"),
        (
            [{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "be brief"}]}],
            "field 'prompt': has no message of the user",
        ),
    ],
    ids=["plain", "conversation"],
)
def test_a_prompt_that_cannot_ask_about_one_of_two(prompt, words):
    """Without the sentence, contradicting answers would stand behind one prompt."""
    own, other = ("a dog", "a cat") if isinstance(prompt, str) else (said("a dog"), said("a cat"))
    row = {
        "images": [tiny.picture(0)],
        "rejected_images": [tiny.picture(1)],
        "prompt": prompt,
        "chosen": own,
        "rejected": other,
    }
    with pytest.raises(ValueError, match=words):
        MFPOCollator(tiny.processor(), branches=BOTH[:1])([row])


def test_the_last_question_is_the_one_that_is_told(tmp_path):
    """In a conversation of two turns, with an image part where the row says it."""
    content = [{"type": "image"}, {"type": "text", "text": "what?"}]
    row = counterparts()[0] | {
        "prompt": [
            {"role": "user", "content": content},
            *said("a dog"),
            {"role": "user", "content": [{"type": "text", "text": "and where?"}]},
        ]
    }
    processor = tiny.processor()
    sample = MFPOCollator(processor, BOTH).encode(row)
    text = processor.tokenizer.decode(sample[BOTH[0]].prompt.tokens["input_ids"]).replace("<image>" * 4, "I")
    assert text.startswith("USER: I\nI\nwhat? ASSISTANT: a dog </s>USER: and where? Answer based on the ")


def test_what_the_terms_of_both_images_read():
    read = {branch for name in PRESETS["icvco"].weights for branch in TERMS[name].reads}
    assert len(read) == 8 and set(BOTH) < read and REJECTED not in read
