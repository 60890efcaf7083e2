"""The scripts that a reader copies from, run on a tiny model."""

import importlib.util
from pathlib import Path

import tiny

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_drop_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny.save_pretrained(tmp_path / "model", template=tiny.LLAVA_TEMPLATE)
    (tmp_path / "data").mkdir()
    tiny.dataset(8).to_parquet(tmp_path / "data" / "train.parquet")
    load("drop_in").main(model, str(tmp_path / "data"), use_cpu=True, bf16=False, max_steps=2, report_to="none")
    assert (tmp_path / "llava-mfpo" / "model.safetensors").exists()


def test_drop_in_is_readable_at_a_glance():
    assert len((EXAMPLES / "drop_in.py").read_text().splitlines()) < 30
