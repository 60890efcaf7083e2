"""`python benchmarks/laboratory`."""

import sys
from pathlib import Path

# The package, and not this file's folder, whose modules import each other by it; also for the processes that are started.
sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":
    from laboratory.command import main

    raise SystemExit(main())
