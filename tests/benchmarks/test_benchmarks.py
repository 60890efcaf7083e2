"""The figures of `benchmarks/`: what is counted without weights is what the trainers really compute."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import llava
import step_cost

from mfpo_trl.objective import PRESETS

TINY = llava.GEOMETRIES["tiny"]


@pytest.fixture(scope="module")
def meta():
    return step_cost.meta_model(TINY)


@pytest.mark.parametrize("name", [*step_cost.WAYS, "svco", "lpoi", "opa", "mfpo-sym"])
def test_counted_operations_are_those_of_the_trainers(name, meta, tmp_path):
    way, rows = (step_cost.WAYS | step_cost.METHODS)[name], llava.whole_pairs(TINY, 2)
    model = step_cost.build_model(TINY, "cpu", torch.float32)
    step = step_cost.Measured(way, model, TINY, rows, tmp_path)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    # On a CPU, TRL's LM head reads every position: in the policy's forward, its backward and the reference's forward.
    positions = 4 * (TINY.prompt + TINY.chosen - 1) - 2 * (TINY.chosen + TINY.rejected) if way.trl else 0
    head = 2 * TINY.hidden * TINY.vocabulary
    assert counter.get_total_flops() == step_cost.operations(meta, way, TINY, rows) + 3 * head * positions


def test_six_pairs_are_four_responses():
    for own, images in ((False, 2), (True, 4)):
        rows = llava.six_pairs(TINY, own)
        assert len(rows) == 6 and len({row["chosen"] for row in rows} | {row["rejected"] for row in rows}) == 4
        assert len({id(row[name][0]) for row in rows for name in ("images", "rejected_images")}) == images


def test_the_command_prints_and_writes_its_tables(tmp_path, monkeypatch, capsys):
    path = tmp_path / "tables.json"
    monkeypatch.setattr(sys, "argv", ["step_cost.py", "--repeats", "1", "--output", str(path)])
    step_cost.main()
    printed, tables = capsys.readouterr().out, json.loads(path.read_text())
    assert len(tables) == 3 and all(title in printed.replace("\n", " ") for title in tables)
    (first, *_) = tables.values()
    assert set(first) == set(step_cost.WAYS) and all(set(values) == set(step_cost.UNITS) for values in first.values())


# Objectives

GEOMETRY = "llava-1.5-7b"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
(COUNTED,) = json.loads((RESULTS / f"objectives-{GEOMETRY}.json").read_text()).values()


def test_costs_are_those_that_were_counted():
    """Two answers under two images, packed, cost a few per cent more than three branches."""
    for name, preset in PRESETS.items():
        if preset.cost is not None:
            assert preset.cost == round(COUNTED[name]["operations"] / COUNTED["dpo"]["operations"], 2), name
    assert COUNTED["mfpo-sym"]["operations"] <= 1.15 * COUNTED["mfpo"]["operations"]


@pytest.mark.parametrize("name", ["dpo", "mfpo-sym"])
def test_a_count_is_a_sum_over_layers(name):
    """From models of one and two layers, the count of the whole one, to the operation."""
    whole = llava.GEOMETRIES[GEOMETRY]

    def counted(layers: int, vision: int) -> int:
        geometry = replace(whole, layers=layers, vision_layers=vision)
        way, rows = step_cost.METHODS[name], llava.whole_pairs(geometry, 1)
        return step_cost.operations(step_cost.meta_model(geometry), way, geometry, rows)

    small, language, vision = counted(1, 2), counted(2, 2), counted(1, 3)
    found = small + (whole.layers - 1) * (language - small) + (whole.vision_layers - 2) * (vision - small)
    assert found == COUNTED[name]["operations"]


def test_the_command_has_a_line_for_each_objective(monkeypatch, capsys):
    monkeypatch.setattr(step_cost, "METHODS", {name: step_cost.METHODS[name] for name in ("dpo", "mfpo", "misp")})
    monkeypatch.setattr(sys, "argv", ["step_cost.py", "--repeats", "1", "--methods"])
    step_cost.main()
    printed = capsys.readouterr().out
    assert printed.count("(1.000, ") == 3 and "misp" in printed and "not measured" not in printed
