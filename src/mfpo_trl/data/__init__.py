"""From a text-preference data set to one with dispreferred images (`mfpo build`): sources, key words, regions, difficulty."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
