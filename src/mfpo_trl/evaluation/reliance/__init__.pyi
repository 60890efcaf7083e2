from .command import run_reliance as run_reliance
