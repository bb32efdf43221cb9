"""What the event log tells of an object that Stripe has no other way to show.

A discount, a card, a hold on reserves: there is no address to fetch it from. Where two of its states
share a second and came apart, the log is read again around that second: its order tells the newest.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from math import ceil, floor
from typing import cast

from pinstripe.catalog.evented import deletes
from pinstripe.catalog.load import spec
from pinstripe.client.pages import pages
from pinstripe.errors import NotEnabled, NotPermitted
from pinstripe.mirror import Truth
from pinstripe.rows.decode import StripeObject
from pinstripe.rows.extract import Found
from pinstripe.rows.keys import key_of
from pinstripe.source.account import LIVE, Source
from pinstripe.source.page import read_list
from pinstripe.store.changes import Cause
from pinstripe.store.ddl import qualified, quote

_EVENTS = "/v1/events"
_MOST_TYPES = 20
"""Event types that one request may name (https://docs.stripe.com/api/events/list)."""


async def write_as_told(source: Source, table: str, key: str, over: datetime) -> bool:
    """Puts what the newest event of that time tells in place of this version of the row.

    False where no event tells anything of it.
    """
    known = source.wanted[table]
    async with source.pool.acquire() as connection:
        span = await connection.fetchrow(
            "SELECT extract(epoch FROM _as_of)::float8, extract(epoch FROM _as_of_latest)::float8 "
            f"FROM {qualified(source.mirror.schema, table)} WHERE {quote(known.key[0])} = $1",
            key,
        )
    if span is None:
        return False
    try:
        event = await _newest(source, table, key, floor(span[0]), ceil(span[1]))
    except (NotPermitted, NotEnabled):
        return False
    if event is None:
        return False
    obj = _payload(event)
    if known.deletable and deletes(str(event.get("type"))):
        obj = {**obj, "deleted": True}
    found = Found()
    source.mirror.extractor.object(obj, found)
    second = float(cast("int", event["created"]))
    truth = Truth(second, second + 1.0, Cause(str(event.get("id")), _request(event)))
    await source.mirror.put(found, truth, over={(table, key): over})
    return True


async def _newest(
    source: Source, table: str, key: str, since: int, until: int
) -> StripeObject | None:
    """The first event in Stripe's order, newest first, that tells of the object in this time."""
    params = [("created[gte]", str(since)), ("created[lte]", str(until))]
    async for page in pages(
        source.stripe,
        _EVENTS,
        [*params, *(("types[]", name) for name in _types(source.wanted[table].object_type))],
        endpoint=f"GET {_EVENTS}",
        priority=LIVE,
    ):
        for event in read_list(page.reply, _EVENTS).objects:
            obj = _payload(event)
            name = str(obj.get("object"))
            if name == source.wanted[table].object_type and key_of(name, obj) == key:
                return event
    return None


def _types(name: str) -> Sequence[str]:
    """Types of events that carry objects of this type; none, that is any, where they are too many."""
    found = [e.name for e in spec().events if name in e.carries]
    return found if len(found) <= _MOST_TYPES else ()


def _payload(event: StripeObject) -> StripeObject:
    data = event.get("data")
    obj = data.get("object") if isinstance(data, dict) else None
    return cast("StripeObject", obj) if isinstance(obj, dict) else {}


def _request(event: StripeObject) -> str:
    request = event.get("request")
    found = request.get("id") if isinstance(request, dict) else request
    return found if isinstance(found, str) else ""
