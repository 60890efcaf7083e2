from .command import run_merge as run_merge
