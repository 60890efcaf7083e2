"""Tests run offline; the tiny models of `tests/tiny.py` are importable as `tiny` from every folder."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def recipes() -> Path:
    """The folder of recipes."""
    return ROOT / "recipes"
