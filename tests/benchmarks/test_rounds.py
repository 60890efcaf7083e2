"""`benchmarks/rounds.py`: real loops on scenes that are not those of the test, and a seed that is there is not run again."""

import json
import sys
from pathlib import Path

import pytest
import rounds

from mfpo_trl.demo import scenes, story

CONTROL = "one round, twice the steps"
NAMES = ["base", "round 1", "round 2", CONTROL]


def run(monkeypatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["rounds.py", "--quick", *options])
    rounds.main()


def test_two_rounds_and_their_controls(tmp_path, monkeypatch, capsys):
    drawn, stream = [], scenes.scene_stream
    monkeypatch.setattr(scenes, "scene_stream", lambda seed, company: drawn.append(seed) or stream(seed, company))
    output = tmp_path / "rounds.json"
    own = ("--seeds", "3", "--folder", str(tmp_path), "--output", str(output))
    run(monkeypatch, *own)
    found = json.loads(output.read_text())["seeds"]["3"]
    assert list(found) == NAMES and all(one["n"] == story.QUICK.scenes_to_test for one in found.values())
    # The second round goes on from the first, and the control has the pairs of the first.
    told = [json.loads((tmp_path / f"seed-3/round/rounds/round-{n}/round.json").read_text()) for n in (1, 2)]
    assert told[1]["reference"] == told[0]["policy"]
    assert found[CONTROL]["pairs"] == found["round 1"]["pairs"] > 0
    assert {story.world_seed(3, part) for part in (story.SCENES_TO_PREFER, story.SCENES_TO_TEST)} <= set(drawn)

    monkeypatch.setattr(rounds, "measure", None)
    run(monkeypatch, *own)
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    content = json.loads(output.read_text())
    content["settings"]["plan"]["see_steps"] += 1
    output.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="figures of other settings"):
        run(monkeypatch, *own)


def test_settings_are_not_chosen_on_test_scenes(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        rounds,
        "measure",
        lambda folder, seed, plan, loops, part: (
            asked.append((seed, part, loops)) or {"base": {"n": 1, "f1": 0, **dict.fromkeys(rounds.COLUMNS, 0)}}
        ),
    )
    run(monkeypatch, "--choose")
    ((seed, part, loops),) = asked
    assert (seed, part) == (rounds.SEED_TO_CHOOSE, story.SCENES_TO_CHOOSE)
    assert all(own.rounds == 1 for own in loops.values()) and rounds.CHOSEN in rounds.CANDIDATES


def test_the_figures_kept_are_those_of_the_settings():
    path = Path(rounds.__file__).parent / "results" / "rounds.json"
    settings = json.loads(path.read_text())["settings"]
    assert settings == rounds.settings_of(story.Plan(), rounds.ways(rounds.CHOSEN))
