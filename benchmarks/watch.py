"""CPU and memory of processes, as Linux tells them in /proc.

CPU of a tree of processes: what its root and its living descendants used, and what the root has
collected from children that ended (a Postgres backend ends with its connection).
"""

from __future__ import annotations

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Seconds of CPU of one process, without its children; 0 if it is gone."""
    return sum(_times(pid)[:2])


def tree_cpu_s(root: int) -> float:
    """Seconds of CPU of a process and of all that it started."""
    own = sum(_times(root))
    return own + sum(sum(_times(pid)) for pid in _descendants(root))


def peak_rss_mb(pid: int) -> float:
    """The most that the process ever had in memory; 0 if it is gone."""
    return _status_mb(pid, "VmHWM:")


def rss_mb(pid: int) -> float:
    """What the process has in memory now; 0 if it is gone."""
    return _status_mb(pid, "VmRSS:")


def _status_mb(pid: int, field: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    found = (line.split()[1] for line in lines if line.startswith(field))
    return int(next(found, "0")) / 1024


def _times(pid: int) -> tuple[float, float, float, float]:
    """User and system seconds of the process, and of children that it has waited for."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return (0.0, 0.0, 0.0, 0.0)
    # The name stands in parentheses and may hold anything; 14 to 17 of proc(5) come after it.
    fields = text.rpartition(")")[2].split()
    user, system, ended_user, ended_system = (int(f) / _TICKS for f in fields[11:15])
    return (user, system, ended_user, ended_system)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parent = int(text.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        mine = children.get(waiting.pop(), [])
        found += mine
        waiting += mine
    return found
