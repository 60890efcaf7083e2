import json
import math
import re
import shlex
import sys
from pathlib import Path

import demo_seeds
import pytest
from datasets import load_dataset
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from mfpo_trl import cli
from mfpo_trl.demo.scenes import OBJECTS, TRIPLES, caption_of, make_scenes, presumed
from mfpo_trl.demo.scoring import mentions
from mfpo_trl.demo.story import LINES_OF_SHEET, NONE, QUICK, draw_pairs, exhibits, run, world_seed
from mfpo_trl.evaluation.benchmarks.coco import Objects, read_synonyms


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "made" / "here"
    return folder, run(folder, seed=0, quick=True)


def test_results_are_finite_and_written(story):
    folder, results = story
    assert json.loads((folder / "results.json").read_text()) == results
    assert list(results["scores"]) == ["base", "DPO", "DPO + anchor", "MFPO"]
    for scores in results["scores"].values():
        assert scores["n"] == QUICK.scenes_to_test
        assert all(math.isfinite(value) for value in scores.values())
        assert scores["chair_s_low"] <= scores["chair_s"] <= scores["chair_s_high"]


def test_logs_hold_both_margins_of_mfpo_and_the_text_margin_of_dpo(story):
    logs = story[1]["logs"]
    for key in ("rewards/margins", "rewards/image_margins"):
        assert any(key in entry for entry in logs["MFPO"])
    assert any("rewards/margins" in entry for entry in logs["DPO"])
    assert not any("rewards/image_margins" in entry for entry in logs["DPO"])


@pytest.mark.parametrize("name", ["curves.png", "contact_sheet.png"])
def test_pictures_can_be_read(story, name):
    with Image.open(story[0] / name) as picture:
        assert min(picture.size) > 500


@pytest.mark.parametrize("name", ["base", "dpo", "dpo-anchor", "mfpo"])
def test_models_can_be_loaded_and_nothing_is_pickled(story, name):
    folder = story[0] / name
    LlavaForConditionalGeneration.from_pretrained(folder)
    AutoProcessor.from_pretrained(folder)
    assert not [file for file in folder.rglob("*") if file.suffix in {".bin", ".pt", ".pkl"}]
    assert (folder / "README.md").exists() == (name != "base")


def test_pairs_come_from_scenes_that_keep_the_habits(monkeypatch):
    """No scene begins another triple before the first is whole."""
    monkeypatch.setattr("mfpo_trl.demo.story.preference_pairs", lambda base, processor, scenes, most: scenes)
    for scene in draw_pairs(None, None, QUICK, seed=0):
        shares = sorted((sum(name in triple for name in scene.names) for triple in TRIPLES), reverse=True)
        assert shares[0] == min(len(scene.names), 3)


def test_the_sheet_shows_where_habit_and_image_disagree():
    """In two scenes the base names what is there and a companion that is not; in two others something that no habit brings."""
    scenes = make_scenes(30, seed=5, company=NONE)
    said = [scene.caption for scene in scenes]

    def add(index: int, habitual: bool) -> bool:
        names = scenes[index].names
        for other in OBJECTS:
            if other not in names and bool(presumed(scenes[index], [other])) == habitual:
                said[index] = caption_of([*names, other])
                return True
        return False

    assert add(4, True) and add(17, True) and add(0, False) and add(9, False)
    shown = [exhibit.scene for exhibit in exhibits(scenes, {"base": said})]
    assert shown == [scenes[4], scenes[17], *scenes[:4], *scenes[5 : LINES_OF_SHEET - 1]]


def test_the_table_of_several_seeds(story, tmp_path, monkeypatch, capsys):
    folder, results = story
    monkeypatch.setattr(demo_seeds.story, "run", lambda own, seed, quick: {**results, "own": (own, seed, quick)})
    output = tmp_path / "demo.json"
    monkeypatch.setattr(
        sys, "argv", ["demo_seeds.py", "--seeds", "0", "7", "--folder", str(folder), "--output", str(output)]
    )
    demo_seeds.main()
    found = json.loads(output.read_text())
    assert list(found) == ["0", "7"] and all(list(own) == list(results["scores"]) for own in found.values())
    assert found["7"]["MFPO"] == {**results["scores"]["MFPO"], "pairs": results["pairs"]}
    printed = capsys.readouterr().out
    assert "16 held-out scenes a seed" in printed and all(name in printed for name in results["scores"])


def walk(heading: str) -> list[list[str]]:
    """The commands under a heading of the page on evaluation, behind the demo itself."""
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    section = re.search(rf"^## {heading}\n(.*?)^## ", page, re.S | re.M)[1]
    lines = "".join(re.findall(r"^```bash\n(.*?)^```", section, re.S | re.M)).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if not line.startswith("mfpo demo ")]


def test_the_walk_of_the_docs(story, tmp_path, monkeypatch):
    """Answers to the held-out scenes, scored by CHAIR's rules: the figures of the demo's own table."""
    folder, results = story
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-output").symlink_to(folder)
    for command in walk("A walk"):
        assert cli.main(command) == 0, command
    figures = json.loads((folder / "mfpo" / "scores" / "chair.json").read_text())
    scores = results["scores"]["MFPO"]
    for figure in ("chair_s", "chair_i", "coverage"):
        assert figures["all"][figure]["value"] == pytest.approx(scores[figure])
    assert figures["all"]["chair_s"]["n"] == QUICK.scenes_to_test
    assert figures["differences"]["all"]["chair_s"]["value"] == pytest.approx(
        results["scores"]["MFPO"]["chair_s"] - results["scores"]["base"]["chair_s"]
    )
    looks = json.loads((folder / "looks" / "reliance.json").read_text())
    groups = ("answers", "preference", "preference_by_reward", "rewards", "key_regions")
    assert all(own["n"] == QUICK.scenes_to_test for group in groups for own in looks[group].values())
    assert (folder / "looks" / "reliance.html").read_text().count("<article>") == 8
    LlavaForConditionalGeneration.from_pretrained(folder / "merged")


def test_objects_of_two_words_are_found(story):
    """Scenes' true captions and those with a wrong object, by the demo's pattern and by the rules of CHAIR."""
    objects = Objects(read_synonyms(story[0] / "held-out" / "synonyms.txt"))
    rows = load_dataset("parquet", data_files=str(story[0] / "held-out" / "rows.parquet"), split="train")
    truth = json.loads((story[0] / "held-out" / "ground_truth.json").read_text())
    assert len(rows) == len(truth) == QUICK.scenes_to_test
    for row in rows:
        chosen, rejected = (row[name][0]["content"] for name in ("chosen", "rejected"))
        assert objects.find(chosen) == mentions(chosen) == truth[str(row["image_id"])]
        assert objects.find(rejected) == mentions(rejected) and set(mentions(rejected)) - set(mentions(chosen))
    assert objects.find("two red crosses and red circles, no red.") == ["red cross", "red circle"]


def test_no_two_worlds_share_a_seed():
    seeds = [world_seed(seed, part) for seed in range(50) for part in range(5)]
    assert len(set(seeds)) == len(seeds)
