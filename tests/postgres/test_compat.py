"""Views in the shape of other products' tables: they hold what those hold, and follow the catalog."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import asyncpg
import pytest
from tests.postgres.writing import SCHEMA, make_schema, writing

from pinstripe.catalog.tables import tables
from pinstripe.client.decode import StripeObject
from pinstripe.config.config import COMPAT, read_config
from pinstripe.errors import Misconfigured
from pinstripe.store.compat import set_compat, shapes, view_columns
from pinstripe.store.roles import create_reader, drop_reader

LEAST = {"fivetran": 0.95, "supabase": 0.89}
EXAMPLES = json.loads((Path(__file__).parents[1] / "data" / "examples.json").read_text())
DBT = os.environ.get("PINSTRIPE_TEST_DBT", "")
PACKAGES = os.environ.get("PINSTRIPE_TEST_DBT_PACKAGES", "")


@pytest.mark.parametrize("product", COMPAT)
def test_most_columns_of_the_product_are_there(product: str) -> None:
    shape = shapes()[product]
    there = sum(len([*view_columns(shape, v, tables()[v.table])]) for v in shape.views.values())
    assert there / sum(len(v.columns) for v in shape.views.values()) >= LEAST[product]


async def test_the_views_hold_what_the_rows_hold(database: str) -> None:
    names = ["charge", "customer", "balance_transaction"]
    await make_schema(database, names)
    async with writing(database, *names) as w:
        await set_compat(w.pg, SCHEMA, w.writer._tables, COMPAT)
        address = {"city": "Oslo", "country": "NO"}
        charge: StripeObject = {
            "id": "ch_1",
            "object": "charge",
            "amount": 5,
            "created": 1_790_000_000,
        }
        charge["billing_details"] = {"address": address, "email": "a@example.com"}
        fees = [{"amount": 3, "type": "stripe_fee"}, {"amount": 2, "type": "tax"}]
        movement: StripeObject = {
            "id": "txn_1",
            "object": "balance_transaction",
            "fee_details": fees,
        }
        await w.put((charge, 0, 1), (movement, 0, 1))
        there = await w.pg.fetchrow("SELECT * FROM stripe_fivetran.charge")
        assert there is not None
        assert (there["billing_detail_address_city"], there["amount"]) == ("Oslo", 5)
        fee = await w.pg.fetch('SELECT "index", amount FROM stripe_fivetran.fee ORDER BY 1')
        assert [tuple(row) for row in fee] == [(0, 3), (1, 2)]
        row = await w.pg.fetchrow("SELECT created, paid FROM stripe_supabase.charges")
        assert row is not None
        assert (row["created"], row["paid"]) == (1_790_000_000, None)


async def test_they_go_when_they_are_no_longer_wanted_and_are_made_once(database: str) -> None:
    names = ["charge"]
    known = {n: tables()[n] for n in names}
    await make_schema(database, names)
    async with writing(database, *names) as w:
        await set_compat(w.pg, SCHEMA, known, ["fivetran"])
        place = "SELECT 'stripe_fivetran.charge'::regclass::oid"
        first = await w.pg.fetchval(place)
        await set_compat(w.pg, SCHEMA, known, ["fivetran"])
        assert await w.pg.fetchval(place) == first
        await w.pg.execute("CREATE VIEW public.mine AS SELECT id FROM stripe_fivetran.charge")
        await set_compat(w.pg, SCHEMA, known, [])  # A view of the user rests on it: it stays.
        assert await w.pg.fetchval(place) == first
        await w.pg.execute("DROP VIEW public.mine")
        await set_compat(w.pg, SCHEMA, known, [])
        assert not await w.pg.fetchval("SELECT to_regnamespace('stripe_fivetran') IS NOT NULL")


async def test_the_reader_reads_them_and_can_be_dropped(database: str) -> None:
    await make_schema(database, ["charge"])
    async with writing(database, "charge") as w:
        await set_compat(w.pg, SCHEMA, w.writer._tables, ["fivetran"])
    reader = await create_reader(database, SCHEMA)
    connection = await asyncpg.connect(reader.url)
    assert await connection.fetch("SELECT id FROM stripe_fivetran.charge") == []
    await connection.close()
    assert await drop_reader(database, SCHEMA)


def test_an_unknown_product_is_refused() -> None:
    with pytest.raises(Misconfigured) as refused:
        read_config({"compat": "fivetran,novelty"}, {})
    assert "fivetran and supabase" in refused.value.hint


@pytest.mark.skipif(not (DBT and PACKAGES), reason="PINSTRIPE_TEST_DBT, _PACKAGES name no dbt")
async def test_dbt_builds_its_stripe_package_on_the_views(database: str, tmp_path: Path) -> None:
    """PINSTRIPE_TEST_DBT: the command. PINSTRIPE_TEST_DBT_PACKAGES: a folder with fivetran/dbt_stripe as
    `stripe`, its source package as `stripe_source`, `fivetran_utils` and `dbt_utils`.
    """
    await make_schema(database, list(tables()))
    async with writing(database, *tables()) as w:
        await set_compat(w.pg, SCHEMA, tables(), ["fivetran"])
        await w.put(*((obj, 0, 1) for obj in EXAMPLES.values()))
    url, host, port = urlsplit(database), "", ""
    for key, value in parse_qsl(url.query):
        host, port = (value, port) if key == "host" else (host, value if key == "port" else port)
    named = {"stripe_schema": "stripe_fivetran", "stripe_database": url.path[1:]}
    project = {"name": "probe", "version": "1.0.0", "config-version": 2, "profile": "probe"}
    settings = {
        "packages-install-path": PACKAGES,
        "vars": {**named, "stripe__using_credit_notes": True},
    }
    output = {
        "type": "postgres",
        "host": host or url.hostname,
        "port": int(port or url.port or 5432),
        "user": url.username,
        "password": url.password or "none",
        "dbname": url.path[1:],
        "schema": "dbt",
        "threads": 2,
    }
    # JSON is YAML.
    (tmp_path / "dbt_project.yml").write_text(json.dumps({**project, **settings}))
    profile = {"probe": {"target": "dev", "outputs": {"dev": output}}}
    (tmp_path / "profiles.yml").write_text(json.dumps(profile))
    done = await asyncio.to_thread(
        subprocess.run,
        [DBT, "build", "--profiles-dir", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "ERROR=0 SKIP=0" in done.stdout
