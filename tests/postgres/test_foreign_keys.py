"""Foreign keys that tools read and Postgres does not check, and the user's own that it does.

drizzle-kit is used where PINSTRIPE_TEST_NODE names a folder whose `node_modules` has it and `pg`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import time
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy
from sqlalchemy.ext import automap
from tests.postgres.writing import SCHEMA, make_schema, writing

from pinstripe.catalog.tables import tables
from pinstripe.store.migrate import set_foreign_keys

NODE = os.environ.get("PINSTRIPE_TEST_NODE", "")
KEYS = """
SELECT c.conrelid::regclass::text AS source, a.attname::text AS source_column,
  c.confrelid::regclass::text AS target, c.conenforced AS is_enforced
FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
WHERE c.contype = 'f' AND c.connamespace = $1::regnamespace
"""


@pytest.fixture
async def pg(database: str) -> asyncpg.Connection:
    await make_schema(database, list(tables()))
    return await asyncpg.connect(database)


async def test_every_single_reference_becomes_one_and_they_go_again(pg: asyncpg.Connection) -> None:
    start = time.process_time()
    made = await set_foreign_keys(pg, SCHEMA, tables(), wanted=True)
    assert time.process_time() - start < 2
    keys = await pg.fetch(KEYS, SCHEMA)
    wanted = {
        (t.name, c.name, c.references[0])
        for t in tables().values()
        for c in t.all_columns
        if len(c.references) == 1 and c.type == "text"
    } - {("discount", "invoice_item_id", "invoice_item")}
    there = {(unquoted(k["source"]), k["source_column"], unquoted(k["target"])) for k in keys}
    assert there == wanted
    assert made == len(wanted)
    assert not any(k["is_enforced"] for k in keys)
    assert (
        await set_foreign_keys(pg, SCHEMA, tables(), wanted=True) == made
    )  # nothing is made twice
    await set_foreign_keys(pg, SCHEMA, {"charge": tables()["charge"]}, wanted=False)
    assert await pg.fetch(KEYS, SCHEMA) == []  # Also of tables that are not synced any more.
    await pg.close()


async def test_sqlalchemy_automap_finds_every_relation(
    pg: asyncpg.Connection, database: str
) -> None:
    made = await set_foreign_keys(pg, SCHEMA, tables(), wanted=True)
    await pg.close()
    engine = sqlalchemy.create_engine(database.replace("postgresql://", "postgresql+psycopg://"))
    base = automap.automap_base()
    await asyncio.to_thread(base.prepare, engine, schema=SCHEMA)
    engine.dispose()
    assert len(base.classes) == len(tables())
    assert sum(len(c.__table__.foreign_keys) for c in base.classes) == made
    read = base.classes
    query = sqlalchemy.select(read.invoice.id).join(read.invoice.subscription)
    assert "stripe.subscription.id = stripe.invoice.subscription_id" in str(query)


@pytest.mark.skipif(not NODE, reason="PINSTRIPE_TEST_NODE names no folder")
async def test_drizzle_kit_pull_writes_the_relations(
    pg: asyncpg.Connection, database: str, tmp_path: Path
) -> None:
    made = await set_foreign_keys(pg, SCHEMA, tables(), wanted=True)
    await pg.close()
    config = {"dialect": "postgresql", "out": str(tmp_path), "schemaFilter": [SCHEMA]}
    written = Path(NODE) / "drizzle_test.config.json"
    written.write_text(json.dumps({**config, "dbCredentials": {"url": database}}))
    done = await asyncio.to_thread(
        subprocess.run,
        ["node_modules/.bin/drizzle-kit", "pull", f"--config={written.name}"],
        cwd=NODE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    relations = (tmp_path / "relations.ts").read_text()
    assert len(re.findall(r": one\(", relations)) == made


def unquoted(name: str) -> str:
    return name.rpartition(".")[2].strip('"')


async def test_rows_come_in_any_order_all_the_same(database: str) -> None:
    names = ["charge", "customer"]
    await make_schema(database, names)
    async with writing(database, *names) as w:
        await set_foreign_keys(w.pg, SCHEMA, {n: tables()[n] for n in names}, wanted=True)
        await w.put(({"id": "ch_1", "object": "charge", "customer": "cus_none"}, 0, 1))
        assert (await w.row("charge", "ch_1"))["customer_id"] == "cus_none"


async def test_a_foreign_key_of_the_user_holds_while_stripe_deletes(database: str) -> None:
    """A deleted object keeps its row, flagged, so the user's row may go on referring to it."""
    await make_schema(database, ["customer"])
    async with writing(database, "customer") as w:
        await w.put(({"id": "cus_1", "object": "customer"}, 0, 1))
        await w.pg.execute(
            "CREATE SCHEMA app; CREATE TABLE app.member (customer_id text NOT NULL"
            f" REFERENCES {SCHEMA}.customer (id)); INSERT INTO app.member VALUES ('cus_1')"
        )
        await w.put(({"id": "cus_1", "object": "customer", "deleted": True}, 10, 11))
        assert (await w.row("customer", "cus_1"))["deleted"] is True
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await w.pg.execute("INSERT INTO app.member VALUES ('cus_unknown')")
