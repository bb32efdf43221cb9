"""How a copy differs from Stripe's own truth: the one comparison that all tests of the flows share.

The truth is written into a schema beside, and Postgres compares, column by column. Left out are
columns that Stripe gives on request only, and the parents that only the place tells.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache

import msgspec

from pinstripe.catalog.embedded import present_in
from pinstripe.catalog.endpoints import list_endpoints
from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import Table, table_of_object, tables
from pinstripe.client.response import AsOf, decode
from pinstripe.mirror import Mirror, open_mirror
from pinstripe.rows.extract import RowSet
from pinstripe.store.ddl import create_table
from pinstripe.store.links import Links
from pinstripe.store.pool import Connection, connect
from pinstripe_simulator.server import Running

Ids = Mapping[str, Collection[str]]
"""Object type -> ids."""

# Types that only come inside others, or under a parent.
NESTED = frozenset(
    {
        "capability",
        "credit_note_line_item",
        "customer_balance_transaction",
        "item",
        "line_item",
        "person",
        "refund",
        "setup_attempt",
        "subscription_item",
    }
)
# Types whose every change has an event: what a live copy must equal by events alone.
FOLLOWED = (
    "customer",
    "product",
    "price",
    "subscription",
    "invoice",
    "payment_intent",
    "charge",
    "refund",
    "coupon",
)
# Stripe lists the account's own secrets (those of users need the user's name), and events of 30 days.
_NEVER_WHOLE = frozenset({"apps.secret", "event"})
# Holds a list that Stripe gives on request only, too deep to be a column of its own.
_ON_REQUEST_WITHIN = frozenset({("quote", "computed_upfront"), ("quote", "computed_recurring")})


@cache
def whole_types() -> frozenset[str]:
    """Object types of which a copy must hold every object."""
    listed = {name for e in list_endpoints() if not e.parent for name in e.objects}
    return frozenset((listed | NESTED) & set(table_of_object())) - _NEVER_WHOLE


def born_since(sim: Running, second: int, types: Sequence[str] = FOLLOWED) -> Ids:
    """The objects of these types that Stripe has and that are no older than this second."""
    return {
        name: [
            str(o["id"])
            for o in sim.account.world.truth(name)
            if int(o.get("created") or 0) >= second
        ]
        for name in types
    }


async def differences(
    url: str, sim: Running, *, schema: str = "stripe", among: Ids | None = None
) -> dict[str, str]:
    """Table -> what is wrong with it, by Stripe's own truth; empty if the copy is right.

    `among`: only these objects are compared, whether Stripe has them or not, but each of them must
    be there; without it all, of the types that a copy must hold whole.
    """
    async with open_truth(url, sim, schema=schema) as truth:
        return await truth.differences(among)


@asynccontextmanager
async def open_truth(url: str, sim: Running, *, schema: str = "stripe") -> AsyncIterator[Truth]:
    """For several looks at one copy: most of a look's cost is a new session."""
    there, version = f"{schema}_truth", spec().api_version
    mirror = open_mirror(url, there, tables(), api_version=version, writers=1)
    async with connect(url) as connection, mirror as written:
        yield Truth(sim, schema, there, connection, written)


@dataclass(frozen=True, slots=True)
class Truth:
    """Stripe's truth in the schema `there`, beside the copy in `schema`."""

    sim: Running
    schema: str
    there: str
    connection: Connection
    mirror: Mirror

    async def differences(self, among: Ids | None = None) -> dict[str, str]:
        """As the function of this name."""
        names = [n for n in table_of_object() if among is None or among.get(n)]
        chosen = {table_of_object()[n]: tables()[table_of_object()[n]] for n in names}
        # The rows that give others a column are all there: which of them does so is not among the ids.
        linked = Links("", tables()).ids if among is not None and chosen else ()
        givers = {name: tables()[name] for name in linked}
        await make_empty(self.connection, self.there, {**givers, **chosen}.values())
        await _write_truth(self.mirror, self.sim, {**givers, **chosen}, among, givers)
        found: dict[str, str] = {}
        for name in names:
            table = table_of_object()[name]
            ids = None if among is None else list(among[name])
            schemas = (self.schema, self.there)
            wrong = await _compare(self.connection, schemas, tables()[table], ids)
            if name == "account":
                wrong.pop(
                    "there but deleted", None
                )  # The account itself is not one of its objects.
            if among is None and name not in whole_types():
                wrong.pop("missing", None)
            if wrong:
                found[table] = ", ".join(f"{k}: {v}" for k, v in wrong.items())
        return found


@cache
def _holds_others(name: str, path: tuple[str, ...]) -> bool:
    """Whether an object stands inside the JSON at this path: it changes without an event of its holder."""
    return bool(path) and any(place[: len(path)] == path for place in _places(name))


@cache
def _places(name: str) -> tuple[tuple[str, ...], ...]:
    """Where whole objects stand inside such an object."""
    return tuple(tuple(p.split(".")) for p, item in present_in(name) if item.kind == "resource")


async def make_empty(connection: Connection, schema: str, chosen: Iterable[Table]) -> None:
    """These tables, without rows. Made once: the second look at a database finds them."""
    there = await connection.fetch(
        "SELECT tablename FROM pg_catalog.pg_tables WHERE schemaname = $1", schema
    )
    known = {row[0] for row in there}
    # The tables alone: their comments and indexes take ten times as long.
    texts = [
        f'DELETE FROM "{schema}"."{t.name}";' if t.name in known else create_table(schema, t)
        for t in chosen
    ]
    await connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"; {"".join(texts)}')


async def _write_truth(
    mirror: Mirror,
    sim: Running,
    chosen: Mapping[str, Table],
    among: Ids | None,
    whole: Collection[str],
) -> None:
    """`whole`: tables of which all objects are written, whatever is in `among`."""
    group = RowSet()
    for name, table in table_of_object().items():
        if table not in chosen:
            continue
        for obj in sim.account.world.truth(name):
            if among is not None and table not in whole and obj["id"] not in among[name]:
                continue
            found = RowSet()
            # Over the wire and back: text that Postgres cannot hold is cleaned when it is read.
            read = decode(msgspec.json.encode(obj))
            assert isinstance(read, dict)
            key = mirror.extractor.object(read, found)
            if key is not None:
                group.add(table, key, found.rows[table][key])
    # In one transaction: with one for each table Python needs half as much again.
    await mirror.write([(group, AsOf(1.0, 2.0))])


async def _compare(
    connection: Connection, schemas: tuple[str, str], table: Table, ids: list[str] | None
) -> dict[str, object]:
    """What is wrong with the first schema's rows, by the second's; only these ids, if there are any."""
    columns = [
        c.name
        for c in table.columns
        if not c.on_request
        and c.read not in ("parent", "deleted")
        and c.name not in table.key
        and (table.name, c.name) not in _ON_REQUEST_WITHIN
        and not (c.type == "jsonb" and _holds_others(table.object_type, c.path))
    ]
    listed = ", ".join(f'"{c}"' for c in ["id", *columns])
    mine, truth = (f'"{schema}"."{table.name}"' for schema in schemas)
    only = "true" if ids is None else "id = ANY($1::text[])"
    given = () if ids is None else (ids,)
    wrong: dict[str, object] = {}
    missing = await connection.fetch(
        f"SELECT id FROM {truth} WHERE {only} EXCEPT SELECT id FROM {mine} ORDER BY id", *given
    )
    if missing:
        wrong["missing"] = f"{len(missing)} such as {missing[0][0]}"
    lively = "" if not table.deletable else "AND NOT m.deleted"
    differing = await connection.fetch(
        f"SELECT {listed} FROM {mine} m WHERE {only} AND id IN (SELECT id FROM {truth}) {lively}"
        f" EXCEPT SELECT {listed} FROM {truth}",
        *given,
    )
    for row in differing[:1]:
        other = await connection.fetchrow(f"SELECT {listed} FROM {truth} WHERE id = $1", row["id"])
        assert other is not None
        fields = {c: (row[c], other[c]) for c in columns if row[c] != other[c]}
        wrong["differing"] = f"{len(differing)} such as {row['id']} (mine, Stripe's): {fields}"
    if lively:
        dead = await connection.fetch(
            f"SELECT m.id FROM {mine} m WHERE m.deleted AND id IN (SELECT id FROM {truth})"
        )
        if dead:
            wrong["deleted but there"] = [r[0] for r in dead]
        ghosts = await connection.fetch(
            f"SELECT m.id FROM {mine} m WHERE {only} AND NOT m.deleted"
            f" AND id NOT IN (SELECT id FROM {truth})",
            *given,
        )
        if ghosts:
            wrong["there but deleted"] = [r[0] for r in ghosts]
    return wrong
