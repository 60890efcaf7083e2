"""Tests run offline; the tiny models of `tests/tiny.py` are importable as `tiny` from every folder, and so are the benchmarks."""

import gc
import os
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
# Imports make a million objects that stay, and every hundredth of them would have all others looked at for garbage.
gc.set_threshold(20_000, 20, 20)
ROOT = Path(__file__).parents[1]
sys.path[:0] = [
    str(ROOT / "benchmarks"),
    *(str(own) for own in (ROOT / "tests", *(ROOT / "tests").iterdir()) if own.is_dir()),
]


def pytest_configure(config):
    """A folder of this run, for what torch extensions are compiled in (`launches.build_deepspeed_extension`) and `warm.py`'s server,
    which ends with it."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="test-run-")
        os.environ["MFPO_TEST_RUN"] = folder.name
        os.environ["TORCH_EXTENSIONS_DIR"] = f"{folder.name}/torch_extensions"
        config.add_cleanup(folder.cleanup)


def pytest_collection_finish(session):
    """What the tests import stays to the end. Every call of `Trainer.train` has the garbage collector look at all that is alive: a
    third of a second each, longer than a tiny training; and accelerate reads the metadata of PEFT and DeepSpeed at every step."""
    gc.collect()
    gc.freeze()
    if imports := sys.modules.get("accelerate.utils.imports"):
        imports._is_package_available = cache(imports._is_package_available)


@pytest.fixture(scope="module", autouse=True)
def imports():
    """The same for what is imported on first use."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def recipes() -> Path:
    """The folder of recipes."""
    return ROOT / "recipes"


@pytest.fixture(scope="module", autouse=True)
def pictures(request):
    """Model cards without their picture, which takes longer to draw than a tiny model to train, but in modules with `DRAWS`."""
    if getattr(request.module, "DRAWS", False):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mfpo_trl.card.model_card.write_curves", lambda folder, log_history: None)
        yield
