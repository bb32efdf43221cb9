"""The events of before the start: computed, each about an object that was made just then.

Event number n of the `event` table takes its type from a fixed cycle and, for its object, the
newest one of that type that existed at the event's second. Objects from the start never changed
before it, so the payload is the object itself.
"""

from __future__ import annotations

from pinstripe_simulator.shape import Sample, hole
from pinstripe_simulator.table import Table

_CYCLE = (
    ("charge.succeeded", "charge"),
    ("payment_intent.created", "payment_intent"),
    ("payment_intent.succeeded", "payment_intent"),
    ("invoice.created", "invoice"),
    ("invoice.finalized", "invoice"),
    ("invoice.paid", "invoice"),
    ("customer.created", "customer"),
    ("customer.subscription.created", "subscription"),
    ("customer.updated", "customer"),
    ("payment_method.attached", "payment_method"),
    ("checkout.session.completed", "checkout.session"),
    ("refund.created", "refund"),
)


def event_sample(version: str, livemode: bool) -> Sample:
    """What all computed events share."""
    return {
        "id": hole("id"),
        "object": "event",
        "api_version": version,
        "created": hole("t+0"),
        "data": {"object": hole("subject:")},
        "livemode": livemode,
        "pending_webhooks": 0,
        "request": {"id": None, "idempotency_key": None},
        "type": hole("event-type"),
    }


def event_type(index: int) -> str:
    return _CYCLE[index % len(_CYCLE)][0]


def subject_type(index: int) -> str:
    """The type of the object that the event at `index` is about."""
    return _CYCLE[index % len(_CYCLE)][1]


def subject(table: Table, created: int) -> int:
    """Position of the newest object that was there at the start and existed at `created`."""
    return max(0, table.timeline.rank(created + 1) - 1)
