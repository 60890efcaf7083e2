"""Dispreferred images that could be real: filled, transplanted, one region, ladders; deterministic, exact outside, refused where they cannot be."""

import json

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from PIL import Image as PILImage
from test_trainer import CPU
from torch.utils.data import DataLoader

from mfpo_trl import MFPOConfig
from mfpo_trl.batch.collator import build_collator
from mfpo_trl.images import DispreferredImages, check_recipes
from mfpo_trl.images.corruptions import check_corruption, corrupt, same_size
from mfpo_trl.images.corruptions.pixels import soft_edge
from mfpo_trl.rows import load_images, to_rgb

SQUARE = np.zeros((32, 40), dtype=bool)
SQUARE[8:24, 10:30] = True


def rows(count=6, **columns) -> list[dict]:
    return tiny.rows(count, **{"key_regions": tiny.boxes, **columns})


def pixels(images) -> list:
    return [np.asarray(image).tolist() for image in images]


# Each corruption does what it says


@pytest.mark.parametrize(("method", "off"), [("telea", 3), ("navier-stokes", 0)])
@pytest.mark.parametrize("resolution", [None, 16, 13])
def test_a_filled_region_has_the_colours_around_it(method, off, resolution):
    """A red object on a grey ground of one colour: nothing but that grey is left; OpenCV's `telea` is off by up to 3 levels."""
    image = np.full((32, 40, 3), 120, dtype=np.uint8)
    image[SQUARE] = (250, 10, 10)
    found = corrupt(image, SQUARE, np.random.default_rng(0), "inpaint", method=method, resolution=resolution)
    assert np.abs(found.astype(int) - 120).max() <= off


def test_a_filled_region_continues_a_slope():
    """A ramp from left to right with a hole in it is closed within a few grey levels; the mean colour would miss by up to 35."""
    ramp = np.broadcast_to(np.linspace(0, 140, 40).astype(np.uint8)[None, :, None], (32, 40, 3)).copy()
    found = corrupt(
        np.where(SQUARE[..., None], 255, ramp).astype(np.uint8), SQUARE, np.random.default_rng(0), "inpaint"
    )
    assert np.abs(found.astype(int) - ramp.astype(int))[SQUARE].mean() < 12


def test_a_transplanted_region_shows_the_other_one():
    """Without a border the donor's box stands in the region's as it is, with one its middle does, and its edge is the image's."""
    image, donor = np.full((32, 40, 3), 50, dtype=np.uint8), np.full((64, 64, 3), 90, dtype=np.uint8)
    box = np.zeros((64, 64), dtype=bool)
    box[10:26, 20:40] = True
    donor[box] = 200
    given = {"donor": donor, "donor_region": box}
    hard = corrupt(image, SQUARE, np.random.default_rng(0), "transplant", border=0, **given)
    assert (hard[SQUARE] == 200).all() and (hard[~SQUARE] == 50).all()
    soft = corrupt(image, SQUARE, np.random.default_rng(0), "transplant", border=0.25, **given)
    assert (soft[16, 18:22] == 200).all() and (soft[~SQUARE] == 50).all()
    edge = soft[16, 10:16, 0].astype(int)
    assert 50 < edge[0] < 110 and (np.diff(edge) >= 0).all()
    # Poisson: a donor without gradients becomes what is around the region.
    flat = corrupt(image, SQUARE, np.random.default_rng(0), "transplant", blend="poisson", **given)
    assert np.abs(flat.astype(int) - 50).max() <= 2


def test_a_soft_edge_rises_inwards():
    """A straight edge: half a pixel in it has begun, one border further in it is done; the image's own border has no edge."""
    region = np.zeros((30, 30), dtype=bool)
    region[:, :20] = True
    shown = soft_edge(region, 5)
    assert (shown[:, 20:] == 0).all() and (shown[:, :14] == 1).all()
    line = shown[15, 14:20]
    assert (np.diff(line) < 0).all() and line[-1] == pytest.approx(1 / 11, abs=0.02)
    assert (soft_edge(region, 0) == region).all()


def test_a_thin_region_is_not_left_as_it_is():
    """A diagonal three pixels wide, in bounds whose soft edge is nine; poisson, which would leave it, says so."""
    image, region = np.full((100, 100, 3), 50, dtype=np.uint8), np.zeros((100, 100), dtype=bool)
    for n in range(5, 95):
        region[n, n - 1 : n + 2] = True
    given = {"donor": np.full((20, 20, 3), 200, dtype=np.uint8), "donor_region": np.ones((20, 20), dtype=bool)}
    found = corrupt(image, region, np.random.default_rng(0), "transplant", **given)
    # The middle of the line is the donor's by half at least.
    assert (found[range(6, 94), range(6, 94)] >= 125).all() and (found[~region] == 50).all()
    with pytest.raises(ValueError, match="nowhere wider than the edge of 3 pixels .* 'feather' takes it"):
        corrupt(image, region, np.random.default_rng(0), "transplant", blend="poisson", **given)


@pytest.mark.parametrize(
    ("one", "other", "same"), [(0.1, 0.1, True), (0.1, 0.4, True), (0.1, 0.41, False), (0.04, 0.01, True)]
)
def test_a_size_class_is_a_factor_of_four(one, other, same):
    assert same_size(one, other) is same


# Of a row


def test_partial_takes_one_region_and_further_variants_take_the_others():
    boxes = [[0, 0, 10, 10], [12, 0, 22, 10], [24, 0, 34, 10]]
    row = rows(1, key_regions=lambda n: boxes)[0]
    making = DispreferredImages("black", region="partial")
    changed = []
    for variant in (1, 2, 3, 4):
        made = np.asarray(making(row, row["images"], variant)[0])
        differs = (made != np.asarray(row["images"][0])).any(axis=2)
        assert (making.masks(row, row["images"], variant)[0] >= differs).all()
        changed.append([n for n, (x0, y0, x1, y1) in enumerate(boxes) if differs[y0:y1, x0:x1].any()])
    assert sorted(changed[:3]) == [[0], [1], [2]] and changed[3] == changed[0]
    many = [making.masks(own, own["images"])[0] for own in rows(30, key_regions=lambda n: boxes)]
    assert {int(np.flatnonzero(mask[0])[0]) for mask in many} == {0, 12, 24}, "drawn by the row"
    bare = rows(1, key_regions=lambda n: [])[0]
    assert making.masks(bare, bare["images"])[0].all()


def test_partial_of_several_images_keeps_the_others_clean():
    row = {**rows(1)[0], "images": [tiny.picture(0), tiny.picture(1)], "key_regions": [[[0, 0, 9, 9]], [[0, 0, 9, 9]]]}
    masks = DispreferredImages("black", region="partial").masks(row, row["images"])
    assert sorted(mask.any() for mask in masks) == [False, True]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("mask", {"share": [0.25, 0.5, 0.75, 1.0]}), ("diffusion", {"step": [100, 400, 700, 999], "schedule": "linear"}),
     ("blur", {"sigma": [0.02, 0.05, 0.1, 0.3]})],
)  # fmt: skip
def test_a_ladder_grows(name, kwargs):
    """Each rung lies further from the image than the one before, and is what its strength alone makes."""
    row = rows(1)[0]
    clean, making = np.asarray(row["images"][0]).astype(int), DispreferredImages(name, kwargs)
    made = [np.asarray(making(row, row["images"], variant)[0]) for variant in (1, 2, 3, 4)]
    distances = [np.abs(own - clean).mean() for own in made]
    assert (np.diff(distances) > 0).all()
    option, strengths = next((key, value) for key, value in kwargs.items() if isinstance(value, list))
    alone = DispreferredImages(name, {**kwargs, option: strengths[2]})(row, row["images"], 3)
    assert (np.asarray(alone[0]) == made[2]).all()
    with pytest.raises(ValueError, match=f"image 5 of a row is asked for, and '{option}' of {name} has 4 numbers"):
        making(row, row["images"], 5)


@pytest.mark.parametrize("strengths", [[0.25, 0.5, 0.75, 1.0], [0.1, 0.33, 0.9], [1e-6, 1.0]])
def test_a_ladder_masks_its_share_of_each_region(strengths):
    """Of two far apart, one that overlaps the second, and one of a single pixel: the middles of all grow, each within the next."""
    boxes = [[0, 0, 11, 9], [20, 18, 39, 31], [30, 10, 36, 20], [15, 5, 16, 6]]
    row = rows(1, key_regions=lambda n: boxes)[0]
    making = DispreferredImages("mask", {"share": strengths})
    before = np.zeros((32, 40), dtype=bool)
    for variant, share in enumerate(strengths, start=1):
        made = np.asarray(making(row, row["images"], variant)[0])
        # The mean colour is fractional in no channel of a picture that has it as its only colour.
        masked = (made == made[5, 15]).all(axis=2)
        assert (masked | ~before).all() and not (masked & ~making.masks(row, row["images"])[0]).sum() > 2
        for x0, y0, x1, y1 in (boxes[0], boxes[3]):
            area = (x1 - x0) * (y1 - y0)
            assert abs(int(masked[y0:y1, x0:x1].sum()) - max(1, round(share * area))) <= 1
        before = masked
    whole = before[18:31, 20:39].all() and before[10:20, 30:36].all()
    assert whole == (strengths[-1] == 1)


def test_no_rung_is_the_image_itself():
    """A region of one pixel has as many rungs as asked, all of that pixel."""
    row = rows(1, key_regions=lambda n: [[7, 3, 8, 4]])[0]
    making, clean = DispreferredImages("mask", {"share": [0.25, 0.5]}), np.asarray(row["images"][0])
    for variant in (1, 2):
        differs = (np.asarray(making(row, row["images"], variant)[0]) != clean).any(axis=2)
        assert np.argwhere(differs).tolist() == [[3, 7]]


MODES = {
    "L": lambda image: image.convert("L"),
    "P": lambda image: image.convert("P"),
    "1": lambda image: image.convert("1"),
    "CMYK": lambda image: image.convert("CMYK"),
    "RGBA": lambda image: image.convert("RGBA"),
    "I;16": lambda image: PILImage.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257),
    "F": lambda image: PILImage.fromarray(np.asarray(image.convert("L")).astype(np.float32)),
}


@pytest.mark.parametrize("name", ["inpaint", "transplant", "mask", "diffusion"])
@pytest.mark.parametrize("mode", MODES)
def test_images_of_every_mode(mode, name):
    """Outside of the region they are what a viewer shows."""
    source = [{**row, "images": [MODES[mode](row["images"][0])]} for row in rows(3)]
    shown = load_images(source[0], "image")
    making = DispreferredImages(name, donors=source)
    made, region = np.asarray(making(source[0], shown)[0]), making.masks(source[0], shown)[0]
    assert (made[~region] == np.asarray(shown[0])[~region]).all()
    assert (made[region] != np.asarray(shown[0])[region]).any()


@pytest.mark.parametrize("name", ["diffusion", "mask", "blur", "crop", "inpaint", "transplant"])
def test_an_image_of_one_pixel(name):
    row = {**rows(1)[0], "images": [PILImage.new("RGB", (1, 1), "red")], "key_regions": [[0, 0, 1, 1]]}
    making = DispreferredImages(name, donors=rows(2))
    if name in ("inpaint", "transplant"):
        with pytest.raises(ValueError, match="field 'key_regions': the regions cover the whole image"):
            making(row, row["images"])
    else:
        assert making(row, row["images"])[0].size == (1, 1)


def test_a_large_image_is_filled_at_the_models_resolution():
    """12 megapixels, at the border: filled at 336 and enlarged, to the pixel the image outside."""
    image = PILImage.fromarray(np.arange(3000 * 4000 * 3, dtype=np.uint32).astype(np.uint8).reshape(3000, 4000, 3))
    row = {"images": [image], "prompt": "?", "key_regions": [[3000, 2000, 4000, 3000]]}
    making = DispreferredImages("inpaint", resolution=lambda height, width: 336)
    made, clean = np.asarray(making(row, [image])[0]), np.asarray(image)
    assert (made[:2000] == clean[:2000]).all() and (made[:, :3000] == clean[:, :3000]).all()
    assert (made[2000:, 3000:] != clean[2000:, 3000:]).mean() > 0.9


@pytest.mark.parametrize("making", [
    {"corruption": "inpaint"}, {"corruption": "transplant"}, {"corruption": "transplant", "kwargs": {"blend": "poisson"}},
    {"corruption": "inpaint", "region": "partial"}, {"corruption": "inpaint", "region": "random"},
])  # fmt: skip
def test_the_same_image_for_every_worker_and_rank(making):
    """Alone, in a batch, behind other rows, through a data set of another format: the row decides, and the rows there are."""
    source = rows(6)
    stored = Dataset.from_list(source, features=tiny.dataset(6, tiny.BOXES, key_regions=tiny.boxes).features)
    args = MFPOConfig(
        output_dir="unused", **{f"corruption_{k}" if k != "corruption" else k: v for k, v in making.items()}, **CPU
    )
    collators = [build_collator(args, tiny.processor(), stored, "flat") for _ in range(2)]
    first = [pixels(collators[0].dispreferred(row, row["images"])) for row in source]
    again = [pixels(collators[1].dispreferred(row, row["images"])) for row in reversed(source)][::-1]
    assert first == again
    batches = [list(DataLoader(source, 2, collate_fn=collators[0], num_workers=workers)) for workers in (0, 2)]
    assert all(torch.equal(one["pixel_values"], two["pixel_values"]) for one, two in zip(*batches, strict=True))
    for row, own in zip(source, first, strict=True):
        outside = ~collators[0].dispreferred.masks(row, row["images"])[0]
        assert (np.asarray(own[0])[outside] == np.asarray(row["images"][0])[outside]).all()
        assert (np.asarray(own[0]) != np.asarray(row["images"][0])).any()


def test_each_region_gets_a_region_of_its_own_size():
    """Two regions, of 1 % and 40 %; among the donors the small one is red and the large one blue, and no other fits."""

    def donor(colour, box):
        image = np.full((100, 100, 3), 128, dtype=np.uint8)
        image[box[1] : box[3], box[0] : box[2]] = colour
        return {"images": [image], "key_regions": [box], "prompt": "?"}

    row = {**donor((0, 255, 0), [5, 5, 15, 15]), "key_regions": [[5, 5, 15, 15], [30, 30, 94, 94]], "prompt": "what?"}
    donors = [
        row,
        donor((255, 0, 0), [0, 0, 11, 11]),
        donor((0, 0, 255), [0, 0, 60, 60]),
        {"images": [], "prompt": "text"},
    ]
    making = DispreferredImages("transplant", {"border": 0}, donors=donors)
    found = np.asarray(making(row, [to_rgb(row["images"][0])])[0])
    assert found[10, 10].tolist() == [255, 0, 0] and found[60, 60].tolist() == [0, 0, 255]
    with pytest.raises(
        ValueError, match=r"field 'key_regions': no other row among 2 has a region of the same size class .* 1.0%"
    ):
        DispreferredImages("transplant", donors=[row, donors[2]])(row, [to_rgb(row["images"][0])])
    with pytest.raises(ValueError, match="needs stored rows with images to take another region from"):
        DispreferredImages("transplant")(row, [to_rgb(row["images"][0])])


def test_another_dog_in_the_place_of_a_dog_says_the_same():
    """What the row's phrases name is taken where there is nothing else only."""

    def shows(colour, region):
        image = np.full((60, 60, 3), 128, dtype=np.uint8)
        image[5:25, 5:25] = colour
        return {"images": [image], "key_regions": [region], "prompt": "?"}

    box = [5, 5, 25, 25]
    row = shows((0, 255, 0), {"box": box, "phrase": "dog"})
    dogs = [shows((255, 0, n), {"box": box, "phrase": "Dog"}) for n in range(20)]
    for other in ({"box": box, "phrase": "cat"}, {"box": box, "label": "cat"}, box):
        making = DispreferredImages("transplant", {"border": 0}, donors=[row, *dogs, shows((0, 0, 255), other)])
        assert np.asarray(making(row, [to_rgb(row["images"][0])])[0])[15, 15].tolist() == [0, 0, 255]
    making = DispreferredImages("transplant", {"border": 0}, donors=[row, *dogs])
    assert np.asarray(making(row, [to_rgb(row["images"][0])])[0])[15, 15, 0] == 255


# What cannot be made


@pytest.mark.parametrize("name", ["inpaint", "transplant"])
@pytest.mark.parametrize(
    ("regions", "recipe", "said"),
    [
        ([], None, r"row 0\) have no key_regions, and corruption"),
        ([], {"region": "auto"}, r"row 0\) have no key_regions, and corruption"),
        ([[0, 0, 40, 32]], None, None),
    ],
)
def test_an_image_without_surroundings_is_refused_before_training(name, regions, recipe, said):
    source = rows(3, key_regions=lambda n: regions if n == 0 else tiny.boxes(n))
    if recipe is not None:
        source = [{**row, "corruption": json.dumps({"corruption": name, **recipe})} for row in source]
    args = MFPOConfig(output_dir="unused", **({} if recipe else {"corruption": name}), **CPU)
    stored = Dataset.from_list(source)
    if said is None:
        check_recipes(args, {"train_dataset": stored})
        making = DispreferredImages(name, donors=source)
        with pytest.raises(ValueError, match="field 'key_regions': the regions cover the whole image"):
            making(source[0], source[0]["images"])
        return
    with pytest.raises(ValueError, match=f"train_dataset: 1 rows .*{said} '{name}'"):
        check_recipes(args, {"train_dataset": stored})
    check_recipes(
        MFPOConfig(output_dir="unused", corruption=name, corruption_region="random", **CPU), {"train_dataset": stored}
    )


@pytest.mark.parametrize("name", ["swap", "transplant"])
def test_a_stream_has_no_other_rows(name):
    args = MFPOConfig(output_dir="unused", corruption=name, **CPU)
    with pytest.raises(ValueError, match=f"corruption='{name}' takes another row's image, which an IterableDataset"):
        build_collator(args, tiny.processor(), Dataset.from_list(rows(2)).to_iterable_dataset(), "flat")


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("inpaint", {"method": "biharmonic"}, "expected 'navier-stokes' or 'telea'"),
        ("inpaint", {"radius": 0}, "above 0 and at most 100"),
        ("inpaint", {"resolution": 0}, "above 0"),
        ("transplant", {"blend": "hard"}, "expected 'feather' or 'poisson'"),
        ("transplant", {"border": 0.7}, "from 0 to 0.5"),
        ("transplant", {"donor_region": 1}, "no option 'donor_region'"),
        ("mask", {"share": []}, "is an empty list"),
        ("mask", {"share": [0.5, 2]}, "must lie above 0"),
        ("diffusion", {"step": [500, 1000]}, "from 0 to 999"),
        ("generate", {}, "mfpo build --corruption generate --materialize"),
        ("generate", {"promt": "a dog"}, "did you mean 'prompt'"),
    ],
)
def test_options_that_cannot_be_used(name, kwargs, said):
    with pytest.raises(ValueError, match=said):
        check_corruption(name, kwargs)


def test_without_opencv_the_install_line_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ImportError, match=r'pip install "mfpo_trl\[inpaint\]"'):
        check_corruption("inpaint", {})
    check_corruption("transplant", {})
