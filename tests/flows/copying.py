"""A backfill of a simulated account into a real database, and the comparison with Stripe's truth."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache, partial

import msgspec

from pinstripe.catalog.endpoints import list_endpoints
from pinstripe.catalog.load import spec
from pinstripe.catalog.tables import Table, table_of_object, tables
from pinstripe.client.key import ApiKey
from pinstripe.client.limits import Budget
from pinstripe.client.retry import Patience
from pinstripe.client.session import Stripe
from pinstripe.mirror import Truth, open_mirror
from pinstripe.rows.decode import decode
from pinstripe.rows.extract import Found
from pinstripe.simulator.server import Running
from pinstripe.source.account import Source
from pinstripe.source.settle import settle
from pinstripe.store.migrate import effective_tables, migrate
from pinstripe.store.pool import Connection, connect, open_pool
from pinstripe.sync.backfill import Backfill, Outcome

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
# Stripe lists the account's own secrets (those of users need the user's name), and events of 30 days.
_NEVER_WHOLE = frozenset({"apps.secret", "event"})
# Holds a list that Stripe gives on request only, too deep to be a column of its own.
_ON_REQUEST_WITHIN = frozenset({("quote", "computed_upfront"), ("quote", "computed_recurring")})


@cache
def whole_types() -> frozenset[str]:
    """Object types of which a copy must hold every object."""
    listed = {name for e in list_endpoints() if not e.parent for name in e.objects}
    return frozenset((listed | NESTED) & set(table_of_object())) - _NEVER_WHOLE


async def make_schema(
    url: str, schema: str = "stripe", chosen: Mapping[str, Table] | None = None
) -> None:
    async with connect(url) as connection:
        await migrate(
            connection,
            schema,
            chosen or tables(),
            sdk_version=spec().sdk_version,
            api_version=spec().api_version,
        )


@asynccontextmanager
async def copying(
    url: str,
    sim: Running,
    *,
    schema: str = "stripe",
    key: str = "",
    now: float | None = None,
    chosen: Mapping[str, Table] | None = None,
    budget: Budget | None = None,
) -> AsyncIterator[Backfill]:
    """A backfill, ready to run, into a schema that exists. Waits for retries are short."""
    budget = budget or Budget(account_rate=None, endpoint_rate=None)
    patience = Patience(attempts=12, base_s=0.005, cap_s=0.02, limited_cap_s=0.02)
    async with connect(url) as connection:
        effective = await effective_tables(connection, schema, chosen or tables())
    version = spec().api_version
    async with (
        Stripe(
            ApiKey.parse(key or sim.key),
            api_version=version,
            budget=budget,
            base_url=sim.url,
            patience=patience,
        ) as stripe,
        await open_pool(url, min_size=1, max_size=6) as pool,
        open_mirror(url, schema, effective, api_version=version) as mirror,
    ):
        source = Source(stripe, mirror, effective, pool)
        mirror.settle = partial(settle, source)
        moment = sim.account.clock.now() if now is None else now
        birth = sim.account.world.plan.start - 86_400
        yield Backfill(source, pool, budget, now=moment, birth=birth)


async def copy(url: str, sim: Running, *, schema: str = "stripe", key: str = "") -> Outcome:
    """Runs a backfill to its end."""
    async with copying(url, sim, schema=schema, key=key) as backfill:
        return await backfill.run()


async def differences(url: str, sim: Running, *, schema: str = "stripe") -> dict[str, str]:
    """Table -> what is wrong with it, by Stripe's own truth; empty if the copy is right.

    The truth is written into a schema beside, and Postgres compares, column by column. Left out are
    columns that Stripe gives on request only, and the parents that only the place tells.
    """
    there = f"{schema}_truth"
    async with connect(url) as connection:
        await connection.execute(f'DROP SCHEMA IF EXISTS "{there}" CASCADE')
    await make_schema(url, there)
    await _write_truth(url, sim, there)
    found: dict[str, str] = {}
    async with connect(url) as connection:
        for name, table in table_of_object().items():
            wrong = await _compare(connection, schema, there, tables()[table])
            if name == "account":
                wrong.pop(
                    "there but deleted", None
                )  # The account itself is not one of its objects.
            if name not in whole_types():
                wrong.pop("missing", None)
            if wrong:
                found[table] = ", ".join(f"{k}: {v}" for k, v in wrong.items())
    return found


async def _write_truth(url: str, sim: Running, schema: str) -> None:
    version = spec().api_version
    async with open_mirror(url, schema, tables(), api_version=version) as mirror:
        for name, table in table_of_object().items():
            group = Found()
            for obj in sim.account.world.truth(name):
                found = Found()
                # Over the wire and back: text that Postgres cannot hold is cleaned when it is read.
                read = decode(msgspec.json.encode(obj))
                assert isinstance(read, dict)
                key = mirror.extractor.object(read, found)
                if key is not None:
                    group.add(table, key, found.rows[table][key])
            await mirror.put(group, Truth(1.0, 2.0))


async def _compare(
    connection: Connection, schema: str, there: str, table: Table
) -> dict[str, object]:
    columns = [
        c.name
        for c in table.columns
        if not c.on_request
        and c.read not in ("parent", "deleted")
        and c.name not in table.key
        and (table.name, c.name) not in _ON_REQUEST_WITHIN
    ]
    listed = ", ".join(f'"{c}"' for c in ["id", *columns])
    mine, truth = f'"{schema}"."{table.name}"', f'"{there}"."{table.name}"'
    wrong: dict[str, object] = {}
    missing = await connection.fetch(
        f"SELECT id FROM {truth} EXCEPT SELECT id FROM {mine} ORDER BY id"
    )
    if missing:
        wrong["missing"] = f"{len(missing)} such as {missing[0][0]}"
    lively = "" if not table.deletable else "AND NOT m.deleted"
    differing = await connection.fetch(
        f"SELECT {listed} FROM {mine} m WHERE id IN (SELECT id FROM {truth}) {lively}"
        f" EXCEPT SELECT {listed} FROM {truth}"
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
            f"SELECT m.id FROM {mine} m WHERE NOT m.deleted AND id NOT IN (SELECT id FROM {truth})"
        )
        if ghosts:
            wrong["there but deleted"] = [r[0] for r in ghosts]
    return wrong
