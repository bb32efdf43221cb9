"""How often the live reader looks, and what it shows of itself."""

from __future__ import annotations

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
    newest: int = 0
    trouble: str = ""
    remedy: str = ""
