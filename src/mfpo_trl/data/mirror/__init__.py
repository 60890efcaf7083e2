"""`mfpo build --mirror`: an edited image with the answer that is true of it, beside the row that it was made of."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
