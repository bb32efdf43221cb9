"""What went through Postgres comes back leaf by leaf, and no odd value fails the page it stands in."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import asyncpg
import pytest
from tests.postgres.writing import SCHEMA, Writing, make_schema, writing
from tests.unit.rows.made_up import WITH_TABLE, Maker
from tests.unit.rows.rebuild import Json, Kept, Replica, lost

from pinstripe.catalog.tables import Column, table_of_object, tables
from pinstripe.rows.extract import Extractor, RowSet
from pinstripe.store.ddl import quote

EXAMPLES: dict[str, dict[str, Json]] = json.loads(
    (Path(__file__).parents[1] / "data" / "examples.json").read_text()
)
ALL = [t.name for t in tables().values() if not t.virtual]
# Times come back as the numbers and texts that Stripe sends; all else as it goes into the stage.
AS_SENT = {
    "time": "extract(epoch FROM {})::bigint",
    "time_ms": "(extract(epoch FROM {}) * 1000)::bigint",
    "number": "{}::text",
    "decimal": "{}::text",
    "json": "{}::text",
}


@pytest.fixture
async def w(database: str) -> AsyncIterator[Writing]:
    await make_schema(database, ALL)
    async with writing(database, *ALL) as made:
        yield made


async def test_every_example_comes_back_from_the_database(w: Writing) -> None:
    await w.put(*((obj, 0, 1) for obj in EXAMPLES.values()))
    for obj in EXAMPLES.values():
        assert lost(obj, await rebuilt(w, obj)) == []


@pytest.mark.parametrize(("seed", "oddness"), [(1, 0.0), (2, 0.05), (3, 0.3)])
async def test_odd_objects_come_back_from_the_database(
    w: Writing, seed: int, oddness: float
) -> None:
    maker = Maker(Random(seed), oddness)
    objects = [maker.object(name) for name in WITH_TABLE if name not in ("balance", "tax.settings")]
    await w.put(*((obj, 0, 1) for obj in objects))
    for obj in objects:
        assert lost(obj, await rebuilt(w, obj)) == []


async def rebuilt(w: Writing, obj: dict[str, Json]) -> Json:
    """The object, put together from the rows that are now in the database."""
    found, extractor = RowSet(), Extractor()
    key = extractor.object(obj, found)
    assert key is not None
    groups = {table: set(group) for table, group in found.rows.items()}
    rows = {
        (table, row_key): await kept(w.pg, table, row_key)
        for table, keys in groups.items()
        for row_key in keys
    }
    return Replica(rows).rebuild(tables()[table_of_object()[obj["object"]]], key, obj)


async def kept(pg: asyncpg.Connection, table: str, key: str) -> Kept:
    columns = tables()[table].columns
    values = ", ".join(f"{_expression(c)} AS {quote(c.name)}" for c in columns)
    row = await pg.fetchrow(
        f"SELECT {values}, _extra::text FROM {SCHEMA}.{quote(table)} WHERE id = $1", key
    )
    assert row is not None, (table, key)
    extra = row["_extra"]
    return Kept({c.name: row[c.name] for c in columns}, json.loads(extra) if extra else {})


def _expression(column: Column) -> str:
    return AS_SENT.get(column.read, "{}").format(quote(column.name))
