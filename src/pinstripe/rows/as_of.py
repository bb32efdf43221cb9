"""The interval in which a snapshot of an object was taken, and the cause of the state that it shows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from pinstripe.client.response import Response


@dataclass(frozen=True, slots=True)
class AsOf:
    """The interval on the clock of `event.created`, Unix seconds, in which a snapshot was taken: [lo, hi).

    `cause`: the event or request that made Stripe change the object, for the change feed. `known_until`:
    whatever was written until then, on Postgres's clock, Stripe knew when it made the snapshot.
    """

    lo: float
    hi: float
    cause: Cause | None = None
    known_until: datetime | None = None

    def union(self, other: AsOf) -> AsOf:
        """The interval of two pages that are applied as one."""
        known = [k for k in (self.known_until, other.known_until) if k is not None]
        return AsOf(
            min(self.lo, other.lo),
            max(self.hi, other.hi),
            self.cause or other.cause,
            min(known) if len(known) == 2 else None,
        )


@dataclass(frozen=True, slots=True)
class Cause:
    """The event (`evt_…`) and the request (`req_…`) that changed an object; "" where unknown."""

    event_id: str = ""
    request_id: str = ""


def as_of_response(
    response: Response, cause: Cause | None = None, *, started: datetime | None = None
) -> AsOf:
    """The interval of a read, margins included. `cause`: what led to it, for the change feed.

    `started`: a moment before the request, on Postgres's clock. A replica that is behind shows what Stripe
    knew a little before.
    """
    lag = timedelta(seconds=response.margins.replica_lag_s)
    return AsOf(*response.read_interval(), cause, None if started is None else started - lag)
