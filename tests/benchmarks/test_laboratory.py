"""`benchmarks/laboratory`: its world, its plan, and one seed of it, small, through every command that it uses."""

from dataclasses import replace
from statistics import mean, stdev

import numpy as np
import pytest
from laboratory import command, material, page, plan, running, tables, world
from laboratory.naming import mentions
from scipy import stats

from mfpo_trl import MFPOConfig
from mfpo_trl.objective import PRESETS

PLAN = plan.read_plan()


# The world


def test_triples_part_the_objects():
    members = [name for triple in world.TRIPLES for name in triple]
    assert sorted(members) == sorted(world.OBJECTS) and len(world.OBJECTS) == 24
    for triple in world.TRIPLES:
        colours, shapes = zip(*(name.split() for name in triple), strict=True)
        assert len(set(colours)) == len(set(shapes)) == 3
        assert all(world.COMPANIONS[name] == set(triple) - {name} for name in triple)


def test_a_seed_gives_the_same_scenes_and_company_is_kept():
    ours, again = world.make_scenes(60, 3, 1.0), world.make_scenes(60, 3, 1.0)
    assert [one.things for one in ours] == [one.things for one in again]
    assert all(np.array_equal(one.image, other.image) for one, other in zip(ours, again, strict=True))
    for company, least, most in ((1.0, 0.99, 1.0), (0.0, 0.0, 0.5)):
        scenes = [one for one in world.make_scenes(200, 4, company) if len(one.things) > 1]
        kept = [any(world.COMPANIONS[name] & set(one.names) for name in one.names) for one in scenes]
        assert least <= np.mean(kept) <= most


def test_what_is_said_of_a_scene_is_true_of_it():
    rng = np.random.default_rng(0)
    for scene in world.make_scenes(40, 5, 0.5):
        assert mentions(scene.caption) == scene.names and len(set(scene.names)) == len(scene.names)
        assert set(scene.caption.split()) <= set(world.WORDS)
        boxes = [thing.box for thing in scene.things]
        assert all(0 <= x0 < x1 <= world.SIZE and 0 <= y0 < y1 <= world.SIZE for x0, y0, x1, y1 in boxes)
        small = {thing.name: thing.small for thing in scene.things}
        for kind in world.KINDS:
            asked = world.ask(scene, kind, rng)
            assert set(asked.text.split()) <= set(world.WORDS)
            (name,) = mentions(asked.text)
            if kind == "size":
                assert asked.yes == (small[name] == ("small" in asked.text.split()))
            else:
                assert asked.yes == (name in scene.names)
            if kind == "other":
                assert not world.COMPANIONS[name] & set(scene.names)


def test_an_object_is_redrawn_in_its_place_alone():
    scene, rng = world.make_scenes(1, 6, 0.0)[0], np.random.default_rng(0)
    thing = scene.things[0]
    x0, y0, x1, y1 = thing.box
    region = np.zeros((world.SIZE, world.SIZE), dtype=bool)
    region[y0:y1, x0:x1] = True
    made, place = material.redraw(scene.image, region, thing.name, "yellow square", rng)
    before, after = np.asarray(scene.image), np.asarray(made)
    assert np.array_equal(place, region) and np.array_equal(before[~region], after[~region])
    distance = np.abs(after[region].mean(axis=0) - world.COLOURS["yellow"])
    assert distance.max() < 40


# The plan


def test_every_objective_has_an_arm_and_the_arms_fit_the_time():
    asked = {arm.train["objective"] for arm in PLAN.arms.values() if arm.question == 1}
    assert asked == set(PRESETS)
    assert sum(not arm.night for arm in PLAN.arms.values()) <= 60
    # The sixth asks the arms of others.
    assert {arm.question for arm in PLAN.arms.values()} | {6} == set(tables.QUESTIONS)
    assert all(name in PLAN.arms for names in tables.BESIDE.values() for name in names)


@pytest.mark.parametrize("name", PLAN.arms)
def test_an_arm_is_a_training(name, tmp_path):
    arm = PLAN.arms[name]
    kind, _, number = arm.data.partition("-")
    assert kind in material.DATA and (not number or number.isdigit())
    job = running.Job(arm, 0, tmp_path, material.Size(), arm.settings({}), material.TEST)
    fields = running.training(job)
    config = MFPOConfig(output_dir=str(tmp_path), **{key: own for key, own in fields.items() if key != "dtype"})
    assert config.max_steps == 200 and config.term_weights
    # Equal budgets, and nothing but what the arm's name says differs from the arm that it is like.
    assert (config.per_device_train_batch_size, config.lr_scheduler_type) == (16, "cosine")
    assert fields["learning_rate"] in plan.RATES


def test_folders_of_arms_are_their_own():
    assert len({arm.folder for arm in PLAN.arms.values()}) == len(PLAN.arms)


# One seed


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a small laboratory with one seed."""
    root = tmp_path_factory.mktemp("laboratory")
    running.make(
        running.seed_folder(root, 0), 0, material.SMALL, ["mirror", "similar", "begun", "noisy"], [material.TEST]
    )
    return root


def rows(root, name: str):
    return material.rows_of(running.seed_folder(root, 0) / "data" / name)


def text(messages) -> str:
    content = messages[0]["content"]
    return content if isinstance(content, str) else content[0]["text"]


def test_pairs_and_twins_are_what_they_are_called(made):
    pairs, mirror = rows(made, "pairs"), rows(made, "mirror")
    assert len(pairs) == material.SMALL.pairs
    for row in pairs:
        true, said = mentions(text(row["chosen"])), mentions(text(row["rejected"]))
        assert true == row["keywords"] and set(said) - set(true)
        assert set(mentions(text(row["chosen_2"]))) <= set(true)
        assert row["weight"] == 0.5 + sum(name not in true for name in said) / 2
    source = {row["id"]: row for row in mirror if row["mirror_of"] is None}
    twins = [row for row in mirror if row["mirror_of"] is not None]
    assert twins and len(source) == len(pairs)
    for twin in twins:
        own = source[twin["mirror_of"]]
        before, after = mentions(text(own["chosen"])), mentions(text(twin["chosen"]))
        assert len(set(after) - set(before)) == len(set(before) - set(after)) == 1
        assert text(twin["rejected"]) == text(own["chosen"])
        assert np.array_equal(twin["rejected_images"][0], own["images"][0])
    assert "rejected_images" not in rows(made, "noisy").column_names


def test_similar_images_and_begun_answers(made):
    for row, other in zip(rows(made, "similar"), rows(made, "pairs"), strict=True):
        assert not np.array_equal(row["rejected_images"][0], other["images"][0])
    for row in rows(made, "begun"):
        assert set(mentions(row["answer_prefix"])) <= set(row["keywords"])
        wrong = mentions(text(row["rejected"]))
        assert len(wrong) == 1 and wrong[0] not in row["keywords"]
        assert set(mentions(text(row["chosen"]))) <= set(row["keywords"]) - set(mentions(row["answer_prefix"]))


def test_arms_are_trained_measured_kept_and_not_run_again(made, tmp_path):
    asked = {name: (PLAN.arms[name], [0]) for name in ("mfpo", "mfpo-sym")}
    bases = {0: running.base_digest(running.seed_folder(made, 0) / "base")}
    results = tables.Results()
    jobs = command.missing(asked, {}, made, material.SMALL, results, bases)
    assert [job.name for job in jobs] == ["base", *asked]
    for job in jobs:
        found = running.do(job)
        results.add(job.name, 0, found)
        figures = found["figures"]
        assert figures["captions"].keys() >= {"chair_s", "chair_i", "coverage", "f1", "words"}
        assert 0 <= figures["objects"]["accuracy"] <= 1 and 0 <= figures["sizes"]["accuracy"] <= 1
        assert figures["reliance"].keys() >= {
            "answer_change",
            "blind_accuracy",
            "text_reward",
            "image_reward",
            "balance",
        }
    first = results.get("mfpo", 0)["figures"]
    assert {"rewards/margins", "loss/image", "seconds"} <= first["training"].keys() and 0 <= first["probe"][
        "area"
    ] <= 1
    assert not list((running.seed_folder(made, 0) / "arms").iterdir())

    results.write(tmp_path / "results.json")
    results = tables.Results.read(tmp_path / "results.json")
    assert not command.missing(asked, {}, made, material.SMALL, results, bases)
    assert len(command.missing(asked, {}, made, material.SMALL, results, {0: "another"})) == 3
    assert [job.name for job in command.missing(asked, {"mfpo": 1e-4}, made, material.SMALL, results, bases)] == [
        "mfpo"
    ]
    printed = tables.content_of(results, PLAN, 1)
    assert [row[0] for row in printed[1:]] == ["base", "mfpo", "mfpo-sym"]


def test_a_mean_and_its_interval():
    numbers = [50.0, 54.0, 49.0]
    low, high = stats.t.interval(0.95, 2, loc=mean(numbers), scale=stdev(numbers) / 3**0.5)
    assert tables.half_width(numbers) == pytest.approx((high - low) / 2, rel=1e-3)
    assert tables.half_width([1.0]) is None and tables.cell([1.0]) == "1.0" and tables.cell([]) == ""


def test_gains_are_paired_by_seed():
    figures = {"captions": {"f1": 0.5}}
    kept = {
        "base": {"0": {"figures": figures}, "1": {"figures": {"captions": {"f1": 0.6}}}},
        "mfpo": {"1": {"figures": {"captions": {"f1": 0.7}}}, "2": {"figures": figures}},
    }
    assert tables.gain(tables.Results(kept), "mfpo", "base", "F1") == pytest.approx([10.0])


def test_the_page_shows_the_figures_that_are_kept():
    results = tables.Results.read(command.RESULTS)
    shown = page.PAGE.read_text(encoding="utf-8")
    assert page.with_tables(shown, results, PLAN) == shown


@pytest.mark.parametrize(
    ("options", "arms", "seeds"),
    [
        (["--quick"], {name for name, arm in PLAN.arms.items() if arm.headline}, {0}),
        ([], {name for name, arm in PLAN.arms.items() if not arm.night}, {0, 1, 2, 3, 4}),
        (["--all", "--seeds", "7"], set(PLAN.arms), {7}),
        (["--arms", "mfpo"], {"mfpo"}, {0, 1, 2, 3, 4}),
        (["--questions", "5"], {"shuffled", "staged", "anti", "stage reference"}, {0, 1, 2}),
    ],
)
def test_which_arms_are_asked_for(options, arms, seeds):
    found = command.chosen_arms(PLAN, command.build_parser().parse_args(options))
    assert found.keys() == arms and {seed for _, own in found.values() for seed in own} == seeds


def test_an_unknown_arm_is_named(capsys):
    assert command.main(["--arms", "nfpo"]) == 2
    assert "'nfpo': not in plan.yaml" in capsys.readouterr().err


def test_a_killed_preparation_is_made_again(tmp_path):
    folder, calls = tmp_path / "base", []

    def make(begun):
        calls.append(sorted(path.name for path in begun.iterdir()))
        (begun / "half").touch()
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        material._once(folder, make)
    assert not folder.exists()
    assert material._once(folder, make) == folder and material._once(folder, make) == folder
    assert calls == [[], []]


def test_labels_that_are_wrong_are_as_many_as_said(made):
    place = material.Place(running.seed_folder(made, 0), 0, replace(material.SMALL))
    flipped, pairs = material.rows_of(place.data("flipped-25")), rows(made, "pairs")
    wrong = [text(one["chosen"]) == text(other["rejected"]) for one, other in zip(flipped, pairs, strict=True)]
    assert sum(wrong) == len(pairs) // 4
