"""`mfpo train` as a module, which launchers start on each device."""

from ..leaving import run
from .command import main

if __name__ == "__main__":
    run(main)
