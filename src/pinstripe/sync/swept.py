"""How far back the event log has to be read again for what may have come late.

A sweep that reads everything since `began - late_s`, where `began` is when the last such sweep began,
misses nothing that shows up at most `late_s` after it was created. Sweeps for longer lateness count for
shorter ones too, so one that is asked for often reads little.
"""

from __future__ import annotations

MARGIN_S = 2.0
"""`created` is cut to the second, and Stripe's clock is known to about one."""


class Swept:
    """When sweeps began, on Stripe's clock, by the lateness (seconds) that they are good for.

    >>> swept = Swept(1000.0)
    >>> swept.since(300.0)
    698.0
    >>> swept.note(1060.0, 300.0)
    >>> swept.note(1065.0, 30.0)
    >>> swept.since(300.0), swept.since(0.5)
    (758.0, 1062.5)
    """

    def __init__(self, began: float) -> None:
        """Up to `began` everything has been read, however late."""
        self._began = {float("inf"): began}

    def since(self, late_s: float) -> float:
        """Where the next sweep for this lateness begins."""
        began = max(when for late, when in self._began.items() if late >= late_s)
        return began - late_s - MARGIN_S

    def note(self, began: float, late_s: float) -> None:
        """A sweep from `since(late_s)` or earlier to the end of the list, which began then."""
        # What is good for less and older is of no more use: a handful stays.
        self._began = {
            late: when for late, when in self._began.items() if late > late_s or when > began
        }
        self._began[late_s] = began
