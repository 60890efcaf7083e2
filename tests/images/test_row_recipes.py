"""By which recipe a row's dispreferred images are made: what is asked for, else the row's own, else the paper's."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tiny
from datasets import Dataset, Image, List, Value, concatenate_datasets, load_dataset, load_from_disk
from PIL import Image as PILImage
from test_trainer import CPU

from mfpo_trl import MFPOConfig, MFPOTrainer, train
from mfpo_trl.batch.collator import MFPOCollator, build_collator
from mfpo_trl.batch.packing import FLAT
from mfpo_trl.card.dispreferred import describe_corruption, used_in
from mfpo_trl.card.model_card import method_name
from mfpo_trl.cli import main
from mfpo_trl.images.dispreferred import DispreferredImages, Recipe, row_recipe
from mfpo_trl.images.recipes import check_recipes
from mfpo_trl.reference.references import VALUES
from mfpo_trl.rows.schema import to_rgb

MFPO = Path(__file__).parents[2] / "recipes" / "methods" / "mfpo.yaml"
NOISE = {"step": 7, "schedule": "cosine", "resolution": 20}
BUILT = {"corruption": "diffusion", "kwargs": NOISE, "region": "key", "seed": 5}


def config(folder, **fields) -> MFPOConfig:
    return MFPOConfig(output_dir=str(folder), **{**CPU, **fields})


def data(*recipes, **columns) -> Dataset:
    """Rows with boxes, each with the recipe of its place."""
    texts = [own if own is None or isinstance(own, str) else json.dumps(own) for own in recipes]
    features = {**tiny.BOXES, "corruption": Value("string"), "rejected_images": List(Image())}
    columns = {
        "key_regions": tiny.boxes,
        "corruption": lambda n: texts[n],
        "rejected_images": lambda n: None,
        **columns,
    }
    return tiny.dataset(len(recipes), features, **columns)


# Whose word counts


@pytest.mark.parametrize(
    ("asked", "own", "used"),
    [
        ({}, None, Recipe("diffusion", {}, "auto", 0)),
        ({}, BUILT, Recipe("diffusion", NOISE, "key", 5)),
        ({}, {"corruption": "crop", "kwargs": {"scale": [0.5, 0.6]}}, Recipe("crop", {"scale": [0.5, 0.6]}, "auto", 0)),
        ({}, {"corruption": "mean", "region": "global", "seed": 2}, Recipe("mean", {}, "global", 2)),
        ({}, {"corruption": "swap", "kwargs": None}, Recipe("swap")),
        ({}, {"corruption": "none"}, Recipe("none")),
        ({"kwargs": {"step": 9}}, None, Recipe("diffusion", {"step": 9})),
        ({"kwargs": {"step": 9}}, BUILT, Recipe("diffusion", {**NOISE, "step": 9}, "key", 5)),
        ({"kwargs": {"sigma": 0.2}}, {"corruption": "blur", "seed": 1}, Recipe("blur", {"sigma": 0.2}, "auto", 1)),
        ({"kwargs": {"step": 9}}, {"corruption": "none"}, Recipe("none")),
        ({"region": "global"}, BUILT, Recipe("diffusion", NOISE, "global", 5)),
        ({"region": "random"}, None, Recipe("diffusion", {}, "random", 0)),
        ({"seed": 0}, BUILT, Recipe("diffusion", NOISE, "key", 0)),
        ({"seed": 3}, None, Recipe("diffusion", {}, "auto", 3)),
        ({"corruption": "diffusion"}, BUILT, Recipe("diffusion")),
        ({"corruption": "blur"}, BUILT, Recipe("blur")),
        ({"corruption": "crop", "kwargs": {"scale": [0.1, 0.2]}, "region": "global", "seed": 4}, BUILT,
         Recipe("crop", {"scale": [0.1, 0.2]}, "global", 4)),
        ({"corruption": "none"}, BUILT, Recipe("none")),
        ({"corruption": "diffusion"}, "no recipe at all", Recipe("diffusion")),
    ],
)  # fmt: skip
def test_whose_word_counts(asked, own, used):
    """The same in JSON and, as a data set of nested JSON lines has it, as a mapping."""
    for value in (own, json.dumps(own)) if isinstance(own, dict) else (own,):
        assert DispreferredImages(**asked).recipe({"corruption": value}) == used
    assert (
        isinstance(own, str) or DispreferredImages(**asked).recipe({} if own is None else {"corruption": own}) == used
    )


@pytest.mark.parametrize(
    ("asked", "overruled"),
    [
        ({}, []),
        ({"kwargs": {"step": 7}}, [3]),
        ({"kwargs": {"resolution": 20}}, [3]),
        ({"kwargs": {"schedule": "linear"}}, [1, 3]),
        ({"seed": 5}, [3]),
        ({"seed": 0}, [1, 3]),
        ({"region": "key"}, []),
        ({"region": "global"}, [1, 3]),
        ({"corruption": "diffusion", "kwargs": NOISE, "seed": 5}, [3]),
        ({"corruption": "diffusion", "kwargs": NOISE}, [1, 3]),
        ({"corruption": "black"}, [1, 3]),
    ],
    ids=str,
)
def test_one_line_where_what_is_asked_for_wins(asked, overruled, tmp_path, caplog):
    """Rows 0 and 2 bring no recipe, and row 4 its dispreferred image, for which none is needed."""
    other = {**BUILT, "kwargs": {**NOISE, "step": 8, "resolution": 21}, "seed": 6}
    rows = data(
        None,
        BUILT,
        None,
        other,
        {"corruption": "black"},
        rejected_images=lambda n: [tiny.picture(n)] if n == 4 else None,
    )
    fields = {("corruption" if name == "corruption" else f"corruption_{name}"): value for name, value in asked.items()}
    with caplog.at_level(logging.WARNING, "mfpo_trl"):
        check_recipes(config(tmp_path, **fields), {"train_dataset": rows, "eval_dataset": rows.select([0, 4])})
    assert len(caplog.records) == bool(overruled)
    if overruled:
        assert f"{len(overruled)} of the 4 rows of train_dataset" in caplog.text and "eval_dataset" not in caplog.text
        assert f"in row {overruled[0]} becomes" in caplog.text and next(iter(fields)) in caplog.text
    caplog.clear()
    stream = rows.to_iterable_dataset()
    with caplog.at_level(logging.WARNING, "mfpo_trl"):
        check_recipes(config(tmp_path, **fields), {"train_dataset": stream})
        check_recipes(config(tmp_path, **fields, image_loss_weight=0.0), {"train_dataset": rows})
    assert ["all rows of train_dataset that have one" in record.message for record in caplog.records] == [True] * bool(
        asked
    )


@pytest.mark.parametrize("regions", [True, False])
@pytest.mark.parametrize(
    ("own", "same"),
    [("auto", {True, False}), ("key", {True}), ("global", {False}), ("random", set())],
)
def test_another_region_than_the_rows_is_told(own, same, regions, tmp_path, caplog):
    """`corruption_region` is `auto`: the key regions of a row that has them, the whole image of one that has none."""
    recipe = {"corruption": "diffusion", "region": own}
    rows = data(recipe, recipe, key_regions=tiny.boxes if regions else lambda n: [])
    with caplog.at_level(logging.WARNING, "mfpo_trl"):
        check_recipes(config(tmp_path, corruption="diffusion"), {"train_dataset": rows})
    assert ("2 of the 2 rows of train_dataset" in caplog.text) == (regions not in same)


@pytest.mark.parametrize("swaps", ["train", "eval"])
def test_rows_to_evaluate_on_may_swap_where_others_do_not(swaps, tmp_path):
    """The other image comes from the rows that are trained on, whichever asks for it."""
    swap, blur = json.dumps({"corruption": "swap"}), json.dumps({"corruption": "blur"})
    train, other = (data(*[swap if swaps == name else blur] * 4) for name in ("train", "eval"))
    args = config(tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1)
    trainer = MFPOTrainer(
        tiny.model(), tiny.model(), args, train_dataset=train, eval_dataset=other, processing_class=tiny.processor()
    )
    trainer.train()
    assert any("eval_loss/image" in line for line in trainer.state.log_history)


# Recipes that are none

BAD = [
    ("jpeg", "'jpeg' is not JSON"),
    ("", "'' is not JSON"),
    (3, "'3' is not JSON"),
    ("[1]", "found [1]; expected 'corruption'"),
    ("null", "found None; expected 'corruption'"),
    ('{"kind": "blur"}', "found {'kind': 'blur'}; expected 'corruption' and any of ('kwargs', 'region', 'seed')"),
    ('{"corruption": "blur", "steps": 5}', "found {'corruption': 'blur', 'steps': 5}; expected"),
    ('{"corruption": "blurr"}', "unknown corruption 'blurr'; did you mean 'blur'?"),
    ('{"corruption": "auto"}', "unknown corruption 'auto'"),
    ('{"corruption": ["blur"]}', "corruption is ['blur']; expected a name"),
    (
        '{"corruption": "blur", "kwargs": {"sigmas": 1}}',
        "corruption 'blur' has no option 'sigmas'; did you mean 'sigma'?",
    ),
    ('{"corruption": "blur", "kwargs": {"sigma": 2}}', "above 0 and at most 1, found 2"),
    ('{"corruption": "blur", "kwargs": [1]}', "kwargs is [1]; expected options"),
    ('{"corruption": "swap", "kwargs": {"donor": 1}}', "expected options of the corruption"),
    ('{"corruption": "crop", "kwargs": {"scale": {"a": 0, "b": 1}}}', "corruption 'crop' cannot use"),
    ('{"corruption": "diffusion", "kwargs": {"step": 5.5}}', "whole number from 0 to 999, found 5.5"),
    ('{"corruption": "diffusion", "kwargs": {"step": 1000}}', "whole number from 0 to 999, found 1000"),
    ('{"corruption": "diffusion", "kwargs": {"schedule": "sigmoid"}}', "unknown noise schedule 'sigmoid'"),
    ('{"corruption": "diffusion", "kwargs": {"schedule": []}}', "cannot use {'schedule': []}"),
    ('{"corruption": "diffusion", "kwargs": {"resolution": "336"}}', "number of pixels above 0, found '336'"),
    (
        '{"corruption": "mean", "region": "left"}',
        "region is 'left'; expected ['auto', 'global', 'random', 'key', 'partial']",
    ),
    ('{"corruption": "mean", "seed": "1"}', "seed is '1'; expected a whole number"),
]


@pytest.mark.parametrize(("value", "problem"), BAD)
def test_a_recipe_that_is_none_names_row_and_field(value, problem, tmp_path):
    """Wherever it is read: in a row, in a data set before training, in a batch."""
    row = {**tiny.rows(1)[0], "corruption": value, "row_number": 3}
    with pytest.raises(ValueError, match=r"row 3 .*field 'corruption': ") as error:
        row_recipe(row)
    assert problem in str(error.value)
    with pytest.raises(ValueError) as found:
        MFPOCollator(tiny.processor())([row])
    assert str(found.value) == str(error.value)
    rows = Dataset.from_list([{**own, "corruption": value} for own in tiny.rows(1)])
    with pytest.raises(ValueError, match="train_dataset, row 0, field 'corruption': ") as found:
        check_recipes(config(tmp_path), {"train_dataset": rows})
    assert problem in str(found.value)


@pytest.mark.parametrize("kwargs", [{"sigma": 0.2}, {"scale": [0.1, 0.2]}])
def test_options_that_a_row_does_not_take(kwargs, tmp_path):
    """Rows without a recipe are noised: known before training. Those that are blurred or cropped are told by their number."""
    asked = config(tmp_path, corruption_kwargs=kwargs)
    with pytest.raises(ValueError, match=f"eval_dataset, row 0, .* is missing, .*no option '{next(iter(kwargs))}'"):
        check_recipes(asked, {"eval_dataset": tiny.dataset(2)})
    own = [{"corruption": "blur"}, {"corruption": "crop"}]
    wrong = 1 if "sigma" in kwargs else 0
    with pytest.raises(ValueError, match=rf"row {wrong}, field 'corruption': corruption_kwargs=.*no option"):
        check_recipes(asked, {"train_dataset": data(*own)})


MEANS_SOMETHING_ELSE = "found in the wild"


@pytest.mark.parametrize(
    ("fields", "columns", "trains"),
    [
        ({}, {}, False),
        ({"corruption_kwargs": {"step": 3}}, {}, False),
        ({"corruption": "diffusion"}, {}, True),
        ({"corruption": "swap"}, {}, True),
        ({"image_loss_weight": 0.0}, {}, True),
        ({}, {"rejected_images": lambda n: [tiny.picture(9)]}, True),
        ({}, {"images": lambda n: []}, True),
    ],
)
def test_a_column_of_another_meaning(fields, columns, trains, tmp_path):
    """Is refused before training where a row would need its recipe, and left alone elsewhere."""
    rows = data(*[MEANS_SOMETHING_ELSE] * 4, **columns)
    args = config(tmp_path, max_steps=1, **fields)

    def fit():
        MFPOTrainer(tiny.model(), tiny.model(), args, train_dataset=rows, processing_class=tiny.processor()).train()

    if trains:
        fit()
    else:
        with pytest.raises(
            ValueError, match=r"row 0, field 'corruption': 'found in the wild' is not JSON: .*rename or"
        ):
            fit()


# What is stored is what is made again

BUILDS = {
    "as it is": [],
    "weakest": ["--step", "0"],
    "weak": ["--step", "1"],
    "strongest": ["--step", "999"],
    "cosine": ["--step", "700", "--schedule", "cosine"],
    "scaled_linear": ["--schedule", "scaled_linear", "--resolution", "16"],
    "linear": ["--schedule", "linear", "--resolution", "2000", "--seed", "11"],
    "one pixel": ["--resolution", "1"],
    "seed": ["--seed", "7"],
    "crop": ["--corruption", "crop", "--seed", "3"],
    "blur": ["--corruption", "blur"],
    "mean": ["--corruption", "mean"],
    "black": ["--corruption", "black"],
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A photo on its side with a box; a transparent picture without one; a grey one of 16 bits beside a palette with a box,
    under a conversation."""
    folder = tmp_path_factory.mktemp("source")
    pictures = {f"{n}.png": tiny.picture(n, 60 + n, 50) for n in range(4)}
    orientation = PILImage.Exif()
    orientation[0x0112] = 6
    pictures["0.png"].save(folder / "side.jpg", exif=orientation, quality=95)
    pictures["1.png"].putalpha(128)
    grey = np.asarray(pictures["2.png"].convert("L")).astype(np.uint16) * 200
    pictures |= {"2.png": PILImage.fromarray(grey), "3.png": pictures["3.png"].quantize(16)}
    for name, picture in pictures.items():
        picture.save(folder / name)
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image> and <image>: what are they?"},
    ]
    rows = [
        {"images": ["side.jpg"], "prompt": "What is 0?", "key_regions": [[[5, 5, 25, 20]]]},
        {"images": ["1.png"], "prompt": "What is 1?"},
        {"images": ["2.png", "3.png"], "prompt": talk, "key_regions": [[], [[0, 3, 12, 30]]]},
    ]
    lines = [json.dumps({**row, "chosen": "A red car.", "rejected": "A cat."}) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def builds(source, tmp_path_factory) -> dict[str, Path]:
    """A folder for each line of the table, with the images that `mfpo build --materialize` stored."""
    made = {}
    for name, options in BUILDS.items():
        made[name] = tmp_path_factory.mktemp("built") / "set"
        arguments = ["build", "--dataset", str(source), "--output", str(made[name]), "--materialize", *options]
        assert main([*arguments, "--grounder", "column", "--difficulty", "mask-area"]) == 0
    return made


def recipe_config(folder: Path, *fields: str) -> MFPOConfig:
    """As `mfpo train --config recipes/methods/mfpo.yaml` reads it."""
    argv = ["--config", str(MFPO), "--model_name_or_path", "x", "--dataset_name", "x", "--output_dir", str(folder)]
    return train.parse([*argv, "--use_cpu", "--bf16", "false", *fields])[1]


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("streaming", [False, True])
def test_stored_equals_made_again(name, streaming, builds, tmp_path):
    """With the shipped recipe and nothing else, whatever the build was asked for."""
    args = recipe_config(tmp_path)
    rows = load_dataset(str(builds[name]), split="train", streaming=streaming)
    images = build_collator(args, tiny.processor(), rows, FLAT).dispreferred
    for row in rows:
        stored = [to_rgb(image) for image in row.pop("rejected_images")]
        originals = [to_rgb(image) for image in row["images"]]
        assert images({**row, "rejected_images": None}, originals) == stored
        assert stored != originals
        assert images({**row, "rejected_images": stored}, originals) == stored


def test_builds_differ(builds):
    """Or what is above would hold of a trainer that reads nothing."""
    firsts = [
        load_dataset(str(folder), split="train")[0]["rejected_images"][0].tobytes() for folder in builds.values()
    ]
    assert len(set(firsts)) == len(firsts)


@pytest.fixture(scope="module")
def mixed(builds) -> Dataset:
    """Rows of three builds, some of whose rows have lost their recipe."""
    sets = [load_dataset(str(builds[name]), split="train") for name in ("weak", "strongest", "crop")]
    sets[2] = sets[2].map(lambda row, n: {"corruption": None if n else row["corruption"]}, with_indices=True)
    return concatenate_datasets(sets)


def batches(rows, folder: Path) -> list[dict]:
    """What the trainer of the shipped recipe feeds to its model; the order of the rows is that of the data."""
    plain = ["--curriculum", "none", "--precompute_ref_log_probs", "false", "--max_steps", "3"]
    args = recipe_config(
        folder, *plain, "--per_device_train_batch_size", "3", "--train_sampling_strategy", "sequential"
    )
    trainer = MFPOTrainer(tiny.model(), tiny.model(), args, train_dataset=rows, processing_class=tiny.processor())
    return list(trainer.get_train_dataloader())


def test_the_trainer_feeds_what_was_stored(mixed, tmp_path):
    """Through its own data loaders, which drop the columns that it does not read; of rows without a recipe, the paper's noise
    at the resolution of the model."""
    bare = mixed.remove_columns("rejected_images")
    default = DispreferredImages("diffusion", resolution=lambda height, width: 28)
    rows = mixed.map(
        lambda row: (
            row
            if row["corruption"]
            else {"rejected_images": default({**row, "rejected_images": None}, list(map(to_rgb, row["images"])))}
        )
    )
    stored = batches(rows, tmp_path)
    assert len(stored) == 3
    for found in (batches(bare, tmp_path), batches(bare.to_iterable_dataset(), tmp_path)):
        for one, two in zip(found, stored, strict=True):
            assert (one["pixel_values"] == two["pixel_values"]).all()
    unread = batches(bare.remove_columns("corruption"), tmp_path)
    assert all((one["pixel_values"] != two["pixel_values"]).any() for one, two in zip(unread, stored, strict=True))


# Who tells it


def trainer(rows, folder, **fields) -> MFPOTrainer:
    args = config(folder, **{"max_steps": 1, **fields})
    return MFPOTrainer(tiny.model(), tiny.model(), args, train_dataset=rows, processing_class=tiny.processor())


def test_the_card_tells_what_was_used(mixed, tmp_path):
    bare = mixed.remove_columns("rejected_images")

    def card(rows, **fields):
        trained = trainer(rows, tmp_path, **fields)
        return describe_corruption(trained, used_in(trained))

    given = "The data set's `rejected_images` where a row has them; otherwise"
    whose = f"{given} by the row's own recipe (column `corruption`),"
    noise = (
        "`diffusion`, step = {}, schedule = vcd_sigmoid, resolution = 336, inside the row's key regions, or the whole "
    )
    noise += "image where a row has none; seed 0"
    default = "`diffusion`, step = 500, schedule = vcd_sigmoid, inside the row's key regions, or the whole image where a row "
    default += "has none; seed 0"
    crop = "`crop`, scale = [0.01, 0.2], inside the row's key regions; seed 3"
    assert card(bare.select(range(3))) == f"{whose} {noise.format(1)}."
    told = [f"{noise.format(step)} (3 rows)" for step in (1, 999)] + [f"{default} (2 rows)", f"{crop} (1 rows)"]
    assert card(bare) == f"{whose} {'; '.join(told)}."
    assert card(bare.remove_columns("corruption")) == f"{given} {default}."
    assert (
        card(bare, corruption="black", corruption_region="global")
        == f"{given} `black`, inside the whole image; seed 0."
    )
    own = "inside one of the row's key regions, drawn by what the row shows and asks; seed 0"
    regions = data(None, None).remove_columns(["corruption", "rejected_images"])
    filled = card(regions, corruption="inpaint", corruption_region="partial")
    assert filled == f"{given} `inpaint`, method = navier-stokes, radius = 3.0, {own}."
    moved = card(regions, corruption="transplant")
    assert moved == f"{given} `transplant`, blend = feather, border = 0.1, inside the row's key regions; seed 0."
    assert card(mixed) == card(bare, corruption="none") == "The data set's `rejected_images`."
    assert card(bare.to_iterable_dataset()) == (
        f"{given} made by the row's own recipe (column `corruption`), or without one by {default}."
    )
    assert card(bare.to_iterable_dataset().remove_columns("corruption")) == f"{given} {default}."
    seven = card(bare.select(range(3)), corruption_kwargs={"step": 7}, corruption_seed=5)
    assert seven == f"{whose} {noise.format(7).replace('seed 0', 'seed 5')}."


@pytest.mark.parametrize(
    ("terms", "corruptions", "name"),
    [
        ("text image anchor", {"diffusion"}, "MFPO"),
        ("text image anchor", {"crop", "diffusion"}, "MFPO"),
        ("text image anchor", {"crop"}, "mDPO"),
        ("text image", {"none"}, "rDPO"),
        ("text image", set(), "rDPO"),
        ("text image", {"none", "diffusion"}, "MFPO"),
        ("text image", {"auto"}, "MFPO"),
        ("text", set(), "DPO"),
    ],
)
def test_methods_have_the_names_of_what_was_used(terms, corruptions, name):
    assert name in method_name(dict.fromkeys(terms.split(), 1.0), corruptions)


def test_the_reference_cache_knows_what_was_used(tmp_path, caplog):
    """The same values wherever the same recipes are used, however they were asked for; others for other recipes."""
    other = {**BUILT, "kwargs": {**NOISE, "step": 999}}
    data(BUILT, BUILT, other).save_to_disk(tmp_path / "data")
    rows = load_from_disk(tmp_path / "data")

    def values(**fields):
        caplog.clear()
        with caplog.at_level(logging.INFO, "mfpo_trl"):
            found = trainer(rows, tmp_path, precompute_ref_log_probs=True, **fields).references.of(rows)
        return found[:, VALUES.index("corrupted")], [
            r.message for r in caplog.records if "The reference of" in r.message
        ]

    own, _ = values()
    same, told = values(corruption_seed=5, corruption_kwargs={"schedule": "cosine"})
    assert (own == same).all() and "is taken from" in told[0]
    changed, told = values(corruption_kwargs={"step": 999})
    assert "corruption_kwargs was" in told[0] and changed[2] == own[2] and (changed[:2] != own[:2]).all()
    default, _ = values(corruption="diffusion")
    again, told = values(corruption="diffusion", corruption_kwargs={"step": 500}, corruption_seed=0)
    assert "is taken from" in told[0] and (default == again).all() and (default != own).all()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return tiny.save_pretrained(tmp_path_factory.mktemp("model"), template=tiny.LLAVA_TEMPLATE)


@pytest.mark.parametrize(
    ("recipes", "fields", "status", "told"),
    [
        ((BUILT, BUILT), [], "ok", "diffusion: step 7, schedule cosine, resolution 20; region key; seed 5 (2 rows)"),
        ((None, None), [], "ok", "diffusion: step 500, schedule vcd_sigmoid; seed 0 (2 rows)"),
        ((BUILT, None), ["--corruption", "mean"], "warning", "wins over the rows' own recipes in 1 of the 2 rows"),
        ((BUILT, None), ["--image_loss_weight", "0"], None, ""),
        ((BUILT, "jpeg"), [], "problem", "row 1, field 'corruption': 'jpeg' is not JSON"),
        (
            (BUILT, BUILT),
            ["--corruption_kwargs", '{"sigma": 0.1}'],
            "problem",
            "row 0, field 'corruption': corruption_kwargs",
        ),
    ],
    ids=str,
)
def test_the_check_knows_what_is_used(recipes, fields, status, told, model, tmp_path, capsys):
    data(*recipes).remove_columns("rejected_images").to_parquet(tmp_path / "rows.parquet")
    argv = ["--config", str(MFPO), "--model_name_or_path", model, "--dataset_name", str(tmp_path / "rows.parquet")]
    main(["check", *argv, "--output_dir", str(tmp_path / "out"), "--use_cpu", "--bf16", "false", "--json", *fields])
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    if status is None:
        assert "corruption" not in found
    else:
        assert found["corruption"]["status"] == status and told in found["corruption"]["value"]
    assert "corruption" not in found["columns"]["details"]["not_read"]
