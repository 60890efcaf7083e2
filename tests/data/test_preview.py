"""The sheets of `mfpo preview`: what they show, pixel by pixel and word by word."""

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mfpo_trl.data.preview import sheet as sheet_module
from mfpo_trl.data.preview import show as module
from mfpo_trl.data.preview.outlines import COLOURS, PICTURE, display_mask, fitted, outlined, typeface
from mfpo_trl.data.preview.sheet import HEADER, MARGIN, WIDTH, drawable, wrapped
from mfpo_trl.data.preview.show import ParquetRows, draw_rows, preview
from mfpo_trl.images.dispreferred import DispreferredImages
from mfpo_trl.images.regions import encode_rle

IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
MESSAGES = pa.list_(
    pa.struct(
        [
            ("role", pa.string()),
            ("content", pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))),
        ]
    )
)
RLE = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.list_(pa.int32()))])
REGIONS = pa.list_(pa.list_(pa.struct([("rle", RLE), ("phrase", pa.string()), ("score", pa.float32())])))
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("images", IMAGES),
        ("prompt", MESSAGES),
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("keywords", pa.list_(pa.string())),
        ("key_regions", REGIONS),
        ("grounded", pa.bool_()),
        ("corruption", pa.string()),
        ("difficulty", pa.float64()),
        ("stage", pa.int64()),
    ]
)
RECIPE = {
    "corruption": "diffusion",
    "kwargs": {"step": 500, "schedule": "vcd_sigmoid", "resolution": 336},
    "seed": 3,
}
# Where the first image of the first row stands on a sheet, and its dispreferred one.
TOP, LEFT, MIDDLE = HEADER + 14, MARGIN, MARGIN + PICTURE[0] + 20


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Grey levels from 60 to 199, so that no pixel has the colour of an outline."""
    pixels = np.random.default_rng(seed).integers(60, 200, (height, width, 1), dtype=np.uint8)
    return Image.fromarray(np.broadcast_to(pixels, (height, width, 3)).copy())


def png(image: Image.Image) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def message(role: str, text: str, images: int = 0) -> list:
    parts = [{"type": "image", "text": None}] * images + [{"type": "text", "text": text}]
    return [{"role": role, "content": parts}]


def block(width: int, height: int) -> np.ndarray:
    """A mask in the middle: a third of the sides or more."""
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 3 : -(-height * 2 // 3), width // 3 : -(-width * 2 // 3)] = True
    return mask


def example(images=None, masks=None, prompt="What is there?", chosen="A dog.", rejected="A cat.", **others) -> dict:
    images = [photo(*PICTURE)] if images is None else images
    masks = [[block(*image.size)] for image in images] if masks is None else masks
    regions = [
        [{"rle": encode_rle(mask), "phrase": f"thing {n}", "score": 0.75} for n, mask in enumerate(own)]
        for own in masks
    ]
    return {
        "id": "one",
        "images": [png(image) for image in images],
        "prompt": message("user", prompt, len(images)),
        "chosen": message("assistant", chosen),
        "rejected": message("assistant", rejected),
        "keywords": ["dog", "grass"],
        "key_regions": regions,
        "grounded": any(map(bool, masks)),
        "corruption": json.dumps(RECIPE),
        "difficulty": 0.625,
        "stage": 2,
        **others,
    }


def write(folder, rows, schema=SCHEMA, parts=1, row_group_size=3, inside="data"):
    (folder / inside).mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // parts) or 1
    for part in range(parts):
        table = pa.Table.from_pylist(rows[part * size : (part + 1) * size], schema=schema)
        path = folder / inside / f"train-{part:05d}-of-{parts:05d}.parquet"
        pq.write_table(table, path, row_group_size=row_group_size)
    return folder


class Page(HTMLParser):
    """Elements, texts and attributes of a page."""

    def __init__(self, content: str):
        super().__init__()
        self.tags, self.values, self.text = [], [], ""
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.text += data

    def get(self, tag, name):
        return [value for found, attribute, value in self.values if (found, attribute) == (tag, name)]

    def pictures(self):
        head = "data:image/png;base64,"
        sources = self.get("img", "src")
        assert all(source.startswith(head) for source in sources)
        return [np.array(Image.open(io.BytesIO(base64.b64decode(source[len(head) :])))) for source in sources]


def page(folder, output, **options) -> Page:
    return Page(preview(folder, output=output / "sheet.html", **options).read_text(encoding="utf-8"))


def sheet(folder, output, **options) -> np.ndarray:
    return np.array(Image.open(preview(folder, output=output / "sheet.png", **options)))


def frames(picture: np.ndarray, colour: str) -> np.ndarray:
    return (picture == np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)).all(axis=-1)


def test_sheet_pixels(tmp_path):
    """The image fills its place unscaled: its pixels, its region's border and the noise can be read off the sheet."""
    row = example()
    pixels = sheet(write(tmp_path, [row]), tmp_path)
    width, height = PICTURE
    assert pixels.shape[1] == WIDTH
    clean = np.array(photo(width, height))
    shown = pixels[TOP : TOP + height, LEFT : LEFT + width]
    other = pixels[TOP : TOP + height, MIDDLE : MIDDLE + width]
    mask = block(width, height)

    assert (other[~mask] == clean[~mask]).all()
    assert (other[mask] != clean[mask]).mean() > 0.9
    # Rows 100 to 199 and columns 113 to 226 are the region; its number stands in a corner.
    assert mask[100:200, 113:227].all() and mask.sum() == 100 * 114
    border = mask.copy()
    border[103:197, 116:224] = False
    number = np.zeros_like(mask)
    number[100:117, 113:133] = True
    red = frames(shown, COLOURS[0])
    assert red[border & ~number].all()
    assert not red[~border & ~number].any()
    # One dark line on either side, the picture beyond.
    assert (shown[99, 113:227] == 0).all() and (shown[196, 130:210] == 0).all()
    untouched = np.ones_like(mask)
    untouched[99:201, 112:228] = False
    assert (shown[untouched] == clean[untouched]).all()
    inside = np.zeros_like(mask)
    inside[120:196, 140:220] = True
    assert (shown[inside] == clean[inside]).all()


def test_page_pictures_are_those_of_the_recipe(tmp_path):
    row = example()
    found = page(write(tmp_path, [row]), tmp_path)
    image, other = found.pictures()
    made = DispreferredImages("diffusion", RECIPE["kwargs"], seed=3)(row, [photo(*PICTURE)])[0]
    assert (other == np.array(made)).all()
    assert frames(image, COLOURS[0]).sum() > 1000
    assert all(words and "data" not in words for words in found.get("img", "alt"))
    assert "thing 0" in found.get("img", "alt")[0]


@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_made_and_stored_dispreferred_images_agree(tmp_path, suffix):
    row = example()
    made = DispreferredImages("diffusion", RECIPE["kwargs"], seed=3)(row, [photo(*PICTURE)])
    stored = {**row, "rejected_images": [png(image) for image in made]}
    write(tmp_path / "a" / "set", [row])
    write(tmp_path / "b" / "set", [stored], SCHEMA.append(pa.field("rejected_images", IMAGES)))
    sheets = [preview(tmp_path / x / "set", output=tmp_path / f"{x}{suffix}").read_bytes() for x in "ab"]
    assert sheets[0] == sheets[1]


def test_stored_dispreferred_image_is_shown_not_made_again(tmp_path):
    green = Image.new("RGB", PICTURE, (1, 200, 3))
    row = example(rejected_images=[png(green)], corruption=json.dumps({"corruption": "none"}))
    found = page(write(tmp_path, [row], SCHEMA.append(pa.field("rejected_images", IMAGES))), tmp_path)
    assert (found.pictures()[1] == (1, 200, 3)).all()
    assert "the row brings its dispreferred images" in found.text


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A data set, of which another process wrote the sheets `two.png` and `two.html`."""
    folder = tmp_path_factory.mktemp("set")
    write(folder, [example([photo(50, 40, n)], id=str(n)) for n in range(9)], parts=2)
    code = (
        "from mfpo_trl.data.preview.show import preview\n"
        f"for suffix in ('.png', '.html'): preview({str(folder)!r}, 4, {str(folder / 'two')!r} + suffix, 1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    return folder


@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_same_bytes_twice(elsewhere, suffix):
    one = preview(elsewhere, 4, elsewhere / f"one{suffix}", seed=1).read_bytes()
    assert one == (elsewhere / f"two{suffix}").read_bytes()
    assert one != preview(elsewhere, 4, elsewhere / f"three{suffix}", seed=2).read_bytes()


@pytest.mark.parametrize("inside", ["data", "."])
def test_n_rows_from_every_part(tmp_path, inside):
    rows = [example([photo(20, 20, n)], id=f"id-{n:02d}", chosen=f"answer {n:02d}.") for n in range(20)]
    write(tmp_path, rows, parts=3, inside=inside)
    found = page(tmp_path, tmp_path, n=5)
    shown = [int(number) for number in re.findall(r"answer (\d\d)\.", found.text)]
    assert found.tags.count("article") == 5
    # One row in each fifth of the data set.
    assert [number // 4 for number in shown] == [0, 1, 2, 3, 4]
    assert [f"row {number}  ·  id-{number:02d}" in found.text for number in shown] == [True] * 5
    assert page(tmp_path, tmp_path, n=50).tags.count("article") == 20


def test_an_id_that_says_the_number_is_not_said_twice(tmp_path):
    rows = [example([photo(20, 20, n)], id=own, chosen="a.") for n, own in enumerate(("row 0", "1", "row 5", ""))]
    write(tmp_path, rows)
    text = page(tmp_path, tmp_path, n=4).text
    assert text.count("row 0") == text.count("row 1") == text.count("row 3") == 1 and "row 2  ·  row 5" in text


def test_take_reads_the_right_rows_of_few_groups(tmp_path, monkeypatch):
    rows = [example([photo(4, 4, n)], id=str(n)) for n in range(40)]
    write(tmp_path, rows, parts=2, row_group_size=7)
    read = []
    batches = pq.ParquetFile.iter_batches

    def counted(self, *args, row_groups, **kwargs):
        read.extend(row_groups)
        return batches(self, *args, row_groups=row_groups, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    monkeypatch.setattr(module, "BATCH", 3)
    found = ParquetRows(tmp_path)
    picked = [0, 6, 7, 19, 20, 39]
    assert [row["id"] for row in found.take(picked)] == [str(n) for n in picked]
    assert read == [0, 1, 2, 0, 2]
    assert [found[n]["id"] for n in (5, 25)] == ["5", "25"]
    assert len(found) == 40 and [row["row_number"] for row in found] == list(range(40))


@given(st.integers(1, 500), st.integers(1, 60), st.integers(0, 9))
def test_draw_is_even(total, n, seed):
    drawn = draw_rows(total, n, seed)
    count = min(n, total)
    assert len(drawn) == len(set(drawn)) == count
    assert all(i * total // count <= row < (i + 1) * total // count for i, row in enumerate(drawn))


def test_texts_are_escaped_and_keep_their_script(tmp_path):
    row = example(
        prompt="<script>alert(1)</script>",
        chosen='"a" & b</dd><img src=x onerror=alert(2)>',
        rejected="狗在草地上。 الكلب ينام",
        keywords=["<b>dog</b>"],
        id="<i>id",
    )
    row["key_regions"][0][0]["phrase"] = '"><svg onload=alert(3)>'
    path = preview(write(tmp_path / "<u>set", [row]), output=tmp_path / "sheet.html")
    content = path.read_text(encoding="utf-8")
    found = Page(content)
    assert not {"script", "svg", "i", "b", "u", "link", "iframe"} & set(found.tags)
    assert found.tags.count("img") == 2
    assert not [name for _, name, _ in found.values if name.startswith("on")]
    for text in (
        "<script>alert(1)</script>",
        '"a" & b</dd><img src=x onerror=alert(2)>',
        "狗在草地上。 الكلب ينام",
        "<b>dog</b>",
        '"><svg onload=alert(3)>',
        "<i>id",
        "<u>set",
    ):
        assert text in found.text
    assert '<meta charset="utf-8">' in content and not re.search(r"https?:", content)
    assert set(found.get("dd", "dir")) == {"auto"} and found.tags.count("dd") == len(found.get("dd", "dir"))
    assert "prefers-color-scheme: dark" in content and 'name="viewport"' in content


def test_everything_is_said(tmp_path):
    words = page(write(tmp_path, [example()]), tmp_path).text
    for text in (
        "What is there?", "+ chosen", "A dog.", "- rejected", "A cat.", "dog, grass", "0.625", "thing 0 (0.75)",
        "step 500, schedule vcd_sigmoid, resolution 336; seed 3", f"{PICTURE[0]} x {PICTURE[1]} px", "1 of 1 rows",
    ):  # fmt: skip
        assert text in words, text
    assert "whole image" not in words


def test_whole_image_where_nothing_is_grounded(tmp_path):
    row = example(masks=[[]], difficulty=None, stage=None)
    found = page(write(tmp_path, [row]), tmp_path)
    image, other = found.pictures()
    assert "whole image" in found.text and "difficulty" not in found.text and "stage" not in found.text
    clean = np.array(photo(*PICTURE))
    assert (image == clean).all()
    changed = (other != clean).any(axis=-1)
    assert changed[:5].any() and changed[-5:].any() and changed.mean() > 0.9


def test_several_images(tmp_path):
    images = [photo(60, 40, 1), photo(40, 60, 2)]
    found = page(write(tmp_path, [example(images, [[block(60, 40), np.ones((40, 60), bool)], []])]), tmp_path)
    first, _, second, same = found.pictures()
    assert frames(first, COLOURS[0]).any() and frames(first, COLOURS[1]).any()
    assert (second == same).all() and "no region; stays as it is" in found.text and "whole image" not in found.text
    assert (sheet(tmp_path, tmp_path)[:, WIDTH - MARGIN :] == 255).all()


SIZES = [(4, 4), (4, 700), (1500, 5), (1, 1), (700, 1), (900, 600), (341, 301), (40, 3000)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes_stay_in_their_place(tmp_path, size):
    image = photo(*size)
    row = example([image], [[block(*size)]], chosen="word " * 400, rejected="x" * 3000, keywords=["key"] * 300)
    pixels = sheet(write(tmp_path, [row, row]), tmp_path)
    width, height = fitted(size)
    assert 1 <= width <= PICTURE[0] and 1 <= height <= PICTURE[1]
    assert width == PICTURE[0] or height == PICTURE[1]
    # White between the columns, around the sheet, and below the pictures down to the next row's line.
    for left, right in ((0, MARGIN - 1), (WIDTH - MARGIN, WIDTH)):
        assert (pixels[:, left:right] == 255).all()
    row_height = (pixels.shape[0] - HEADER) // 2
    first = pixels[HEADER + 1 : HEADER + row_height]
    assert (first[:, LEFT + PICTURE[0] + 1 : MIDDLE - 1] == 255).all()
    assert (first[:, MIDDLE + PICTURE[0] + 1 : MIDDLE + PICTURE[0] + 20] == 255).all()
    assert (first[-10:] == 255).all()
    assert (pixels[HEADER + 1 : HEADER + row_height] == pixels[HEADER + row_height + 1 :])[40:].mean() > 0.99
    assert frames(pixels[TOP : TOP + height, LEFT : LEFT + width], COLOURS[0]).any()


def plain_schema(**columns):
    return pa.schema([("prompt", pa.string()), ("chosen", pa.string()), ("rejected", pa.string()), *columns.items()])


def test_plain_columns_and_boxes(tmp_path):
    """A user's own data: strings, `image`, boxes, nothing optional; the default recipe is named as such."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = plain_schema(image=image, key_regions=pa.list_(pa.list_(pa.float64())))
    row = {"prompt": "Where?", "chosen": "Here.", "rejected": "There.", "image": png(photo(*PICTURE))}
    row["key_regions"] = [[50.0, 60.0, 150.0, 200.0]]
    found = page(write(tmp_path, [row], schema), tmp_path)
    image, other = found.pictures()
    made = DispreferredImages()(row, [photo(*PICTURE)])[0]
    assert (other == np.array(made)).all()
    assert frames(image, COLOURS[0])[199, 60:150].all() and not frames(image, COLOURS[0])[200].any()
    assert "the default" in found.text and "key words" not in found.text and "Where?" in found.text
    assert sheet(tmp_path, tmp_path).shape[1] == WIDTH


def test_own_rejected_image_and_text_only_rows(tmp_path):
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = plain_schema(image=image, rejected_image=image)
    own = {
        "prompt": "p",
        "chosen": "c",
        "rejected": "r",
        "image": png(photo(30, 30)),
        "rejected_image": png(photo(9, 7)),
    }
    bare = {"prompt": "p", "chosen": "c", "rejected": "r"}
    found = page(write(tmp_path, [own, bare], schema), tmp_path)
    assert "9 x 7 px" in found.text and "no regions given" in found.text and "no image" in found.text
    assert sheet(tmp_path, tmp_path).shape[0] > HEADER + PICTURE[1]


def test_swap_takes_another_row(tmp_path):
    swap = json.dumps({"corruption": "swap", "kwargs": {}, "seed": 0})
    colours = [(10, 20, 30), (200, 100, 50)]
    rows = [example([Image.new("RGB", (20, 20), colour)], corruption=swap) for colour in colours]
    pictures = page(write(tmp_path, rows), tmp_path).pictures()
    for own, (first, second) in zip(pictures[1::2], (colours, colours[::-1]), strict=True):
        assert tuple(own[0, 0]) == first and tuple(own[own.shape[0] // 2, own.shape[1] // 2]) == second


def test_each_rung_of_a_ladder_says_its_strength(tmp_path):
    ladder = json.dumps({"corruption": "mask", "kwargs": {"share": [0.25, 0.6]}, "seed": 0})
    row = example([photo(60, 40, 1)], [[block(60, 40)]], corruption=ladder)
    found = page(write(tmp_path, [row]), tmp_path)
    assert (
        "dispreferred image 1 of 2: share 0.25" in found.text and "dispreferred image 2 of 2: share 0.6" in found.text
    )
    first, weak, again, strong = found.pictures()
    covered = [(own != again).any(axis=2).mean() for own in (weak, strong)]
    assert 0 < covered[0] < covered[1] and frames(first, COLOURS[0]).any()


def test_one_region_over_another_alternates():
    mask = np.zeros((100, 120), bool)
    mask[30:90, 40:110] = True
    pixels = np.array(outlined(photo(120, 100), [mask, mask]))
    both = [frames(pixels, colour) for colour in COLOURS[:2]]
    # Left of the second one's number, which stands in the last corner: three rows, 50 pixels, 8 in turn.
    first, second = (colour[87:90, 40:90] for colour in both)
    assert (first | second).all() and 66 <= first.sum() <= 84


@pytest.mark.parametrize("background", ["white", "black", *COLOURS])
def test_outline_stands_out_from_any_background(background):
    """Beside or on an outline there is always a dark line or a colour that is not the background."""
    mask = np.zeros((100, 100), bool)
    mask[20:90, 30:90] = True
    plain = Image.new("RGB", (100, 100), background)
    changed = (np.array(outlined(plain, [mask])) != np.array(plain)).any(axis=-1)
    assert changed[50, 25:40].any() and changed[85:95, 60].any()


def brute_force(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Smaller: any marked pixel of a cell. Larger: the pixel below the cell's centre."""
    height, width = mask.shape

    def cells(at, length, before):
        if length < before:
            return range(at * before // length, (at + 1) * before // length)
        return [int((at + 0.5) * before / length)]

    return np.array(
        [
            [
                any(mask[y, x] for y in cells(i, size[1], height) for x in cells(j, size[0], width))
                for j in range(size[0])
            ]
            for i in range(size[1])
        ]
    )


@given(st.integers(1, 14), st.integers(1, 14), st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_display_mask(height, width, new_height, new_width, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.2
    assert (display_mask(mask, (new_width, new_height)) == brute_force(mask, (new_width, new_height))).all()


@given(st.text(max_size=120), st.integers(40, 300), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_wrapped_lines_fit(text, width, most):
    font = typeface(15)
    lines = wrapped(text, font, width, most)
    assert len(lines) <= most
    assert all(font.getlength(line) <= width for line in lines)


def test_wrapped():
    font = typeface(15)
    assert wrapped("one\n\n two", font, 300, 5) == ["one", "two"]
    long = wrapped("dog " * 500, font, 300, 3)
    assert len(long) == 3 and long[-1].endswith("…") and not long[0].endswith("…")
    assert "".join(wrapped("x" * 100, font, 100, 50)) == "x" * 100


def test_drawable():
    assert drawable("It’s a “café” — 3 × 4") == 'It\'s a "cafe" - 3 × 4'
    assert drawable("狗") == "狗"


def test_sheet_says_when_its_font_lacks_letters(tmp_path):
    """The remark stands right of the title; without missing letters that place is white."""
    plain = sheet(write(tmp_path / "a", [example()]), tmp_path)
    lacking = sheet(write(tmp_path / "b", [example(chosen="狗")]), tmp_path)
    assert (plain[36:54, WIDTH // 2 :] == 255).all() and (lacking[36:54, WIDTH // 2 :] < 200).any()


def test_errors(tmp_path):
    good = write(tmp_path / "good", [example()])
    with pytest.raises(ValueError, match=r"sheet\.jpg.*\.png or \.html"):
        preview(good, output=tmp_path / "sheet.jpg")
    with pytest.raises(ValueError, match="at least 1; found 0"):
        preview(good, 0, tmp_path / "sheet.png")
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(ValueError, match=r"holds no data set: expected .*data/train-"):
            preview(folder, output=tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="has no row"):
        preview(write(tmp_path / "empty", []), output=tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="no column 'chosen' and 'rejected'"):
        preview(write(tmp_path / "other", [{"a": 1}], pa.schema([("a", pa.int64())])), output=tmp_path / "sheet.png")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(ValueError, match=r"a\.parquet' is not a whole parquet file"):
        preview(tmp_path / "broken", output=tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"corruption": "diffusion"}, "field 'corruption': 'diffusion' is not JSON"),
        ({"corruption": '{"kind": "blur"}'}, "field 'corruption': found {'kind': 'blur'}"),
        ({"corruption": '{"corruption": "none"}'}, "field 'rejected_images': is missing"),
        ({"images": [{"bytes": b"no picture", "path": None}]}, "field 'images': image 0 cannot be read"),
        (
            {"key_regions": [[{"rle": {"size": [2, 2], "counts": [0, 4]}}]]},
            "field 'key_regions': a mask of 2x2 pixels",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_errors_name_the_row(tmp_path, change, problem):
    write(tmp_path, [example(), {**example(prompt="A question"), **change}])
    with pytest.raises(ValueError, match=re.escape(f"row 1 (prompt 'A question'), {problem}")):
        preview(tmp_path, output=tmp_path / "sheet.html")


def test_sheet_too_tall(tmp_path, monkeypatch):
    monkeypatch.setattr(sheet_module, "TALLEST", 900)
    write(tmp_path, [example()] * 4)
    assert sheet(tmp_path, tmp_path, n=1).shape[0] < 900
    with pytest.raises(ValueError, match=r"fewer rows, or write an \.html file"):
        sheet(tmp_path, tmp_path, n=4)


def test_import_is_light():
    code = "import sys, mfpo_trl.data.preview.show; print([m for m in ('torch', 'pyarrow', 'datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_images_in_files_are_read_from_inside_of_the_folder_only(tmp_path, monkeypatch):
    Image.new("RGB", (40, 30)).save(tmp_path / "outside.png")
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(folder / "inside.png")
    monkeypatch.chdir(tmp_path)
    for path, problem in (
        ("inside.png", None),
        ("outside.png", "is not a file in"),
        ("../outside.png", "lies outside of"),
        (str(tmp_path / "outside.png"), "lies outside of"),
    ):
        row = {"images": [{"bytes": None, "path": path}], "chosen": "a", "rejected": "b", "prompt": "c"}
        pq.write_table(pa.Table.from_pylist([row]), folder / "data" / "train.parquet")
        if problem is None:
            assert preview(folder, 1, tmp_path / "sheet.png").exists()
        else:
            with pytest.raises(ValueError, match=f"row 0 .*'images'.*{problem}"):
                preview(folder, 1, tmp_path / "sheet.png")
