"""The only room that knows what TRL, transformers and datasets keep private, and the contract that they must meet."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
