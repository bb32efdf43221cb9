"""Objects as text and as dicts: fills the holes of templates, lists and embedded objects.

A filler is made once per (table, variant, indent, hole) and called once per object. `complete` and
`strip` do for stored objects what holes do for computed ones: the lists inside them and whole
objects that they embed are always those of now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import quote

import msgspec

from pinstripe.catalog.embedded import EmbeddedPlace, places_in, present_in
from pinstripe_simulator import coherence, first_events
from pinstripe_simulator.entries import Entries
from pinstripe_simulator.relations import FirstBack, Relation
from pinstripe_simulator.routes import Routes
from pinstripe_simulator.shape import Scope, sample
from pinstripe_simulator.table import StripeObject, Table, unpack
from pinstripe_simulator.template import Filler, Template, pretty, reindent
from pinstripe_simulator.versions import before_basil, rendered

INSIDE = 10
"""Entries that a list inside an object shows."""
_TOO_DEEP = 30
_RARE = 20
"""A reference that fewer than one in so many objects has is looked up, not computed."""
_UNCOUNTED = "payments"
"""The list inside an invoice that has no `total_count`, and whose `url` leads nowhere (both seen in
recorded answers)."""


class Objects:
    """Renders and loads the objects of `tables`. `now` gives Unix seconds on Stripe's clock."""

    def __init__(self, tables: Mapping[str, Table], routes: Routes, now: Callable[[], int]) -> None:
        self._tables = tables
        self._routes = routes
        self._list_urls: dict[tuple[str, str], tuple[bytes, bytes]] = {}
        self.entries = Entries(tables, now)
        self._templates: dict[tuple[str, int, int], Template[Objects]] = {}
        self._plain: Mapping[str, Callable[[Table], Filler[Objects]]] = {
            **{name: _of_entries(made) for name, made in self.entries.fillers().items()},
            "id": lambda t: lambda o, i, c: o._tables[t.name].quoted(i),
            "id-inside": lambda t: lambda o, i, c: o._tables[t.name].quoted(i)[1:-1],
            "ms": lambda t: lambda o, i, c: b"%d" % (c * 1000 + i % 1000),
            "iso": lambda t: lambda o, i, c: _iso(c),
            "email": lambda t: lambda o, i, c: b'"buyer+%d@example.com"' % i,
            "only-quantity": lambda t: lambda o, i, c: o._only_quantity(i),
            "event-type": lambda t: lambda o, i, c: b'"%b"' % first_events.event_type(i).encode(),
        }
        self._whole_when_kept = {
            name
            for name, table in tables.items()
            if not table.lists
            and name != "balance_transaction"
            and not any(
                kind.kind == "resource" and field in table.links
                for field, kind in routes.fields[table.kind.name].items()
            )
            and not any(kind.kind == "resource" for _, kind in present_in(table.kind.name))
        }
        """Tables whose stored objects need nothing computed on reading."""

    def like(self, tables: Mapping[str, Table], now: Callable[[], int]) -> Objects:
        """The objects of another account that is made alike; templates and the rest of what was
        worked out once are shared.
        """
        made = copy(self)
        made._tables, made.entries = tables, self.entries.like(tables, now)
        return made

    # --- text and dicts ----------------------------------------------------------------------

    def render(self, table: Table, position: int, indent: int) -> bytes:
        """A base object that has not been changed, as text."""
        key = (table.name, table.variant(position), indent)
        template = self._templates.get(key)
        if template is None:
            sample = table.sample(key[1])
            template = Template(sample, indent, lambda n, d: self.filler(table, n, d))
            self._templates[key] = template
        return template.render(self, position, table.timeline.created(position))

    def table(self, name: str) -> Table:
        return self._tables[name]

    def optional(self, table: Table, field: str) -> bool:
        """Whether the field may be null (or is none of the type's own)."""
        kind = self._routes.fields[table.kind.name].get(field)
        return kind is None or kind.nullable

    def some_id(self, name: str, number: int) -> str | None:
        """The id of a living object from the start of table `name`."""
        table = self._tables[name]
        for position in range(number % max(1, table.base), table.base):
            if not table.gone(position):
                return table.id_at(position)
        return None

    def text(self, table: Table, position: int, indent: int = 0) -> bytes:
        """The object at `position` as Stripe prints it."""
        if table.touched and table.stored(position):
            blob = table.blob(position) if table.name in self._whole_when_kept else None
            if blob is not None:
                return _printed(blob, indent)
            return pretty(self.load(table, position), indent)
        return self.render(table, position, indent)

    def load(self, table: Table, position: int) -> StripeObject:
        """The object at `position` as a dict, its lists filled in."""
        kept = table.kept(position) if table.touched else None
        if kept is None:
            made: StripeObject = msgspec.json.decode(self.render(table, position, 0))
            return made
        return self._complete(table, position, kept)

    def strip(self, table: Table, whole: StripeObject) -> StripeObject:
        """`whole` without its lists, and with embedded objects as ids."""
        kept = {k: v for k, v in whole.items() if k not in table.lists}
        for field in table.links:
            value = kept.get(field)
            if isinstance(value, dict) and "id" in value:
                kept[field] = value["id"]
        return kept

    def _complete(self, table: Table, position: int, kept: StripeObject) -> StripeObject:
        fields = self._routes.fields[table.kind.name]
        if table.kind.name == "balance_transaction":
            kept["status"] = self.entries.status(0, kept.get("available_on"))
        for field in table.lists:
            if field in fields and not fields[field].on_request:
                kept[field] = msgspec.json.decode(self.list_inside(table, field, position, 0))
        if table.kind.name == "subscription":
            kept |= _of_the_only_item(kept)
        for field, (_, target) in table.links.items():
            value = kept.get(field)
            if isinstance(value, str) and field in fields and fields[field].kind == "resource":
                there = self._tables[target]
                at = there.position(value)
                if at is not None:
                    kept[field] = self.load(there, at)
        return self._as_now(kept, places_in(table.kind.name))

    def _as_now(self, found: StripeObject, places: Mapping[str, EmbeddedPlace]) -> StripeObject:
        """`found` with the objects that stand inside as they are now: Stripe renders them with it."""
        made = dict(found)
        for key, place in places.items():
            value = found.get(key)
            if isinstance(value, list):
                made[key] = [self._one_as_now(one, place) for one in value]
            elif isinstance(value, dict):
                made[key] = self._one_as_now(value, place)
        return made

    def _one_as_now(self, value: object, place: EmbeddedPlace) -> object:
        if not isinstance(value, dict):
            return value
        if place.inside:
            return self._as_now(value, place.inside)
        there = self._tables.get(str(value.get("object"))) if place.present else None
        at = there.position(str(value.get("id"))) if there is not None else None
        if there is None or at is None or there.gone(at):
            return value
        return self.load(there, at)

    # --- children ----------------------------------------------------------------------------

    def children(self, owner: Table, position: int, child: Table, field: str) -> list[int]:
        """Positions in `child`, newest first, of what belongs to the object at `position`."""
        relation = child.relation(field)
        base = relation.back(position) if relation and position < owner.base else range(0)
        if not child.touched and not field:
            return list(reversed(base))
        if not child.touched:
            return [p for p in reversed(base) if self._refers(child, p, field)]
        id = owner.id_at(position)
        extra = child.by_value.get((field, id), ())
        every = sorted({*base, *extra}, reverse=True)
        return [p for p in every if self._belongs(child, p, field, id)]

    def _belongs(self, child: Table, position: int, field: str, id: str) -> bool:
        if child.gone(position) or position >= child.total:  # Not there yet, to a stale read.
            return False
        if not field:
            return True
        if child.stored(position):
            kept = child.kept(position)
            return kept is not None and kept.get(field) == id
        return position < child.base and self._refers(child, position, field)

    @staticmethod
    def _refers(child: Table, position: int, field: str) -> bool:
        if child.gone(position):
            return False
        if not field:
            return True
        return child.sample(child.variant(position)).get(field) is not None

    def list_inside(self, owner: Table, field: str, position: int, indent: int) -> bytes:
        """The list that stands in `owner`'s `field`, cut at ten entries."""
        name, back = owner.lists[field]
        child = self._tables[name]
        found = self.children(owner, position, child, back)
        pad = b" " * indent
        entries = (b",\n" + pad + b"    ").join(
            self.text(child, p, indent + 4) for p in found[:INSIDE]
        )
        between = b"[\n%b    %b\n%b  ]" % (pad, entries, pad) if found else b"[]"
        url = self._list_url(owner, field, position)
        more = b"true" if len(found) > INSIDE else b"false"
        count = b"" if field == _UNCOUNTED else b'%b  "total_count": %d,\n' % (pad, len(found))
        return (
            b'{\n%b  "object": "list",\n%b  "data": %b,\n%b  "has_more": %b,\n%b%b  "url": %b\n%b}'
        ) % (pad, pad, between, pad, more, count, pad, url, pad)

    def _list_url(self, owner: Table, field: str, position: int) -> bytes:
        """JSON text of the URL under which the whole list is; only the id differs."""
        if field == _UNCOUNTED:
            return b'"/v1/invoices/payments"'
        known = self._list_urls.get((owner.name, field))
        if known is None:
            name, back = owner.lists[field]
            child = self._tables[name].kind.name
            url = self._routes.list_url(child, owner.kind.name, back, "@")
            before, _, after = url.partition("%40")
            known = self._list_urls[owner.name, field] = (b'"' + before.encode(), after.encode())
        id = owner.quoted(position)[1:-1]
        if owner.name in coherence.CHOSEN_IDS:
            id = quote(owner.id_at(position), safe="").encode()
        return known[0] + id + known[1] + b'"'

    # --- fillers -----------------------------------------------------------------------------

    def filler(self, table: Table, name: str, indent: int) -> Filler[Objects]:
        """What fills the hole `name` in objects of `table`, `indent` spaces deep."""
        plain = self._plain.get(name)
        if plain is not None:
            return plain(table)
        how, _, what = name.partition(":")
        if how == "subject":
            return _subject(str(table.sample(0)["api_version"]), indent)
        if name.startswith("t+"):
            later = int(name[2:])
            return lambda o, i, c: b"%d" % (c + later)
        if how == "has":
            to = self._way(table, what)
            return lambda o, i, c: b"false" if to(i) is None else b"true"
        if how == "worth":
            to = self._way(table, what)
            return lambda o, i, c: b"0" if to(i) is None else b"-%d" % (100 + i % 900)
        if how == "ref":
            return _reference(self._way(table, what), table.links[what][1])
        if how == "any":
            return _anything(what, max(1, min(self._tables[what].base, 100)))
        if how == "list":
            return lambda o, i, c: o.list_inside(o._tables[table.name], what, i, indent)
        if how == "embed":
            return _embedded(*table.links[what], indent)
        if how == "only":
            return self._only_plan(indent)
        return self._whole(table, what, indent)

    def _only_item(self, index: int) -> int | None:
        """The position of the item of the subscription at `index`, if it has just one."""
        items = self._tables["subscription_item"]
        relation = items.relation("")
        found: Sequence[int]
        if relation is not None and not items.touched:
            found = relation.back(index)
        else:
            found = self.children(self._tables["subscription"], index, items, "")
        return found[0] if len(found) == 1 else None

    def _only_plan(self, indent: int) -> Filler[Objects]:
        """`subscription.plan`: of the only item; null where there are several."""
        embedded = _embedded(*self._tables["subscription_item"].links["plan"], indent)

        def fill(objects: Objects, index: int, created: int) -> bytes:
            items, at = objects._tables["subscription_item"], objects._only_item(index)
            if at is None:
                return b"null"
            if items.touched and items.stored(at):
                return pretty(objects.load(items, at).get("plan"), indent)
            return embedded(objects, at, created)

        return fill

    def _only_quantity(self, index: int) -> bytes:
        items, at = self._tables["subscription_item"], self._only_item(index)
        if at is None:
            return b"null"
        if items.touched and items.stored(at):
            return msgspec.json.encode(self.load(items, at).get("quantity"))
        return msgspec.json.encode(items.sample(items.variant(at)).get("quantity"))

    def _way(self, table: Table, field: str) -> Callable[[int], int | None]:
        """From an index of `table` to the one that `field` refers to; looked up where few have one."""
        relation, target = table.links[field]
        count = self._tables[target].base
        if isinstance(relation, FirstBack) and count * _RARE < table.base:
            return relation.written_out(count).get
        return relation.to

    def _whole(self, table: Table, what: str, indent: int) -> Filler[Objects]:
        """An object that has no relation to follow: any of its type, or a sample without id."""
        there = self._tables.get(what)
        if indent > _TOO_DEEP:
            return lambda o, i, c: b"null"
        if there is not None and there.base:
            some = there.base
            return lambda o, i, c: o.text(o._tables[what], i % some, indent)
        scope = Scope(known=frozenset(self._tables), references=(), lists=())
        made = sample(self._routes.objects[what], 0, scope)
        inner = Template(made, indent, lambda n, d: self.filler(table, n, d))
        return inner.render


@lru_cache(maxsize=2048)
def _printed(blob: bytes, indent: int) -> bytes:
    """Events, mostly: each is shown by many polls."""
    return reindent(msgspec.json.format(unpack(blob), indent=2), indent)


def _of_entries(made: Callable[[Table], Filler[Entries]]) -> Callable[[Table], Filler[Objects]]:
    """A filler of `Entries` as one of `Objects`."""

    def make(table: Table) -> Filler[Objects]:
        fill = made(table)
        return lambda o, i, c: fill(o.entries, i, c)

    return make


def _subject(version: str, indent: int) -> Filler[Objects]:
    """The object that a computed event is about."""

    def fill(objects: Objects, index: int, created: int) -> bytes:
        table = objects.table(first_events.subject_type(index))
        text = objects.render(table, first_events.subject(table, created), 0)
        if before_basil(version):
            text = pretty(rendered(msgspec.json.decode(text), version))
        return reindent(text, indent)

    return fill


def _reference(to: Callable[[int], int | None], target: str) -> Filler[Objects]:
    def fill(objects: Objects, index: int, created: int) -> bytes:
        at = to(index)
        return b"null" if at is None else objects._tables[target].quoted(at)

    return fill


def _anything(target: str, some: int) -> Filler[Objects]:
    return lambda o, i, c: o._tables[target].quoted(i * 31 % some)


def _embedded(relation: Relation, target: str, indent: int) -> Filler[Objects]:
    def fill(objects: Objects, index: int, created: int) -> bytes:
        there = objects._tables[target]
        at = relation.to(index)
        if at is not None and there.touched:
            at = there.position(there.id_at(at))  # It may have been made again under its id.
        return b"null" if at is None or indent > _TOO_DEEP else objects.text(there, at, indent)

    return fill


def _of_the_only_item(subscription: StripeObject) -> StripeObject:
    """`plan` and `quantity`, which Stripe still shows where a subscription has one item."""
    items = subscription["items"]["data"]
    if len(items) != 1:
        return {"plan": None, "quantity": None}
    return {"plan": items[0].get("plan"), "quantity": items[0].get("quantity")}


def _iso(created: int) -> bytes:
    return f'"{datetime.fromtimestamp(created, UTC):%Y-%m-%dT%H:%M:%S}.000Z"'.encode()
