"""Rows as `mfpo train` reads them: those of every convention, their images, and where they go in a prompt."""

import json
import logging
import re
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import tiny
from datasets import Dataset, Features, Image, List, Value, load_dataset
from test_image_roots import TEXTS, elsewhere, folder, home  # noqa: F401
from test_sources import PUBLISHED

from mfpo_trl.cli import main
from mfpo_trl.images.regions import encode_rle
from mfpo_trl.rows import to_rgb
from mfpo_trl.train import Splits
from mfpo_trl.train import command as train

ANSWERS = {name: TEXTS[name] for name in ("chosen", "rejected")}


def splits(path, *fields: str) -> Splits:
    argv = ["--model_name_or_path", "x", "--dataset_name", str(path), "--use_cpu", "--bf16", "false", *fields]
    script, training, _ = train.parse(argv)
    return Splits(script, training)


def rows(path, *fields: str) -> list[dict]:
    return list(splits(path, *fields).train)


def shown(row: dict) -> list[bytes]:
    """The pixels of a row's images."""
    images = row["images"] if row.get("images") is not None else [row["image"]] if row.get("image") is not None else []
    return [to_rgb(own).tobytes() for own in images]


def texts(row: dict) -> list:
    """The parts of a row's texts."""
    return [
        [(message["role"], part["type"], part["text"]) for message in row[name] for part in message["content"]]
        for name in ("prompt", "chosen", "rejected")
    ]


def write(path: Path, made: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


# Conventions


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A file for each convention, of three rows of which each names its own picture below the file's folder."""
    root = tmp_path_factory.mktemp("published")
    for source, (row, _) in PUBLISHED.items():
        (root / source / "b").mkdir(parents=True)
        made = []
        for n in range(3):
            tiny.picture(n).save(root / source / "b" / f"{n}.png")
            own = {key: value for key, value in row.items() if key != "rejected_images"}
            for name in {"image", "img_path"} & set(own) or {"image_path"} & set(own):
                own[name] = f"b/{n}.png"
            if "images" in own:
                own["images"] = [f"b/{n}.png" for _ in own["images"]]
            made.append(own)
        write(root / source / "rows.jsonl", made)
    return root


@pytest.mark.parametrize("source", PUBLISHED)
@pytest.mark.parametrize("how", ["auto", "named", "streamed"])
def test_a_training_reads_what_a_build_reads(source, how, published, tmp_path):
    """The same texts, and the pixels of the same images, as `mfpo build` writes."""
    path = published / source / "rows.jsonl"
    built = tmp_path / "built"
    options = ["--grounder", "none", "--difficulty", "none", "--source", source]
    assert main(["build", "--dataset", str(path), "--output", str(built), *options]) == 0
    expected = list(load_dataset(str(built), split="train"))
    fields = {"auto": [], "named": ["--source", source], "streamed": ["--dataset_streaming"]}[how]
    found = rows(path, *fields)
    assert len(found) == len(expected) >= 3 and len({*map(tuple, map(shown, found))}) == 3
    for own, other in zip(found, expected, strict=True):
        assert shown(own) == shown(other) != []
        assert texts(own) == texts(other)
        assert own.get("answer_prefix") == other.get("answer_prefix")
        assert set(own) <= {"prompt", "answer_prefix", "chosen", "rejected", "image", "images"}


def test_a_published_file_is_said(published, caplog):
    with caplog.at_level(logging.WARNING, "mfpo_trl"):
        rows(published / "povid" / "rows.jsonl")
        rows(published / "povid" / "rows.jsonl", "--source", "povid")
    assert [own.message for own in caplog.records if "read as 'povid'" in own.message] and len(caplog.records) == 1


COLUMNS_OF_TRL = {
    "question too": {"question": "q", "image": "a.png"},
    "text too": {"text": "no JSON", "image": "a.png"},
    "a path beside the image": {"image": "a.png", "img_path": "elsewhere/b.png"},
    "texts alone": {"text": "no JSON", "question": "q", "image_name": "a"},
}


@pytest.mark.parametrize("fields", [[], ["--dataset_streaming"]], ids=["stored", "streamed"])
@pytest.mark.parametrize("value", ["a.png", ["a.png"]], ids=["path", "list"])
def test_a_column_of_paths_that_nobody_reads(value, fields, tmp_path):
    """Names of files that are there; any other text is a text."""
    path = write(tmp_path / "rows.jsonl", [{**TEXTS, "picture": value}])
    assert len(rows(path, *fields)) == 1
    tiny.picture(0).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"column 'picture' names files of images \('a.png'\), and no image is read"):
        rows(path, *fields)


OF = {
    "trl": TEXTS,
    "rlaif-v": {"question": "What?", **ANSWERS},
    "llama-factory": {
        "conversations": [{"from": "human", "value": "What?"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
}
UNREAD = {
    "files, llama-factory": ({"picture": "0.png"}, "'picture' names files of images.*rename it to 'images'"),
    "files in lists, rlaif-v": ({"picture": ["0.png"]}, "'picture' names files of images.*rename it to 'images'"),
    "images, rlaif-v": ({"picture": Image()}, "'picture' holds images.*rename it to 'images'"),
    "files, trl": ({"picture": "0.png"}, "'picture' names files of images.*rename it to 'images'"),
    "images, trl": ({"picture": Image()}, "'picture' holds images.*rename it to 'images'"),
    "files beside empty images, trl": ({"images": [], "picture": "0.png"}, "'picture' names files of images"),
    "dispreferred files alone, trl": ({"rejected_images": ["0.png"]}, "'rejected_images' names.*goes with images"),
    "dispreferred images too, trl": ({"rejected_image": Image(), "picture": Image()}, "'picture' holds images"),
}
"""Columns that nobody reads beside the texts of a convention, and what is said of them."""


@pytest.mark.parametrize("case", UNREAD)
@pytest.mark.parametrize("how", ["stored", "streamed", "built"])
def test_images_that_no_convention_reads(case, how, tmp_path, capsys):
    """Of rows that are stored the second one alone has them."""
    columns, message = UNREAD[case]
    source = case.rpartition(", ")[2]
    tiny.picture(0).save(tmp_path / "0.png")
    image = {"bytes": (tmp_path / "0.png").read_bytes(), "path": None}
    path, full = tmp_path / "rows.jsonl", {**OF[source], **columns}
    if Image() in columns.values():
        path = path.with_suffix(".parquet")
        full |= dict.fromkeys(columns, image)
    made = [full] if how == "streamed" else [{**full, **dict.fromkeys(columns)}, full]
    if path.suffix == ".parquet":
        data = Dataset.from_list(made)
        data.cast(Features({**data.features, **columns})).to_parquet(path)
    else:
        write(path, made)
    if how == "built":
        arguments = ["--grounder", "none", "--source", source, "--output", str(tmp_path / "built")]
        assert main(["build", "--dataset", str(path), *arguments]) == 1
        assert re.search(message, capsys.readouterr().err)
    else:
        with pytest.raises(ValueError, match=message):
            rows(path, "--source", source, *(["--dataset_streaming"] if how == "streamed" else []))


def test_a_folder_of_images_alone(tmp_path):
    """What `datasets` makes of pictures beside a file of rows."""
    (tmp_path / "img").mkdir()
    for n in range(3):
        tiny.picture(n).save(tmp_path / "img" / f"{n}.png")
    write(tmp_path / "rows.jsonl", [{**TEXTS, "image": "img/0.png"}])
    with pytest.raises(ValueError, match="holds images alone.*name that file in place of the folder"):
        rows(tmp_path)


@pytest.mark.parametrize("name", COLUMNS_OF_TRL)
def test_rows_of_trl_stay_what_they_are(name, tmp_path):
    """Whatever columns of other conventions they have beside their own."""
    tiny.picture(0).save(tmp_path / "a.png")
    path = write(tmp_path / "rows.jsonl", [{"prompt": "<image> what?", **ANSWERS, **COLUMNS_OF_TRL[name]}])
    if "img_path" in COLUMNS_OF_TRL[name]:
        (tmp_path / "elsewhere").mkdir()
        tiny.picture(1).save(tmp_path / "elsewhere" / "b.png")
    for fields in ([], ["--dataset_streaming"]):
        (row,) = rows(path, *fields)
        assert row["prompt"] == "<image> what?" and row["chosen"] == ANSWERS["chosen"]
        assert "image" not in row or shown(row) == [tiny.picture(0).tobytes()]


def test_what_a_training_reads_stays_beside_the_texts(tmp_path):
    """Regions, difficulty and dispreferred images of published rows; a row for every pair."""
    tiny.picture(0).save(tmp_path / "a.png")
    tiny.picture(1).save(tmp_path / "b.png")

    def rated(text, rating):
        return {"response": text, "annotations": {"Helpfulness": {"Rating": rating}}}

    made = [
        {"prompt": "none?", "completions": [rated("a", "1"), rated("b", "1")], "image": "a.png", "difficulty": 0.0},
        {
            "prompt": "three?",
            "completions": [rated("a", "1"), rated("b", "2"), rated("c", "3")],
            "image": "a.png",
            "difficulty": 0.5,
            "key_regions": [[0, 0, 2, 2]],
            "rejected_images": ["b.png"],
            "other": 1,
        },
    ]
    found = rows(write(tmp_path / "rows.jsonl", made))
    assert [(row["chosen"][0]["content"][0]["text"], row["rejected"][0]["content"][0]["text"]) for row in found] == [
        ("b", "a"),
        ("c", "a"),
        ("c", "b"),
    ]
    for row in found:
        assert row["difficulty"] == 0.5 and row["key_regions"] == [[0, 0, 2, 2]] and "other" not in row
        assert to_rgb(row["rejected_images"][0]) == tiny.picture(1) and to_rgb(row["image"]) == tiny.picture(0)


def test_rows_without_a_pair_are_counted(tmp_path, caplog):
    """A stream cannot count them, and refuses them with the command that sets them aside."""
    good, bad = ({"from": "gpt", "value": own} for own in ("a", "b"))
    human = {"from": "human", "value": "q"}
    made = [{"conversations": [human, good], "rejected_conversations": [human, own]} for own in (bad, good, bad, good)]
    path = write(tmp_path / "rows.jsonl", made)
    with caplog.at_level(logging.WARNING, "mfpo_trl"):
        assert len(rows(path)) == 2
    assert any("2 of the 4 rows hold no two answers" in own.message for own in caplog.records)
    with pytest.raises(ValueError, match=r"row 1, .*no answer that differs.*`mfpo build --dataset .*--source povid"):
        rows(path, "--dataset_streaming")


def test_columns_of_no_convention(tmp_path):
    with pytest.raises(ValueError, match="no known source.*llama-factory: conversations, chosen, rejected"):
        rows(write(tmp_path / "rows.jsonl", [{"instruction": "q", "output": "a"}]))


# Plain prompts


PLACES = ("<image>", "<|image_pad|>", "<start_of_image>", "<IMG_CONTEXT>", "<|image|>", "[IMG]", "<image_soft_token>")


@pytest.mark.parametrize("place", PLACES)
def test_a_plain_prompt_with_a_place_stays(place, tmp_path):
    tiny.picture(0).save(tmp_path / "a.png")
    path = write(tmp_path / "rows.jsonl", [{"prompt": f"USER: {place}\nwhat?", **ANSWERS, "image": "a.png"}])
    for fields in ([], ["--dataset_streaming"]):
        assert rows(path, *fields)[0]["prompt"] == f"USER: {place}\nwhat?"


@pytest.mark.parametrize("column", ["image", "images"])
@pytest.mark.parametrize("stored", ["paths", "images"])
@pytest.mark.parametrize("fields", [[], ["--dataset_streaming"]], ids=["stored", "streamed"])
def test_a_plain_prompt_without_one_gets_it(column, stored, fields, tmp_path, caplog):
    """Once in front of the question, as `mfpo build` does it; rows without an image have none."""
    tiny.picture(0).save(tmp_path / "a.png")
    made = []
    for image in ("a.png", None) if stored == "paths" else (tiny.picture(0), None):
        made.append(
            {"prompt": "what?", **ANSWERS, column: ([image] if image else []) if column == "images" else image}
        )
    if stored == "paths":
        path = write(tmp_path / "rows.jsonl", made)
    else:
        path = tmp_path / "rows.parquet"
        kind = List(Image()) if column == "images" else Image()
        features = Features({**dict.fromkeys(("prompt", "chosen", "rejected"), Value("string")), column: kind})
        Dataset.from_list(made, features=features).to_parquet(path)
    with caplog.at_level(logging.WARNING, "mfpo_trl"):
        found = rows(path, *fields)
    said = [("user", "text", "what?")], [("assistant", "text", ANSWERS["chosen"])], [("assistant", "text", "A cat.")]
    assert texts(found[1]) == list(said)
    assert texts(found[0]) == [[("user", "image", None), *said[0]], *said[1:]]
    assert shown(found[0]) == [tiny.picture(0).tobytes()] and shown(found[1]) == []
    assert [own.message for own in caplog.records if "without a place for the image" in own.message]
    assert len(caplog.records) == 1


def test_plain_texts_without_images_stay(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "what?", **ANSWERS}])
    assert rows(path) == [{"prompt": "what?", **ANSWERS}]


def test_some_prompts_with_a_place(tmp_path):
    """Are refused with the row, and read as messages where that is asked for."""
    tiny.picture(0).save(tmp_path / "a.png")
    made = [{"prompt": own, **ANSWERS, "image": "a.png"} for own in ("<image> what?", "what?")]
    path = write(tmp_path / "rows.jsonl", made)
    with pytest.raises(ValueError, match="row 1, field 'prompt'.* that of row 0 has one.*--source trl"):
        rows(path)
    assert [texts(row)[0][0] for row in rows(path, "--source", "trl")] == [("user", "image", None)] * 2


def test_prompts_of_both_kinds(tmp_path):
    """Which `datasets` stores as JSON: texts and messages, whose contents are texts and parts; with paths and regions of both."""
    tiny.picture(0).save(tmp_path / "a.png")
    contents = ("what?", [{"type": "text", "text": "what?"}])
    prompts = ["what?", *([{"role": "user", "content": own}] for own in contents)]
    regions = [[[0, 0, 2, 2]], [{"box": [0, 0, 2, 2], "phrase": "dog"}], []]
    made = [
        {"prompt": prompt, **ANSWERS, "image": "a.png", "key_regions": own}
        for prompt, own in zip(prompts, regions, strict=True)
    ]
    found = rows(write(tmp_path / "rows.jsonl", made))
    assert [texts(row)[0] for row in found] == [[("user", "image", None), ("user", "text", "what?")]] * 3
    assert [row["key_regions"] for row in found] == regions
    assert all(shown(row) == [tiny.picture(0).tobytes()] for row in found)
    mixed = [{**row, "images": own} for row, own in zip(made, (["a.png"], [{"path": "a.png"}], []), strict=True)]
    for row in mixed:
        del row["image"]
    found = rows(write(tmp_path / "mixed.jsonl", mixed))
    assert [len(shown(row)) for row in found] == [1, 1, 0]


# Images


def image_rows(path: Path, values: list, column: str = "image") -> Path:
    return write(
        path / "rows.jsonl",
        [{"prompt": [{"role": "user", "content": "q"}], **said(), column: value} for value in values],
    )


def said() -> dict:
    return {name: [{"role": "assistant", "content": text}] for name, text in ANSWERS.items()}


@pytest.mark.parametrize("column", ["image", "rejected_image", "rejected_image_2", "key_regions"])
def test_paths_stay_inside_of_the_folder(column, home, folder):  # noqa: F811
    """Those of images and of masks, in the ways in which `mfpo build` refuses them too."""
    for name, path in elsewhere(home, folder).items():
        value = [{"mask": {"path": path, "bytes": None}}] if column == "key_regions" else path
        with pytest.raises((ValueError, OSError), match="row 0, field") as refused:
            rows(image_rows(folder, [value], column))
        said = str(refused.value)
        assert any(own in said for own in ("lies outside of", "is not a file in", "is a URL", "null", "too long")), (
            name
        )


@pytest.mark.parametrize("form", ["text", "texts", "struct", "Image", "Images"])
def test_paths_are_those_of_the_folder(form, folder, tmp_path, monkeypatch):  # noqa: F811
    """In every form of a column, wherever the command is given; another root is named."""
    monkeypatch.chdir(tmp_path)
    own = "images/own"
    value = {"text": own, "texts": [own], "struct": {"bytes": None, "path": own}}.get(
        form, {"bytes": None, "path": own}
    )
    column = "images" if form in ("texts", "Images") else "image"
    kind = {"text": Value("string"), "texts": List(Value("string")), "Image": Image(), "Images": List(Image())}
    kind |= {"struct": {"bytes": Value("binary"), "path": Value("string")}}
    messages = List({"role": Value("string"), "content": Value("string")})
    features = Features({**dict.fromkeys(("prompt", "chosen", "rejected"), messages), column: kind[form]})
    made = {"prompt": [{"role": "user", "content": "q"}], **said(), column: [value] if form == "Images" else value}
    for name in ("rows", "other/rows"):  # in the folder of the pictures, and in another
        (folder / name).parent.mkdir(exist_ok=True)
        # That of `datasets` would put the file's bytes in.
        pq.write_table(Dataset.from_list([made], features=features).data.table, folder / f"{name}.parquet")
    for streamed in [] if form in ("Image", "Images") else [["--dataset_streaming"]]:
        (row,) = rows(folder / "rows.parquet", *streamed)
        assert shown(row) == [tiny.picture(2).tobytes()]
    (row,) = rows(folder / "rows.parquet")
    assert shown(row) == [tiny.picture(2).tobytes()]
    with pytest.raises(ValueError, match=f"row 0, field '{column}': 'images/own' is not a file in .*--image-root"):
        rows(folder / "other" / "rows.parquet")
    (row,) = rows(folder / "other" / "rows.parquet", "--image-root", str(folder))
    assert shown(row) == [tiny.picture(2).tobytes()]


def test_single_files_that_are_missing(folder):  # noqa: F811
    """Are left to whoever reads the row, who names it; their paths are whole."""
    found = splits(image_rows(folder, ["images/own", "images/gone"])).train
    assert found["image"][:] == [str(folder / "images" / own) for own in ("own", "gone")]


def test_a_mask_from_the_folder(folder):  # noqa: F811
    """Beside other forms of regions, which stay what they are."""
    mask = tiny.picture(0).convert("L").point(lambda value: 255)
    mask.save(folder / "mask.png")
    path = image_rows(folder, [[{"mask": {"path": "mask.png", "bytes": None}, "phrase": "dog"}]], "key_regions")
    assert rows(path)[0]["key_regions"][0]["mask"]["path"] == str(folder / "mask.png")
    rle = encode_rle(tiny.np.ones((2, 2), dtype=bool))
    boxes = [[[0.0, 0.0, 2.0, 2.0]], [{"rle": rle}]]
    for value in boxes:
        assert rows(image_rows(folder, [value], "key_regions"))[0]["key_regions"] == value


def test_images_with_bytes_are_not_copied(tmp_path):
    """The table of the data set itself is handed on, and a path beside bytes means nothing."""
    tiny.dataset(4).to_parquet(tmp_path / "rows.parquet")
    found = splits(tmp_path / "rows.parquet").train
    assert (
        found._fingerprint == load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"))["train"]._fingerprint
    )


# Where the data set is


@pytest.mark.parametrize(
    "name", ["no/such/rows.parquet", "rows.jsonl", "./rows", "/no/rows", "~/no-rows", "a/b/c", "rows/", "two words"]
)
def test_a_path_that_is_not_there_is_no_name_on_the_hub(name, tmp_path, monkeypatch):
    """Nobody asks the Hub for it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no such folder or file; `mfpo build --output"):
        splits(name)


def test_a_name_that_the_hub_may_have(tmp_path, monkeypatch):
    """Is asked for, which ends at once where there is no network to be used."""
    monkeypatch.chdir(tmp_path)
    # Offline, `datasets` takes a folder of that name which it has read before, wherever it lay.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("user/rows", "rows"):
        with pytest.raises(ValueError, match=f"no folder or file '{name}' here, nor a data set .* on the Hub"):
            splits(name)


def test_a_file_with_a_broken_row(tmp_path):
    """The command that sets it aside is named, and does so."""
    path = write(tmp_path / "rows.jsonl", [{"prompt": "a", **ANSWERS}])
    path.write_text(path.read_text() + '{"prompt": "a", "chosen"')
    with pytest.raises(
        ValueError, match=r"rows.jsonl' cannot be loaded: .*`mfpo build --dataset .*rows.jsonl --output"
    ):
        splits(path)
    options = ["--grounder", "none", "--difficulty", "none", "--output", str(tmp_path / "built")]
    assert main(["build", "--dataset", str(path), *options]) == 0 and len(rows(tmp_path / "built")) == 1
