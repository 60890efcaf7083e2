"""Which training images are also in a benchmark: the same files, copies, and what is neither."""

import io
from pathlib import Path

import numpy as np
import pytest
import tiny
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from PIL import ImageOps

from mfpo_trl.check.benchmarks import BITS, alike, fingerprint, of_rows, overlap
from mfpo_trl.check.table import OK, WARNING


def photo(seed: int, width: int = 200, height: int = 150) -> PILImage.Image:
    """Noise with the spectrum of photographs, 1/f."""
    rng = np.random.default_rng(seed)
    waves = np.fft.rfft2(rng.standard_normal((height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    values = np.fft.irfft2(waves / frequency, s=(height, width))
    grey = 128 + 50 * (values - values.mean()) / values.std()
    return PILImage.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")


def stored(picture: PILImage.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(picture: PILImage.Image) -> bytes:
    """Lying on its side, with the mark that a viewer turns it by."""
    exif = PILImage.Exif()
    exif[0x0112] = 6
    return stored(picture.rotate(90, expand=True), quality=90, exif=exif)


COPIES = {
    "the same file": lambda p: stored(p, quality=95),
    "as PNG": lambda p: stored(p, "PNG"),
    "quality 30": lambda p: stored(p, quality=30),
    "a quarter of its size": lambda p: stored(p.resize((p.width // 4, p.height // 4)), quality=90),
    "twice its size": lambda p: stored(p.resize((p.width * 2, p.height * 2)), quality=90),
    "another shape": lambda p: stored(p.resize((336, 336)), quality=90),
    "in WebP": lambda p: stored(p, "WEBP", quality=60),
    "grey": lambda p: stored(ImageOps.grayscale(p), quality=90),
    "turned by a mark": turned,
}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("val2014")
    (folder / "below").mkdir()
    for n in range(12):
        (folder / ("below" if n % 2 else ".") / f"{n}.jpg").write_bytes(stored(photo(n), quality=95))
    (folder / "notes.txt").write_text("no picture")
    return folder


def rows(contents: list, column: str = "images") -> Dataset:
    one = column == "image"
    features = {"prompt": Value("string"), column: Image() if one else List(Image())}
    return Dataset.from_list(
        [{"prompt": "", column: own if one else own and [own]} for own in contents], features=Features(features)
    )


def as_file(content: bytes) -> dict:
    return {"bytes": content, "path": None}


@pytest.mark.parametrize("column", ["image", "images"])
def test_every_kind_of_copy_is_found_and_nothing_else(benchmark, column):
    contents = [as_file(make(photo(n))) for n, make in enumerate(COPIES.values())]
    others = [as_file(stored(photo(1000 + n))) for n in range(20)]
    found = overlap(rows([*contents, *others, None], column), [benchmark], 0)
    own = found.details["benchmarks"][str(benchmark)]
    assert found.status == WARNING and found.details["rows"] == list(range(len(COPIES)))
    assert (own["exact"], own["alike"], own["images"], own["benchmark_images"]) == (1, len(COPIES) - 1, 29, 12)
    assert [Path(pair["file"]).stem for pair in own["pairs"]] == [str(pair["row"]) for pair in own["pairs"]]


def test_how_far_copies_and_others_lie_apart():
    """What BITS stands between: of 200 pictures and 19,900 pairs of them, none is taken for another."""
    prints = np.stack([fingerprint(photo(n)) for n in range(200)])
    pairs = [(one, other) for one, other in alike(prints, prints) if one != other]
    apart = np.bitwise_count(prints[:, None] ^ prints[None]).sum(axis=-1)
    nearest = apart[~np.eye(200, dtype=bool)].min()
    copies = [
        int(np.bitwise_count(prints[n] ^ fingerprint(PILImage.open(io.BytesIO(make(photo(n)))).convert("RGB"))).sum())
        for n in range(6)
        for name, make in COPIES.items()
        if name != "turned by a mark"
    ]
    assert not pairs and max(copies) * 2 <= BITS and nearest > 2 * BITS


def test_pictures_with_nothing_on_them_are_compared_as_files(tmp_path):
    blank = PILImage.new("RGB", (200, 100), "white")
    blank.save(tmp_path / "blank.png")
    other = PILImage.new("RGB", (300, 100), "white")
    assert fingerprint(blank) is None
    found = overlap(rows([as_file(stored(other, "PNG"))]), [tmp_path], 0)
    assert found.status == OK and "1 images with too little on them" in found.value
    same = overlap(rows([as_file((tmp_path / "blank.png").read_bytes())]), [tmp_path], 0)
    assert same.status == WARNING and same.details["rows"] == [0]


def test_the_same_picture_in_several_rows_and_paths_and_streams(benchmark):
    path = str(benchmark / "0.jpg")
    table = Dataset.from_list([{"images": [path]}, {"images": []}, {"images": [path, str(benchmark / "2.jpg")]}])
    for data, most in ((table, 0), (table.to_iterable_dataset(), 3)):
        found = overlap(data, [benchmark], most)
        assert found.details["rows"] == [0, 2] and found.details["benchmarks"][str(benchmark)]["exact"] == 2
    decoded = of_rows(rows([as_file(stored(photo(3)))]).with_transform(lambda batch: batch), 0)
    assert len(decoded.names) == 1


def test_what_cannot_be_read_is_counted(benchmark, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    found = overlap(rows([as_file(b"nothing"), as_file(stored(photo(0), quality=95))]), [benchmark, tmp_path], 0)
    assert found.details["rows"] == [1] and "1 images cannot be read" in found.value
    assert found.details["benchmarks"][str(tmp_path)]["unreadable"] == ["bad.jpg"]


def test_folders_that_are_none(tmp_path):
    for folder, words in ((tmp_path / "none", "no such folder"), (tmp_path, "holds no picture")):
        with pytest.raises(ValueError, match=words):
            overlap(rows([None]), [folder], 0)


def test_the_command(benchmark, tmp_path, capsys):
    """A finding of its own, and none where nobody asks."""
    from mfpo_trl.check import command

    made = tiny.rows(3)
    made[1]["images"] = [photo(4)]
    Dataset.from_list(made, features=Features(tiny.FEATURES)).to_parquet(tmp_path / "rows.parquet")
    argv = ["--model_name_or_path", str(tmp_path), "--dataset_name", str(tmp_path / "rows.parquet"), "--use_cpu"]
    command.main(
        [*argv, "--output_dir", str(tmp_path / "out"), "--benchmark-images", str(benchmark), "--bf16", "false"]
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 3 training images are among its 12 (0 the same files, 1 resized or stored again)" in printed
    assert "row 1 is 4.jpg" in printed
