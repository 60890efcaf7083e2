import json
import math

import pytest
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from mfpo_trl.demo.story import QUICK, run, world_seed


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "made" / "here"
    return folder, run(folder, seed=0, ablation=True, quick=True)


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


def test_no_two_worlds_share_a_seed():
    seeds = [world_seed(seed, part) for seed in range(50) for part in range(5)]
    assert len(set(seeds)) == len(seeds)
