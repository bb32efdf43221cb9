"""The event log: what happened, as `/v1/events` tells it, late events and forgetting included.

New events are kept as they were when they happened; the log's first events are computed. Ids
follow the order of the index and so tell nothing of time. An event may show up late, behind newer
ones; after 30 days it is gone. Which types exist, and for which objects there is none at all, is
the catalog's word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from random import Random

import msgspec

from pinstripe_simulator.first_events import event_type
from pinstripe_simulator.table import StripeObject
from pinstripe_simulator.versions import rendered
from pinstripe_simulator.world import World

RETENTION_S = 30 * 86_400
_MOST_KEPT = 300_000
"""New events kept in memory; older ones count as forgotten."""

# Where the type's name does not follow from the object's (the catalog knows what each carries).
_PREFIX = {
    "charge": "charge",
    "dispute": "charge.dispute",
    "discount": "customer.discount",
    "subscription": "customer.subscription",
    "tax_id": "customer.tax_id",
    "card": "customer.source",
    "source": "customer.source",
    "bank_account": "account.external_account",
}


@dataclass
class Lateness:
    """`share` of the events become visible only `delay_s` to twice that after they happened."""

    share: float = 0.0
    delay_s: float = 5.0


@dataclass(frozen=True)
class Cause:
    """The request behind an event; Stripe's own doings have none."""

    request_id: str | None = None
    idempotency_key: str | None = None


STRIPE_ITSELF = Cause()


class EventLog:
    """Appends events to the `event` table. `version` gives the account's API version now."""

    def __init__(
        self,
        world: World,
        types: frozenset[str],
        *,
        version: Callable[[], str],
        clock: Callable[[], float],
        seed: int,
    ) -> None:
        self._world = world
        self._table = world.tables["event"]
        self._known = types
        self._version = version
        self._clock = clock
        self._seed = seed
        self.lateness = Lateness()
        self.unseen: dict[int, float] = {}
        """Positions of late events -> when they become visible."""
        self.heard: list[Callable[[StripeObject], None]] = []
        """Called with each new event (webhooks)."""
        self._types: list[str] = []
        self._oldest_kept = self._table.base
        self.world_livemode = world.plan.livemode

    @cached_property
    def _dice(self) -> Random:
        return Random(f"{self._seed}/events")  # noqa: S311 - a dice, not a secret

    def name(self, type_name: str, verb: str) -> str:
        """The event type for `verb` on an object, "" where Stripe has none."""
        prefix = _PREFIX.get(type_name, type_name)
        for guess in (f"{prefix}.{verb}", f"{prefix.replace('.', '_', 1)}.{verb}"):
            if guess in self._known:
                return guess
        return ""

    def add(
        self,
        name: str,
        found: StripeObject,
        *,
        previous: StripeObject | None = None,
        cause: Cause = STRIPE_ITSELF,
    ) -> StripeObject | None:
        """The event, now in the log; None (and nothing logged) if Stripe has no such type."""
        if name not in self._known:
            return None
        version = self._version()
        payload: StripeObject = {"object": rendered(found, version)}
        if name == "invoice.upcoming":
            payload["object"] = {k: v for k, v in payload["object"].items() if k != "id"}
            _forget_line_ids(payload["object"])
        if previous is not None:
            payload["previous_attributes"] = previous
        table = self._table
        position = table.add(self._world.now())
        event: StripeObject = {
            "id": table.id_at(position),
            "object": "event",
            "api_version": version,
            "created": table.created_at(position),
            "data": payload,
            "livemode": self.world_livemode,
            "pending_webhooks": 0,
            "request": {"id": cause.request_id, "idempotency_key": cause.idempotency_key},
            "type": name,
        }
        table.store(position, event)
        self._types.append(name)
        late = self.lateness
        if late.share and self._dice.random() < late.share:
            self.unseen[position] = self._clock() + late.delay_s * (1 + self._dice.random())
        self._forget()
        for hear in self.heard:
            hear(event)
        return event

    def _forget(self) -> None:
        if self._table.total - self._oldest_kept > _MOST_KEPT:
            self._table.delete(self._oldest_kept, self._world.now())
            self._oldest_kept += 1

    def visible(self, position: int) -> bool:
        """Whether a reader may see the event yet."""
        due = self.unseen.get(position)
        if due is None:
            return True
        if due > self._clock():
            return False
        del self.unseen[position]
        return True

    def readable(self, position: int) -> bool:
        """Whether a retrieve finds the event: retained and visible."""
        return position >= self.oldest() and self.visible(position)

    def type_at(self, position: int) -> str:
        base = self._table.base
        return event_type(position) if position < base else self._types[position - base]

    def oldest(self) -> int:
        """The first position inside Stripe's retention."""
        return self._table.rank(self._world.now() - RETENTION_S)


def difference(before: StripeObject, after: StripeObject) -> StripeObject:
    """`previous_attributes`: what changed, as it was; null for what was not there."""
    changed: StripeObject = {}
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict) and old.get("object") != "list":
            changed[key] = difference(old, new)
        else:
            changed[key] = old
    return changed


def _forget_line_ids(invoice: StripeObject) -> None:
    for line in invoice.get("lines", {}).get("data", []):
        line["id"] = None


def copy(found: StripeObject) -> StripeObject:
    """A deep copy that shares nothing."""
    made: StripeObject = msgspec.json.decode(msgspec.json.encode(found))
    return made
