"""A row's texts, images and identity."""

import io

import numpy as np
import pytest
import tiny
from PIL import Image

from mfpo_trl.rows.schema import (
    check_answers,
    enlarged,
    load_images,
    plain_text,
    row_digest,
    row_generator,
    row_name,
    to_rgb,
)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_plain_rgb_is_untouched():
    image = tiny.picture(0)
    for form in (image, np.asarray(image), encoded(image, "PNG"), {"bytes": encoded(image, "PNG"), "path": None}):
        assert (np.asarray(to_rgb(form)) == np.asarray(image)).all()


def test_path(tmp_path):
    tiny.picture(0).save(tmp_path / "a.png")
    assert (
        to_rgb(str(tmp_path / "a.png")).size
        == to_rgb({"bytes": None, "path": str(tmp_path / "a.png")}).size
        == (40, 32)
    )


def test_exif_orientation_is_applied():
    """Orientation 6: the camera was turned, a viewer turns the picture by 90 degrees clockwise."""
    image = Image.new("RGB", (16, 8), "white")
    image.paste("red", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = to_rgb(encoded(image, "PNG", exif=exif))
    assert found.size == (8, 16)
    assert found.getpixel((4, 2)) == (255, 0, 0) and found.getpixel((4, 13)) == (255, 255, 255)


def test_cmyk():
    found = to_rgb(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"))
    assert found.mode == "RGB" and found.getpixel((0, 0)) == (255, 0, 0)


def test_palette_and_transparency_over_white():
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).quantize(2)
    assert to_rgb(encoded(palette, "PNG")).getpixel((0, 0)) == (10, 200, 30)
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("LA", (4, 4), (0, 128))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(half).getpixel((0, 0)) == (127, 127, 127)
    gif = encoded(palette, "GIF", transparency=palette.getpixel((0, 0)))
    assert to_rgb(gif).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_keep_their_upper_byte():
    values = np.array([[0, 256 * 7 + 9], [256 * 200, 65535]], dtype=np.uint16)
    found = np.asarray(to_rgb(encoded(Image.fromarray(values), "PNG")))
    assert found[..., 0].tolist() == [[0, 7], [200, 255]]
    assert (found[..., 0] == found[..., 2]).all()


def test_fractions_and_bilevel():
    assert np.asarray(to_rgb(Image.fromarray(np.array([[0.0, 1.0]], dtype=np.float32))))[0, :, 0].tolist() == [0, 255]
    assert to_rgb(Image.new("1", (2, 2), 1)).getpixel((0, 0)) == (255, 255, 255)


def test_animated_shows_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert to_rgb(moving).getpixel((0, 0)) == (255, 0, 0)


def test_tiny_images_are_enlarged_pixel_by_pixel():
    """A processor takes (1, 1, 3) and (3, W, 3) arrays for ones whose channels come first."""
    assert enlarged(Image.new("RGB", (1, 1), "red")).size == (4, 4)
    strip = Image.fromarray(np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3))
    assert enlarged(strip).size == (10, 6)
    assert (np.asarray(enlarged(strip))[::2, ::2] == np.asarray(strip)).all()
    assert enlarged(tiny.picture(0)).size == (40, 32)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "0 bytes"),
        (encoded(tiny.picture(0), "JPEG")[:200], "Truncated"),
        (encoded(tiny.picture(0), "PNG")[:300], "truncated|broken"),
        (b"not an image", "cannot identify"),
        ("no/such/file.png", "No such file"),
        ("https://example.com/a.png", "is a URL"),
        (17, "found int"),
    ],
)
def test_unreadable_images_name_row_and_field(value, message):
    row = {"row_number": 12, "prompt": "What is it?", "images": [tiny.picture(0), value]}
    with pytest.raises(ValueError, match=f"row 12 .*'What is it.'.*field 'images': image 1 .*({message})"):
        load_images(row, "image")


def test_image_columns():
    image = tiny.picture(0)
    assert load_images({}, "image") is None
    assert load_images({"image": None, "images": None}, "image") is None
    assert load_images({"images": []}, "image") == []
    assert [i.size for i in load_images({"image": image}, "image")] == [(40, 32)]
    assert len(load_images({"image": image, "images": []}, "image")) == 1
    with pytest.raises(ValueError, match="fill one of the two"):
        load_images({"image": image, "images": [image]}, "image")
    with pytest.raises(ValueError, match="expected a list of images"):
        load_images({"images": "a.png"}, "image")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": None}, "row 3 .*'rejected'.*is missing"),
        ({"chosen": ""}, "row 3 .*'chosen'.*is empty"),
        ({"chosen": [{"role": "assistant", "content": "  "}]}, "'chosen'.*is empty"),
        ({"chosen": []}, "'chosen'.*is empty"),
        ({"rejected": 5}, "'rejected'.*is '5'; expected a string"),
        ({"chosen": ["yes"]}, "'chosen'.*expected a string or a list of messages"),
    ],
)
def test_bad_answers(change, message):
    row = {"row_number": 3, "prompt": "Why?", "chosen": "yes", "rejected": "no", **change}
    with pytest.raises(ValueError, match=message):
        check_answers(row)


def test_plain_text_of_every_form():
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "Why?"}]
    assert plain_text("Why?") == plain_text([{"role": "user", "content": parts}]) == "Why?"
    assert plain_text([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]) == "a\nb"


def test_long_prompts_are_cut_in_messages():
    assert row_name({"row_number": 1, "prompt": "x" * 99}) == f"row 1 (prompt '{'x' * 60}…')"
    assert row_name({}) == "a row"


def test_digest_depends_on_what_is_seen_and_asked_only():
    image, other = tiny.picture(0), tiny.picture(1)
    messages = [{"role": "user", "content": "Why?"}]
    digest = row_digest(messages, [image])
    assert digest == row_digest([{"role": "user", "content": "Why?", "name": None}], [image.copy()])
    assert digest != row_digest(messages, [other])
    assert digest != row_digest([{"role": "user", "content": "Why not?"}], [image])
    assert digest != row_digest(messages, [image, image])


def test_generator_streams_are_apart_and_fixed():
    digest = row_digest("Why?", [])
    draws = {
        (seed, purpose, n): row_generator(digest, seed, purpose, n).integers(2**62)
        for seed in (0, 1, -1)
        for purpose in ("region", "diffusion")
        for n in (0, 1)
    }
    assert len(set(draws.values())) == len(draws)
    # Held over releases and machines: a changed number is a changed data set.
    assert row_generator(b"0123456789abcdef", 0, "diffusion", 0).integers(10**9) == 671633266
