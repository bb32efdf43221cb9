"""What older versions wrote of secrets goes: columns, JSON, `_extra`, event payloads, the change feed."""

from __future__ import annotations

import json

import asyncpg
import pytest
from tests.postgres.writing import VERSION

from pinstripe.catalog.tables import Table, tables
from pinstripe.store import rewrite as module
from pinstripe.store.ddl import qualified, quote
from pinstripe.store.migrate import migrate
from pinstripe.store.rewrite import rule

SCHEMA = "s"
INTENT = {"id": "pi_1", "object": "payment_intent", "client_secret": "pi_1_secret_PLANTED"}
CARD = {"id": "ic_1", "object": "issuing.card", "number": "PLANTED", "cvc": "PLANTED", "last4": "1"}


async def to_newest(pg: asyncpg.Connection, catalog: dict[str, Table] | None = None) -> None:
    wanted = catalog or dict(tables())
    await migrate(pg, SCHEMA, wanted, sdk_version="1", api_version=VERSION)


async def older(pg: asyncpg.Connection) -> None:
    """A schema as it was before the rule."""
    await to_newest(pg)
    await pg.execute("UPDATE pinstripe.sync SET secret_rule = NULL")


async def insert(pg: asyncpg.Connection, table: str, key: str, **values: str) -> None:
    keyed = {tables()[table].key[0]: key, **values}
    names = ", ".join(quote(name) for name in keyed)
    places = ", ".join(f"${n}" for n in range(1, len(keyed) + 1))
    await pg.execute(
        f"INSERT INTO {qualified(SCHEMA, table)} ({names}, _as_of, _as_of_latest, _synced_at)"
        f" VALUES ({places}, now(), now(), now())",
        *keyed.values(),
    )


async def found_in(pg: asyncpg.Connection, text: str) -> set[str]:
    """The tables of the whole database that hold `text` anywhere."""
    names = await pg.fetch(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname IN ('s', 'pinstripe')"
    )
    return {
        name
        for (name,) in names
        if await pg.fetchval(f"SELECT EXISTS (SELECT FROM {name} t WHERE t::text LIKE $1)", text)
    }


async def test_secrets_of_older_versions_go_and_all_else_stays(pg: asyncpg.Connection) -> None:
    await older(pg)
    for table in tables().values():
        secret = {c.name: f"PLANTED {c.name}" for c in table.columns if c.secret}
        if secret:
            await insert(pg, table.name, "x_1", **secret)
    await insert(pg, "customer", "cus_1", metadata='{"note": "ek_test_PLANTED1", "secret": "mine"}')
    await insert(pg, "customer", "cus_2", description="cut pi_1_secret_PLANTED out", name="kept")
    await insert(pg, "customer", "cus_3", _extra=json.dumps({"new": {"client_secret": "PLANTED"}}))
    await insert(pg, "issuing_card", "ic_2", _extra=json.dumps({"number": {"odd": "PLANTED"}}))
    await insert(pg, "customer", "cus_4", preferred_locales=["de", "whsec_PLANTED"])  # type: ignore[arg-type]
    await insert(
        pg,
        "event",
        "evt_1",
        data_object=json.dumps(CARD),
        data_previous_attributes=json.dumps({"number": "PLANTED", "status": "active"}),
    )
    await insert(pg, "event", "evt_2", data_object=json.dumps({"object": "x", "intent": INTENT}))
    assert len(await found_in(pg, "%PLANTED%")) > 15
    await to_newest(pg)
    assert await found_in(pg, "%PLANTED%") == set()

    async def value(table: str, key: str, column: str) -> object:
        text = f"SELECT {quote(column)} FROM {qualified(SCHEMA, table)} WHERE id = $1"
        return await pg.fetchval(text, key)

    assert json.loads(str(await value("customer", "cus_1", "metadata"))) == {
        "note": "ek_test_…",
        "secret": "mine",
    }
    assert await value("customer", "cus_2", "description") == "cut pi_1_secret_… out"
    assert await value("customer", "cus_2", "name") == "kept"
    assert await value("customer", "cus_4", "preferred_locales") == ["de", "whsec_…"]
    shown = json.loads(str(await value("event", "evt_1", "data_object")))
    assert shown == {**CARD, "number": None, "cvc": None}
    before = json.loads(str(await value("event", "evt_1", "data_previous_attributes")))
    assert before == {"number": None, "status": "active"}


async def test_the_change_feed_is_searched_too(pg: asyncpg.Connection) -> None:
    await older(pg)
    changes = {
        "client_secret": [None, "pi_1_secret_PLANTED"],
        "status": ["a", "b"],
        "next_action_use_stripe_sdk": [{"client_secret": "PLANTED"}, {"stripe_js": "kept"}],
        "_extra": [None, {"secret": "PLANTED", "kept": 1}],
        "metadata": [{"a": "whsec_PLANTED"}, {}],
    }
    await pg.execute(
        'INSERT INTO pinstripe.change (schema, "table", id, kind, changes)'
        " VALUES ('s', 'payment_intent', 'pi_1', 'update', $1), ('s', 'event', 'e', 'insert', '{}')",
        json.dumps(changes),
    )
    await to_newest(pg)
    assert await found_in(pg, "%PLANTED%") == set()
    kept = json.loads(await pg.fetchval("SELECT changes FROM pinstripe.change ORDER BY 1 DESC"))
    assert kept == {
        "status": ["a", "b"],
        "next_action_use_stripe_sdk": [{"client_secret": None}, {"stripe_js": "kept"}],
        "_extra": [None, {"secret": None, "kept": 1}],
        "metadata": [{"a": "whsec_…"}, {}],
    }


async def test_it_is_done_once_and_in_pages(
    pg: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAGE", 3)
    await older(pg)
    for n in range(10):
        await insert(pg, "payment_intent", f"pi_{n}", client_secret=f"pi_{n}_secret_PLANTED")
    await to_newest(pg)
    assert await found_in(pg, "%PLANTED%") == set()
    assert await pg.fetchval("SELECT secret_rule FROM pinstripe.sync") == rule()
    # A second run reads no table: what stands there since then was written by today's rule.
    await pg.execute("UPDATE s.payment_intent SET description = 'pi_0_secret_AFTERWARDS'")
    await to_newest(pg)
    assert await found_in(pg, "%AFTERWARDS%") == {"s.payment_intent"}


async def test_tables_that_are_not_wanted_any_more_are_searched_too(pg: asyncpg.Connection) -> None:
    await older(pg)
    await insert(pg, "payment_intent", "pi_1", client_secret="pi_1_secret_PLANTED")
    await to_newest(pg, {"customer": tables()["customer"]})
    assert await found_in(pg, "%PLANTED%") == set()


async def test_a_table_that_refuses_is_named_and_tried_again(pg: asyncpg.Connection) -> None:
    await older(pg)
    await insert(pg, "setup_intent", "seti_1", client_secret="seti_1_secret_PLANTED")
    await insert(pg, "source", "src_1", client_secret="src_client_secret_PLANTED")
    await pg.execute(
        "ALTER TABLE s.setup_intent ADD CONSTRAINT theirs CHECK (client_secret IS NOT NULL)"
    )
    await to_newest(pg)
    assert await found_in(pg, "%PLANTED%") == {"s.setup_intent"}
    await pg.execute("ALTER TABLE s.setup_intent DROP CONSTRAINT theirs")
    await to_newest(pg)
    assert await found_in(pg, "%PLANTED%") == set()


async def test_columns_of_secrets_say_that_they_are_empty(pg: asyncpg.Connection) -> None:
    await older(pg)
    await pg.execute("COMMENT ON COLUMN s.webhook_endpoint.secret IS 'Stripe: secret'")
    await to_newest(pg)
    comment = await pg.fetchval(
        "SELECT col_description('s.webhook_endpoint'::regclass, attnum) FROM pg_attribute"
        " WHERE attrelid = 's.webhook_endpoint'::regclass AND attname = 'secret'"
    )
    assert comment == "Stripe: secret. Always null: Pinstripe keeps no secrets"
