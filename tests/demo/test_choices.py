"""What the demo trains with is chosen on scenes that no demo is tested on."""

import demo_choices
from rich.console import Console

from mfpo_trl.demo import scenes, story
from mfpo_trl.demo.alignment import METHODS
from mfpo_trl.images.corruptions import SCHEDULES


def test_no_test_scene_is_drawn(tmp_path, monkeypatch, capsys):
    drawn, stream = [], scenes.scene_stream
    monkeypatch.setattr(scenes, "scene_stream", lambda seed, company: drawn.append(seed) or stream(seed, company))
    candidates = dict(list(demo_choices.CANDIDATES["schedule"].items())[:1])
    found = demo_choices.measure(tmp_path, 3, candidates, story.QUICK)
    assert story.world_seed(3, story.SCENES_TO_CHOOSE) in drawn
    assert not {story.world_seed(seed, story.SCENES_TO_TEST) for seed in range(50)} & set(drawn)
    assert list(found) == ["base", *candidates]
    assert all(own["n"] == story.QUICK.scenes_to_test and 0 <= own["f1"] <= 1 for own in found.values())
    Console().print(demo_choices.table({3: found, 4: found}))
    printed = capsys.readouterr().out
    assert "16 validation scenes a seed" in printed and all(name in printed for name in found)


def test_no_two_worlds_share_a_picture():
    """Those to choose on and those to test on, of the seeds that the README names."""
    parts = (story.SCENES_TO_CHOOSE, story.SCENES_TO_TEST)
    pictures = {
        scene.image.tobytes()
        for seed in range(4)
        for part in parts
        for scene in scenes.make_scenes(50, story.world_seed(seed, part), story.NONE)
    }
    assert len(pictures) == 4 * len(parts) * 50


def test_the_candidates_are_all_there_is():
    own = METHODS["MFPO"][2]["corruption_kwargs"]
    asked = [settings["corruption_kwargs"] for _, settings in demo_choices.CANDIDATES["schedule"].values()]
    assert [one["schedule"] for one in asked] == list(SCHEDULES) and own in asked
