"""A figure is a function of sums of counts per item: intervals, paired tests, and their tables; answers by their ids."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
