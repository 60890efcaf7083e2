"""Rows with a begun answer (`answer_prefix`): it is read as part of the answer, shared by all branches, and never scored."""

import families
import pytest
import tiny
import torch

from mfpo_trl.batch.collator import MFPOCollator
from mfpo_trl.batch.packing import PACKED_ROW
from mfpo_trl.objective import BRANCHES, CHOSEN, CORRUPTED, BranchName

BEGUN = "a red dog sits. "
RESTS = "two birds sit by a tree.", "the grass is green"
FURTHER = (*BRANCHES, BranchName("no image", "chosen"), BranchName("image of both", "rejected"))


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def row(prefix=BEGUN, rests=RESTS, **changed) -> dict:
    answers = dict(zip(("chosen", "rejected"), map(said, rests), strict=True))
    return tiny.rows(1)[0] | answers | {"answer_prefix": prefix, "row_number": 41} | changed


def plain(prefix=BEGUN, rests=RESTS) -> dict:
    texts = {"prompt": "USER: <image>\nwhat? ASSISTANT: ", "chosen": rests[0], "rejected": rests[1]}
    return {"image": tiny.picture(0), **texts, "answer_prefix": prefix}


def whole(own: dict) -> dict:
    """The same row with its answers from their beginning on."""
    found = {key: value for key, value in own.items() if key != "answer_prefix"}
    for name in ("chosen", "rejected"):
        text = own[name] if isinstance(own[name], str) else own[name][0]["content"]
        found[name] = own["answer_prefix"] + text
        found[name] = found[name] if isinstance(own[name], str) else said(found[name])
    return found


def ids(branch) -> list[int]:
    return branch.prompt.tokens["input_ids"].tolist() + list(branch.completion)


SETTINGS = {
    **{name: (lambda name=name: families.FAMILIES[name]()[1], row) for name in families.FAMILIES},
    "no end": (lambda: tiny.processor(tiny.LLAVA_TEMPLATE), row),
    "plain": (tiny.processor, plain),
    "parts": (
        tiny.processor,
        lambda: row(chosen=[{"role": "assistant", "content": [{"type": "text", "text": RESTS[0]}]}]),
    ),
    "no image": (tiny.processor, lambda: row(images=[])),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_tokens_are_those_of_the_whole_answer(name):
    """Up to the end of an answer, which a piece of one has not; in every branch, prompt and template."""
    make, make_row = SETTINGS[name]
    processor, own = make(), make_row()
    branches = BRANCHES if name in ("paligemma", "no image") else FURTHER
    found, expected = (
        MFPOCollator(processor, branches).encode(each) for each in (own, whole(row() if name == "parts" else own))
    )
    assert found.keys() == expected.keys() and len(found) == (2 if name == "no image" else len(branches))
    for branch, begun in found.items():
        written = ids(expected[branch])
        assert ids(begun) == written[: len(ids(begun))]
        assert set(written[len(ids(begun)) :]) <= set(
            processor.tokenizer("</s><|im_end|> <end_of_utterance>\n<end_of_turn>", add_special_tokens=False)[
                "input_ids"
            ]
        )
        text = processor.tokenizer.decode(begun.completion)
        assert text.strip() == (RESTS[1] if branch.answer == "rejected" else RESTS[0]), (
            "all of the rest, and nothing else, is scored"
        )
    for key, value in found[CHOSEN].prompt.tokens.items():
        assert len(value) == len(found[CHOSEN].prompt.tokens["input_ids"]), key


@pytest.mark.parametrize("prefix", ["", None, "  "])
def test_without_a_beginning_it_is_a_plain_pair(prefix):
    processor = tiny.processor()
    found, expected = (MFPOCollator(processor)([own]) for own in (row(prefix), whole(row(""))))
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert (
        found["labels"][0][-1] == processor.tokenizer.eos_token_id
        or processor.tokenizer.eos_token_id in found["labels"]
    )


def test_a_beginning_that_ends_inside_of_a_token():
    """ "a re" + "d dog" is written " red dog", as the model itself would: the token that lies on the seam is scored."""
    processor = tiny.processor()
    own = row("a re", ("d dog", "d cat"))
    sample = MFPOCollator(processor).encode(own)
    assert processor.tokenizer.decode(sample[CHOSEN].completion) == " red dog"
    assert processor.tokenizer.decode(sample["image", "rejected"].completion) == " red cat"
    assert processor.tokenizer.decode(sample[CHOSEN].prompt.tokens["input_ids"]).endswith("ASSISTANT: a")
    # Where one of the answers goes on otherwise, they still share what stands before both.
    other = MFPOCollator(processor).encode(row("a re", ("d dog", " cat")))
    assert processor.tokenizer.decode(other["image", "rejected"].completion).endswith("re cat")
    assert other[CHOSEN].prompt.identity == sample[CHOSEN].prompt.identity


def test_all_branches_share_one_copy():
    """Packed: prompt and beginning once an image; the beginning costs its own tokens once for each."""
    processor = tiny.processor()
    collator = MFPOCollator(processor, layout=PACKED_ROW)
    with_it, without = collator([row()]), collator([row("")])
    begun = len(collator.encode(row())[CORRUPTED].prompt.tokens["input_ids"])
    begun -= len(collator.encode(row(""))[CORRUPTED].prompt.tokens["input_ids"])
    ends = 2 * 3  # " </s>" behind each of three answers, where there is no beginning
    assert begun > 3 and int(with_it["attention_mask"].sum() - without["attention_mask"].sum()) == 2 * begun - ends
    # Rows that differ in their beginning alone share nothing.
    assert len(set(collator([row(), row("a cat. ")])["prefixes"][:, 0].tolist())) == 4


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"answer_prefix": ["a dog."]},
            r"'answer_prefix': is \"\['a dog.'\]\"; expected a text, the beginning that 'chosen'",
        ),
        ({"answer_prefix": 3}, "'answer_prefix': is '3'; expected a text"),
        ({"answer_prefix": "an <image>."}, "'answer_prefix': holds a literal '<image>'"),
        ({"chosen": said("a") + said("b")}, "'chosen': is not one message of one text, which alone can go on from"),
        (
            {"rejected": [{"role": "assistant", "content": [{"type": "text", "text": "a"}] * 2}]},
            "'rejected': is not one message",
        ),
    ],
)
def test_bad_beginnings(changed, words):
    with pytest.raises(ValueError, match=f"row 41 .*field {words}"):
        MFPOCollator(tiny.processor())([row(**changed)])


def test_a_template_that_changes_an_answer():
    template = tiny.ENDING_TEMPLATE.replace("part['text'] + ' '", "part['text'] | upper + ' '")
    with pytest.raises(
        ValueError, match="row 41 .*field 'answer_prefix': the chat template writes 'chosen' otherwise than it stands"
    ):
        MFPOCollator(tiny.processor(template))([row()])


def test_a_beginning_counts_as_prompt():
    processor = tiny.processor()
    sample = MFPOCollator(processor).encode(row())
    length = len(sample[CHOSEN].prompt.tokens["input_ids"])
    words = f"max_length={length} would cut the {length} tokens of the prompt, 4 of which are the image; . of them are the begun answer in 'answer_prefix'"
    with pytest.raises(ValueError, match=f"row 41 .*{words}"):
        MFPOCollator(processor, max_length=length)([row()])
    cut = MFPOCollator(processor, max_length=length + 2)([row()])
    assert cut["branches"][:, 2].tolist() == [2, 2, 2]
