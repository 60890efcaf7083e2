"""`benchmarks/mirror_rows.py`: students with and without twins, on the test scenes of its seed."""

import mirror_rows
import pytest
from rich.console import Console

from mfpo_trl.demo import scenes, story


def test_students_with_and_without_twins(tmp_path, monkeypatch, capsys):
    drawn, stream = [], scenes.scene_stream
    monkeypatch.setattr(
        scenes, "scene_stream", lambda seed, company: drawn.append((seed, company)) or stream(seed, company)
    )
    own = {name: mirror_rows.STUDENTS[name] for name in ("SFT", "MFPO")}
    monkeypatch.setattr(mirror_rows, "STUDENTS", own)
    found = mirror_rows.measure(tmp_path, 3, ["oracle"], story.QUICK)
    names = [name + twins for name in own for twins in ("", ", oracle twins")]
    assert list(found["scores"]) == ["base", *names]
    assert (story.world_seed(3, story.SCENES_TO_PREFER), story.FULL) in drawn
    assert (story.world_seed(3, story.SCENES_TO_TEST), story.NONE) in drawn
    steps = found["steps"]
    assert 0 < steps["oracle"]["check"] <= steps["pairs"] <= story.QUICK.most_pairs
    assert steps["oracle"]["true"] == pytest.approx(1, abs=0.2)  # of a detector that takes some shapes for others
    Console(width=120).print(mirror_rows.table({3: found["scores"]}, "test"))
    assert "16 test scenes a seed" in capsys.readouterr().out
