"""The interval of time for which a snapshot of an object is known to be true, and what made it known."""

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
    """What made Stripe change an object, as far as it is known: `evt_…` and `req_…`, or ""."""

    event_id: str = ""
    request_id: str = ""


def as_of_response(response: Response, cause: Cause | None = None) -> AsOf:
    """When the reply was true. `cause`: what made us ask, for the change feed."""
    return AsOf(response.not_before, response.not_after, cause)
