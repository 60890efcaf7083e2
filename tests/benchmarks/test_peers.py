"""The comparison with other tools: what is written for them, what is heard of them, and that TRL and we train the same."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from transformers import Trainer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import peers
from comparing import environments, inputs, rounds, worker
from llava import GEOMETRIES

BENCHMARKS = Path(peers.__file__).parent
TINY = GEOMETRIES["tiny"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    return {
        "model": str(inputs.save_model(TINY, torch.float32, folder / "model")),
        "data": inputs.save_pairs(TINY, 3, folder / "data"),
        "dtype": "float32",
        "cuda": False,
        "batch": 1,
        "steps": 2,
        "rank": 4,
        "beta": 0.1,
        "learning_rate": 1e-3,
        "options": {},
    }


def replies(tool, spec, folder, monkeypatch):
    """What a worker says, run in this process."""
    read, write = os.pipe()
    monkeypatch.setenv("PEERS_REPLY", str(write))
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n" * 9))
    original = Trainer.train
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", lambda self, *args: (worker.Turns(self), original(self, *args))[1])
        worker.TOOLS[tool](spec | {"output": str(folder / tool)})
    os.close(write)
    with os.fdopen(read) as lines:
        return [json.loads(line) for line in lines]


def test_trl_and_we_make_the_same_steps_from_one_adapter(files, tmp_path, monkeypatch):
    # As `peers.py` has them: TRL's own step, and ours with a live reference.
    ours = peers.ways(["mfpo_trl"])["mfpo_trl dpo, live reference"]
    found = {
        name: replies(way["tool"], files | way, tmp_path, monkeypatch)
        for name, way in (("trl", {"tool": "trl"}), ("ours", ours))
    }
    steps = {name: [line for line in lines if "seconds" in line] for name, lines in found.items()}
    losses = {name: [step["loss"] for step in own] for name, own in steps.items()}
    assert losses["ours"] == pytest.approx(losses["trl"], abs=1e-5) and len(losses["trl"]) == 2
    # Drawn by the names of its weights, so that the first loss is not log 2.
    assert abs(losses["trl"][0] - 0.6931) > 1e-3 and losses["trl"][0] != losses["trl"][1]
    logged = {name: next(line["logged"] for line in lines if "logged" in line) for name, lines in found.items()}
    assert logged["ours"] == pytest.approx(logged["trl"], abs=1e-3)
    # 43 tokens of the prompt with those of the turns, 12 and 9 of the answers: two rows as wide as the longer one, for policy
    # and reference; packed, the prompt once.
    assert {name: own[0]["tokens"] for name, own in steps.items()} == {"trl": 2 * 2 * 55, "ours": 2 * (42 + 12 + 9)}
    for own in steps.values():
        assert all(step["seconds"] > 0 and step["peak"] > 2**27 for step in own)
    assert {line["trained"] for lines in found.values() for line in lines if "ready" in line} == {
        2 * 4 * (4 * (64 + 64) + 3 * (64 + 172))
    }


def test_all_formats_hold_the_same_pairs(files):
    ours, swift = (
        [json.loads(line) for line in Path(files["data"][name]).read_text().splitlines()]
        for name in ("trl", "ms-swift")
    )
    factory = json.loads(Path(files["data"]["llamafactory"]).read_text())
    known = json.loads((Path(files["data"]["llamafactory"]).parent / "dataset_info.json").read_text())
    assert known["llamafactory"]["file_name"] == "llamafactory.json" and known["llamafactory"]["ranking"]
    for one, two, three in zip(ours, swift, factory, strict=True):
        question = one["prompt"].removeprefix("<s> USER: <image> ").removesuffix(" ASSISTANT:")
        assert [m["content"] for m in two["messages"]] == [
            f"<image>{question}",
            one["chosen"].removesuffix(" </s>").strip(),
        ]
        assert two["rejected_response"] == three["rejected"]["value"] == one["rejected"].removesuffix(" </s>").strip()
        assert three["conversations"][0]["value"] == f"<image>{question}"
        assert three["chosen"]["value"] == two["messages"][1]["content"]
        assert one["images"] == two["images"] == three["images"] and Path(one["images"][0]).is_file()


def test_every_compared_method_has_its_line():
    names = peers.ways(list(peers.TOOLS))
    for method in ("dpo", "mdpo", "mfpo", "rdpo"):
        assert f"mfpo_trl {method}, cached reference" in names
    assert list(names)[:3] == ["TRL DPO", "ms-swift DPO", "LLaMA-Factory DPO"]
    assert not any("image term" in name for name in peers.ways(list(peers.TOOLS), asked=False))


def test_pip_gets_the_present_torch_first_and_leaves_out_what_has_no_build():
    factory, swift = environments.ENVIRONMENTS["llamafactory"], environments.ENVIRONMENTS["ms-swift"]
    assert environments.commands(swift, "2.13.0+cpu", False) == [
        ["torch==2.13.0"],
        ["ms-swift==4.6.0", "torch==2.13.0"],
    ]
    first, tool, needs = environments.commands(factory, "2.13.0+cpu", False)
    assert first == ["torch==2.13.0"] and tool == ["--no-deps", "llamafactory==0.9.5"] and needs[-1] == first[0]
    assert not any(name in " ".join(needs) for name in factory.without)
    assert environments.commands(factory, "2.13.0", True) == [
        ["torch==2.13.0"],
        ["llamafactory==0.9.5", "torch==2.13.0"],
    ]


PROGRAM = """
import json, os, sys
say = lambda **line: os.write(int(os.environ["PEERS_REPLY"]), (json.dumps(line) + "\\n").encode())
say(ready=True, trained=1, before=0, versions={})
sys.stdin.readline(); say(seconds=1.0, cpu=0.5, peak=9, loss=2.0, tokens=3)
sys.stdin.readline(); say(logged={"logps/chosen": -7.0})
"""


@pytest.mark.parametrize(
    "end, refused",
    [
        ("say(seconds=3.0, cpu=0.5, peak=9, loss=1.0, tokens=3)", None),
        ("say(refused='ValueError: no')", "ValueError: no"),
        ("sys.exit(3)", "it ended with 3"),
    ],
)
def test_a_tool_is_heard_until_it_refuses(end, refused, tmp_path, monkeypatch):
    program = tmp_path / "worker.py"
    program.write_text(PROGRAM + end)
    monkeypatch.setattr(rounds, "WORKER", program)
    run = rounds.start("TRL DPO", Path(sys.executable), {}, tmp_path / "run", {})
    run.hear(60)
    for _ in range(2):
        rounds.take_turns([run], 60)
    run.close()
    assert run.refused == refused or run.refused.startswith(refused)
    assert run.steps[0]["logps/chosen"] == -7.0 and len(run.steps) == (2 if refused is None else 1)
    found = peers.summary(run, run)
    assert found == {"refuses": run.refused} if refused else found["seconds"]["ratio"] == 1.0


def test_the_table_says_who_refuses_and_whose_loss_is_another():
    times = {"median": 2.0, "min": 1.0, "max": 3.0, "ratio": 0.5}
    line = {
        "seconds": times,
        "cpu": times,
        "peak": 3 * 2**20,
        "before": 2**20,
        "tokens": 9,
        "versions": {"torch": "2"},
    }
    found = {
        "TRL DPO": line | {"tool": "trl", "losses": [0.5, 0.25]},
        "mfpo_trl dpo, live reference": line | {"tool": "mfpo_trl", "losses": [0.5, 0.35]},
        "mfpo_trl mfpo, live reference": line | {"tool": "mfpo_trl", "losses": [1.5, 1.25]},
        "ms-swift, cached reference": {"tool": "ms-swift", "refuses": "ValueError: no"},
    }
    report = {"geometry": "tiny", "pairs": 1, "machine": "x, cpu", "threads": 1, "date": "d", "load": [3, 3, 3]}
    text = peers.table(report | {"ways": found, "notes": ["LLaMA-Factory without torchaudio"]})
    assert "| TRL DPO | 2 (1–3) | 0.50 | 2 (1–3) | 0.50 | 3 (2) | 9 | 0e+00 |" in text
    assert "dpo, live reference | 2 (1–3) | 0.50 | 2 (1–3) | 0.50 | 3 (2) | 9 | 1e-01 |" in text
    assert "mfpo, live reference | 2 (1–3) | 0.50 | 2 (1–3) | 0.50 | 3 (2) | 9 | other terms |" in text
    assert (
        "- ms-swift, cached reference: refuses ValueError: no" in text and "- LLaMA-Factory without torchaudio" in text
    )


@pytest.mark.parametrize("geometry", ["tiny", "wide"])
def test_the_page_has_the_tables_of_the_results(geometry):
    report = json.loads((BENCHMARKS / "results" / f"peers-{geometry}.json").read_text())
    page = (BENCHMARKS.parent / "docs" / "peers.md").read_text()
    rows = [line for line in peers.table(report).splitlines() if line.startswith(("|", "- TRL", "- ms-swift"))]
    assert len(rows) > 10 and all(row in page for row in rows)
