"""The recipes and launch configurations that come with the package, found by their names; `mfpo recipes`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
