"""Rows as their publishers write them -> rows of one schema."""

import json

import pytest
from datasets import Dataset

from mfpo_trl.data.reading.sources import SOURCES, convert, recognise, with_image_parts
from mfpo_trl.data.writing.parts import features

IMAGE = {"type": "image", "text": None}
PNG = {"bytes": b"png", "path": "a.png"}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def said(role: str, *parts) -> list[dict]:
    return [{"role": role, "content": [text(part) if isinstance(part, str) else part for part in parts]}]


def own(prompt: list, chosen: str, rejected: str, images: list, **kept) -> dict:
    return {
        "images": images,
        "prompt": prompt,
        "chosen": said("assistant", chosen),
        "rejected": said("assistant", rejected),
        **kept,
    }


def completion(response: str | None, *ratings: str) -> dict:
    names = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
    annotations = {
        name: {"Rating": rating, "Rationale": "because"} for name, rating in zip(names, ratings, strict=True)
    }
    return {"annotations": annotations, "model": "m", "response": response}


RATED = [
    completion("good", "5", "N/A", "4"),
    completion("fair", "3", "5", "1"),
    completion("as fair", "3", "3", "3"),
    completion("unrated", "N/A", "N/A", "N/A"),
    completion("", "5", "5", "5"),
    completion(None, "5", "5", "5"),
]
ASKED = said("user", IMAGE, "What is it?")
PAIR = {"chosen": "a cat", "rejected": "a dog"}
ORIGIN = {"origin_dataset": "COCO", "origin_split": "{}", "image_path": "a.png"}

PUBLISHED = {
    "rlhf-v": (
        {
            "ds_name": "RLHF-V",
            "image": PNG,
            "text": json.dumps({"question": "What is it?", **PAIR}),
            "idx": 3,
            **ORIGIN,
        },
        [own(ASKED, "a cat", "a dog", [PNG])],
    ),
    "rlaif-v": (
        {"ds_name": "RLAIF-V", "image": PNG, "question": "What is it?", **PAIR, "idx": "3", **ORIGIN},
        [own(ASKED, "a cat", "a dog", [PNG])],
    ),
    "trl": (
        {
            "images": [PNG],
            "prompt": said("user", IMAGE, "What is it?"),
            "chosen": said("assistant", "a cat"),
            "rejected": said("assistant", "a dog"),
        },
        [own(ASKED, "a cat", "a dog", [PNG])],
    ),
    "vlfeedback": (
        {"id": "v7", "prompt": "What is it?", "models": ["m"] * 6, "completions": RATED, "img_path": "b/a.png"},
        [
            own(ASKED, "good", "fair", ["b/a.png"], id="v7-0"),
            own(ASKED, "good", "as fair", ["b/a.png"], id="v7-1"),
        ],
    ),
    "mdpo": (
        {
            "img_path": "b/a.png",
            "prompt": "A chat between a user and an assistant. USER: <image>\nWhat does 'User: hi' say? ASSISTANT:",
            **PAIR,
        },
        [own(said("user", IMAGE, "What does 'User: hi' say?"), "a cat", "a dog", ["b/a.png"])],
    ),
    "povid": (
        {
            "id": "p",
            "image": "a.png",
            "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a cat"}],
            "rejected_conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "a dog"},
            ],
        },
        [own(ASKED, "a cat", "a dog", ["a.png"], id="p")],
    ),
    "llama-factory": (
        {
            "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}],
            "chosen": {"from": "gpt", "value": "a cat"},
            "rejected": {"from": "gpt", "value": "a dog"},
            "images": ["a.png"],
            "system": "Be short.",
        },
        [own(said("system", "Be short.") + ASKED, "a cat", "a dog", ["a.png"])],
    ),
    "sentinel": (
        {
            "image_id": 7,
            "image_path": "b/a.png",
            "question": "<image>\nWhat is it?",
            "context": "A room.  ",
            "y_win": "It has a cat.",
            "y_lose": " It has a dog.",
            "type": "y+",
        },
        [own(ASKED, "It has a cat.", "It has a dog.", ["b/a.png"], answer_prefix="A room. ")],
    ),
    "spa-vl": (
        {"image": PNG, "question": "What is it?", **PAIR, "image_name": "a.png"},
        [own(ASKED, "a cat", "a dog", [PNG])],
    ),
    "ms-swift": (
        {
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "<image>What is it?"},
                {"role": "assistant", "content": "a cat"},
            ],
            "rejected_response": "a dog",
            "images": ["a.png"],
            "rejected_images": ["b.png"],
        },
        [
            own(
                said("system", "Be short.") + ASKED,
                "a cat",
                "a dog",
                ["a.png"],
                rejected_images=["b.png"],
            )
        ],
    ),
}


def test_every_source_has_its_row_here():
    assert set(PUBLISHED) == set(SOURCES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_row(name):
    row, expected = PUBLISHED[name]
    assert recognise(list(row)) == name
    before = repr(row)
    assert convert(row, name) == expected
    assert repr(row) == before


@pytest.mark.parametrize("name", PUBLISHED)
def test_converted_rows_are_rows_of_the_built_schema(name):
    """Nothing is lost or added between a converted row and parquet, but for None in columns that are filled later."""
    columns = features(rejected_images=True, answer_prefix=True)
    for row in convert(PUBLISHED[name][0], name):
        stored = {
            key: [{"bytes": b"x", "path": str(n)} for n, _ in enumerate(value)] if "images" in key else value
            for key, value in row.items()
        }
        dataset = Dataset.from_list([{column: stored.get(column) for column in columns}], features=columns)
        found = dataset.with_format("arrow")[:].to_pylist()[0]
        assert {key: value for key, value in found.items() if value is not None} == stored


@pytest.mark.parametrize(
    ("context", "prefix"), [("", ""), (None, ""), (" ", ""), ("A room.\n", "A room.\n"), ("A room,", "A room, ")]
)
def test_the_context_of_sentinel(context, prefix):
    """None, or an empty one, is that of a first sentence."""
    (row,) = convert(PUBLISHED["sentinel"][0] | {"context": context}, "sentinel")
    assert row["answer_prefix"] == prefix


@pytest.mark.parametrize(("field", "value"), [("context", ["A room."]), ("y_win", 3), ("y_lose", ["a"])])
def test_a_text_of_sentinel_that_is_none(field, value):
    with pytest.raises(ValueError, match=f"field '{field}' is a .*; expected a text"):
        convert(PUBLISHED["sentinel"][0] | {field: value}, "sentinel")


def test_vlfeedback_as_lists_by_field():
    """As `datasets` stores a sequence of mappings."""
    row, expected = PUBLISHED["vlfeedback"]
    annotations = [completion["annotations"] for completion in RATED]
    lists = {
        "annotations": {
            aspect: {key: [own[aspect][key] for own in annotations] for key in ("Rating", "Rationale")}
            for aspect in annotations[0]
        },
        "model": [completion["model"] for completion in RATED],
        "response": [completion["response"] for completion in RATED],
    }
    assert convert({**row, "completions": lists}, "vlfeedback") == expected
    with pytest.raises(ValueError, match="different lengths"):
        convert({**row, "completions": {**lists, "model": ["m"]}}, "vlfeedback")


@pytest.mark.parametrize(
    "completions",
    [
        [],
        RATED[1:3],
        [RATED[0], RATED[3]],
        [completion("a", "nan", "N/A", "inf"), completion("b", "3", "3", "3")],
    ],
)
def test_vlfeedback_without_a_pair(completions):
    with pytest.raises(ValueError, match="no two responses with different ratings"):
        convert({"prompt": "q", "completions": completions}, "vlfeedback")


@pytest.mark.parametrize(
    ("written", "prompt"),
    [
        ("<image>\nWhat is it?", "What is it?"),
        ("USER: <image>\nWhat is it?", "What is it?"),
        ("Intro. Human: <image>\nWhat is it? Assistant:", "What is it?"),
        ("<image>\nWhat does the label User: mean?", "What does the label User: mean?"),
        ("USER: <image>\nTwo\n\nparagraphs  \nASSISTANT: ", "Two\n\nparagraphs"),
        ("USER: <image>\na" + " " * 20_000 + "b ASSISTANT:", "a" + " " * 20_000 + "b"),
    ],
)
def test_template_of_mdpo(written, prompt):
    found = convert({"img_path": "a.png", "prompt": written, **PAIR}, "mdpo")
    assert found[0]["prompt"] == said("user", IMAGE, prompt)


def test_povid_with_several_turns():
    """Only turns that differ give a row, each after the chosen turns."""

    def turns(*texts):
        return [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(texts)]

    row = {
        "id": 5,
        "image": "a.png",
        "conversations": turns("<image>\nq1", "a1", "q2", "a2", "q3", "a3"),
        "rejected_conversations": turns("<image>\nq1", "b1", "q2", "a2", "q3", "b3"),
    }
    q1, later = said("user", IMAGE, "q1"), said("user", "q2") + said("assistant", "a2") + said("user", "q3")
    assert convert(row, "povid") == [
        own(q1, "a1", "b1", ["a.png"], id="5-0"),
        own(q1 + said("assistant", "a1") + later, "a3", "b3", ["a.png"], id="5-1"),
    ]
    with pytest.raises(ValueError, match="no answer that differs"):
        convert({**row, "rejected_conversations": row["conversations"]}, "povid")
    with pytest.raises(ValueError, match="'conversations' is not a list of"):
        convert({**row, "conversations": [{"from": "robot", "value": "q"}]}, "povid")


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        (["prompt", "chosen", "rejected", "image"], "trl"),
        (["prompt", "chosen", "rejected"], "trl"),
        (["id", "prompt", "completions", "chosen", "rejected"], "vlfeedback"),
        (["conversations", "chosen", "rejected", "images"], "llama-factory"),
        (["conversations", "rejected_conversations", "chosen", "rejected"], "povid"),
    ],
)
def test_recognise_other_column_sets(columns, name):
    assert recognise(columns) == name


@pytest.mark.parametrize("columns", [[], ["prompt", "response"], ["text"]])
def test_unknown_columns(columns):
    with pytest.raises(ValueError, match="no known source") as error:
        recognise(columns)
    assert all(name in str(error.value) for name in [*SOURCES, *map(repr, columns)])


@pytest.mark.parametrize(
    ("written", "images", "parts"),
    [
        ("What?", 0, ["What?"]),
        ("What?", 1, [IMAGE, "What?"]),
        ("What?", 2, [IMAGE, IMAGE, "What?"]),
        ("<image>\nWhat?", 1, [IMAGE, "What?"]),
        ("What?\n<image>", 1, ["What?", IMAGE]),
        ("<image>\na\n<image>\nb", 2, [IMAGE, "a", IMAGE, "b"]),
        ("Is <image> like <image>?", 2, ["Is ", IMAGE, " like ", IMAGE, "?"]),
        ("<image><image>", 2, [IMAGE, IMAGE]),
    ],
)
def test_places_of_images(written, images, parts):
    assert with_image_parts(said("user", written), images) == said("user", *parts)


@pytest.mark.parametrize(("written", "images"), [("<image> a", 0), ("<image> a", 2), ("<image><image> a", 1)])
def test_wrong_number_of_places(written, images):
    with pytest.raises(ValueError, match=rf"{written.count('<image>')} place.* has {images} image"):
        with_image_parts(said("user", written), images)


def test_kept_columns():
    kept = {
        "id": 9,
        "key_regions": [[[0, 0, 2, 2]]],
        "keywords": ["cat"],
        "difficulty": 0.5,
        "rejected_images": [PNG],
    }
    row = {"image": PNG, "prompt": "What is it?", **PAIR, **kept, "other": 1}
    assert convert(row, "trl") == [own(ASKED, "a cat", "a dog", [PNG], **kept)]
    # A column that is empty in this row is not there.
    assert convert({**row, **dict.fromkeys(kept)}, "trl") == [own(ASKED, "a cat", "a dog", [PNG])]


@pytest.mark.parametrize("name", SOURCES)
def test_missing_fields(name):
    row = PUBLISHED[name][0]
    for column in SOURCES[name].needs:
        for broken in ({**row, column: None}, {key: value for key, value in row.items() if key != column}):
            with pytest.raises(ValueError, match=f"field '{column}' is missing"):
                convert(broken, name)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("{no json", "field 'text' is not JSON"),
        ("[" * 100_000, "field 'text' is not JSON"),
        ("5", "field 'text' holds a int"),
        ('{"question": "q", "chosen": "a"}', "holds no 'rejected'"),
    ],
)
def test_text_of_rlhf_v_that_is_none(written, problem):
    with pytest.raises(ValueError, match=problem):
        convert({"text": written, "image": PNG}, "rlhf-v")


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("prompt", 5, "expected a text or a list of messages"),
        ("prompt", said("user", {"type": "video", "text": None}), "type 'text' or 'image'"),
        ("prompt", [{"role": "user", "content": 5}], "expected a text or a list of parts"),
        ("prompt", [], "nothing to answer"),
        ("images", "a.png", "expected a list of images"),
        ("images", 5, "expected a list of images"),
        ("chosen", "half a \ud800 character", "half a character"),
    ],
)
def test_wrong_values(column, value, problem):
    with pytest.raises(ValueError, match=problem):
        convert({"images": [PNG], "prompt": "q", **PAIR, column: value}, "trl")


HUMAN, GPT = ({"from": who, "value": value} for who, value in (("human", "q"), ("gpt", "a")))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"conversations": []}, "'conversations' does not end with a question"),
        ({"conversations": [HUMAN, GPT]}, "'conversations' does not end with a question"),
        ({"conversations": [{"from": "observation", "value": "q"}]}, "'conversations' is not a list of"),
        ({"chosen": HUMAN}, "'chosen' is not an answer: it is from 'human'"),
        ({"rejected": "a dog"}, "'rejected' is not a list of"),
        ({"rejected": [GPT]}, "'rejected' is not a list of"),
    ],
)
def test_rows_of_llama_factory_that_are_none(changed, problem):
    """After several turns it goes on; without a system message there is none."""
    row = {"conversations": [HUMAN, GPT, HUMAN], "chosen": GPT, "rejected": GPT, "system": ""}
    turns = said("user", "q") + said("assistant", "a") + said("user", "q")
    assert convert(row, "llama-factory") == [own(turns, "a", "a", [])]
    with pytest.raises(ValueError, match=problem):
        convert({**row, **changed}, "llama-factory")


def test_ms_swift_without_an_answer():
    row = {"messages": [{"role": "user", "content": "q"}], "rejected_response": "b"}
    for messages in (row["messages"], [], ["q"]):
        with pytest.raises(ValueError, match="does not end with an answer"):
            convert({**row, "messages": messages}, "ms-swift")


@pytest.mark.parametrize("words", ["一只猫坐在垫子上", "قطة على السجادة", "кошка", "बिल्ली 😺", "e\u0301"])
def test_other_scripts(words):
    row = {"text": json.dumps({"question": words, "chosen": words, "rejected": words}), "image": PNG}
    assert convert(row, "rlhf-v") == [own(said("user", IMAGE, words), words, words, [PNG])]
