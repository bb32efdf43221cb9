"""Which objects events tell of, and of which they announce the birth and the end."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from pinstripe.catalog.load import spec

# Last words of event types that announce a new object.
_BIRTHS = ("created", "opened", "uploaded")
# A charge is born succeeded, failed or pending, and an event says which.
_ANNOUNCED_OTHERWISE = frozenset({"charge"})


@cache
def with_events() -> frozenset[str]:
    """Object names that some event carries."""
    return frozenset(name for event in spec().events for name in event.carries)


@cache
def announced() -> frozenset[str]:
    """Object names whose birth an event announces. The others appear without a word."""
    born = {
        name
        for event in spec().events
        if event.name.rsplit(".", 1)[-1] in _BIRTHS
        for name in event.carries
    }
    return frozenset(born) | _ANNOUNCED_OTHERWISE


def deletes(event_type: str) -> bool | None:
    """Whether Stripe has deleted what an event of this type carries; None where only its name says so.

    >>> deletes("plan.deleted"), deletes("customer.subscription.deleted"), deletes("novelty.deleted")
    (True, False, None)
    """
    return _deletes().get(event_type, None if event_type.endswith(".deleted") else False)


@cache
def _deletes() -> Mapping[str, bool | None]:
    return {event.name: event.deletes for event in spec().events}
