"""What Stripe says of one event: when it was made, and which object it speaks of."""

from __future__ import annotations

from dataclasses import dataclass

from pinstripe.catalog.tables import table_of_object
from pinstripe.client.paths import quote_id
from pinstripe.gateway.syncs import OpenSync
from pinstripe.source.account import LIVE, retrieve_endpoint
from pinstripe.source.page import read_object


@dataclass(frozen=True, slots=True)
class Carried:
    """`table` is "" where the object is not synced, or cannot be fetched by its id."""

    created: float
    table: str
    key: str


async def ask_event(sync: OpenSync, event_id: str) -> Carried:
    """Asks Stripe for an event. Raises NotFound where it does not know it (any more)."""
    path = "/v1/events/{id}"
    reply = await sync.source.stripe.get(
        path.replace("{id}", quote_id(event_id)), endpoint=f"GET {path}", priority=LIVE
    )
    event = read_object(reply, path)
    created, data = event.get("created"), event.get("data")
    carried = data.get("object") if isinstance(data, dict) else None
    name, key = (
        (carried.get("object"), carried.get("id")) if isinstance(carried, dict) else ("", "")
    )
    table = table_of_object().get(str(name), "")
    is_known = isinstance(key, str) and table in sync.source.wanted
    if not is_known or retrieve_endpoint(table) is None:
        table = ""
    return Carried(float(created) if isinstance(created, int) else 0.0, table, str(key))
