"""`pinstripe check`: what it says of keys and databases of every sort, and with which exit code."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.flows.harness.command import Ended, pinstripe
from tests.flows.harness.pooler import transaction_pooler

from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import tables
from pinstripe.client.api_key import ApiKey
from pinstripe.client.client import StripeClient
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.doctor.database import examine_database
from pinstripe.doctor.key import examine
from pinstripe.doctor.report import DatabaseReport, Finding, KeyReport, Resource, worst
from pinstripe.errors import Unreachable, WrongKey
from pinstripe_simulator.account import Settings
from pinstripe_simulator.nastiness import Nastiness
from pinstripe_simulator.server import Running, running

SECRET = "rk_test_thisisthesecretofatest123"
FAST = {"PINSTRIPE_RATE_LIMIT": "none", "PINSTRIPE_ENDPOINT_RATE_LIMIT": "none"}


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(Settings(scale=200)) as found:
        yield found


def restricted(sim: Running, *denied: str) -> None:
    sim.control.key(SECRET, denied=list(denied))


async def examined(sim: Running, *, try_writes: bool = False, key: str = SECRET) -> KeyReport:
    async with StripeClient(
        ApiKey.parse(key),
        api_version=spec().api_version,
        budget=RateLimiter(account_rate=None, endpoint_rate=None),
        base_url=sim.url,
    ) as stripe:
        return await examine(stripe, tables(), try_writes=try_writes)


async def check(
    sim: Running, *words: str, database: str = "", key: str = SECRET, cwd: str = "/"
) -> Ended:
    env = {**FAST, "STRIPE_API_KEY": key, "STRIPE_API_BASE": sim.url}
    if database:
        env["DATABASE_URL"] = database
    return await pinstripe("check", *words, env=env, cwd=cwd)


def is_empty(directory: Path) -> bool:
    return not any(directory.iterdir())


def by_path(report: KeyReport) -> dict[str, Resource]:
    return {r.path: r for r in report.resources}


def problems(report: KeyReport | DatabaseReport) -> list[Finding]:
    return [f for f in report.findings if f.state == "problem"]


async def test_a_list_that_stripe_gives_by_customer_only_is_no_problem() -> None:
    async with running(Settings(scale=200, nastiness=Nastiness())) as sim:
        restricted(sim)
        report = await examined(sim)
    methods = by_path(report)["/v1/payment_methods"]
    assert (methods.state, methods.message[:24]) == ("readable", "Read under each customer")
    assert problems(report) == []


async def test_a_list_by_customer_is_a_problem_where_customers_are_not_synced(
    database: str,
) -> None:
    async with running(Settings(scale=200, nastiness=Nastiness())) as sim:
        restricted(sim)
        ended = await check(sim, "--tables", "payment_method,event", database=database)
    assert ended.code == 4, ended.text
    assert "payment_method: Stripe refused (400)" in ended.out
    assert "Add customer to --tables" in ended.out


async def test_a_key_that_may_do_everything_has_nothing_to_mend(sim: Running) -> None:
    report = await examined(sim, key=sim.key)
    assert worst(report.findings) == 0
    assert report.kind == "standard"
    assert report.account_id == sim.account.id
    assert {r.state for r in report.resources} <= {"readable", "not_tried"}
    assert {a.name: a.state for a in report.abilities} == dict.fromkeys(
        ("events", "previews", "webhooks_read", "webhooks_write"), "yes"
    )


async def test_every_list_of_the_catalog_is_asked_once_and_for_one_object(sim: Running) -> None:
    report = await examined(sim, key=sim.key)
    assert {t for r in report.resources for t in r.tables} >= {"charge", "customer", "price"}
    assert len(by_path(report)) == len(report.resources)
    assert report.requests <= len(report.resources) + 3
    assert sim.account.meter.requests["GET /v1/charges"] == 1


async def test_what_a_restricted_key_lacks_is_named_as_stripe_names_it(sim: Running) -> None:
    restricted(sim, "charge_read", "invoice_read", "customer_balance_transaction_read")
    report = await examined(sim)
    found = {r.path: r.permission for r in report.resources if r.state == "not_permitted"}
    assert found == {
        "/v1/charges": "charge_read",
        "/v1/refunds": "charge_read",  # The dashboard has one permission, "Charges and Refunds".
        "/v1/invoices": "invoice_read",
        "/v1/customers/{customer}/balance_transactions": "customer_balance_transaction_read",
    }
    assert worst(report.findings) == 4
    assert set(report.recipe.lacking) == set(found.values())
    assert all("charge_read" in f.remedy for f in problems(report) if "charge:" in f.message)
    assert report.recipe.create_at.endswith("/test/apikeys/create")


async def test_a_permission_for_events_is_told_with_what_it_means(sim: Running) -> None:
    restricted(sim, "event_read")
    (problem,) = problems(await examined(sim))
    assert "cannot be synced" in problem.message
    assert "event_read" in problem.remedy


async def test_a_key_that_may_not_preview_is_told_which_tables_stay_empty(sim: Running) -> None:
    restricted(sim, "invoice_write")
    report = await examined(sim)
    (problem,) = problems(report)
    assert "upcoming invoices" in problem.message
    assert "invoice_write" in problem.remedy


async def test_products_that_are_not_enabled_are_no_problem(sim: Running) -> None:
    sim.control.not_enabled(["issuing", "treasury"])
    report = await examined(sim, key=sim.key)
    assert worst(report.findings) == 0
    states = {r.product: r.state for r in report.resources if r.product in ("Issuing", "Treasury")}
    assert states == {"Issuing": "not_enabled", "Treasury": "not_enabled"}
    assert not {"Issuing", "Treasury"} & set(report.recipe.read)


async def test_whether_webhooks_can_be_written_is_tried_only_when_asked(sim: Running) -> None:
    restricted(sim, "webhook_endpoint_write")
    untried = {a.name: a for a in (await examined(sim)).abilities}
    assert untried["webhooks_write"].state == "unknown"
    assert sim.account.meter.requests["POST /v1/webhook_endpoints"] == 0
    tried = {a.name: a for a in (await examined(sim, try_writes=True)).abilities}
    assert tried["webhooks_write"].permission == "webhook_endpoint_write"


async def test_trying_to_write_changes_nothing(sim: Running) -> None:
    restricted(sim)
    before = sim.control.counts()
    report = await examined(sim, try_writes=True)
    assert {a.state for a in report.abilities} == {"yes"}
    assert sim.control.counts() == before


async def test_the_accounts_own_version_and_clock_are_read_off_its_answers(sim: Running) -> None:
    restricted(sim, "account_read")
    sim.control.api_version("2025-03-31.basil")
    sim.control.clock(offset_s=100)
    report = await examined(sim)
    assert report.default_api_version == "2025-03-31.basil"
    assert report.account_id == sim.account.id  # a refusal names it
    assert report.clock_ahead_s == pytest.approx(100, abs=1.1)
    assert {"version", "clock"} <= {f.about for f in report.findings}


async def test_a_list_that_fails_does_not_end_the_examination(sim: Running) -> None:
    restricted(sim)
    sim.control.fault(kind="error_500", path="/v1/coupons")
    async with StripeClient(
        ApiKey.parse(SECRET),
        api_version=spec().api_version,
        budget=RateLimiter(account_rate=None, endpoint_rate=None),
        base_url=sim.url,
        sleep=_at_once,
    ) as stripe:
        report = await examine(stripe, tables())
    assert by_path(report)["/v1/coupons"].state == "failed"
    assert by_path(report)["/v1/charges"].state == "readable"
    assert worst(report.findings) == 4


async def _at_once(_: float) -> None:
    """Does not sleep."""


async def test_a_key_that_stripe_does_not_know_ends_it(sim: Running) -> None:
    with pytest.raises(WrongKey):
        await examined(sim)


async def test_an_address_without_stripe_ends_it() -> None:
    async with StripeClient(
        ApiKey.parse(SECRET),
        api_version=spec().api_version,
        budget=RateLimiter(account_rate=None, endpoint_rate=None),
        base_url="http://127.0.0.1:9",
        sleep=_at_once,
    ) as stripe:
        with pytest.raises(Unreachable):
            await examine(stripe, tables())


# --- the database ---------------------------------------------------------------------------------


async def test_a_good_database_passes_and_stays_as_it_was(
    database: str, pg: asyncpg.Connection
) -> None:
    report = await examine_database(database, "stripe", owner=("acct_1", False))
    assert worst(report.findings) == 0
    assert {f.state for f in report.findings} == {"ok"}
    assert report.clock_ahead_s == pytest.approx(0, abs=1)
    made = await pg.fetchval(
        "SELECT count(*) FROM pg_namespace WHERE nspname ~ '^(stripe|pinstripe)'"
    )
    assert made == 0


async def test_a_read_only_database_cannot_be_written_to(
    database: str, pg: asyncpg.Connection
) -> None:
    name = await pg.fetchval("SELECT current_database()")
    await pg.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    report = await examine_database(database, "stripe")
    assert worst(report.findings) == 5
    assert "default_transaction_read_only" in problems(report)[0].message


async def test_each_right_that_is_missing_is_named_with_its_grant(
    database: str, pg: asyncpg.Connection
) -> None:
    role = f"reader_{os.getpid()}"
    name = await pg.fetchval("SELECT current_database()")
    await pg.execute(
        f"CREATE ROLE {role} LOGIN; REVOKE TEMPORARY ON DATABASE {name} FROM public;"
        " CREATE SCHEMA stripe; CREATE TABLE stripe.charge (id text, _as_of int);"
        " CREATE TABLE stripe.of_someone_else (id text)"
    )
    try:
        url = urlsplit(database)._replace(netloc=f"{role}@").geturl()
        report = await examine_database(url, "stripe")
    finally:
        await pg.execute(f"DROP ROLE {role}")
    assert worst(report.findings) == 5
    remedies = {f.about: f.remedy for f in problems(report)}
    assert set(remedies) == {
        "temporary tables",
        "schemas",
        "tables in stripe",
        "ownership",
    }
    assert "GRANT TEMPORARY" in remedies["temporary tables"]
    assert "GRANT CREATE ON DATABASE" in remedies["schemas"]
    assert "ON SCHEMA" in remedies["tables in stripe"]
    (owned,) = (f for f in problems(report) if f.about == "ownership")
    assert owned.message.startswith("1 tables")


async def test_tables_of_somebody_else_in_our_place_are_told(
    database: str, pg: asyncpg.Connection
) -> None:
    await pg.execute("CREATE SCHEMA stripe; CREATE TABLE stripe.charge (id int, mine text)")
    report = await examine_database(database, "stripe")
    assert worst(report.findings) == 2
    assert "did not make" in problems(report)[0].message


async def test_too_few_connections_are_told(database: str, pg: asyncpg.Connection) -> None:
    name = await pg.fetchval("SELECT current_database()")
    await pg.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 9")
    report = await examine_database(database, "stripe")
    assert worst(report.findings) == 0
    warned = {f.about: f.message for f in report.findings if f.state == "warning"}
    assert set(warned) == {"connections"}


async def test_a_schema_of_another_account_is_refused(
    database: str, pg: asyncpg.Connection
) -> None:
    await pg.execute(
        "CREATE SCHEMA pinstripe; CREATE SCHEMA stripe;"
        "CREATE TABLE pinstripe.sync (schema text, account_id text, livemode bool, api_version text);"
        "INSERT INTO pinstripe.sync VALUES ('stripe', 'acct_other', false, 'x')"
    )
    report = await examine_database(database, "stripe", owner=("acct_1", False))
    assert worst(report.findings) == 2
    assert "acct_other" in problems(report)[0].message


async def test_a_pooler_in_transaction_mode_is_seen_for_what_it_is(database: str) -> None:
    with TemporaryDirectory(prefix="pinstripe-") as directory:  # a socket's path must be short
        async with transaction_pooler(database, Path(directory)) as url:
            report = await examine_database(url, "stripe")
    assert worst(report.findings) == 2
    (problem,) = problems(report)
    assert "transaction mode" in problem.message
    assert "session mode" in problem.remedy


async def test_an_address_that_cannot_be_read_is_a_finding() -> None:
    report = await examine_database("postgresql://app:hunter22@[::1/app", "stripe")
    assert worst(report.findings) == 2
    assert "hunter22" not in str(report)


async def test_a_dead_database_is_one_finding_without_its_password() -> None:
    report = await examine_database("postgresql://app:hunter22@127.0.0.1:9/app", "stripe")
    assert worst(report.findings) == 3
    (problem,) = report.findings
    assert "127.0.0.1:9/app" in problem.message
    assert "hunter22" not in str(report)


# --- the command ----------------------------------------------------------------------------------


async def test_the_command_shows_key_database_and_remedies(sim: Running, database: str) -> None:
    restricted(sim, "charge_read")
    ended = await check(sim, database=database)
    assert ended.code == 4, ended.text
    assert "a restricted key in test mode" in ended.out
    assert "/v1/charges: missing " in ended.out
    assert "(charge_read)" in ended.out
    assert "LISTEN and NOTIFY work" in ended.out
    assert "Write, for `pinstripe webhook` only" in ended.out
    assert SECRET not in ended.text


async def test_json_is_one_line_with_all_of_it(sim: Running, database: str) -> None:
    restricted(sim)
    ended = await check(sim, "--json", database=database)
    assert ended.code == 0, ended.text
    assert ended.out.count("\n") == 1
    found: dict[str, Any] = json.loads(ended.out)
    assert found["exit_code"] == 0
    assert found["key"]["account_id"] == sim.account.id
    assert found["key"]["recipe"]["read"]["Core"]
    assert found["database"]["version"]
    assert SECRET not in ended.text


async def test_a_wrong_key_does_not_keep_the_database_from_being_examined(
    sim: Running, database: str
) -> None:
    ended = await check(sim, database=database)
    assert ended.code == 2, ended.text
    assert "Invalid API Key" in ended.out
    assert "LISTEN and NOTIFY work" in ended.out


async def test_a_dead_database_does_not_keep_the_key_from_being_examined(sim: Running) -> None:
    restricted(sim)
    ended = await check(sim, database="postgresql://app:hunter22@127.0.0.1:9/app")
    assert ended.code == 3, ended.text
    assert "are readable" in ended.out
    assert "hunter22" not in ended.text


async def test_without_a_database_none_is_made(sim: Running, tmp_path: Path) -> None:
    restricted(sim)
    ended = await check(sim, "--tables", "customer,product", cwd=str(tmp_path))
    assert ended.code == 0, ended.text
    assert "DATABASE_URL is not set" in ended.out
    assert "Resources: 2 of 2 are readable" in ended.out
    assert is_empty(tmp_path)


async def test_a_key_of_another_kind_is_a_finding_too(sim: Running, database: str) -> None:
    ended = await check(sim, database=database, key="pk_test_aaaaaaaaaaaaaaaaaaaa")
    assert ended.code == 2
    assert "publishable" in ended.out
    assert "aaaaaaaa" not in ended.text
