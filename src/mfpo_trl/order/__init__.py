"""In which order the rows come: grouped by prompt, or from easy to hard."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
