"""`mfpo merge`: the weights of a model with its adapter in them, and how far they lie from the unmerged ones."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
