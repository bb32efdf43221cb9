"""A command of ours in a process whose wall clock is wrong by what a file says, and may step at any time.

    python -m tests.flows.skewed FILE sync --once

The file holds the seconds to add, as a double. Only `time.time` is bent: monotonic clocks never step.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from pathlib import Path


def set_skew(path: Path, seconds: float) -> None:
    """From now on the clock of whoever runs with this file is wrong by so much."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.write(struct.pack("d", seconds))


def _bend(path: str) -> None:
    with Path(path).open("rb") as file:
        told = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    honest = time.time

    def bent() -> float:
        return honest() + float(struct.unpack("d", told[:8])[0])

    time.time = bent


if __name__ == "__main__":
    _bend(sys.argv[1])
    from pinstripe.cli import main

    sys.argv = ["pinstripe", *sys.argv[2:]]
    sys.exit(main())
