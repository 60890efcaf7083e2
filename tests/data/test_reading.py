"""Rows from files and data sets, and the bytes of their images."""

import io
import json
from pathlib import Path

import datasets
import pytest
import tiny
from datasets import Dataset, DatasetDict, Features, Image, Value
from hypothesis import given
from hypothesis import strategies as st

from mfpo_trl.data.reading.files import JsonRows, image_bytes, image_roots, open_rows, repeated


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Keeps what `datasets` stores out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def everything(rows) -> list:
    return rows.read(range(len(rows)))


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    tiny.picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    tiny.picture(seed).save(buffer, "JPEG", quality=70)
    return buffer.getvalue()


def written(path: Path, content: bytes) -> JsonRows:
    path.write_bytes(content)
    return JsonRows(path)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_lines(tmp_path, end, last):
    lines = [b'{"a": 1}', '{"a": "猫 \u2028 é"}'.encode(), b"", b"  ", b'{"a": 3}']
    rows = written(tmp_path / "a.jsonl", end.join(lines) + (end if last else b""))
    assert len(rows) == 3
    assert everything(rows) == [{"a": 1}, {"a": "猫 \u2028 é"}, {"a": 3}]
    assert rows.read(range(1, 3)) == [{"a": "猫 \u2028 é"}, {"a": 3}]


def test_broken_lines_cost_themselves_only(tmp_path):
    lines = [b'{"a": 1}', b"{broken", b"[1]", b"5", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": 2}', b"x"]
    found = everything(written(tmp_path / "a.jsonl", b"\n".join(lines)))
    assert [isinstance(row, ValueError) for row in found] == [False, True, True, True, True, True, False, True]
    assert (found[0], found[6]) == ({"a": 1}, {"a": 2})
    assert "not JSON" in str(found[1]) and "found a list; expected an object" in str(found[2])


def test_empty_file(tmp_path):
    assert len(written(tmp_path / "a.jsonl", b"")) == len(written(tmp_path / "b.jsonl", b"\n\n")) == 0


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_json_list(tmp_path, mark):
    rows = written(tmp_path / "a.json", mark + '[{"a": "é"}, 5, {"a": 2}]'.encode())
    found = everything(rows)
    assert len(rows) == 3 and (found[0], found[2]) == ({"a": "é"}, {"a": 2})
    assert "found a int; expected an object" in str(found[1])
    assert rows.read(range(2, 3)) == [{"a": 2}]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"a": 1}\n{"a": 2}', "name it .jsonl"),
        (b'{"a": 1}', "holds a dict; expected a list"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_json_that_is_no_list(tmp_path, content, problem):
    with pytest.raises(ValueError, match=problem):
        written(tmp_path / "a.json", content)


ROWS = [{"image": {"bytes": jpeg(n), "path": f"{n}.jpg"}, "question": f"q{n}"} for n in range(3)]
FEATURES = Features({"image": Image(), "question": Value("string")})


def test_parquet(tmp_path):
    Dataset.from_list(ROWS, features=FEATURES).to_parquet(tmp_path / "a.parquet")
    rows = open_rows(str(tmp_path / "a.parquet"))
    assert len(rows) == 3 and everything(rows) == ROWS and rows.read(range(1, 2)) == ROWS[1:2]


@pytest.mark.parametrize("several", [True, False])
def test_folder_of_save_to_disk(tmp_path, several):
    dataset = Dataset.from_list(ROWS, features=FEATURES)
    (DatasetDict({"test": dataset}) if several else dataset).save_to_disk(tmp_path / "saved")
    assert everything(open_rows(str(tmp_path / "saved"), "test")) == ROWS
    if several:
        with pytest.raises(ValueError, match="cannot be loaded.*train"):
            open_rows(str(tmp_path / "saved"), "train")


def test_pictures_in_memory_are_stored_without_loss(tmp_path):
    """`datasets` encodes PIL images as PNG; from there on the bytes stay."""
    Dataset.from_list([{"image": tiny.picture(4)}], features=Features({"image": Image()})).save_to_disk(tmp_path / "a")
    (row,) = everything(open_rows(str(tmp_path / "a")))
    found = image_bytes(row["image"], [])
    from PIL import Image as PILImage

    picture = PILImage.open(io.BytesIO(found["bytes"]))
    assert picture.tobytes() == tiny.picture(4).tobytes()
    assert found["bytes"] == row["image"]["bytes"]


def test_imagefolder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(2):
        (folder / f"{n}.jpg").write_bytes(jpeg(n))
    lines = [{"file_name": f"{n}.jpg", "prompt": "q", "chosen": f"a{n}", "rejected": "b"} for n in range(2)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = everything(open_rows(str(folder)))
    roots = image_roots(str(folder), None)
    assert [row["chosen"] for row in rows] == ["a0", "a1"]
    assert [image_bytes(row["image"], roots) for row in rows] == [
        {"bytes": jpeg(n), "path": f"{n}.jpg"} for n in range(2)
    ]


def test_nothing_to_load(tmp_path):
    with pytest.raises(ValueError, match=r"missing.json' cannot be loaded"):
        open_rows(str(tmp_path / "missing.json"))


def test_image_forms_keep_their_bytes(tmp_path):
    data = jpeg()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.jpg").write_bytes(data)
    roots = image_roots(str(tmp_path / "rows.jsonl"), tmp_path)
    named, bare = {"bytes": data, "path": "a.jpg"}, {"bytes": data, "path": None}
    assert image_bytes(data, roots) == image_bytes({"bytes": data}, roots) == bare
    assert image_bytes({"bytes": data, "path": "/elsewhere/a.jpg"}, roots) == named
    for path in ("b/a.jpg", "b/../b/a.jpg", str(tmp_path / "b" / "a.jpg")):
        assert image_bytes(path, roots) == image_bytes({"bytes": None, "path": path}, roots) == named


def test_paths_are_relative_to_the_file_of_the_rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "a.png").write_bytes(png())
    assert image_bytes("a.png", image_roots(str(tmp_path / "rows.jsonl"), None))["bytes"] == png()
    assert image_roots(str(tmp_path), None)[0] == image_roots(str(tmp_path / "rows.jsonl"), None)[0] == tmp_path


def test_url_is_refused_with_advice(tmp_path):
    for value in ("https://example.org/a.png", {"bytes": None, "path": "s3://bucket/a.png"}):
        with pytest.raises(ValueError, match="is a URL; download the images first"):
            image_bytes(value, [tmp_path])


def test_paths_do_not_leave_the_root(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "root-of-another"
    for folder in (root, outside):
        folder.mkdir()
        (folder / "a.png").write_bytes(png())
    (root / "link.png").symlink_to(outside / "a.png")
    (root / "folder").symlink_to(outside)
    for path in ("../root-of-another/a.png", str(outside / "a.png"), "link.png", "folder/a.png", "/etc/hostname"):
        with pytest.raises(ValueError, match="lies outside of .*--image-root"):
            image_bytes(path, [root])
    assert image_bytes(str(outside / "a.png"), [root, outside])["bytes"] == png()


def test_missing_and_empty_files(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for value in ("empty.png", b"", {"bytes": b"", "path": "a.png"}):
        with pytest.raises(ValueError, match="empty"):
            image_bytes(value, [tmp_path])
    for path in ("none.png", "folder"):
        with pytest.raises(ValueError, match="is not a file in .*--image-root"):
            image_bytes(path, [tmp_path])


@pytest.mark.parametrize(
    "value", [None, 5, [], {}, {"bytes": None, "path": None}, {"path": 5}, {"bytes": "/etc/hostname", "path": None}]
)
def test_what_is_no_image(tmp_path, value):
    """A text as bytes must not be opened as a path later on."""
    with pytest.raises(ValueError, match="expected bytes or a path"):
        image_bytes(value, [tmp_path])


IDS = st.none() | st.integers(0, 4) | st.sampled_from(["a", "b", "0", "", "\ud800"])


@given(st.lists(IDS, max_size=30))
def test_repeated_ids(ids):
    """Against counting by hand; ids are compared as the texts that they become."""
    expected, seen = {}, []
    for position, one in enumerate(ids):
        if one is not None:
            seen.append(str(one))
            if seen.count(str(one)) > 1:
                expected[position] = seen.count(str(one))
    assert repeated(ids) == repeated(iter(ids)) == expected
