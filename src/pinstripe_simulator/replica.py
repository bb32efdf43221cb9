"""Reads of a replica that is behind: the account as it was a moment ago.

Every write to a table leaves here how to undo it. A stale read takes the writes of the last seconds
back, is answered, and puts them forward again, all without letting go of the loop: nobody else ever
sees the account like that. Seconds are those of the account's own clock, so that a frozen clock
that is stepped by hand makes reads stale too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Undo = Callable[[], Callable[[], None]]
"""Takes a write back; gives what makes it again."""

_MOST = 50_000
"""Writes remembered; older ones can no longer be taken back."""


class History:
    """The writes of the last `keep_s` seconds; 0 remembers none. `now` tells their time."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._writes: deque[tuple[float, Undo]] = deque(maxlen=_MOST)
        self.keep_s = 0.0

    def note(self, undo: Undo) -> None:
        """Remember a write that was just made."""
        now = self._now()
        if self._writes and self._writes[-1][0] > now:
            self._writes.clear()  # The clock was set back: how old these are is not known any more.
        while self._writes and self._writes[0][0] < now - self.keep_s:
            self._writes.popleft()
        self._writes.append((now, undo))

    @contextmanager
    def as_of(self, age_s: float) -> Iterator[None]:
        """Inside the block, the tables are as they were `age_s` seconds ago."""
        since = self._now() - age_s
        again: list[Callable[[], None]] = []
        for at, undo in reversed(self._writes):
            if at <= since:
                break
            again.append(undo())
        try:
            yield
        finally:
            for redo in reversed(again):
                redo()
