"""`mfpo score`: a file of answers -> the official scripts' figures, one file a benchmark."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
