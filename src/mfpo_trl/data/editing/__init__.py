"""What is done to a picture inside of a region: a generative model fills it, another object takes its place."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
