"""Rounds of pairs -> training -> score, each from the policy of the one before (`mfpo loop`)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
