from .story import run as run
