import numpy as np
import pytest
from PIL import Image, ImageDraw

from mfpo_trl.demo.scenes import (
    BACKGROUND,
    OBJECTS,
    SHAPES,
    SIZE,
    TRIPLES,
    Scene,
    Thing,
    caption_of,
    choose_names,
    draw_shape,
    make_scenes,
    presumed,
)


def test_a_seed_gives_the_same_scenes_and_another_seed_others():
    first, again, other = (make_scenes(5, seed=seed, company=0.5) for seed in (3, 3, 4))
    assert [scene.things for scene in first] == [scene.things for scene in again]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, again, strict=True))
    assert [scene.things for scene in first] != [scene.things for scene in other]


def test_every_object_belongs_to_one_triple():
    assert sorted(name for triple in TRIPLES for name in triple) == sorted(OBJECTS)


@pytest.mark.parametrize("company", [0.0, 0.5, 1.0])
def test_names_are_different_and_two_to_five(company):
    rng = np.random.default_rng(0)
    for _ in range(200):
        names = choose_names(rng, company)
        assert len(set(names)) == len(names) and 2 <= len(names) <= 5


def test_full_company_completes_a_triple_before_it_begins_another():
    rng = np.random.default_rng(0)
    for _ in range(200):
        names = choose_names(rng, 1.0)
        shares = sorted((sum(name in triple for name in names) for triple in TRIPLES), reverse=True)
        assert shares == [min(len(names), 3), max(len(names) - 3, 0), 0, 0]


def test_no_company_is_uniform():
    rng = np.random.default_rng(0)
    names = [name for _ in range(3000) for name in choose_names(rng, 0.0)]
    shares = np.array([names.count(name) for name in OBJECTS]) / len(names)
    assert np.abs(shares - 1 / len(OBJECTS)).max() < 0.01


def test_boxes_lie_inside_the_picture_and_hold_all_of_the_objects():
    for scene in make_scenes(50, seed=0, company=0.5):
        outside = np.ones((SIZE, SIZE), dtype=bool)
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box
            assert 0 <= x0 < x1 <= SIZE and 0 <= y0 < y1 <= SIZE
            outside[y0:y1, x0:x1] = False
        far = np.abs(np.asarray(scene.image, dtype=float) - BACKGROUND)
        # Noise of 12 grey levels: only what is drawn can be 75 away.
        assert far[outside].max() < 75


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("box", [(2, 3, 14, 15), (2, 3, 18, 13), (2, 3, 12, 19)])
def test_a_shape_fills_any_box_to_its_sides(shape, box):
    image = Image.new("L", (24, 24))
    draw_shape(ImageDraw.Draw(image), shape, box, 255)
    assert image.getbbox() == box


def test_boxes_are_tight():
    """The middle row and column of each side hold paint: no box is larger than its object."""
    for scene in make_scenes(50, seed=1, company=0.5):
        painted = (np.abs(np.asarray(scene.image, dtype=float) - BACKGROUND) > 75).any(axis=-1)
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box
            box = painted[y0:y1, x0:x1]
            assert box[0].any() and box[-1].any() and box[:, 0].any() and box[:, -1].any(), thing


def test_caption_names_the_objects_in_the_order_of_the_list():
    assert caption_of(["red circle", "blue square"]) == "a red circle , a blue square ."
    for scene in make_scenes(20, seed=0, company=0.0):
        assert scene.names == sorted(scene.names, key=OBJECTS.index)
        assert scene.caption == caption_of(scene.names)


def test_presumed_is_what_company_would_bring():
    """A red circle keeps company with a green square and a blue triangle."""
    scene = Scene(
        (Thing("red circle", (0, 0, 10, 10)), Thing("red cross", (16, 0, 26, 10))), Image.new("RGB", (SIZE, SIZE))
    )
    assert TRIPLES[0] == ("red circle", "green square", "blue triangle")
    assert presumed(scene, ["red circle", "green square", "red square", "green square"]) == {
        "green square": "red circle"
    }
    assert presumed(scene, ["red cross", "red triangle"]) == {}
