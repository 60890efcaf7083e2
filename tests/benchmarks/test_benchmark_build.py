"""The figures of `benchmarks/build.py`: its clock counts what it says, its source is what it says, its tables are whole."""

import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from building import memory, source, stages
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "build.py"


@pytest.fixture(scope="module")
def benchmark():
    # Not by the name "build", which is that of a packaging tool.
    spec = importlib.util.spec_from_file_location("benchmark_build", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_clock_leaves_out_what_inner_functions_take():
    now = [0.0]

    def wait(seconds):
        now[0] += seconds

    clock = stages.Clock(lambda: now[0])
    inner = clock.timed("inner", lambda: wait(3))

    def work():
        wait(1)
        inner()
        wait(10)
        inner()

    outer = clock.timed("outer", work)
    outer()
    wait(100)
    outer()
    assert clock.seconds == {"outer": 22, "inner": 12}


def test_the_clock_goes_on_behind_an_error():
    now = [0.0]

    def fail():
        now[0] += 2
        raise ValueError

    clock = stages.Clock(lambda: now[0])
    with pytest.raises(ValueError):
        clock.timed("a", fail)()
    now[0] += 5
    with pytest.raises(ValueError):
        clock.timed("b", fail)()
    assert clock.seconds == {"a": 2, "b": 2}


def test_the_source_is_like_photos_and_captions(benchmark, tmp_path):
    path = Path(source.make_source(tmp_path / "source", 5, pictures=2))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["images"] for row in rows] == [[f"{n}.jpg"] for n in (0, 1, 0, 1, 0)]
    assert all(len(row[name].split()) == 80 for row in rows for name in ("chosen", "rejected"))
    data = (path.parent / "0.jpg").read_bytes()
    assert Image.open(io.BytesIO(data)).size == (640, 480) and 80_000 < len(data) < 130_000
    assert data != (path.parent / "1.jpg").read_bytes()


def test_work_of_models_is_left_out():
    assert stages.outside({"decoding": 2.0, stages.MODELS[0]: 50.0, "PNG": 3.0, stages.MODELS[1]: 7.0}) == 5


def test_medians_of_nested_figures():
    found = stages.median([{"a": {"b": 1.0}, "c": 5}, {"a": {"b": 9.0, "d": 3.0}, "c": 7}, {"a": {"b": 2.0}, "c": 6}])
    assert found == {"a": {"b": 2.0, "d": 0.0}, "c": 6}


def test_work_is_found_where_it_is_done(benchmark, tmp_path):
    # Every clocked function really runs in a build: a renamed one would count nothing, or to the rest.
    dataset = source.make_source(tmp_path / "source", 6, pictures=2, size=(64, 48))
    report = stages.stages_report(tmp_path, dataset, source.save_models(tmp_path, "tiny"), "cpu", 1)
    made_images = {"row digest", "noise", "PNG"}
    for way, missing in (("recipe", made_images), ("materialize", set())):
        own = report[way]
        assert set(report["materialize"]["cpu"]) - set(own["cpu"]) == missing
        assert set(own["stages"]) == {"reading", "keywords", "grounding", "corruption", "difficulty", "storage"}
        assert sum(own["stages"].values()) == pytest.approx(1000 / own["rows_per_second"], rel=1e-6)
        assert own["cpu"][stages.MODELS[0]] > 0 and own["regions"] > 0
    assert set(report["materialize"]["cpu"]) == {
        stages.REST,
        *stages.MODELS,
        "reading lines and files, schema",
        "decoding",
        "key words",
        "region masks, RLE",
        "parquet",
        *made_images,
    }


def test_peak_memory_is_that_of_the_build_alone(benchmark, tmp_path):
    peak, seconds = memory.peak_memory(tmp_path, 8)
    # Between what the libraries of a build take and what nothing of that size could; in MiB, not in kB or bytes.
    assert 100 < peak < 3000 and seconds > 0
    assert len(list((tmp_path / "memory-8" / "data").glob("*.parquet"))) == 1


def test_without_a_gpu_it_says_that_nothing_was_measured(benchmark, tmp_path, monkeypatch, capsys):
    path = tmp_path / "tables.json"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["build.py", "--device", "cuda", "--output", str(path)])
    benchmark.main()
    assert json.loads(path.read_text()) == {"cuda": None} and "not measured" in capsys.readouterr().out


def test_blobs_are_photo_like():
    picture = np.asarray(Image.open(io.BytesIO(source.photo(np.random.default_rng(1)))), dtype=float)
    step = np.abs(np.diff(picture, axis=1)).mean()
    assert picture.std() > 20 and step < 0.5 * picture.std()
