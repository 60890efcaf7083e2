"""`mfpo train` as a module, which launchers start on each device."""

from ..leaving import run
from ..terminal import quiet


def main() -> int:
    """What `mfpo train` does with the arguments of this process."""
    with quiet():
        from .start import main as train

        return train()


if __name__ == "__main__":
    run(main)
