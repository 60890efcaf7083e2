"""From an image to a dispreferred image: (image, region, generator) -> image, one function each.

Every function returns a picture of the image's size that is right inside of the region; `corrupt` takes that part of it only, so
that every pixel outside stays bit-identical. Images are (H, W, 3) uint8 arrays in RGB, regions (H, W) bool. Keyword-only
parameters with a default are a corruption's options; those without one are what a row's surroundings give, another row's image.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
