"""What the loader and the packed attention are said to cost is counted where it is done."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import kernel_launches as launches
import loader


def test_each_picture_is_scaled_once(monkeypatch, tmp_path, capsys):
    path = tmp_path / "loader.json"
    monkeypatch.setattr(loader, "SIZES", {"small": (80, 60), "large": (700, 500)})
    monkeypatch.setattr(sys, "argv", ["loader.py", "--rows", "1", "--repeats", "1", "--output", str(path)])
    loader.main()
    found = json.loads(path.read_text())
    for one in found.values():
        # By the processor, the image and the dispreferred one; diffusion scales none.
        assert one["resizes"] == 2
        kinds = {loader.REST, "decoding", "row digest", "region masks", "corruption", "image processor"}
        assert set(one["ms"]) == kinds and one["total"] == sum(one["ms"].values())
    assert "| image processor | " in capsys.readouterr().out


def test_launches_of_the_packed_attention_stay_below_their_share():
    # By hand, a group: two calls, twice for gradient checkpointing, and two backwards of three kernels each; on a CPU each
    # call's result is copied as well.
    one, many = (launches.count(groups) for groups in (8, 32))
    calls = sum(number for name, number in many.items() if "attention" in name)
    assert calls == 32 * (2 * 2 + 2 * launches.ATTENTION_BACKWARD)
    # All else is done once for all groups.
    rest = [
        found.total() - sum(n for name, n in found.items() if "attention" in name or name == "clone")
        for found in (one, many)
    ]
    assert rest[0] == rest[1] < 30
    assert launches.share(32, 32, many.total())[1] < launches.TARGET
