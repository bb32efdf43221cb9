"""A simulated account with a copy of it, for tests of the live side; and how the two differ."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from pinstripe.catalog.load import spec
from pinstripe.catalog.tables import Column, table_of_object, tables
from pinstripe.client.key import ApiKey
from pinstripe.client.limits import Budget
from pinstripe.client.session import Stripe
from pinstripe.mirror import Mirror, open_mirror
from pinstripe.rows.decode import clean_text
from pinstripe.rows.extract import Extractor, Found
from pinstripe.simulator.server import Running
from pinstripe.source.account import Source
from pinstripe.source.settle import settle
from pinstripe.store.migrate import migrate
from pinstripe.store.pool import Pool, connect, open_pool
from pinstripe.sync.live import Live, Pace
from pinstripe.sync.todos import Todos

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


@dataclass(slots=True)
class Copy:
    """A copy under way."""

    url: str
    mirror: Mirror
    source: Source
    budget: Budget

    def live(self, since: float, *, pace: Pace | None = None) -> tuple[Live, Todos]:
        todos = Todos(self.source)
        return Live(self.source, todos, since=since, pace=pace or Pace(poll_s=0.05)), todos


@asynccontextmanager
async def open_copy(sim: Running, url: str) -> AsyncIterator[Copy]:
    """Tables, connections and a client for `sim`; nothing is copied yet."""
    known = tables()
    async with connect(url) as connection:
        await migrate(
            connection,
            "stripe",
            known,
            sdk_version=spec().sdk_version,
            api_version=spec().api_version,
        )
    budget = Budget(account_rate=None, endpoint_rate=None)
    key = ApiKey.parse(sim.key)
    pool: Pool
    async with (
        Stripe(key, api_version=spec().api_version, budget=budget, base_url=sim.url) as stripe,
        await open_pool(url, min_size=1, max_size=4) as pool,
        open_mirror(url, "stripe", known, api_version=spec().api_version) as mirror,
    ):
        source = Source(stripe, mirror, known, pool)
        mirror.settle = partial(settle, source)
        yield Copy(url, mirror, source, budget)


async def quiet(copy: Copy, todos: Todos) -> None:
    """Returns when nothing that was asked for is open."""
    for _ in range(3):
        await todos.idle()
        await copy.mirror.settled()


async def differences(
    sim: Running, url: str, types: Sequence[str] = FOLLOWED, *, created_since: int = 0
) -> list[str]:
    """Where rows differ from what Stripe would retrieve, as lines to read. Empty when they are equal."""
    extractor, found = Extractor(), Found()
    told: list[str] = []
    async with connect(url) as connection:
        for name in types:
            table = tables()[table_of_object()[name]]
            truth = [o for o in sim.account.world.truth(name) if _since(o, created_since)]
            rows = {
                r["id"]: r for r in await connection.fetch(f'SELECT * FROM stripe."{table.name}"')
            }
            for obj in truth:
                found.rows.clear()
                extractor.object(obj, found)
                key = str(obj["id"])
                row = found.rows[table.name][key]
                if key not in rows:
                    told.append(f"{table.name} {key} is missing")
                    continue
                present = extractor.shapes.columns(row[-1])
                for value, column in zip(row, table.columns, strict=False):
                    if column.name in present and not _equal(column, value, rows[key][column.name]):
                        told.append(
                            f"{table.name} {key} {column.name}: {value!r} is {rows[key][column.name]!r}"
                        )
    return sorted(told)


def _since(obj: dict[str, object], second: int) -> bool:
    created = obj.get("created")
    return isinstance(created, int) and created >= second


def _equal(column: Column, wire: object, stored: object) -> bool:
    if wire is None or stored is None:
        return wire is stored
    if column.type == "timestamptz":
        scale = 1000 if column.read == "time_ms" else 1
        assert isinstance(stored, datetime)
        return int(stored.timestamp() * scale) == wire
    if column.type == "jsonb":
        return bool(_shown(json.loads(str(wire))) == json.loads(str(stored)))
    if column.type == "numeric":
        return float(str(wire)) == float(str(stored))
    if column.type == "text":
        return clean_text(str(wire)) == stored
    return wire == stored


def _shown(value: object) -> object:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [_shown(item) for item in value]
    if isinstance(value, dict):
        return {clean_text(k): _shown(v) for k, v in value.items()}
    return value


async def until(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    """Waits for `condition()` to be true, looking often."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (what is looked at has no event)
            await asyncio.sleep(0.02)
