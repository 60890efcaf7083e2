"""Modality-Fair Preference Optimization for vision-language models, as a plugin for TRL.

The public names are imported on first use, so that `import mfpo_trl` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME_OF = {
    "MFPOConfig": "config",
    "MFPOTrainer": "trainer",
    "MFPOCollator": "batch",
    "image_loss": "objective",
    "anchor_loss": "objective",
    "corrupt": "images",
}
__all__ = [*_HOME_OF, "__version__"]

if TYPE_CHECKING:
    from .batch import MFPOCollator
    from .config import MFPOConfig
    from .images import corrupt
    from .objective import anchor_loss, image_loss
    from .trainer import MFPOTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
