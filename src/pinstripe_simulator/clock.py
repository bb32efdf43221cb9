"""The simulator's own clock: real time plus an offset, or frozen and stepped by hand.

Everything that Stripe would stamp (`created`, `Date`, rate windows stay on real time) asks here, so
that a test can move Stripe's time against ours and hold it still.
"""

from __future__ import annotations

import time


class Clock:
    """Seconds since the epoch on Stripe's side of the wire."""

    def __init__(self) -> None:
        self._offset_s = 0.0
        self._frozen_at: float | None = None

    def now(self) -> float:
        if self._frozen_at is not None:
            return self._frozen_at
        return time.time() + self._offset_s

    def seconds(self) -> int:
        """`now` as Stripe prints it: whole seconds."""
        return int(self.now())

    def shift(self, offset_s: float) -> None:
        """Run `offset_s` seconds ahead of (or behind) the machine's clock."""
        self._offset_s = offset_s
        self._frozen_at = None

    def freeze(self, at: float | None = None) -> None:
        """Stand still, at `at` or at the present moment."""
        self._frozen_at = self.now() if at is None else at

    def step(self, seconds: float) -> None:
        """Move a frozen clock; a running one gets a larger offset."""
        if self._frozen_at is not None:
            self._frozen_at += seconds
        else:
            self._offset_s += seconds

    def thaw(self) -> None:
        """Run on in real time from wherever the clock stands."""
        if self._frozen_at is not None:
            self._offset_s = self._frozen_at - time.time()
            self._frozen_at = None
