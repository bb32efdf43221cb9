"""What else an event makes us ask for: objects that have no events of their own, found by relation.

Pure, and from the catalog alone. A charge's event names its balance transaction, a setup intent's means a
new attempt; neither has events. (https://docs.stripe.com/api/events/types lists all that do.)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from pinstripe.catalog.embedded import present_in
from pinstripe.catalog.endpoints import expand_of, list_endpoints, retrieve_endpoints
from pinstripe.catalog.evented import with_events
from pinstripe.catalog.load import object_types
from pinstripe.catalog.tables import Table, table_name, tables
from pinstripe.rows.decode import StripeObject
from pinstripe.store.todo import Todo
from pinstripe.sync.order import Change, created_of, payload, request_of

# Children lists that only change when the parent's event says so, in these of its fields: without this
# every event of a customer would cost a request.
_ONLY_IF_CHANGED = {"customer_balance_transaction": "balance"}


def related(change: Change, wanted: Mapping[str, Table]) -> list[Todo]:
    """The requests that follow from one change."""
    table = wanted.get(_table_of(change.name))
    if table is None or change.deleted:
        return []
    found = [
        change.todo("relate", target, key)
        for target, key in _references(table, change.object)
        if target in wanted
    ]
    found += [change.todo("fetch", "invoice_item", key) for key in _pulled_in(change)]
    for child in _children(change.name):
        if child in wanted and _may_have_changed(child, change):
            found.append(change.todo("children", child, change.key, parent=change.name))
    where = retrieve_endpoints().get(table.object_type)
    if where is not None and where.expand and any(c.on_request for c in table.columns):
        # Payloads leave out what Stripe gives on request only. (Where nothing is asked to be expanded,
        # as of what people have shown of themselves, a fetch would tell no more.)
        found.append(change.todo("fetch", table.name, change.key))
    elif where is not None and any(_names(change, path) for path in _unaddressed(change.name)):
        found.append(change.todo("fetch", table.name, change.key))
    return found


def _names(change: Change, path: tuple[str, ...]) -> bool:
    """Whether the change has put an id where only `expand[]` shows what stands there."""
    if not change.born and path[0] not in change.previous:
        return False
    values: list[object] = [change.object]
    for step in path:
        inner = [v.get(step) for v in values if isinstance(v, dict)]
        values = [e for v in inner for e in (v if isinstance(v, list) else [v])]
    return any(isinstance(value, str) for value in values)


@cache
def _unaddressed(name: str) -> tuple[tuple[str, ...], ...]:
    """Paths of `expand[]` to objects of this type that name others without an address: discounts."""
    table_of = {path: item.targets for path, item in present_in(name)}
    return tuple(
        tuple(path.split("."))
        for path in expand_of((name,))
        if "data" in path.split(".")
        or not set(table_of.get(path, ())) & retrieve_endpoints().keys()
    )


def summarised(event: StripeObject, wanted: Mapping[str, Table]) -> list[Todo]:
    """The list to read where an event only sums up what its owner has now (active entitlements)."""
    obj = payload(event) or {}
    known = _summaries().get(str(obj.get("object")))
    if known is None or known[0] not in wanted:
        return []
    child, parent = known
    owner = obj.get(parent)
    if not isinstance(owner, str) or not owner:
        return []
    told = (created_of(event), request_of(event), str(event.get("id")))
    return [Todo("children", child, owner, parent, *told)]


def _may_have_changed(child: str, change: Change) -> bool:
    """Whether the list under the parent can differ from what it was before this event."""
    field = _ONLY_IF_CHANGED.get(child)
    if field is None:
        return True
    # A new balance of 0 has no history.
    return field in change.previous or (change.born and bool(change.object.get(field)))


def _pulled_in(change: Change) -> list[str]:
    """Invoice items that an invoice has taken up: they change without an event of their own."""
    lines = change.object.get("lines") if change.name == "invoice" else None
    entries = lines.get("data") if isinstance(lines, dict) else None
    found: list[str] = []
    for line in entries if isinstance(entries, list) else ():
        parent = line.get("parent") if isinstance(line, dict) else None
        details = parent.get("invoice_item_details") if isinstance(parent, dict) else None
        key = details.get("invoice_item") if isinstance(details, dict) else None
        if isinstance(key, str):
            found.append(key)
    return found


@cache
def _children(name: str) -> tuple[str, ...]:
    """Tables without events that are listed under an object of this type."""
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
                found[name] = (table_name(endpoint.objects[0]), endpoint.parent)
    return found


@cache
def _eventless_targets() -> frozenset[str]:
    """Tables whose objects have no events and can be retrieved by their id alone."""
    return frozenset(
        table_name(name)
        for name, where in retrieve_endpoints().items()
        if name not in with_events() and not where.parent_parameter
    )


def _references(table: Table, obj: StripeObject) -> list[tuple[str, str]]:
    """(table, id) of the objects without events to which this one refers."""
    found: list[tuple[str, str]] = []
    for column in table.columns:
        targets = [t for t in column.references if t in _eventless_targets()]
        if len(targets) != 1 or column.read not in ("id", "text"):
            continue
        value: object = obj
        for key in column.path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str) and value:
            found.append((targets[0], value))
    return found


@cache
def _table_of(name: str) -> str:
    return next((t.name for t in tables().values() if t.object_type == name and not t.virtual), "")
