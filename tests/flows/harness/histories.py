"""Random lives of objects of every type that events carry, and a journal of what became of their rows.

A life is a birth where events announce one, changes that each leave a mark in a field of the object,
and a death where events tell of one. Each event takes its type from the catalog, so every type of event
that names an object comes up.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random

from tests.flows.harness.truth import whole_types

from pinstripe.catalog.embedded import NOT_PRESENT
from pinstripe.catalog.model import Field, object_types, spec
from pinstripe.catalog.relations import with_events
from pinstripe.catalog.tables import table_of_object, tables
from pinstripe.store.pool import Connection
from pinstripe_simulator.events import Cause, difference
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.server import Running
from pinstripe_simulator.table import StripeObject, Table
from pinstripe_simulator.values import HOSTILE

_BIRTHS = ("created", "opened", "attached", "succeeded")
# What these say is not what the object is from then on.
_NO_STATES = frozenset({"invoice.upcoming"})
# Stripe has one of each, with an address of its own.
SINGLE = frozenset({"balance", "balance_settings", "tax.settings"})
# Neither a table of its own nor an id: what it holds is (an entitlement).
WITHOUT_ROWS = frozenset(
    {"billing.alert_triggered", "entitlements.active_entitlement_summary", "cash_balance"}
)

# Their lists want parameters that nothing tells, or hold something for three retired types only. The items
# of a session and of a payment link are made with it, long before its first event; those of an intent's
# amount no event names.
_NOT_ASKED = frozenset(
    {
        "billing.meter/billing.meter_event_summary",
        "checkout.session/item",
        "financial_connections.account/financial_connections.account_owner",
        "payment_intent/payment_intent_amount_details_line_item",
        "payment_link/item",
        "source/source_transaction",
    }
)
# Of some events while the account's own version is the newest (docs: each event keeps its version).
OLD = "2024-06-20"

_numbers = itertools.count(1)

_JOURNAL = """
CREATE TABLE IF NOT EXISTS public.journal (at bigserial, tab text, id text, mark text, dead boolean);
CREATE OR REPLACE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.journal (tab, id, mark, dead) VALUES (TG_TABLE_NAME, NEW.id,
    to_jsonb(NEW) ->> TG_ARGV[0], coalesce((to_jsonb(NEW) ->> 'deleted')::boolean, false));
  RETURN NEW;
END $$;
"""


def lively_types() -> list[str]:
    """Every object type that events carry and whose objects have rows with ids."""
    return sorted(with_events() - SINGLE - WITHOUT_ROWS)


@cache
def event_types(name: str) -> tuple[str, ...]:
    """The types of events that carry objects of this type."""
    return tuple(e.name for e in spec().events if name in e.carries and e.name not in _NO_STATES)


@cache
def mark_field(name: str) -> str:
    """A field of the type that can hold any mark; "" if there is none."""
    fields = {f.name: f for f in object_types()[name].fields}
    columns = {c.name for c in tables()[table_of_object()[name]].columns if len(c.path) == 1}
    for wanted in ("metadata", "description", "nickname", "name", "title", "statement_descriptor"):
        if wanted in fields and wanted in columns:
            return wanted
    for found in fields.values():
        free = found.kind == "string" and not found.enum and found.name not in ("id", "object")
        if free and found.name in columns:
            return found.name
    whole = ("amount", "expires_at", "deletes_after", "frozen_time", "last_ping_at")
    return next((f for f in whole if f in fields and f in columns), "")


@cache
def places_of_others() -> tuple[str, ...]:
    """Where an object stands inside another as it was or would be, and both have rows and ids."""
    return tuple(
        place
        for place in NOT_PRESENT
        if (at := embedding(place)).name in with_events() and at.target in table_of_object()
    )


@cache
def changeable() -> Mapping[str, tuple[str, bool]]:
    """Types with events whose metadata a request changes: (path up to the id, whether one deletes it)."""
    paths = {(o.method, o.path) for o in spec().operations}
    found: dict[str, tuple[str, bool]] = {}
    for operation in spec().operations:
        head, _, name = operation.path.partition("/{")
        if operation.method != "POST" or not name.endswith("}") or "/" in name:
            continue
        if "metadata" in {p.name for p in operation.params} and operation.returns:
            kind = operation.returns[0]
            # An account's events show persons that are gone; and what no list shows need not be a row.
            if kind in lively_types() and kind in whole_types() and kind != "account":
                found[kind] = (head, ("DELETE", operation.path) in paths)
    return found


@dataclass(frozen=True)
class Embedding:
    """Objects of the type `target` inside those of `name`, at a path of (field, whether it holds many)."""

    name: str
    path: tuple[tuple[str, bool], ...]
    target: str


@cache
def embedding(place: str) -> Embedding:
    """What a place such as "subscription.pending_update.subscription_items" means."""
    name = max((n for n in object_types() if place.startswith(f"{n}.")), key=len)
    fields: Sequence[Field] = object_types()[name].fields
    path: list[tuple[str, bool]] = []
    targets: Sequence[str] = ()
    for step in place.removeprefix(f"{name}.").split("."):
        found = next(f for f in fields if f.name == step)
        path.append((step, found.kind == "array"))
        inner = found.items if found.items is not None else found
        fields, targets = inner.fields, inner.targets
    return Embedding(name, tuple(path), targets[0] if targets else "")


@dataclass
class Histories:
    """Makes things happen. `marks`: (table, id, mark) -> the second in which the object was so."""

    sim: Running
    marks: dict[tuple[str, str, str], int] = field(default_factory=dict)
    touched: dict[str, set[str]] = field(default_factory=dict)
    owners: dict[str, set[str]] = field(default_factory=dict)
    """Kind of set -> ids of the owners whose sets have changed."""
    remade: set[tuple[str, str]] = field(default_factory=set)
    """(table, id) of what was deleted and made again."""
    happened: set[str] = field(default_factory=set)
    _number: int = 0
    """Of the last mark. No two of one run are the same, whoever makes them."""

    def life(self, name: str, dice: Random, steps: int) -> Iterator[float]:
        """`steps` events of one object, some of them in the same second; the seconds between them."""
        found = self._object(name, dice)
        for _ in range(steps):
            found = self._step(name, found, dice)
            if not found:
                return
            yield dice.choice((0, 0, 1, 2))

    def recreated(self, name: str, dice: Random) -> None:
        """Delete an object, and make another under its id in the same second."""
        found = self._some(name, dice)
        if not found:
            return
        self._number = next(_numbers)
        mark = mark_field(name)
        changes = {mark: self._mark(mark, found, dice)} if mark else {}
        version = OLD if dice.random() < 0.3 else ""
        self.sim.control.recreate(name, str(found["id"]), changes, version)
        self.remade.add((table_of_object()[name], str(found["id"])))
        self._touch(name, str(found["id"]))

    def set_kinds(self) -> list[str]:
        """Every kind of set whose changes are told of and whose members can be asked for."""
        sets = self.sim.control.sets
        return sorted(
            n for n, kind in sets.kinds.items() if sets.told(kind) and n not in _NOT_ASKED
        )

    def churn(self, name: str, dice: Random) -> Iterator[float]:
        """Members of one set come and go, one of them within a second; the seconds between."""
        sets, kind = self.sim.control.sets, self.sim.control.sets.kinds[name]
        owner = self._some(kind.owner.kind.name, dice, kind.owner)
        lists = [f for f, (child, _) in kind.owner.lists.items() if child == kind.child.name]
        shown = self.sim.account.world.routes.fields[kind.owner.kind.name]
        if not owner or any(f not in owner and not shown[f].on_request for f in lists):
            return  # An account that does not show its bank accounts has none to us.
        position = kind.owner.position(str(owner["id"]))
        assert position is not None
        most = dice.choice((1, 2, 12)) if dice.random() < 0.9 else dice.choice((110, 250))
        self.owners.setdefault(name, set()).add(str(owner["id"]))
        self._touch(kind.owner.kind.name, str(owner["id"]))
        for _ in range(dice.randrange(1, 4)):
            if kind.owner.gone(position):
                return  # Something else has deleted it.
            there = sets.of(kind, position)
            add, going = dice.randrange(0, most + 1), []
            if kind.may_go:
                there = [at for at in there if kind.child.id_at(at) != _inside(owner)]
                going = dice.sample(there, dice.randrange(0, len(there) + 1))
                going = going if dice.random() < 0.5 else going[:2]
            made = sets.change(kind, position, add=add, remove=going, cause=self._cause(dice))
            if made and kind.may_go and dice.random() < 0.5:
                short = [p for p in map(kind.child.position, made[:2]) if p is not None]
                sets.change(kind, position, remove=short, cause=self._cause(dice))
            for at in going:
                self._touch(kind.child.kind.name, kind.child.id_at(at))
            for key in made:
                self._touch(kind.child.kind.name, key)
            yield dice.choice((0, 0.3, 1, 2))

    def stand_in(self, place: str, dice: Random) -> None:
        """Put into an object another as it never was, at a place where none stands as it is."""
        at = embedding(place)
        name, target = at.name, at.target
        found, other = self._some(name, dice), self._some(target, dice)
        if not found or not other:
            return
        mark = mark_field(target)
        self._number = next(_numbers)
        past = {**other, **({mark: self._mark(mark, other, dice)} if mark else {})}
        ghost = {**past, "id": f"{other['id']}would"}
        value: object = dice.choice((past, ghost))
        for step, many in reversed(at.path):
            value = {step: [value] if many else value}
        changes = event_types(name)
        assert isinstance(value, dict)
        after = self._ledger(dice).change(found, value, event="")
        chosen = [e for e in changes if not _kills(name, e) and not e.endswith(".created")]
        if chosen:
            self._tell(dice.choice(chosen), after, dice, None)
        if target in whole_types():  # Others (sources) no list shows: a copy need not have it.
            self._touch(target, str(other["id"]))
        self._touch(target, str(ghost["id"]))

    def calls(self, name: str, dice: Random) -> Iterator[tuple[str, str, Mapping[str, str]]]:
        """Requests about one object: (method, path, parameters)."""
        head, may_go = changeable()[name]
        found = self._some(name, dice)
        for _ in range(dice.randrange(1, 4) if found else 0):
            self._number = next(_numbers)
            self._touch(name, str(found["id"]))
            method = dice.choice(("POST", "POST", "GET"))
            if may_go and dice.random() < 0.1:
                method = "DELETE"
            yield method, f"{head}/{found['id']}", {"metadata[mark]": str(self._number)}

    def _some(self, name: str, dice: Random, table: Table | None = None) -> StripeObject:
        """A living object of the type; {} if there is none."""
        world = self.sim.account.world
        table = table or dice.choice(world.tables_of(name))
        living = [p for p in range(table.total) if not table.gone(p)]
        return world.objects.load(table, dice.choice(living)) if living else {}

    def _touch(self, name: str, key: str) -> None:
        self.touched.setdefault(name, set()).add(key)

    def _object(self, name: str, dice: Random) -> StripeObject:
        """A new one, or one that has been there."""
        world = self.sim.account.world
        table = dice.choice(world.tables_of(name))
        births = [e for e in event_types(name) if e.rsplit(".", 1)[-1] in _BIRTHS]
        if births and (dice.random() < 0.5 or not table.count()):
            parent, under = "", ""
            if table.parent is not None:
                under = table.parent[1]
                holders = list(world.truth(under))
                parent = str(dice.choice(holders)["id"])
            fields = world.routes.fields[name]
            values = {f: parent for f in (under.rpartition(".")[2],) if parent and f in fields}
            made = self._ledger(dice).make(name, values, parent=parent, under=under, event="")
            self._tell(dice.choice(births), made, dice, None)
            return made
        return self._some(name, dice, table)

    def _step(self, name: str, found: StripeObject, dice: Random) -> StripeObject:
        before = self.sim.account.world.get(name, str(found["id"])) if found else None
        if before is None:
            return {}  # There was none, or a change of its set has removed it: Stripe tells no more of it.
        deadly = [e for e in event_types(name) if _kills(name, e)]
        if name == "person" and self._is_inside(found):
            deadly = []
        if deadly and dice.random() < 0.15:
            self._ledger(dice).delete(found, event="")
            self._tell(dice.choice(deadly), found, dice, None)
            return {}
        changes = [e for e in event_types(name) if not _kills(name, e)]
        changes = [e for e in changes if e.rsplit(".", 1)[-1] != "created"]
        if not changes:
            return {}
        chosen = dice.choice(changes)
        self._number = next(_numbers)
        mark = mark_field(name)
        made = {mark: self._mark(mark, found, dice)} if mark else {}
        after = self._ledger(dice).change(found, made, event="")
        previous = difference(before, after) if chosen.endswith("updated") else None
        self._tell(chosen, after, dice, previous)
        return after

    def _is_inside(self, person: StripeObject) -> bool:
        account = self.sim.account.world.get("account", str(person["account"]))
        return account is not None and _inside(account) == person["id"]

    def _mark(self, name: str, found: StripeObject, dice: Random) -> object:
        if name == "metadata":
            return {"mark": str(self._number), "text": HOSTILE[dice.randrange(16)]}
        if isinstance(found.get(name), int):
            return 1_000_000 + self._number
        return f"mark {self._number}"

    def _tell(
        self, event: str, found: StripeObject, dice: Random, previous: StripeObject | None
    ) -> None:
        cause = self._cause(dice)
        log = self.sim.account.events
        told = log.add(event, found, previous=previous, cause=cause)
        assert told is not None, event
        self.happened.add(event)
        name, key = str(found["object"]), str(found["id"])
        self._touch(name, key)
        mark = mark_field(name)
        if mark:
            shown = _shown(found.get(mark))
            self.marks[table_of_object()[name], key, shown] = int(str(told["created"]))

    def _cause(self, dice: Random) -> Cause:
        return Cause(self.sim.account.request_id() if dice.random() < 0.7 else None, None)

    def _ledger(self, dice: Random) -> Ledger:
        return Ledger(self.sim.account.world, self.sim.account.events, self._cause(dice))


def _inside(owner: StripeObject) -> object:
    """The id of the person that an account holds: the simulator's holds it also after its end."""
    held = owner.get("individual")
    return held.get("id") if isinstance(held, dict) else None


def _kills(name: str, event: str) -> bool:
    return event.endswith(".deleted") and object_types()[name].deletable


def _shown(value: object) -> str:
    """As the journal shows it: metadata by the number that it carries."""
    if isinstance(value, dict):
        return str(value.get("mark") or json.dumps(value, sort_keys=True))
    return str(value)


async def keep_journal(connection: Connection, names: Sequence[str]) -> None:
    """From now on every state of every row of these types is noted, in order."""
    await connection.execute(_JOURNAL)
    for name in names:
        table, mark = table_of_object()[name], mark_field(name)
        if mark:
            await connection.execute(
                f'CREATE TRIGGER noted AFTER INSERT OR UPDATE ON stripe."{table}"'
                f" FOR EACH ROW EXECUTE FUNCTION public.note('{mark}')"
            )


async def steps_back(connection: Connection, made: Histories) -> list[str]:
    """Where a row went to a state that was surely older than the one before, or rose from the dead though
    nobody had made it again.
    """
    found: list[str] = []
    last: dict[tuple[str, str], tuple[int, bool]] = {}
    for tab, key, mark, dead in await connection.fetch(
        "SELECT tab, id, mark, dead FROM public.journal ORDER BY at"
    ):
        shown = mark
        if mark and mark.startswith("{"):
            shown = _shown(json.loads(mark))
        second, was_dead = last.get((tab, key), (0, False))
        now = made.marks.get((tab, key, str(shown)), second)
        if now < second:
            found.append(f"{tab} {key}: from second {second} to {now} ({mark})")
        if was_dead and not dead and (tab, key) not in made.remade:
            found.append(f"{tab} {key}: rose from the dead")
        last[tab, key] = (max(now, second), dead)
    return found
