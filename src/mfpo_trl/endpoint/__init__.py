"""Questions to a server that speaks OpenAI's chat completions, and answers that are kept."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
