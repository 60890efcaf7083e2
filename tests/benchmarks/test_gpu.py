"""The run on a GPU is rehearsed on a CPU: every part, every key that the tables read, a part that dies, a run that is cut off."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu
from device import comparison, parts, report, training

BENCHMARKS = Path(gpu.__file__).parent


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "results" / "gpu.json"
    with pytest.MonkeyPatch.context() as patch:
        # As cheap as it can be: of each kind one training; the whole is `gpu.py --rehearse`.
        best = "MFPO packed + cached"
        few = {name: jobs[:2] for name, jobs in comparison.comparisons("rehearsal", "cpu", "eager").items()}
        patch.setattr(
            comparison, "comparisons", lambda *_: {name: few[name] for name in ("float32", "text term alone")}
        )
        patch.setattr(parts, "WAYS", {name: training.WAYS[name] for name in ("DPOTrainer", "MFPO packed", best)})
        gpu.main(["--rehearse", "--output", str(path)], here=True)
    return json.loads(path.read_text())


def test_every_part_is_run_and_nothing_fails(rehearsed):
    assert list(rehearsed["parts"]) == list(parts.PARTS) and rehearsed["rehearsed"]
    failed = {
        f"{part}: {name}": value["failed"]
        for part, found in rehearsed["parts"].items()
        for name, value in found["results"].items()
        if isinstance(value, dict) and "failed" in value and name != "SAM 3"
    }
    assert not failed
    assert {found["status"] for found in rehearsed["parts"].values()} == {"done"}


def test_packed_rows_compute_what_flat_rows_compute(rehearsed):
    found = rehearsed["parts"]["parity"]["results"]
    for name in ("float32: packed", "text term alone: packed"):
        assert found[name]["loss apart"] < 1e-5 and found[name]["gradient apart"] < 1e-4


def test_a_step_is_timed_and_its_memory_estimated(rehearsed):
    found = rehearsed["parts"]["lora"]["results"]
    seconds = {name: one["seconds"] for name, one in found.items()}
    assert all(0 < own["min"] <= own["median"] <= own["max"] for own in seconds.values())
    # Rows of the same pairs, 40 tokens of prompt, 12 and 9 of the answers: four flat rows as long as the longest; packed, the
    # prompt once for the image and once for the dispreferred one, and no answer's last token.
    packed = 2 * (2 * 39 + 3 * 1 + 2 * 11 + 8)
    assert found["MFPO packed + cached"]["tokens"] == {"policy": packed, "reference": 0}
    assert found["MFPO packed"]["tokens"] == {"policy": packed, "reference": packed}
    assert found["DPOTrainer"]["tokens"]["policy"] >= 2 * (2 * 40 + 12 + 9)
    assert found["MFPO packed"]["estimate"] > 0 and "estimate" not in found["DPOTrainer"]


def test_the_profile_names_what_a_step_is_made_of(rehearsed):
    found = rehearsed["parts"]["profile"]["results"]
    assert {"attention", "linear layers", "optimizer"} <= set(found["by kind of operation, ms"])
    calls = {"packed attention: all", "packed attention: causal call", "packed attention: masked call", "vision tower"}
    assert calls <= set(found["in the forwards, ms"]) and 0 < found["masked call of all"] < 1
    assert found["photos of 640x480"]["rows/s"] > 0 and found["photos of 640x480"]["rows/s needed"] > 0


def test_the_tables_come_from_the_file_alone(rehearsed, tmp_path, capsys):
    measured = {"seconds": {"median": 0.5, "min": 0.4, "max": 0.7}, "tokens/s": 1000.0, "peak": 2 * 2**30}
    best = measured | {"seconds": {"median": 0.4, "min": 0.4, "max": 0.4}, "mfu": 0.456, "utilisation": 0.5}
    best |= {"estimate": 2.2 * 2**30, "estimate error": 0.1}
    results = {"DPOTrainer": measured, "MFPO packed + cached": best, "MFPO flat": {"failed": "out of memory"}}
    path = tmp_path / "report.json"
    whole = rehearsed | {"rehearsed": False, "parts": {"lora": {"status": "done", "seconds": 9.0, "results": results}}}
    path.write_text(json.dumps(whole))
    gpu.main(["--show", str(path)])
    printed = capsys.readouterr().out
    assert "| MFPO packed + cached | 0.4 (0.4–0.4) | 0.80 | 1000 | 2.0 | 2.2 (+10%) | 50% | 46% |" in printed
    assert "- MFPO packed + cached beside DPOTrainer: 0.80, goal 0.85 at most" in printed
    assert "| MFPO flat | out of memory |" in printed
    assert "goal" not in report.text(rehearsed) and "a rehearsal on a CPU" in report.text(rehearsed)


@pytest.mark.parametrize(
    "end, status",
    [
        ("", "done"),
        ("; import os; os._exit(3)", "failed with exit code 3"),
        ("; input()", "cut off: its time was over"),
    ],
)
def test_a_part_that_ends_early_keeps_what_it_has_said(end, status, monkeypatch):
    heard, now = [], [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])

    def hear(*result):
        heard.append(result)
        now[0] = 300.0 if "cut" in status else 0.0

    program = f"import sys; print('[\"a\", 1]', flush=True){end}".replace("input()", "import time; time.sleep(300)")
    assert gpu.supervised([sys.executable, "-c", program], 200.0, hear) == status and heard == [("a", 1)]


def test_every_part_has_its_share_of_eight_minutes():
    assert sum(seconds for seconds, _ in parts.PARTS.values()) == 60 * gpu.USUAL_MINUTES


def test_without_a_gpu_it_says_that_nothing_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--output", str(tmp_path / "gpu.json")])
    assert "not measured" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_script_for_a_bare_machine_says_how_it_is_used():
    done = subprocess.run(["bash", str(BENCHMARKS / "gpu.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "collect WHEELS" in done.stderr and "run WHEELS OUTPUT.json" in done.stderr
