"""Columns that hold images and that nobody reads, in every form in which data sets hold images."""

import io

import pytest
import tiny
from datasets import Dataset, Features, Image, LargeList, List, Value

from mfpo_trl import MFPOConfig, MFPOTrainer
from mfpo_trl.arguments import check_arguments
from mfpo_trl.rows import check_image_columns


def png() -> bytes:
    file = io.BytesIO()
    tiny.picture(0).save(file, "PNG")
    return file.getvalue()


BYTES = {"bytes": png(), "path": None}
PATH = {"bytes": None, "path": "a.png"}
STRUCT = {"bytes": Value("binary"), "path": Value("string")}
TEXTS = {"prompt": "what?", "chosen": " yes", "rejected": " no"}

FORMS = {
    "image": (Image(), BYTES),
    "a path alone": (Image(), PATH),
    "list": (List(Image()), [BYTES]),
    "large list": (LargeList(Image()), [BYTES]),
    "struct": (STRUCT, BYTES),
    "struct of a path": (STRUCT, PATH),
    "structs": (List(STRUCT), [PATH]),
    "inside of messages": (List({"type": Value("string"), "image": Image()}), [{"type": "image", "image": BYTES}]),
}


def rows(feature, value, name="picture", count=3, **columns) -> Dataset:
    """Rows of which the last one alone holds the value."""
    made = [{**TEXTS, **columns, name: value if n == count - 1 else None} for n in range(count)]
    features = {own: Value("string") for own in TEXTS} | {own: List(Image()) for own in columns} | {name: feature}
    return Dataset.from_list(made, features=Features(features))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("beside", ["nothing", "empty images"])
def test_a_column_that_nobody_reads(form, beside):
    """Stored, and as a stream, whose first row says it."""
    columns = {"images": []} if beside == "empty images" else {}
    stored = rows(*FORMS[form], **columns)
    with pytest.raises(ValueError, match="train_dataset, column 'picture' holds images.*'images'.*'image'"):
        check_image_columns(stored, "train_dataset")
    if not columns:
        with pytest.raises(ValueError, match="column 'picture' holds images"):
            check_image_columns(rows(*FORMS[form], count=1).to_iterable_dataset(), "train_dataset")


@pytest.mark.parametrize("form", FORMS)
def test_what_is_read_or_holds_nothing(form):
    """A column without a value is that of texts alone, and beside images that are read there may be others."""
    feature, value = FORMS[form]
    check_image_columns(rows(feature, None), "train_dataset")
    check_image_columns(rows(feature, None, count=1).to_iterable_dataset(), "train_dataset")
    check_image_columns(rows(feature, value, images=[BYTES]), "train_dataset")
    check_image_columns(rows(feature, value, images=[BYTES]).to_iterable_dataset(), "train_dataset")
    if form in ("image", "a path alone"):
        check_image_columns(rows(feature, value, "image"), "train_dataset")


def test_texts_alone():
    """Texts and numbers of any name, bytes without a path, and the columns of a build without images."""
    plain = Dataset.from_list([{**TEXTS, "picture": "a.png", "bytes": b"x", "difficulty": 0.5, "images": []}])
    check_image_columns(plain, "train_dataset")
    check_image_columns(plain.to_iterable_dataset(), "train_dataset")


def test_a_transform_makes_the_images():
    """What it returns is looked at, not what is stored."""
    stored = rows(*FORMS["image"], count=1)
    named = stored.with_transform(lambda batch: {**batch, "images": [[own] for own in batch["picture"]]})
    check_image_columns(named, "train_dataset")
    with pytest.raises(ValueError, match="'picture' holds images"):
        check_image_columns(stored.with_transform(lambda batch: batch), "train_dataset")


@pytest.mark.parametrize("which", ["train_dataset", "eval_dataset"])
def test_the_trainer_refuses(which, tmp_path):
    """Before anything is loaded, and not where a collator of one's own may read any column."""
    good, misnamed = tiny.dataset(2), tiny.dataset(2).rename_column("images", "picture")
    args = MFPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    data = {"train_dataset": good, "eval_dataset": good, which: misnamed}
    with pytest.raises(ValueError, match=f"{which}, column 'picture' holds images"):
        MFPOTrainer("no/such/model", args=args, **data)
    check_arguments(args, data, data_collator=lambda rows: {}, cached=False)
