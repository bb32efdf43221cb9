"""The interval in which a snapshot of an object was taken, and the cause of the state that it shows."""

from __future__ import annotations

from dataclasses import dataclass

from pinstripe.client.response import Response


@dataclass(frozen=True, slots=True)
class AsOf:
    """The interval on Stripe's clock, Unix seconds, in which a snapshot was taken: [lo, hi).

    `cause`: the event or request that made Stripe change the object, for the change feed.
    """

    lo: float
    hi: float
    cause: Cause | None = None

    def union(self, other: AsOf) -> AsOf:
        """The interval of two pages that are applied as one."""
        return AsOf(min(self.lo, other.lo), max(self.hi, other.hi))


@dataclass(frozen=True, slots=True)
class Cause:
    """The event (`evt_…`) and the request (`req_…`) that changed an object; "" where unknown."""

    event_id: str = ""
    request_id: str = ""


def as_of_response(response: Response, cause: Cause | None = None) -> AsOf:
    """The interval of a response. `cause`: what led to the request, for the change feed."""
    return AsOf(response.not_before, response.not_after, cause)
