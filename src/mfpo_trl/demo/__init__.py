"""A tiny world on a CPU: scenes, a captioner that presumes, and DPO, DPO with an anchor and MFPO side by side."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
