"""How Python's and C's allocators are set for a process that reads pages for hours.

Decoded pages are hundreds of thousands of small objects a second, none of them in a cycle, in bodies of
hundreds of KB. With the defaults the cycle collector takes an eighth of all CPU looking at them, and
freed bodies leave holes that grow the process by tens of MB.
"""

from __future__ import annotations

import ctypes
import gc
import sys

_GENERATIONS = (50_000, 20, 20)
"""Collections by generation: the youngest after so many new containers, about ten pages."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Names of mallopt(3) in glibc's malloc.h."""
_LARGE_BYTES = 64 * 1024
"""Blocks from this size come from the kernel and go back to it when freed. Left to itself, glibc
raises the threshold to the largest block that was ever freed."""
_SPARE_BYTES = 1024 * 1024


def set_allocators() -> None:
    """Once, at the start. Where C's allocator is not glibc's, only Python's is set."""
    gc.set_threshold(*_GENERATIONS)
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _SPARE_BYTES)
        mallopt(_M_ARENA_MAX, 1)


def freeze_loaded() -> None:
    """What is loaded now stays for good: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
