"""How far another clock is ahead of ours, from answers that each say a little.

Every answer of Stripe's carries its time in whole seconds; it was made between our asking and our
having it. One answer tells the difference to a second and its own way; the common part of a hundred of
them is narrow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class ClockDifference:
    """Bounds on (their clock - ours), in seconds."""

    least: float = -math.inf
    most: float = math.inf

    def heard(self, said: float, *, resolution: float, asked: float, came: float) -> None:
        """They said `said`, cut to `resolution`, between `asked` and `came` of our clock."""
        self.least = max(self.least, said - came)
        self.most = min(self.most, said + resolution - asked)

    @property
    def known(self) -> bool:
        return math.isfinite(self.least) and math.isfinite(self.most)

    @property
    def ahead_s(self) -> float:
        """The middle of what is possible."""
        return (self.least + self.most) / 2

    @property
    def within_s(self) -> float:
        """How far off `ahead_s` may be. Servers that disagree among themselves make it 0, not less."""
        return max(0.0, (self.most - self.least) / 2)
