"""Reads the fields of a snapshot event (https://docs.stripe.com/api/events/object).

Events are JSON from outside: every function here takes any object, and returns an empty value where the
field is absent or of another type.
"""

from __future__ import annotations

from typing import cast

from pinstripe.client.response import Cause, StripeObject
from pinstripe.rows.converters import MAX_SECONDS

EVENTS = "/v1/events"
"""The list of them."""


def payload(event: StripeObject) -> StripeObject:
    """`data.object`: the object as it was after the event."""
    return _in_data(event, "object")


def previous_attributes(event: StripeObject) -> StripeObject:
    """The values that the event's change replaced, by the object's fields."""
    return _in_data(event, "previous_attributes")


def created_of(event: StripeObject) -> int:
    """The second of the event; 0 where it is absent or no time that Postgres can hold."""
    created = event.get("created")
    return created if isinstance(created, int) and 0 <= created <= MAX_SECONDS else 0


def request_of(event: StripeObject) -> str:
    """`req_…` of the request that caused it, "" where Stripe did. Until 2017 it was a plain string."""
    request = event.get("request")
    request_id = request.get("id") if isinstance(request, dict) else request
    return request_id if isinstance(request_id, str) else ""


def cause_of(event: StripeObject) -> Cause:
    """The event as the cause of a change, for the change feed."""
    return Cause(str(event.get("id") or ""), request_of(event))


def _in_data(event: StripeObject, name: str) -> StripeObject:
    data = event.get("data")
    value = data.get(name) if isinstance(data, dict) else None
    return cast("StripeObject", value) if isinstance(value, dict) else {}
