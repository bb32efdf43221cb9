"""How often the live reader looks, and what it shows of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Pace:
    """How often to look. Seconds; the settings of the same names."""

    poll_s: float = 0.5
    window_s: float = 600.0
    near_window_s: float = 60.0
    near_every_s: float = 5.0
    window_every_s: float = 60.0


@dataclass(slots=True)
class Seen:
    """What `Live` shows of itself."""

    as_of: float = 0.0
    events: int = 0
    polls: int = 0
    late: int = 0
    trouble: str = ""
    remedy: str = ""
    _newest: int = 0
    _newest_read: int = 0
    """Seconds: of the newest event so far, and as it was when a reading last came to its end."""

    def applied(self, seconds: Sequence[int], *, since: float, ended: bool) -> None:
        """Counts events, by the second in which each was created, of a reading that `ended` with them.

        Late is what is older than an earlier reading has shown; pages of one go from new to old. What is
        from before `since` is just old: the first look at a quiet account shows that.
        """
        self.events += len(seconds)
        self.late += sum(since <= second < self._newest_read - 1 for second in seconds)
        self._newest = max(self._newest, *seconds, 0)
        if ended:
            self._newest_read = self._newest
