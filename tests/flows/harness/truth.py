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
from pinstripe.client.response import decode
from pinstripe.mirror.upsert import STAGE_EXTRA, create_stage, insert, stage, stage_name
from pinstripe.rows.extract import Row, RowSet, extractor_for
from pinstripe.store.ddl import create_table
from pinstripe.store.links import Links, link_all
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
    """For several looks at one copy: a new session is dear."""
    async with connect(url) as connection:
        yield Truth(sim, schema, f"{schema}_truth", connection)


@dataclass(frozen=True, slots=True)
class Truth:
    """Stripe's truth in the schema `there`, beside the copy in `schema`."""

    sim: Running
    schema: str
    there: str
    connection: Connection

    async def differences(self, among: Ids | None = None) -> dict[str, str]:
        """As the function of this name."""
        names = [n for n in table_of_object() if among is None or among.get(n)]
        if not names:
            return {}
        chosen = {table_of_object()[n]: tables()[table_of_object()[n]] for n in names}
        # The rows that give others a column are all there: which of them does so is not among the ids.
        linked = Links("", tables()).ids if among is not None else ()
        givers = {name: tables()[name] for name in linked}
        needed = {**givers, **chosen}
        await make_empty(self.connection, self.there, needed.values())
        await self._write(needed, _true_rows(self.sim, needed, among, givers))
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

    async def _write(self, known: Mapping[str, Table], rows: Mapping[str, list[Row]]) -> None:
        """Fill the empty tables, with the statements that the mirror fills its own by."""
        written = [known[name] for name in rows]
        stages = [f"{create_stage(t)}; DELETE FROM {stage(t.name)}" for t in written]
        await self.connection.execute(";".join(stages))
        for table in written:
            await self.connection.copy_records_to_table(
                stage_name(table.name),
                schema_name="pg_temp",
                records=rows[table.name],
                columns=[*(c.name for c in table.columns), *STAGE_EXTRA],
            )
        version = f"'{spec().api_version}'::text"
        inserts = [insert(self.there, t).replace("$1::text", version) for t in written]
        async with self.connection.transaction():
            await self.connection.execute(";".join(inserts))
            await link_all(self.connection, self.there, known, rows.keys())


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


def _true_rows(
    sim: Running, chosen: Mapping[str, Table], among: Ids | None, whole: Collection[str]
) -> dict[str, list[Row]]:
    """By table. `whole`: tables of which all objects are meant, whatever is in `among`."""
    extractor = extractor_for(tables(), personal=None)
    rows: dict[str, list[Row]] = {}
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
            key = extractor.object(read, found)
            if key is not None:
                row = found.rows[table][key]
                row[-5], row[-4] = 1.0, 2.0  # The interval: long ago.
                rows.setdefault(table, []).append(row)
    return rows


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
    mine, truth = (f'"{schema}"."{table.name}"' for schema in schemas)
    only = "true" if ids is None else "id = ANY($1::text[])"
    given = () if ids is None else (ids,)
    lively = "AND NOT deleted" if table.deletable else ""
    ours, theirs = (", ".join(f'{of}."{c}"' for c in columns) for of in "mt")
    questions = [
        f"SELECT id FROM {truth} WHERE {only} EXCEPT SELECT id FROM {mine}",
        f"SELECT m.id FROM (SELECT * FROM {mine} WHERE {only} {lively}) m JOIN {truth} t ON t.id = m.id"
        f" WHERE ROW({ours}) IS DISTINCT FROM ROW({theirs})",
    ]
    if lively:
        there = f"(SELECT id FROM {truth})"
        questions += [
            f"SELECT id FROM {mine} WHERE deleted AND id IN {there}",
            f"SELECT id FROM {mine} WHERE {only} {lively} AND id NOT IN {there}",
        ]
    asked = ", ".join(f"ARRAY({question} ORDER BY 1)" for question in questions)
    found = await connection.fetchrow(f"SELECT {asked}", *given)
    assert found is not None
    missing, differing, *flags = found
    wrong: dict[str, object] = {}
    if missing:
        wrong["missing"] = f"{len(missing)} such as {missing[0]}"
    if differing:
        listed = ", ".join(f'"{c}"' for c in columns)
        row, other = [
            await connection.fetchrow(f"SELECT {listed} FROM {one} WHERE id = $1", differing[0])
            for one in (mine, truth)
        ]
        assert row is not None
        assert other is not None
        fields = {c: (row[c], other[c]) for c in columns if row[c] != other[c]}
        wrong["differing"] = f"{len(differing)} such as {differing[0]} (mine, Stripe's): {fields}"
    for what, keys in zip(("deleted but there", "there but deleted"), flags, strict=False):
        if keys:
            wrong[what] = keys
    return wrong
