"""Makes the tables of an account and wires them: counts, ids, relations, samples.

One table per type that has ids, and one per nested list where several share a type (`item@quote`).
Relations come from `coherence.RELATIONS` and, for all other references, from the catalog: spread
evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pinstripe_simulator import coherence
from pinstripe_simulator.beyond_types import EXTRA
from pinstripe_simulator.first_events import event_sample
from pinstripe_simulator.ids import FIRST_NEW, Ids, NaturalIds, ScrambledIds
from pinstripe_simulator.mix import DEFAULT_PATTERN, FEW, PATTERNS, counts_for
from pinstripe_simulator.relations import Chain, Even, FirstBack, Relation, Uneven
from pinstripe_simulator.routes import Routes
from pinstripe_simulator.shape import Sample, Scope, sample
from pinstripe_simulator.table import Table, spread
from pinstripe_simulator.timeline import Timeline

EVENT_LIFE_S = 29 * 86_400
"""How far back the first events lie: inside the 30 days that Stripe keeps them."""


@dataclass(frozen=True)
class Plan:
    """What the account is made of. Times are Unix seconds; `mix` overrides `scale` by type."""

    seed: int
    scale: int
    start: int
    end: int
    mix: tuple[tuple[str, int], ...] | None = None
    future_fields: bool = True
    livemode: bool = False
    api_version: str = ""
    """Of the events from the start."""
    few: int = FEW
    """Objects of a type that has no share of `scale`."""
    accounts: int = 0
    """Connected accounts; 0: as many as there are of any other type."""


def build_tables(routes: Routes, plan: Plan) -> dict[str, Table]:
    """Every table, wired; only the fillers are missing."""
    return _Builder(routes, plan).build()


class _Builder:
    def __init__(self, routes: Routes, plan: Plan) -> None:
        self._routes = routes
        self._plan = plan
        self._mix = dict(plan.mix) if plan.mix is not None else None
        self._tables: dict[str, Table] = {}

    def build(self) -> dict[str, Table]:
        self._make_tables()
        for table in self._tables.values():
            for field in (*coherence.RELATIONS.get(table.kind.name, {}), *self._fields(table)):
                self._link(table, field)
        for table in self._tables.values():
            self._wire_lists(table)
        customers = self._tables["customer"]
        customers.base_deleted = lambda index: index % 61 == 7
        self._tables["price"].unlisted_variants = frozenset({coherence.INLINE_PRICES})
        for table in self._tables.values():
            self._make_samples(table)
        return self._tables

    def _fields(self, table: Table) -> Mapping[str, object]:
        return self._routes.fields[table.kind.name]

    # --- tables ------------------------------------------------------------------------------

    def _make_tables(self) -> None:
        pairs = [p for p in self._routes.nested if p[0] not in self._routes.top_lists]
        pairs.append(("subscription_item", "subscription"))
        children = {child for child, _ in pairs}
        plain = [
            o.name
            for o in self._routes.objects.values()
            if o.has_id and o.name not in children and o.name != "v2.core.event"
        ]
        counts = counts_for(self._plan.scale, self._mix, plain, self._plan.few)
        if self._plan.accounts and "account" not in (self._mix or {}):
            counts["account"] = self._plan.accounts
        for name in plain:
            self._table(name, name, counts[name])
        for child, parent in pairs:
            self._nested_table(child, parent, [c for c, _ in pairs].count(child) > 1)

    def _nested_table(self, child: str, parent: str, shared: bool) -> None:
        above = self._tables.get(parent)
        if above is None:
            return
        name = f"{child}@{parent}" if shared else child
        pattern = Uneven(PATTERNS.get((child, parent), DEFAULT_PATTERN), above.base)
        wanted = (self._mix or {}).get(name)
        relation: Relation = pattern if wanted is None else Even(wanted, above.base)
        count = pattern.count if wanted is None else wanted
        self._table(name, child, count).parent = (relation, parent)

    def _table(self, name: str, type_name: str, count: int) -> Table:
        plan, kind = self._plan, self._routes.objects[type_name]
        ids: Ids
        if name in coherence.NATURAL_IDS:
            ids = NaturalIds(coherence.NATURAL_IDS[name])
            count = len(coherence.NATURAL_IDS[name])
        else:
            prefix = kind.prefix or type_name.rpartition(".")[2].replace("_", "")[:8]
            ids = ScrambledIds(
                seed=plan.seed,
                name=name,
                prefix=prefix,
                chosen=name in coherence.CHOSEN_IDS,
                other=self._other_prefix(name),
            )
        start = max(plan.start, plan.end - EVENT_LIFE_S) if name == "event" else plan.start
        timeline = Timeline(count, start=start, end=plan.end, seed=plan.seed, name=name)
        variant = self._variant_rule(name)
        table = Table(name, kind, base=count, ids=ids, timeline=timeline, variant=variant)
        table.aliases.update(coherence.ALIASES.get(name, {}))
        self._tables[name] = table
        return table

    # --- ids whose prefix is not the type's usual one ------------------------------------------

    def _other_prefix(self, name: str) -> tuple[str, Callable[[int], bool]] | None:
        """Payments that no card made, their refunds, and the disputes that Stripe calls so of late."""
        if name == "charge":
            return "py", _is_payment
        if name == "refund":
            return "pyr", self._is_of_payment
        return ("du", lambda index: index % 2 == 1) if name == "dispute" else None

    def _is_of_payment(self, refund: int) -> bool:
        relation = self._tables["refund"].relation("charge")
        charge = relation.to(refund) if relation and refund < FIRST_NEW else None
        return charge is not None and _is_payment(charge)

    # --- variants that follow from other objects ---------------------------------------------

    def _variant_rule(self, name: str) -> Callable[[int], int]:
        if name == "charge":
            return self._charge_variant
        if name in ("subscription", "quote", "invoice"):
            return lambda index: self._clocked_variant(name, index)
        return spread

    def _charge_variant(self, index: int) -> int:
        refunds = self._tables["refund"].relation("charge")
        if refunds is not None and refunds.back(index):
            return coherence.REFUNDED
        variant = spread(index)
        return 1 if variant == coherence.REFUNDED else variant

    def _clocked_variant(self, name: str, index: int) -> int:
        """Objects of a customer on a test clock are on it too, and no others."""
        relation = self._tables[name].relation("customer")
        owner = relation.to(index) if relation else None
        if owner is not None and spread(owner) == coherence.ON_TEST_CLOCK:
            return coherence.ON_TEST_CLOCK
        dead = owner is not None and self._tables["customer"].base_deleted(owner)
        if dead and name == "subscription":  # Deleting a customer ends its subscriptions.
            return coherence.CANCELED
        variant = spread(index)
        return 12 if variant == coherence.ON_TEST_CLOCK else variant

    # --- relations ---------------------------------------------------------------------------

    def _link(self, table: Table, field: str) -> tuple[Relation, str] | None:
        known = table.links.get(field)
        if known is None:
            path = coherence.RELATIONS.get(table.kind.name, {}).get(field)
            known = self._follow(table, path) if path else self._guess(table, field)
            if known is not None:
                table.links[field] = known
        return known

    def _follow(self, table: Table, path: str) -> tuple[Relation, str] | None:
        links: list[Relation] = []
        at = table.name
        for step in path.split():
            found = self._step(self._tables[at], step)
            if found is None:
                return None
            links.append(found[0])
            at = found[1]
        return (links[0] if len(links) == 1 else Chain(*links)), at

    def _step(self, here: Table, step: str) -> tuple[Relation, str] | None:
        how, _, target = step.partition(":")
        if how == "even":
            return Even(here.base, self._tables[target].base), target
        if how == "parent":
            return here.parent
        if how == "first":
            name, _, field = target.partition("/")
            found = self._link(self._tables[name], field)
            return (FirstBack(found[0]), name) if found else None
        return self._link(here, how)

    def _guess(self, table: Table, field: str) -> tuple[Relation, str] | None:
        kind = self._routes.fields[table.kind.name].get(field)
        if kind is None or kind.on_request:
            return None
        if kind.kind in ("expandable", "resource") and len(kind.targets) == 1:
            target = kind.targets[0]
        elif kind.kind == "string" and not kind.enum:
            near = f"{table.kind.name.rpartition('.')[0]}.{field}"
            target = near if near in self._tables else field
        else:
            return None
        if table.parent is not None and table.parent[1] == target:
            return table.parent
        if target == table.kind.name or target not in self._tables:
            return None
        return Even(table.base, self._tables[target].base), target

    # --- lists inside objects ----------------------------------------------------------------

    def _wire_lists(self, table: Table) -> None:
        parent = table.kind.name
        for field, kind in self._routes.fields[parent].items():
            if kind.kind != "list" or not kind.targets:
                continue
            names = (*kind.targets, *(f"{t}@{parent}" for t in kind.targets))
            ways = {
                name: back
                for name in names
                if (child := self._tables.get(name)) is not None
                and (back := self._way_back(child, parent)) is not None
            }
            # Of several types (a customer's sources) the one that the list at its own address has.
            name = next((n for n, back in ways.items() if not back), next(iter(ways), ""))
            if name:
                table.lists[field] = (name, ways[name])

    @staticmethod
    def _way_back(child: Table, parent: str) -> str | None:
        """The field of `child` that leads to `parent`; "" for the link of a nested list."""
        if child.parent is not None and child.parent[1] == parent:
            return ""
        for field, link in child.links.items():
            if link[1] == parent and not isinstance(link[0], FirstBack):
                return field
        return None

    # --- samples -----------------------------------------------------------------------------

    def _make_samples(self, table: Table) -> None:
        scope = Scope(
            known=frozenset(name for name, there in self._tables.items() if there.base),
            references=frozenset(table.links),
            lists=frozenset(table.lists),
            livemode=self._plan.livemode,
        )
        fix = coherence.FIXES.get(table.kind.name)

        def make(variant: int) -> Sample:
            if table.name == "event":
                return event_sample(self._plan.api_version, self._plan.livemode)
            made = _with_extra(sample(table.kind, variant, scope), table.kind.name)
            if fix is not None:
                fix(made, variant)
            if self._plan.future_fields and variant == 6 and len(table.name) % 3 == 0:
                made["x_future_field"] = {"since": "2031-01-01.zebra", "values": [1, None, "é"]}
            return made

        table.make_sample = make


def _is_payment(charge: int) -> bool:
    return charge < FIRST_NEW and spread(charge) in coherence.PAYMENTS


def _with_extra(made: Sample, type_name: str) -> Sample:
    """The sample with the keys that no type has, each in its place in the alphabet."""
    extra = EXTRA.get(type_name)
    if not extra:
        return made
    head = {k: made[k] for k in ("id", "object") if k in made}
    return head | dict(sorted({**extra, **made}.items()))
