"""What is scored, what is lost and what is logged: branches, terms, metrics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
