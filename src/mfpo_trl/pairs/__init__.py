"""From images and prompts to preference rows (`mfpo pairs`): a model's own answers, told apart by a verifier."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
