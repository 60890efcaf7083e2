"""Rows of a file, a folder or the Hub, in a publisher's columns -> rows in ours."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
