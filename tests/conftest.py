"""Tests run offline; the tiny models of `tests/tiny.py` are importable as `tiny` from every folder, and so are the benchmarks."""

import os
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]


@pytest.fixture
def recipes() -> Path:
    """The folder of recipes."""
    return ROOT / "recipes"
