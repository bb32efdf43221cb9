"""`pinstripe sync`, `run`, `status`, `schema` and `simulate` as a user meets them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from tests.flows.harness.command import pinstripe, started

from pinstripe.cli.sync import standing_by
from pinstripe.errors import Unreachable, Unwritable
from pinstripe.store.embedded import running_url
from pinstripe.store.pool import connect
from pinstripe_simulator.account import Settings
from pinstripe_simulator.auth import Key
from pinstripe_simulator.server import Running, running

SECRET = "sk_test_thisisthesecretofatest123"
TABLES = "customer,product,charge,event"


def env_of(sim: Running, database: str, tables: str = TABLES) -> dict[str, str]:
    return {
        "STRIPE_API_KEY": SECRET,
        "STRIPE_API_BASE": sim.url,
        "DATABASE_URL": database,
        "PINSTRIPE_TABLES": tables,
        "PINSTRIPE_RATE_LIMIT": "none",
        "PINSTRIPE_ENDPOINT_RATE_LIMIT": "none",
    }


async def test_sync_once_ends_with_every_row_and_says_so_in_json(
    database: str, pg: asyncpg.Connection
) -> None:
    async with running(Settings(scale=1000, keys=(SECRET,))) as sim:
        ended = await pinstripe("sync", "--once", "--json", env=env_of(sim, database))
        expected = sim.control.counts()
    assert ended.code == 0, ended.text
    summary = json.loads(ended.out)
    tables = {t["table"]: t for t in summary["tables"]}
    assert summary["complete"] is True
    assert summary["account"] == sim.account.id
    assert set(tables) == set(TABLES.split(","))
    for name in ("customer", "product", "charge"):
        assert tables[name]["rows"] == await pg.fetchval(f"SELECT count(*) FROM stripe.{name}")
        assert tables[name]["status"] == "done"
        assert tables[name]["requests"] >= 1
    assert tables["charge"]["rows"] == expected["charge"]
    assert "rows in" in ended.err
    assert SECRET not in ended.text


async def test_a_second_run_changes_nothing_and_is_complete_too(
    database: str, pg: asyncpg.Connection
) -> None:
    async with running(Settings(scale=300, keys=(SECRET,))) as sim:
        first = await pinstripe("sync", "--once", "--json", env=env_of(sim, database))
        rows = await pg.fetch("SELECT id, _synced_at FROM stripe.charge ORDER BY id")
        second = await pinstripe("sync", "--once", "--json", env=env_of(sim, database))
    assert second.code == first.code == 0, second.text
    assert json.loads(second.out)["rows"] == json.loads(first.out)["rows"]
    assert [r[0] for r in await pg.fetch("SELECT id FROM stripe.charge ORDER BY id")] == [
        r[0] for r in rows
    ]


OLD = {
    "applied_event": ("created", "(schema, id, created) VALUES ('stripe', 'evt_1', $1)"),
    "change": (
        "at",
        '(schema, "table", id, kind, changes, at)'
        " VALUES ('stripe', 'charge', 'ch_1', 'update', '{}', $1)",
    ),
    "confirmation": (
        "as_of_latest",
        "(schema, \"table\", as_of, as_of_latest, keys) VALUES ('stripe', 'charge', $1, $1, '{1}')",
    ),
    "member_set": (
        "noted_at",
        "(schema, child, parent_id, as_of, as_of_latest, noted_at)"
        " VALUES ('stripe', 'refund', 'ch_1', $1, $1, $1)",
    ),
}
"""Table of the bookkeeping -> (the column with the time, a row of that time)."""


async def test_single_runs_leave_nothing_that_is_too_old_for_any_use(
    database: str, pg: asyncpg.Connection
) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=2)
    async with running(Settings(scale=100, keys=(SECRET,))) as sim:
        env = {**env_of(sim, database), "PINSTRIPE_CHANGE_DAYS": "1"}
        await pinstripe("sync", "--once", env=env)
        for table, (_, row) in OLD.items():
            await pg.execute(f"INSERT INTO pinstripe.{table} {row}", long_ago)
        assert (await pinstripe("sync", "--once", env=env)).code == 0
    for table, (moment, _) in OLD.items():
        old = f"SELECT count(*) FROM pinstripe.{table} WHERE {moment} <= $1"
        assert await pg.fetchval(old, long_ago) == 0, table


async def test_what_a_restricted_key_may_not_read_is_reported_table_by_table(
    database: str,
) -> None:
    secret = "rk_test_thisisarestrictedkey1234"
    async with running(Settings(scale=300, keys=(SECRET,))) as sim:
        sim.account.doors.keys[secret] = Key(
            secret, denied=frozenset({"charge_read", "account_read", "event_read"})
        )
        env = {**env_of(sim, database), "STRIPE_API_KEY": secret}
        as_json = await pinstripe("sync", "--once", "--json", env=env)
        as_text = await pinstripe("sync", "--once", env=env)
    assert as_json.code == as_text.code == 0, as_json.text
    summary = json.loads(as_json.out)
    tables = {t["table"]: t for t in summary["tables"]}
    assert summary["account"] == sim.account.id  # Stripe's refusal names it.
    assert tables["charge"]["status"] == "refused"
    assert "charge_read" in tables["charge"]["reason"]
    assert "charge_read" in tables["charge"]["remedy"]
    assert tables["customer"]["status"] == "done"
    assert "charge_read" in as_text.out
    assert secret not in as_json.text + as_text.text


async def test_a_list_that_fails_leaves_the_others_complete_and_exit_code_4(
    database: str, pg: asyncpg.Connection
) -> None:
    async with running(Settings(scale=300, keys=(SECRET,))) as sim:
        env = env_of(sim, database, "customer,product")
        await pinstripe("sync", "--once", "--tables", "product", env=env)
        await pinstripe("sync", "--once", env=env)
        await pg.execute(
            "TRUNCATE stripe.customer; DELETE FROM pinstripe.cursor;"
            "ALTER TABLE stripe.customer ADD CONSTRAINT never CHECK (false)"
        )
        failed = await pinstripe("sync", "--once", "--json", env=env)
        await pg.execute("ALTER TABLE stripe.customer DROP CONSTRAINT never")
        mended = await pinstripe("sync", "--once", "--json", env=env)
    summary = json.loads(failed.out)
    tables = {t["table"]: t for t in summary["tables"]}
    assert failed.code == 4, failed.text
    assert summary["complete"] is False
    assert tables["customer"]["status"] == "failed"
    assert "constraint" in tables["customer"]["remedy"]
    assert tables["product"]["status"] == "done"
    assert "NOT complete" in failed.err
    assert mended.code == 0, mended.text
    assert json.loads(mended.out)["complete"] is True


async def test_ctrl_c_in_the_middle_of_a_sync_ends_it_with_130_and_no_traceback(
    database: str,
) -> None:
    async with running(Settings(scale=300, keys=(SECRET,))) as sim:
        sim.account.latency.fixed_s = 20.0
        async with started("sync", "--once", env=env_of(sim, database)) as process:
            async with asyncio.timeout(20):
                while b"Asking" not in await process.stderr.readline():
                    pass
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(10):
                _, err = await process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err.decode()


async def test_no_child_of_the_demo_shows_the_key_in_its_command_line(tmp_path: Path) -> None:
    env = {"PINSTRIPE_DEMO_SCALE": "50", "PINSTRIPE_TABLES": "product"}
    async with started("run", env=env, cwd=str(tmp_path)) as process:
        async with asyncio.timeout(60):
            key = (await process.stdout.readline()).decode().split()[-1]
        assert key.startswith("sk_test_")
        assert key not in " ".join(_command_lines())
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert process.returncode == 0


async def test_without_a_key_the_demo_leaves_the_database_of_the_settings_alone(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    """Who forgot the key must not find simulated rows beside their own."""
    env = {
        "DATABASE_URL": database,
        "PINSTRIPE_SCHEMA": "shop",
        "PINSTRIPE_DEMO_SCALE": "50",
        "PINSTRIPE_TABLES": "product,event",
    }
    async with started("run", env=env, cwd=str(tmp_path)) as process:
        async with asyncio.timeout(60):
            assert b"DATABASE_URL is not used" in await process.stderr.readline()
            while b"ORDER BY created" not in (line := await process.stderr.readline()):
                assert line, "the demo ended"
            assert b'FROM "shop".event' in line
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert await pg.fetch("SELECT FROM pg_namespace WHERE nspname IN ('shop', 'pinstripe')") == []


def _command_lines() -> list[str]:
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


async def test_status_shows_what_the_database_holds_without_asking_stripe(
    database: str,
) -> None:
    async with running(Settings(scale=300, keys=(SECRET,))) as sim:
        synced = await pinstripe("sync", "--once", "--json", env=env_of(sim, database))
    ended = await pinstripe("status", "--json", env={"DATABASE_URL": database})
    assert ended.code == 0, ended.text
    (sync,) = json.loads(ended.out)["syncs"]
    assert sync["schema"] == "stripe"
    assert sync["rows"] == json.loads(synced.out)["rows"]
    assert {t["state"] for t in sync["tables"]} == {"done"}
    text = await pinstripe("status", env={"DATABASE_URL": database})
    assert "charge" in text.out
    none = await pinstripe("status", "--schema", "other", env={"DATABASE_URL": database})
    assert none.code == 2
    assert "pinstripe sync" in none.err


async def test_sync_without_once_follows_what_happens_until_it_is_told_to_stop(
    database: str, pg: asyncpg.Connection
) -> None:
    async with running(Settings(scale=100, keys=(SECRET,))) as sim:
        async with started("sync", env=env_of(sim, database)) as process:
            async with asyncio.timeout(40):
                while b"Following" not in await process.stderr.readline():
                    pass
            process.send_signal(signal.SIGTERM)
            _, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        assert "Traceback" not in err.decode()
    assert await pg.fetchval("SELECT count(*) FROM stripe.customer") > 0


async def test_a_database_that_takes_no_writes_for_a_time_ends_no_sync_that_follows() -> None:
    """After a failover, say, whose old primary is a standby now; or while the disk is full."""
    tries: list[str] = []

    async def stay(met: Callable[[], None]) -> int:
        met()
        if tries:
            return 0
        raise BaseExceptionGroup("", [Unwritable("It is read-only."), Unreachable("It is away.")])

    assert await standing_by(stay, say=lambda error, _: tries.append(error.message)) == 0
    assert tries == ["It is read-only."]
    with pytest.raises(ExceptionGroup):
        await standing_by(lambda _: fail(Unwritable("It is read-only.")))


async def fail(error: Exception) -> int:
    raise ExceptionGroup("", [error])


async def test_the_demo_runs_without_any_setting_and_ends_clean_on_ctrl_c(tmp_path: Path) -> None:
    env = {"PINSTRIPE_DEMO_SCALE": "200"}
    async with started("run", env=env, cwd=str(tmp_path)) as process:
        async with asyncio.timeout(60):
            first = (await process.stdout.readline()).decode()
            assert "Running the demo" in first
            summary = ""
            while b"psql" not in (line := await process.stdout.readline()):
                assert line, "the demo ended"
                summary += line.decode()
            assert "Complete: " in summary
            assert "Not finished" not in summary
            while b"SELECT" not in (query := await process.stdout.readline()):
                pass
            assert b" FROM stripe.subscription " in query
            url = await running_url(tmp_path / ".pinstripe" / "demo" / "postgres")
            assert url is not None
            async with connect(url) as connection:
                assert await connection.fetchval("SELECT count(*) FROM stripe.charge") > 0
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert "Traceback" not in err.decode()
    status = await pinstripe("status", cwd=str(tmp_path))
    assert status.code == 0, status.text
    assert "charge" in status.out


async def test_simulate_says_where_it_is_and_with_which_key() -> None:
    async with started("simulate", "--port", "0", "--scale", "50", "--json") as process:
        async with asyncio.timeout(30):
            announced = json.loads(await process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert announced["url"].startswith("http://127.0.0.1:")
    assert announced["key"].startswith("sk_test_")
    assert process.returncode == 0


async def test_a_port_that_is_taken_is_named() -> None:
    async with running(Settings(scale=20)) as sim:
        port = sim.url.rpartition(":")[2]
        ended = await pinstripe("simulate", "--port", port, "--scale", "20")
    assert ended.code == 2, ended.text
    assert f"127.0.0.1:{port}" in ended.err
    assert "Errno" not in ended.err
    assert "--port and --host" in ended.err


async def test_schema_ddl_makes_the_tables_in_any_postgres(pg: asyncpg.Connection) -> None:
    ended = await pinstripe("schema", "ddl", "--schema", "mine", "--tables", "charge,refund")
    assert ended.code == 0, ended.text
    await pg.execute(ended.out)
    found = await pg.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'mine'")
    assert sorted(r[0] for r in found) == ["charge", "refund"]


async def test_schema_tables_describes_one_table() -> None:
    ended = await pinstripe("schema", "tables", "refund", "--json")
    columns = {c["name"]: c for c in json.loads(ended.out)["columns"]}
    assert columns["charge_id"]["references"] == ["charge"]
    assert columns["amount"]["type"] == "bigint"


@pytest.mark.parametrize(
    "command", [[], ["run"], ["sync"], ["status"], ["schema"], ["simulate"], ["version"]]
)
async def test_every_command_explains_itself(command: list[str]) -> None:
    ended = await pinstripe(*command, "--help")
    assert ended.code == 0
    assert "Usage: pinstripe" in ended.out
    if command in (["run"], ["sync"]):
        assert "STRIPE_API_KEY" in ended.out
        assert "--endpoint-rate-limit" in ended.out
