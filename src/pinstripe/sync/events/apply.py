"""Turns events into the rows that they leave and the refetches that they need.

    events -> `changes`: one for each object, pure -> parts for the mirror, refetches

Each state is written as true in the second of its event. Events carry whole seconds, and one action makes
several in the same second. The order of Stripe's list decides, if the chain of `previous_attributes` ("the
names of the updated attributes and their values prior to the event", https://docs.stripe.com/api/events/object)
agrees with it. Where it does not, or the state is one of another API version, the object is fetched.

Objects without events of their own are found by relation: a charge's event names its balance transaction, a
setup intent's means a new attempt (https://docs.stripe.com/api/events/types lists all types). The catalog
decides which types there are and which have a table; nothing here knows an event by its name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import cast

import structlog

from pinstripe.catalog.embedded import present_in
from pinstripe.catalog.endpoints import (
    EXPANDED_IN_LISTS,
    can_be_fetched,
    expand_of,
    has_address,
    list_endpoints,
    retrieve_endpoints,
)
from pinstripe.catalog.model import object_types
from pinstripe.catalog.relations import announced, deletes, with_events
from pinstripe.catalog.tables import PAYOUT_LINES, Column, Table, table_name, table_of_object
from pinstripe.client.rate_limit import WorkClass
from pinstripe.client.response import AsOf, Cause, StripeObject
from pinstripe.errors import PinstripeError
from pinstripe.mirror import Part
from pinstripe.mirror.upsert import STAGE_EXTRA
from pinstripe.rows.event import cause_of, created_of, payload, previous_attributes, request_of
from pinstripe.rows.extract import MemberSet, Row, RowSet, key_of
from pinstripe.source.resolve import shown_by
from pinstripe.source.source import Source, parent_of
from pinstripe.store.refetch import Refetch, RefetchKind

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

PreviewRefetches = Callable[[Sequence[StripeObject]], Awaitable[list[Refetch]]]
"""Events -> the refetches of previews that they need."""


class EventApplier:
    """Plans for one account. Writes nothing."""

    def __init__(self, source: Source, more: PreviewRefetches | None = None) -> None:
        self._source = source
        self._more = more
        self._table_of = table_of_object()

    async def plan(
        self,
        events: Sequence[StripeObject],
        listed_at: AsOf,
        *,
        late: Collection[str] = (),
        listed_until: float = 0.0,
    ) -> tuple[list[Part], list[Refetch]]:
        """Return what to write and what to fetch. `events` newest first; `listed_at`: when the list showed
        them; `late`: ids of those that it showed behind applied ones; `listed_until`: of an event of before
        this second a list that is read later has what it left.
        """
        extractor, wanted = self._source.mirror.extractor, self._source.wanted
        log = RowSet()
        for event in events:
            extractor.object(event, log)
        parts: list[Part] = [(log, listed_at)]
        refetches: list[Refetch] = []
        for change in changes(events, self._source.mirror.api_version):
            found = RowSet()
            is_listed, is_late = change.created < listed_until, change.event_id in late
            written, asked = self._state(change, found, is_listed=is_listed, is_late=is_late)
            refetches += self._mentioned(change, found)
            if written:
                if not is_late:
                    self._note_befores(change, found)
                cause = Cause(change.event_id, change.request_id)
                truth_then = AsOf(float(change.created), change.created + 1.0, cause=cause)
                parts.append((found, truth_then))
            refetches += asked
            refetches += related(change, wanted)
        for event in events:
            obj = payload(event)
            name = str(obj.get("object"))
            if key_of(name, obj) is None and name not in self._table_of:
                part, asked = self._rowless(event, obj)
                parts.append(part)
                refetches += asked
        if self._more is not None and events:
            try:
                refetches += await self._more(events)
            except PinstripeError as error:
                if error.fault is None or error.fault.scope != "table":
                    raise
                # A table through which previews are found is gone; the next refill requests all of them.
                _log.warning("applying.no_previews", error=error.message)
        return parts, refetches

    def _rowless(self, event: StripeObject, obj: StripeObject) -> tuple[Part, list[Refetch]]:
        """An object without a row of its own (an alert that was triggered): what it holds may have one."""
        found, second = RowSet(), created_of(event)
        asked = from_summary(event, self._source.wanted)
        if not asked:
            self._source.mirror.extractor.object(obj, found)
        elif event.get("api_version") == self._source.mirror.api_version:
            self._summarised(obj, asked[0], found)
        return (found, AsOf(float(second), second + 1.0, cause=cause_of(event))), asked

    def _summarised(self, obj: StripeObject, asked: Refetch, found: RowSet) -> None:
        """Add what a summary shows of its owner's list, which `asked` reads to its end."""
        parent, extractor = table_name(asked.parent), self._source.mirror.extractor
        for value in obj.values():
            entries = value.get("data") if isinstance(value, dict) else None
            if not isinstance(value, dict) or not isinstance(entries, list):
                continue
            shown = [e for e in entries if isinstance(e, dict)]
            keys = [extractor.object(e, found, parents={parent: asked.id}) for e in shown]
            members = frozenset(key for key in keys if key is not None)
            if value.get("has_more") is False and len(members) == len(entries):
                found.sets.append(MemberSet(parent, asked.id, "", members, (asked.table,)))

    def _note_befores(self, change: ObjectChange, found: RowSet) -> None:
        """Have the rows made that the object had before, if the mirror needs them."""
        table = self._table_of.get(change.name)
        if table is None or not (previous_attributes(change.events[0]) or change.deleted):
            return
        extractor = self._source.mirror.extractor

        def befores() -> list[Row]:
            rows: list[Row] = []
            for obj in change.befores():
                before = RowSet()
                key = extractor.object(obj, before)
                rows += [before.rows[table][key]] if key == change.key else []
            return rows

        found.befores[table, change.key] = befores

    def _mentioned(self, change: ObjectChange, found: RowSet) -> list[Refetch]:
        """Return fetches of what the change names and shows as of another time, unless it has a row."""
        return [
            change.refetch("relate", table, key)
            for table, key in sorted(found.elsewhere)
            if table in self._source.wanted and has_address(table)
        ]

    def _state(
        self, change: ObjectChange, found: RowSet, *, is_listed: bool, is_late: bool
    ) -> tuple[bool, list[Refetch]]:
        """Return the rows that one change leaves, or the refetch that will bring them.

        `is_listed`: a list has what the change left, unless a test clock of the past made it.
        """
        table = self._table_of.get(change.name)
        extractor, wanted = self._source.mirror.extractor, self._source.wanted
        parent = parent_of(change.object)
        fetch = change.refetch("fetch", table or "", change.key, parent=parent)
        if table is None:
            # Of a type that is still unknown, or one without a table: what it holds may have one.
            extractor.object(change.object, found)
            return True, []
        if table not in wanted:
            return False, []
        is_hint = change.is_foreign_version or not change.is_ordered or is_listed
        if is_hint and can_be_fetched(table):
            return False, [fetch]
        if is_listed:
            return False, []
        if change.deleted and wanted[table].deletable:
            # In another version the payload is only reliable about which object is gone.
            stub = {"id": change.key, "object": change.name}
            extractor.object(
                {**(stub if change.is_foreign_version else change.object), "deleted": True}, found
            )
            return True, []
        extractor.object(change.object, found)
        # The lists alone: that the event has told the object would make a GET of it sure, and what a
        # replica that is behind showed of its lists would stand.
        lists = [
            change.refetch(
                "nested", cut.child_table, cut.url, parent=f"{cut.parent_table} {cut.parent_id}"
            )
            for cut in found.lists
        ]
        if not is_hint:
            # What was in a list then may be gone by now; of a long one only a read of before has said so.
            again = is_late and (found.lists or found.sets) and can_be_fetched(table)
            return True, lists + ([replace(fetch, since=self._source.now())] if again else [])
        # Better than no row, until what shows the object in our version is fetched. Of the fields that the
        # other version has instead nothing would be said then.
        owners = shown_by(self._source, table, lambda column: _at(change.object, column))
        for *_, row in found.places() if owners else ():
            row[-len(STAGE_EXTRA)] = None
        return True, lists + [
            change.refetch(o.kind, o.table, o.id, parent=o.parent) for o in owners
        ]


# Child lists that change only if the event of the parent names one of these fields. Without this table
# every event of a customer would cost a request.
_ONLY_IF_CHANGED = {"customer_balance_transaction": ("balance", "account_balance")}
"""`account_balance`: its name until 2019-10-17."""

# Child lists that are empty while their parent names no such object.
_EMPTY_WITHOUT = {"setup_attempt": "latest_attempt"}

# Properties of which nothing depends that only `expand[]` shows, by type: an event that names no other as
# changed needs no fetch. Of the other types any may (docs/decisions/025).
_NOT_ON_REQUEST: Mapping[str, frozenset[str]] = {
    "customer": frozenset(
        {
            *("delinquent", "description", "email", "invoice_prefix", "metadata", "name"),
            *("next_invoice_sequence", "phone", "preferred_locales"),
        }
    ),
    "invoice": frozenset(
        {
            *("attempt_count", "attempted", "auto_advance", "custom_fields", "description"),
            *("due_date", "footer", "metadata", "next_payment_attempt", "webhooks_delivered_at"),
        }
    ),
}

# An object that changes another by being created, without an event of that: type -> the field that names
# it. A charge becomes `disputed`; `charge.updated` is sent for its description, its metadata and an
# asynchronous capture (https://docs.stripe.com/api/events/types#event_types-charge.updated).
_CHANGES = {"dispute": "charge"}

# Stripe refuses the lists of parents in which this field is not true.
_ONLY_IF_TRUE = {PAYOUT_LINES: "automatic"}


def related(change: ObjectChange, wanted: Mapping[str, Table]) -> list[Refetch]:
    table = wanted.get(table_of_object().get(change.name, ""))
    if table is None:
        return []
    lists = [
        change.refetch("children", child, change.key, parent=change.name)
        for child in _children(change.name)
        if child in wanted and _may_have_changed(child, change)
    ]
    if change.deleted:  # Or made again within the second, without what hung under it.
        return [] if change.is_ordered else lists
    found = [
        change.refetch("relate", target, key)
        for target, key in _references(table, change.object)
        if target in wanted
    ]
    found += [
        change.refetch("relate", "invoice_item", key, parent=invoice)
        for key, invoice in _pulled_in(change).items()
        if "invoice_item" in wanted
    ]
    other = _CHANGES.get(change.name, "")
    key = change.object.get(other) if change.is_creation else None
    if other in wanted and isinstance(key, str):
        found.append(change.refetch("fetch", other, key))
    found += lists
    where = retrieve_endpoints().get(table.object_type)
    if where is not None and where.expand and any(c.on_request for c in table.columns):
        # Payloads leave out what Stripe returns on request only. Where nothing is expanded (as for a
        # person's fields) a fetch would return no more.
        is_owed = not change.previous.keys() <= _NOT_ON_REQUEST.get(change.name, frozenset())
        is_owed = is_owed or change.is_creation or not change.previous
    else:
        is_owed = where is not None and any(_names(change, p) for p in _unaddressed(change.name))
    if is_owed:
        fetch = change.refetch("fetch", table.name, change.key, parent=parent_of(change.object))
        found.append(replace(fetch, work=WorkClass.RELATED))
    return found


def _names(change: ObjectChange, path: tuple[str, ...]) -> bool:
    """Whether the change has put an id where only `expand[]` shows the object."""
    if not change.is_creation and path[0] not in change.previous:
        return False
    values: list[object] = [change.object]
    for step in path:
        inner = [v.get(step) for v in values if isinstance(v, dict)]
        values = [e for v in inner for e in (v if isinstance(v, list) else [v])]
    return any(isinstance(value, str) for value in values)


@cache
def _unaddressed(name: str) -> tuple[tuple[str, ...], ...]:
    """Return the paths of `expand[]` to objects of this type that name others without an address:
    discounts.
    """
    table_of = {path: item.targets for path, item in present_in(name)}
    return tuple(
        tuple(path.split("."))
        for path in expand_of((name,))
        if "data" in path.split(".")
        or not set(table_of.get(path, ())) & retrieve_endpoints().keys()
    )


def from_summary(event: StripeObject, wanted: Mapping[str, Table]) -> list[Refetch]:
    """The list to read where an event only sums up what its owner has now (active entitlements)."""
    obj = payload(event)
    known = _summaries().get(str(obj.get("object")))
    if known is None or known[0] not in wanted:
        return []
    child, parent = known
    owner = obj.get(parent)
    if not isinstance(owner, str) or not owner:
        return []
    told = (created_of(event), request_of(event), str(event.get("id")))
    return [Refetch("children", child, owner, parent, *told)]


def _may_have_changed(child: str, change: ObjectChange) -> bool:
    """Whether the list under the parent can differ from what it was before this event."""
    if child in _EMPTY_WITHOUT and change.object.get(_EMPTY_WITHOUT[child], "") is None:
        return False
    condition = _ONLY_IF_TRUE.get(child)
    if condition is not None and not change.object.get(condition):
        return False
    fields = _ONLY_IF_CHANGED.get(child)
    if fields is None or not change.previous.keys().isdisjoint(fields):
        return True
    # A new balance of 0 has no history.
    return change.is_creation and any(map(change.object.get, fields))


def _pulled_in(change: ObjectChange) -> dict[str, str]:
    """Return the invoice items that an invoice has taken up, each with its id, and those that it had, with
    "": they change without an event of their own.
    """
    if change.name != "invoice":
        return {}
    had = dict.fromkeys(_items_of(change.previous), "")
    return had | dict.fromkeys(_items_of(change.object), change.key)


def _items_of(invoice: StripeObject) -> Iterator[str]:
    lines = invoice.get("lines")
    entries = lines.get("data") if isinstance(lines, dict) else None
    for line in entries if isinstance(entries, list) else ():
        parent = line.get("parent") if isinstance(line, dict) else None
        details = parent.get("invoice_item_details") if isinstance(parent, dict) else line
        # Until basil the line itself named it.
        key = details.get("invoice_item") if isinstance(details, dict) else None
        if isinstance(key, str):
            yield key


@cache
def _children(name: str) -> tuple[str, ...]:
    """Return the tables without events that are listed under an object of this type."""
    summed = frozenset(_summaries().values())
    return tuple(
        sorted(
            {
                table_name(child)
                for endpoint in list_endpoints()
                if endpoint.parent == name and name != "test_helpers.test_clock"
                for child in endpoint.objects
                if child not in with_events() and (table_name(child), name) not in summed
            }
        )
    )


@cache
def _summaries() -> Mapping[str, tuple[str, str]]:
    """Objects without an id that tell what list an owner has now: name -> (table, type of the owner).

    The owner stands in the field of that name.
    """
    found: dict[str, tuple[str, str]] = {}
    for name in with_events():
        known = object_types()[name]
        lists = {
            target for field in known.fields if field.kind == "list" for target in field.targets
        }
        for endpoint in () if known.has_id else list_endpoints():
            if endpoint.parent in {f.name for f in known.fields} and lists & {*endpoint.objects}:
                found[name] = (endpoint.tables[0], endpoint.parent)
    return found


@cache
def _eventless_targets() -> frozenset[str]:
    """Return the tables whose objects can be retrieved by their id alone, and appear without an event or a
    list that shows them (a mandate has an event only when it changes).
    """
    listed = {name for endpoint in list_endpoints() for name in endpoint.objects}
    return frozenset(
        table_name(name)
        for name, where in retrieve_endpoints().items()
        if not where.parent_parameter
        and (name not in with_events() or (name not in announced() and name not in listed))
    )


def _references(table: Table, obj: StripeObject) -> list[tuple[str, str]]:
    """Return (table, id) of the objects without events to which this one refers, and of those that lists
    expand in it: no event and no list has the payment method of a guest.
    """
    expanded = EXPANDED_IN_LISTS.get(table.object_type, ())
    found = [(name, key) for name in expanded if isinstance(key := obj.get(name), str) and key]
    for column in table.columns:
        targets = [t for t in column.references if t in _eventless_targets()]
        if len(targets) != 1 or column.read not in ("id", "text"):
            continue
        value = _at(obj, column)
        if isinstance(value, str) and value:
            found.append((targets[0], value))
    return found


def _at(obj: StripeObject, column: Column) -> object:
    """The value of a column's field in an object; None where it has none."""
    value: object = obj
    for key in column.path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


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
        is_ordered=not is_remade and all(map(_follows, last_second, last_second[1:])),
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


def _follows(earlier: StripeObject, later: StripeObject) -> bool:
    """Whether the state of one event follows from the one before it."""
    before, after = payload(earlier), payload(later)
    if not before or not after:
        return False
    if is_deletion(later) or _plain(before) == _plain(after):
        return True
    if _is_creation(earlier) and not _is_creation(later):
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
