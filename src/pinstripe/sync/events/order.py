"""Decides which state of each object a page of events leaves, and whether their order is certain.

Pure. Events carry whole seconds, and one action makes several in the same second. The order of Stripe's
list decides, if the chain of `previous_attributes` agrees with it. Where it does not, the object is
fetched. (https://docs.stripe.com/api/events/object: `previous_attributes` holds "the names of the updated
attributes and their values prior to the event".)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from pinstripe.catalog.relations import deletes
from pinstripe.client.response import StripeObject
from pinstripe.rows.event import created_of, payload, previous_attributes, request_of
from pinstripe.rows.extract import key_of
from pinstripe.store.refetch import Refetch, RefetchKind


@dataclass(frozen=True, slots=True)
class ObjectChange:
    """The net effect of the events of one object.

    `is_ordered`: `object` is the newest state that they show. `is_foreign_version`: it was rendered in
    another API version than ours, or an event resembles a deletion that is not reviewed. `deleted`: it is
    gone. `is_creation`: one of the events reports its creation. `previous`: the values before, of all that
    changed. `events`: all of them, newest first.
    """

    name: str
    key: str
    object: StripeObject
    created: int
    is_ordered: bool
    is_foreign_version: bool
    deleted: bool
    event_id: str
    request_id: str
    is_creation: bool
    previous: StripeObject
    events: Sequence[StripeObject] = ()

    def befores(self) -> list[StripeObject]:
        """Return what the object was right before its last changes, the latest first, as far as the chain
        of `previous_attributes` tells.

        A row that holds one of these is older than `object`, whatever the clocks say.
        """
        found: list[StripeObject] = []
        for event in self.events:
            after, previous = payload(event), previous_attributes(event)
            if found and _plain(after) != _plain(found[-1]):
                break
            if not previous and not is_deletion(event):
                break
            found.append(_undone(after, previous))
        return found

    def refetch(self, kind: RefetchKind, table: str, key: str, *, parent: str = "") -> Refetch:
        """Return a refetch whose cause is this change."""
        return Refetch(kind, table, key, parent, self.created, self.request_id, self.event_id)


def changes(events: Sequence[StripeObject], api_version: str) -> list[ObjectChange]:
    """Return one change for each object with a key, from events in Stripe's order (newest first)."""
    by_object: dict[tuple[str, str], list[StripeObject]] = {}
    for event in events:
        obj = payload(event)
        name = str(obj.get("object"))
        key = key_of(name, obj)
        if key:
            by_object.setdefault((name, key), []).append(event)
    return [_change(name, key, found, api_version) for (name, key), found in by_object.items()]


def is_deletion(event: StripeObject) -> bool:
    """Whether Stripe has deleted the object. A cancelled subscription lives on."""
    return deletes(str(event.get("type"))) is True


def _change(name: str, key: str, found: list[StripeObject], api_version: str) -> ObjectChange:
    newest = max(created_of(e) for e in found)
    # Oldest first, as they happened if the order of the list is right.
    last_second = [e for e in reversed(found) if created_of(e) == newest]
    # A deletion is the last event of an object, wherever it stands in the list, unless it was created again
    # under an id that its user chose: set-up scripts do that with plans within a second.
    last_second.sort(key=is_deletion)
    is_remade = is_deletion(last_second[-1]) and any(map(_is_creation, last_second))
    last = last_second[-1]
    return ObjectChange(
        name=name,
        key=key,
        object=payload(last),
        created=newest,
        is_ordered=not is_remade and _is_chain(last_second),
        is_foreign_version=any(_is_hint(e, api_version) for e in last_second),
        deleted=is_deletion(last),
        event_id=str(last.get("id")),
        request_id=request_of(last),
        is_creation=any(_is_creation(e) for e in found),
        previous={k: v for e in found for k, v in previous_attributes(e).items()},
        events=found,
    )


def _is_hint(event: StripeObject, api_version: str) -> bool:
    return event.get("api_version") != api_version or deletes(str(event.get("type"))) is None


def _is_chain(events: Sequence[StripeObject]) -> bool:
    """Whether the state of each event follows from the one before it, in this order."""
    return all(_follows(a, b) for a, b in itertools.pairwise(events))


def _follows(earlier: StripeObject, later: StripeObject) -> bool:
    before, after = payload(earlier), payload(later)
    if not before or not after:
        return False
    if is_deletion(later) or _plain(before) == _plain(after):
        return True
    if str(earlier.get("type")).endswith(".created") and not _is_creation(later):
        return True
    previous = previous_attributes(later)
    return bool(previous) and _plain(_undone(after, previous)) == _plain(before)


def _is_creation(event: StripeObject) -> bool:
    return str(event.get("type")).endswith(".created")


def _undone(after: StripeObject, previous: StripeObject) -> StripeObject:
    """Return the state before a change: `previous` laid over the state after it, hashes key by key."""
    before = dict(after)
    for key, value in previous.items():
        now = after.get(key)
        if isinstance(value, dict) and isinstance(now, dict) and "object" not in value:
            before[key] = _undone(cast("StripeObject", now), cast("StripeObject", value))
        else:
            before[key] = value
    return before


def _plain(value: object) -> object:
    """Return a comparable value: in a payload null equals absent, and the order of keys does not matter."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in sorted(value.items()) if v is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
