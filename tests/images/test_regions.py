"""Regions in every form, against pycocotools and counting by hand."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco

from mfpo_trl.images.regions import decode_rle, encode_rle, random_region, region_mask, regions_per_image

masks = hnp.arrays(bool, st.tuples(st.integers(1, 23), st.integers(1, 23)))


def half() -> np.ndarray:
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:3, 2:5] = True
    return mask


def as_png(mask) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
    return buffer.getvalue()


@given(masks)
@settings(max_examples=100, deadline=None)
def test_rle_round_trip_and_coco(mask):
    assert (decode_rle(encode_rle(mask)) == mask).all()
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert (decode_rle(theirs) == mask).all()
    assert (decode_rle({"size": theirs["size"], "counts": theirs["counts"].decode()}) == mask).all()
    compressed = coco.frPyObjects(encode_rle(mask), *mask.shape)
    assert (coco.decode(compressed).astype(bool) == mask).all()


def test_large_compressed_rle():
    """Runs of more than five bits, and differences below zero."""
    rng = np.random.default_rng(0)
    mask = np.kron(rng.random((9, 7)) < 0.4, np.ones((57, 91))).astype(bool)
    assert (decode_rle(coco.encode(np.asfortranarray(mask.astype(np.uint8)))) == mask).all()


@pytest.mark.parametrize(
    "form",
    [
        [2, 1, 5, 3],
        (2.0, 1.0, 5.0, 3.0),
        half(),
        Image.fromarray(half().astype(np.uint8) * 255),
        Image.fromarray(half()),
        as_png(half()),
        {"bytes": as_png(half()), "path": None},
        encode_rle(half()),
        {"box": [2, 1, 5, 3], "rle": None, "phrase": "dog", "score": 0.9},
        {"rle": encode_rle(half()), "phrase": "dog"},
        {"mask": {"bytes": as_png(half()), "path": None}},
        {"box": [2, 1, 5, 3], "rle": {"size": None, "counts": None}},
    ],
    ids=lambda form: type(form).__name__,
)
def test_every_form_of_a_region(form):
    assert (region_mask([form], 6, 8) == half()).all()
    assert (region_mask(form, 6, 8) == half()).all()


def test_palette_masks_count_indices_and_clear_pixels_do_not_count():
    palette = Image.fromarray(half().astype(np.uint8), "L").convert("P")
    palette.putdata(half().astype(np.uint8).ravel().tolist())
    palette.putpalette([255, 255, 255, 0, 0, 0])
    clear = Image.fromarray(np.full((6, 8, 4), 255, dtype=np.uint8))
    clear.putalpha(Image.fromarray(half().astype(np.uint8) * 255))
    for mask in (palette, clear):
        assert (region_mask([mask], 6, 8) == half()).all()


def test_an_array_of_boxes():
    assert (region_mask(np.array([[2, 1, 5, 3], [2, 1, 4, 2]]), 6, 8) == half()).all()


def test_a_text_is_no_list_of_regions():
    with pytest.raises(ValueError, match="found the text"):
        regions_per_image("[[2, 1, 5, 3]]", 1)


def test_union_fractions_and_clipping():
    """[0.5, 0.5, 1.5, 1.5] touches the four pixels of the corner; [6, 4, 99, 99] is cut at the border to 2 x 2."""
    mask = region_mask([[0.5, 0.5, 1.5, 1.5], [6, 4, 99, 99]], 6, 8)
    assert mask[:2, :2].all() and mask[4:, 6:].all() and mask.sum() == 8


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ([8, 0, 12, 3], "outside the image of 8x6"),
        ([-5, 0, 0, 3], "outside the image"),
        ([3, 3, 3, 5], "is empty"),
        ([5, 1, 2, 3], "is empty"),
        ([0.1, 0.2, 0.8, 0.9], "pixels, not fractions"),
        ([0, 0, float("nan"), 3], "not finite"),
        ([0, 0, 3], "expected a box"),
        ("a dog", "cannot be read|expected a box"),
        ({"phrase": "dog"}, "expected a box"),
        (np.zeros((6, 8), dtype=bool), "empty mask"),
        (np.ones((5, 8), dtype=bool), "mask of 8x5 pixels for an image of 8x6"),
        ({"size": [6, 8], "counts": [1, 2]}, "cover 3 pixels"),
        (b"no image", "cannot be read"),
        ({"bytes": None, "path": "no/such/mask.png"}, "mask image cannot be read"),
        ({"rle": {"size": None, "counts": None}, "box": None}, "fills none of its keys"),
    ],
)
def test_bad_regions(region, message):
    with pytest.raises(ValueError, match=message):
        region_mask([region], 6, 8)


def test_regions_of_several_images():
    box = [0, 0, 2, 2]
    assert regions_per_image(None, 2) == [[], []]
    assert regions_per_image([], 1) == [[]]
    assert regions_per_image([box, box], 1) == [[box, box]]
    assert regions_per_image(box, 1) == [[box]]
    assert regions_per_image([[box], None], 2) == [[box], []]
    assert regions_per_image([[box, box]], 1) == [[box, box]]
    with pytest.raises(ValueError, match="one list of regions an image"):
        regions_per_image([box, box], 2)
    with pytest.raises(ValueError, match="3 lists of regions for 2"):
        regions_per_image([[box], [box], [box]], 2)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_random_region_is_a_rectangle_inside(height, width, seed):
    mask = random_region(height, width, np.random.default_rng(seed))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert mask.shape == (height, width) and mask.sum() == len(rows) * len(columns) > 0
    assert rows[-1] - rows[0] + 1 == len(rows) and columns[-1] - columns[0] + 1 == len(columns)


def test_random_region_covers_a_fifth():
    rng = np.random.default_rng(0)
    shares = [random_region(300, 400, rng).mean() for _ in range(50)]
    assert max(abs(share - 0.2) for share in shares) < 0.002
