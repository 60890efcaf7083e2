"""Which claims of an answer are true of its picture (`build_verifier`)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
