"""Which files `mfpo build` opens for the paths that rows name: those in the data set's own folder, whatever the form of the source."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import tiny
from datasets import Dataset, Features, Value
from huggingface_hub import constants

from mfpo_trl.cli import main
from mfpo_trl.data.reading.files import image_roots, open_rows, read_masks
from mfpo_trl.data.stages import Read, Rejected

TEXTS = {"prompt": "What?", "chosen": "A red dog.", "rejected": "A cat."}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The caches of Hugging Face, with a picture in each and one where the token is."""
    home = tmp_path / "huggingface"
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(home))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    for name in (
        "token",
        "datasets/downloads/a.png",
        "hub/datasets--user--own/blobs/a",
        "hub/datasets--user--other/a.png",
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        tiny.picture(1).save(home / name, "PNG")
    return home


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where the rows are, with the one picture that is theirs."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    tiny.picture(2).save(folder / "images" / "own", "PNG")
    return folder


def elsewhere(home: Path, folder: Path) -> dict[str, str]:
    """Ways to name a file that is not the data set's."""
    tiny.picture(3).save(folder.parent / "beside.png")
    (folder / "link").symlink_to(home / "token")
    (folder / "linked").symlink_to(home)
    (folder / "chain").symlink_to("link")
    beside = folder.parent / "beside.png"
    return {
        "absolute": str(beside),
        "dots": "../beside.png",
        "dots inside": "images/../../beside.png",
        "link": "link",
        "link to a link": "chain",
        "linked folder": "linked/datasets/downloads/a.png",
        "cache of datasets": str(home / "datasets" / "downloads" / "a.png"),
        "relative to it": "downloads/a.png",
        "cache of the Hub": str(home / "hub" / "datasets--user--other" / "a.png"),
        "relative to the home": "token",
        "hub": "hub/datasets--user--other/a.png",
        "file URL": f"file://{beside}",
        "short file URL": f"file:{beside}",
        "URL": "https://example.org/a.png",
        "home": f"~/{os.path.relpath(beside, Path.home())}",
        "null": "images/own\0",
        "long": "a" * 5000,
    }


def lines(folder: Path, values: list) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps({"image": value, **TEXTS}) + "\n" for value in values))
    return str(folder / "rows.jsonl")


def listed(folder: Path, values: list) -> str:
    (folder / "rows.json").write_text(json.dumps([{"image": {"bytes": None, "path": own}, **TEXTS} for own in values]))
    return str(folder / "rows.json")


def parquet(folder: Path, values: list) -> str:
    Dataset.from_list([{"image": value, **TEXTS} for value in values]).to_parquet(folder / "rows.parquet")
    return str(folder / "rows.parquet")


def parquet_of_images(folder: Path, values: list) -> str:
    features = Features(
        {"image": {"bytes": Value("binary"), "path": Value("string")}, **dict.fromkeys(TEXTS, Value("string"))}
    )
    rows = [{"image": {"bytes": None, "path": value}, **TEXTS} for value in values]
    Dataset.from_list(rows, features=features).to_parquet(folder / "rows.parquet")
    return str(folder / "rows.parquet")


def folder_of_rows(folder: Path, values: list) -> str:
    lines(folder, values)
    return str(folder)


def saved_to_disk(folder: Path, values: list) -> str:
    Dataset.from_list([{"image": value, **TEXTS} for value in values]).save_to_disk(folder / "saved")
    for name in ("images", "link", "linked", "chain"):
        if (folder / name).exists():
            (folder / name).rename(folder / "saved" / name)
    return str(folder / "saved")


FORMS: dict[str, Callable[[Path, list], str]] = {
    own.__name__: own for own in (lines, listed, parquet, parquet_of_images, folder_of_rows, saved_to_disk)
}


@pytest.mark.parametrize("form", FORMS)
def test_nothing_outside_of_the_data_set_is_opened(form, folder, home):
    """In every form of a local source, the regions' masks as the images."""
    ways = elsewhere(home, folder)
    name = FORMS[form](folder, ["images/own", *ways.values()])
    rows = open_rows(name)
    read = Read("trl", image_roots(name, None))
    (own,), *others = (read(row, number) for number, row in enumerate(rows.read(range(len(rows)))))
    assert own["pictures"][0].size == tiny.picture(2).size
    for way, (found,) in zip(ways, others, strict=True):
        assert isinstance(found, Rejected), f"{form}: {way} was opened"
        if way not in ("null", "long"):
            assert any(said in str(found) for said in ("lies outside of", "is a URL", "is not a file in")), found


REGIONS: dict[str, Callable[[str], object]] = {
    "bare": lambda path: path,
    "mask": lambda path: {"mask": path},
    "box": lambda path: {"box": path},
    "rle": lambda path: {"rle": path},
    "path": lambda path: {"path": path},
    "path of an image": lambda path: {"bytes": None, "path": path},
    "bytes": lambda path: {"bytes": path},
    "bytes beside a path": lambda path: {"bytes": path, "path": "images/own"},
    "mask that is an image": lambda path: {"mask": {"bytes": None, "path": path}, "phrase": "a dog"},
    "mask whose bytes are a text": lambda path: {"mask": {"bytes": path, "path": None}},
    "box that is an image": lambda path: {"box": {"path": path}},
    "rle that is an image": lambda path: {"rle": {"path": path}, "score": 1.0},
    "mask in a mask": lambda path: {"mask": {"box": {"mask": path}}},
    "beside a box": lambda path: {"box": None, "mask": None, "path": path},
}
"""Every way in which a region names a file."""


@pytest.mark.parametrize("form", REGIONS)
def test_no_mask_outside_of_the_data_set_is_opened(form, folder, home):
    """Of `mfpo build` and of `mfpo preview`."""
    ways = elsewhere(home, folder)
    roots = image_roots(str(folder), None)
    read = Read("trl", roots)
    inside = {"image": "images/own", **TEXTS, "key_regions": [REGIONS[form]("images/own")]}
    allowed = isinstance(read(inside, 0)[0], dict)
    assert allowed == (form not in ("bytes", "bytes beside a path", "mask whose bytes are a text"))
    for way, path in ways.items():
        for regions in ([REGIONS[form](path)], [[REGIONS[form](path)]]):
            found = read({"image": "images/own", **TEXTS, "key_regions": regions}, 0)[0]
            assert isinstance(found, Rejected), f"{form}: {way} was opened"
            with pytest.raises((ValueError, OSError)):
                read_masks(regions, roots)


def test_a_data_set_of_the_hub_has_its_own_folder_of_the_cache(home):
    name = home / "hub" / "datasets--user--own" / "snapshots" / "1" / "a.png"
    name.parent.mkdir(parents=True)
    name.symlink_to("../../blobs/a")
    read = Read("trl", image_roots("user/own", None))
    (own,) = read({"image": {"bytes": None, "path": str(name)}, **TEXTS}, 0)
    assert own["pictures"][0].size == tiny.picture(1).size
    for value in (
        "../../token",
        str(home / "token"),
        "../datasets--user--other/a.png",
        str(home / "datasets/downloads/a.png"),
    ):
        assert "lies outside of" in str(read({"image": value, **TEXTS}, 0)[0]), value


def test_the_root_that_is_given_is_the_only_one(folder, home, tmp_path):
    assert image_roots(str(folder), home) == image_roots("user/own", home) == [home]
    assert image_roots(lines(folder, []), None) == image_roots(str(folder), None) == [folder]
    archive = tmp_path / "images.zip"
    archive.write_bytes(b"PK")
    for root, what in (
        (archive, "a file; unpack an archive and name its folder"),
        (tmp_path / "nowhere", "not there"),
    ):
        with pytest.raises(ValueError, match=f"--image-root '{root}' must be a folder, and is {what}"):
            image_roots(str(folder), root)


def test_the_command_reads_no_cache(folder, home, tmp_path, capsys):
    name = lines(folder, ["images/own", str(home / "token"), "downloads/a.png"])
    output = tmp_path / "set"
    arguments = ["--grounder", "random", "--difficulty", "mask-area", "--output", str(output)]
    assert main(["build", "--dataset", name, *arguments]) == 0
    report = json.loads((output / "report.json").read_text())
    assert (report["rows_in"], report["rows_out"], report["rejected"]) == (3, 1, 2)
    assert not any(tiny.picture(1).tobytes() in path.read_bytes() for path in output.rglob("*") if path.is_file())
