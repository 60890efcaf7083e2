"""What goes to the Hugging Face Hub, by `mfpo push` and by every training and build."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
