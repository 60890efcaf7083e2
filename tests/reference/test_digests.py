"""What a cached reference's key notices of files that change in place: every form in which a row may name one."""

import os
import zipfile

import numpy as np
import pyarrow as pa
import pytest
import tiny
from datasets import Dataset, Features, Image, Json, LargeList, List, Value
from PIL import Image as PILImage
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mfpo_trl.images.regions import region_mask, regions_per_image
from mfpo_trl.reference.digests import files_digest, processor_digest
from mfpo_trl.rows.schema import load_images

SIZE = 32, 40


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "picture.png")


def write(path: str, number: int) -> None:
    """A picture that is a mask too, another one for each number."""
    pixels = np.zeros(SIZE, dtype=np.uint8)
    pixels[4 : 10 + number, 4:20] = 255
    PILImage.fromarray(pixels).save(path)
    os.utime(path, (number, number))


def shown(dataset: Dataset) -> int:
    """What a training sees of the file that the first row names."""
    (column,) = dataset.column_names
    row = dataset[0]
    if column == "key_regions":
        return int(region_mask(regions_per_image(row[column], 1)[0], *SIZE).sum())
    return int(np.asarray(load_images(row, column.replace("images", "image"))[0]).sum())


def assert_noticed(dataset: Dataset, path: str) -> None:
    """In the whole data set, and in a part of it in another order, whose rows arrow finds by their numbers."""
    for own in (dataset, dataset.select([1, 0]).select([0, 1])):
        found = []
        for number in (1, 1, 2):
            write(path, number)
            found.append((shown(own), files_digest(own)))
        assert found[0] == found[1] and found[0][0] != found[2][0] and found[0][1] != found[2][1]


STRINGS = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "large dictionary": pa.dictionary(pa.int8(), pa.large_string()),
}
BYTES = (pa.binary(), pa.large_binary(), pa.binary_view())
LISTS = (pa.list_, pa.large_list, lambda kind: pa.list_(kind, 1))
TYPES = {
    "image": lambda kind: [kind, pa.struct({"path": kind}), *(pa.struct({"bytes": b, "path": kind}) for b in BYTES)],
    "images": lambda kind: [of(inner) for of in LISTS for inner in TYPES["image"](kind)],
    "key_regions": lambda kind: [
        pa.struct({"path": kind}),
        pa.list_(pa.list_(kind)),
        *(of(pa.struct({name: kind, "phrase": kind})) for of in LISTS for name in ("mask", "rle", "box")),
        *(of(pa.struct({"mask": inner})) for of in LISTS for inner in TYPES["image"](kind)[1:]),
        *(pa.list_(of(inner)) for of in LISTS for inner in TYPES["image"](kind)[1:]),
    ],
}
TYPES |= {f"rejected_{name}{number}": TYPES[name] for name in ("image", "images") for number in ("", "_2", "_10")}


def naming(kind: pa.DataType, path: str):
    """A value of an arrow type that names the file."""
    if pa.types.is_struct(kind):
        return {own.name: None if own.name == "bytes" else naming(own.type, path) for own in kind}
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return [naming(kind.value_type, path)] if nested else path


@pytest.mark.parametrize("string", STRINGS)
@pytest.mark.parametrize("column", TYPES)
def test_a_file_that_changes_is_noticed_in_every_arrow_type(path, column, string):
    write(path, 1)
    for kind in TYPES[column](STRINGS[string]):
        value = naming(kind, path)
        dataset = Dataset(pa.table({column: pa.array([value, value], type=kind)}))
        assert_noticed(dataset, path)


def forms(path: str) -> list[tuple[str, object, object]]:
    """Columns of the types of `datasets`: their name, a value that names the file, and their feature."""
    picture, text = {"bytes": None, "path": path}, Value("string")
    one = [(path, Image()), (path, Image(decode=False)), (path, Json()), (picture, Json())]
    many = [([value], List(kind)) for value, kind in one] + [
        ([path], Json()),
        ([picture], Json()),
        ([path], LargeList(Image())),
    ]
    regions = [
        (path, Image()),
        ([path], List(Image())),
        ([[path]], List(List(Image()))),
        ([{"mask": path, "phrase": "a dog"}], List({"mask": Image(), "phrase": text})),
        ([{"mask": picture, "phrase": None}], List({"mask": Image(decode=False), "phrase": text})),
        ({"mask": path}, {"mask": text}),
        *((value, Json()) for value in ([[path]], [picture], picture, [{"mask": path}], {"mask": picture})),
        ([{"mask": path}, {"box": [1, 2, 3, 4]}], List(Json())),
    ]
    named = {"image": one, "rejected_image": one, "images": many, "rejected_images": many, "key_regions": regions}
    named |= {"rejected_image_3": one, "rejected_images_4": many}
    return [(column, value, feature) for column, found in named.items() for value, feature in found]


@pytest.mark.parametrize("number", range(len(forms(""))))
def test_a_file_that_changes_is_noticed_in_every_form(path, number):
    write(path, 1)
    column, value, feature = forms(path)[number]
    dataset = Dataset.from_dict({column: [value, value]}, features=Features({column: feature}))
    assert_noticed(dataset, path)


def test_a_picture_in_an_archive_changes_with_it(tmp_path):
    """Which `datasets` alone can open."""
    archive, inside = tmp_path / "all.zip", tmp_path / "picture.png"
    dataset = Dataset.from_dict({"image": [f"zip://picture.png::{archive}"]}, features=Features({"image": Image()}))
    found = []
    for number in (1, 2):
        write(str(inside), number)
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("picture.png", inside.read_bytes())
        os.utime(archive, (number, number))
        found.append((shown(dataset), files_digest(dataset)))
    assert found[0][0] != found[1][0] and found[0][1] != found[1][1]


def test_what_is_kept_in_the_data_set_is_no_file(path):
    """Pictures as bytes, whatever path they came from, and words beside a region."""
    write(path, 1)
    content = open(path, "rb").read()
    picture = {"bytes": content, "path": path}
    regions = [{"mask": None, "box": [1.0, 2.0, 3.0, 4.0], "phrase": path}]
    kinds = List({"mask": Image(), "box": List(Value("float32")), "phrase": Value("string")})
    datasets = [
        Dataset.from_dict({"images": [[picture["bytes"]]]}, features=Features({"images": List(Image())})),
        Dataset(pa.table({"image": pa.array([picture])})),
        Dataset.from_dict({"image": [tiny.picture(1)]}),
        Dataset.from_dict({"key_regions": [regions]}, features=Features({"key_regions": kinds})),
        Dataset.from_dict({"prompt": [path]}),
    ]
    before = [files_digest(dataset) for dataset in datasets]
    write(path, 2)
    assert [files_digest(dataset) for dataset in datasets] == before


class Torchvision(CLIPImageProcessorPil):
    """The same settings, computed by another library."""

    def to_dict(self):
        return super().to_dict() | {"image_processor_type": "CLIPImageProcessor"}


CHANGES = {
    "size": lambda own: setattr(own.image_processor, "size", {"shortest_edge": 42}),
    "crop": lambda own: setattr(own.image_processor, "do_center_crop", False),
    "mean": lambda own: setattr(own.image_processor, "image_mean", [0.5, 0.5, 0.5]),
    "resampling": lambda own: setattr(own.image_processor, "resample", 2),
    "library": lambda own: setattr(own, "image_processor", Torchvision(**own.image_processor.to_dict())),
    "patches": lambda own: setattr(own, "patch_size", 7),
    "image tokens": lambda own: setattr(own, "num_additional_image_tokens", 0),
    "features": lambda own: setattr(own, "vision_feature_select_strategy", "full"),
    "words": lambda own: own.tokenizer.add_tokens(["<new>"]),
    "special words": lambda own: setattr(own.tokenizer, "eos_token", "<|end|>"),
    "special words in texts": lambda own: setattr(own.tokenizer, "split_special_tokens", True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_processor_that_writes_another_input_is_noticed(change):
    processor, same = tiny.processor(), tiny.processor()
    assert processor_digest(processor) == processor_digest(same)
    CHANGES[change](processor)
    assert processor_digest(processor) != processor_digest(same)
