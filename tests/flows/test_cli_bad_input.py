"""What users get wrong: each time one message with its remedy, an exit code, nothing written, no secret."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.flows.harness.command import Ended, pinstripe

from pinstripe.config.settings import PLATFORM_SETTINGS, SYNC_SETTINGS
from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.pool import connect
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

SECRET = "sk_test_thisisthesecretofatest123"
TABLES = "customer,product,charge"


def env_of(sim: Running, database: str | None = None, key: str = SECRET) -> dict[str, str]:
    found = {"STRIPE_API_KEY": key, "STRIPE_API_BASE": sim.url, "PINSTRIPE_TABLES": TABLES}
    return found if database is None else {**found, "DATABASE_URL": database}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_empty(directory: Path) -> bool:
    return not any(directory.iterdir())


def assert_one_message(ended: Ended, *, code: int, says: str, remedy: str) -> None:
    """The whole promise in one place: message, remedy, code, no traceback, no secret."""
    assert ended.code == code, ended.text
    assert ended.err.count("error: ") == 1, ended.err
    message, _, rest = ended.err.partition("error: ")[2].partition("\n  remedy: ")
    assert says in message, ended.err
    assert remedy in rest, ended.err
    assert "Traceback" not in ended.text
    assert SECRET not in ended.text


async def schemas(database: str) -> set[str]:
    async with connect(database) as connection:
        rows = await connection.fetch(
            "SELECT nspname FROM pg_namespace WHERE nspname IN ('stripe', 'pinstripe')"
        )
    return {row[0] for row in rows}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sync", "--once"], "no Stripe API key"),
        (["sync", "--once", "--api-key", "pk_test_aaaaaaaaaaaaaaaaaaaaaaaa"], "publishable"),
        (["sync", "--rate-limit", "101", "--api-key", SECRET], "0.1 to 100"),
        (["sync", "--endpoint-rate-limit", "26", "--api-key", SECRET], "0.1 to 25"),
        (["sync", "--rate-limit", "none", "--api-key", SECRET], "not Stripe"),
        (["sync", "--tables", "custmer", "--api-key", SECRET], "custmer"),
        (["sync", "--since", "2999-01-01", "--api-key", SECRET], "future"),
        (["sync", "--since", "2025-01-01,event=2999-01-01", "--api-key", SECRET], "event=2999"),
        (["syncs", "add", "shop", "--set", "deep"], "--set 'deep' has no value"),
        (["verify", "--sample", "-1"], "--sample is '-1'"),
        (["verify", "--ids", "-1"], "--ids is '-1'"),
        (["verify", "--platform", "shops"], "go together"),
        (["schema", "ddl", "--by-account", "--partitions", "-3"], "--partitions is '-3'"),
        (["simulate", "--scale", "-5"], "--scale is '-5'"),
        (["simulate", "--scale", "0"], "--scale is '0'"),
        (["simulate", "--port", "70000"], "--port is '70000'"),
        (["simulate", "--connected", "-1"], "--connected is '-1'"),
        (["sync", "--database-url", "mysql://u:hunter22@h/d", "--api-key", SECRET], "Postgres"),
        (["sync", "--no-such-flag", SECRET], "--no-such-flag"),
        (["snyc"], "snyc"),
        (["schema", "tables", "chrage"], "chrage"),
        (["schema", "erd", "--output", "tables.png"], ".png"),
        (["status"], "Nothing has been synced"),
    ],
)
async def test_settings_that_cannot_be_are_refused_before_anything_is_made(
    words: list[str], says: str, tmp_path: Path
) -> None:
    ended = await pinstripe(*words, cwd=str(tmp_path))
    assert_one_message(ended, code=2, says=says, remedy="")
    assert "hunter22" not in ended.text
    assert "aaaaaaaaaaaa" not in ended.text
    assert is_empty(tmp_path)


@pytest.mark.parametrize("words", [("syncs", "add", "shop"), ("platform", "add", "shop")])
async def test_a_date_in_the_future_is_not_stored(words: tuple[str, ...], database: str) -> None:
    env = {"STRIPE_API_KEY": SECRET, "DATABASE_URL": database}
    ended = await pinstripe(*words, "--set", "since=2999-01-01", env=env)
    assert_one_message(ended, code=2, says="in the future", remedy="a date of the past")
    assert await schemas(database) == set()


async def test_an_unknown_table_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    ended = await pinstripe(
        "sync", "--once", "--tables", "custmer", env={"STRIPE_API_KEY": SECRET}, cwd=str(tmp_path)
    )
    assert_one_message(ended, code=2, says="no table 'custmer'", remedy="customer")


async def test_a_key_that_stripe_does_not_know_writes_nothing(
    database: str, tmp_path: Path
) -> None:
    async with running(Settings(scale=50)) as sim:
        with_url = await pinstripe("sync", "--once", env=env_of(sim, database))
        without = await pinstripe("sync", "--once", env=env_of(sim), cwd=str(tmp_path))
    for ended in (with_url, without):
        assert_one_message(ended, code=2, says="Invalid API Key", remedy="apikeys")
    assert await schemas(database) == set()
    assert is_empty(tmp_path)


async def test_with_json_the_error_is_on_stdout_too(tmp_path: Path) -> None:
    async with running(Settings(scale=50)) as sim:
        ended = await pinstripe("sync", "--once", "--json", env=env_of(sim), cwd=str(tmp_path))
    error = json.loads(ended.out)["error"]
    assert error["type"] == "WrongKey"
    assert error["exit_code"] == ended.code == 2
    assert error["remedy"]


@pytest.mark.parametrize(
    "words", [["status", "--no-such-flag"], ["erase", "cus_1", "--account", "a"]]
)
async def test_with_json_a_wrong_command_line_is_on_stdout_too(words: list[str]) -> None:
    ended = await pinstripe(*words, "--json")
    assert json.loads(ended.out)["error"]["exit_code"] == ended.code == 2


async def test_an_address_where_nobody_listens_fails_soon(database: str) -> None:
    env = {"STRIPE_API_KEY": SECRET, "STRIPE_API_BASE": "http://127.0.0.1:9"}
    began = time.monotonic()
    ended = await pinstripe("sync", "--once", env={**env, "DATABASE_URL": database})
    assert_one_message(ended, code=3, says="connection refused", remedy="check the address")
    assert time.monotonic() - began < 15
    assert await schemas(database) == set()


async def test_a_database_that_cannot_be_reached_is_named() -> None:
    url = "postgresql://app:hunter22@127.0.0.1:9/app"
    async with running(Settings(scale=50, keys=(SECRET,))) as sim:
        ended = await pinstripe("sync", "--once", env=env_of(sim, url))
    assert_one_message(ended, code=3, says="127.0.0.1:9/app", remedy="Is the server running")
    assert "hunter22" not in ended.text


async def test_a_user_that_the_server_does_not_know_is_refused(database: str) -> None:
    parts = urlsplit(database)
    url = parts._replace(netloc="nobody_of_that_name:hunter22@").geturl()
    async with running(Settings(scale=50, keys=(SECRET,))) as sim:
        ended = await pinstripe("sync", "--once", env=env_of(sim, url))
    assert_one_message(ended, code=2, says="Postgres (28", remedy="DATABASE_URL")
    assert "hunter22" not in ended.text


async def test_a_wrong_password_is_refused_and_not_shown(tmp_path: Path) -> None:
    port = free_port()
    async with (
        EmbeddedPostgres(tmp_path / "postgres", tcp_port=port, fsync=False),
        running(Settings(scale=50, keys=(SECRET,))) as sim,
    ):
        url = f"postgresql://postgres:hunter22@127.0.0.1:{port}/pinstripe"
        ended = await pinstripe("sync", "--once", env=env_of(sim, url))
    assert_one_message(ended, code=2, says="password authentication", remedy="DATABASE_URL")
    assert "hunter22" not in ended.text


async def test_a_read_only_database_is_left_as_it_is(database: str, pg: asyncpg.Connection) -> None:
    name = await pg.fetchval("SELECT current_database()")
    await pg.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    async with running(Settings(scale=50, keys=(SECRET,))) as sim:
        ended = await pinstripe("sync", "--once", env=env_of(sim, database))
    assert_one_message(ended, code=5, says="read-only", remedy="default_transaction_read_only")
    assert await schemas(database) == set()


async def test_a_role_that_may_not_create_a_schema_is_told_which_right_it_lacks(
    database: str, pg: asyncpg.Connection
) -> None:
    role = f"reader_{os.getpid()}"
    await pg.execute(f"CREATE ROLE {role} LOGIN")
    try:
        url = urlsplit(database)._replace(netloc=f"{role}@").geturl()
        async with running(Settings(scale=50, keys=(SECRET,))) as sim:
            ended = await pinstripe("sync", "--once", env=env_of(sim, url))
        assert_one_message(ended, code=5, says="permission denied", remedy="right")
        assert await schemas(database) == set()
    finally:
        await pg.execute(f"DROP ROLE {role}")


async def test_a_full_disk_while_the_tables_are_made_leaves_none(
    database: str, pg: asyncpg.Connection
) -> None:
    # As near to a full disk as SQL gets: the server's own words and code.
    await pg.execute(
        "CREATE FUNCTION full_disk() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF (SELECT count(*) FROM pg_tables WHERE schemaname = 'stripe') > 1 THEN"
        " RAISE EXCEPTION 'could not extend file: No space left on device'"
        " USING ERRCODE = 'disk_full'; END IF; END $$;"
        "CREATE EVENT TRIGGER full_disk ON ddl_command_start EXECUTE FUNCTION full_disk();"
    )
    async with running(Settings(scale=50, keys=(SECRET,))) as sim:
        ended = await pinstripe("sync", "--once", env=env_of(sim, database))
    assert_one_message(ended, code=5, says="53100", remedy="Make room")
    assert "stripe" not in await schemas(database)


async def test_a_full_disk_in_the_middle_ends_the_sync_and_the_next_one_goes_on(
    database: str, pg: asyncpg.Connection
) -> None:
    async with running(Settings(scale=50, keys=(SECRET,))) as sim:
        env = {**env_of(sim, database), "PINSTRIPE_RATE_LIMIT": "100"}
        await pg.execute(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'could not extend file: No space left on device'"
            " USING ERRCODE = 'disk_full'; END $$;"
        )
        first = await pinstripe("sync", "--once", "--tables", "customer", env=env)
        assert first.code == 0, first.text
        rows = await pg.fetchval("SELECT count(*) FROM stripe.customer")
        await pg.execute(
            "TRUNCATE stripe.customer; DELETE FROM pinstripe.cursor;"
            "CREATE TRIGGER full_disk BEFORE INSERT ON stripe.customer"
            " EXECUTE FUNCTION full_disk()"
        )
        cut = await pinstripe("sync", "--once", "--tables", "customer", env=env)
        assert_one_message(cut, code=5, says="53100", remedy="Make room")
        await pg.execute("DROP TRIGGER full_disk ON stripe.customer")
        last = await pinstripe("sync", "--once", "--tables", "customer", env=env)
    assert last.code == 0, last.text
    assert await pg.fetchval("SELECT count(*) FROM stripe.customer") == rows


async def test_a_table_of_someone_else_is_not_touched(
    database: str, pg: asyncpg.Connection
) -> None:
    await pg.execute("CREATE SCHEMA stripe; CREATE TABLE stripe.charge (id int, mine text)")
    async with running(Settings(scale=50, keys=(SECRET,))) as sim:
        ended = await pinstripe("sync", "--once", env=env_of(sim, database))
    assert_one_message(ended, code=2, says="did not make: charge", remedy="--schema")
    tables = await pg.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'stripe'")
    assert [row[0] for row in tables] == ["charge"]


async def test_a_schema_that_holds_another_account_is_refused_with_both_named(
    database: str, pg: asyncpg.Connection
) -> None:
    async with running(Settings(scale=50, keys=(SECRET,))) as sim:
        first = await pinstripe("sync", "--once", env=env_of(sim, database))
        assert "customer" in first.out, first.text
        before = await pg.fetchval("SELECT count(*) FROM stripe.customer")
        await pg.execute("UPDATE pinstripe.sync SET account_id = 'acct_of_another'")
        second = await pinstripe("sync", "--once", env=env_of(sim, database))
        third = await pinstripe("sync", "--schema", "own", "--once", env=env_of(sim, database))
    assert_one_message(second, code=2, says="acct_of_another", remedy="--schema")
    assert sim.account.id in second.err
    assert "rows in" in third.out
    assert await pg.fetchval("SELECT count(*) FROM stripe.customer") == before


async def test_a_test_key_is_refused_by_a_schema_of_live_mode(
    database: str, pg: asyncpg.Connection
) -> None:
    async with running(Settings(scale=50, keys=(SECRET,))) as sim:
        await pinstripe("sync", "--once", env=env_of(sim, database))
        await pg.execute("UPDATE pinstripe.sync SET livemode = true")
        ended = await pinstripe("sync", "--once", env=env_of(sim, database))
    assert_one_message(ended, code=2, says="in live mode, but", remedy="--schema")


async def test_a_data_directory_of_another_postgres_is_left_alone(tmp_path: Path) -> None:
    cluster = tmp_path / "data" / "postgres" / "cluster"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("9\n")
    (cluster.parent / "owner.lock").touch()
    async with running(Settings(scale=50, keys=(SECRET,))) as sim:
        ended = await pinstripe(
            "sync", "--once", "--data-dir", str(tmp_path / "data"), env=env_of(sim)
        )
    assert_one_message(ended, code=2, says="written by Postgres 9", remedy="new data directory")
    assert [path.name for path in cluster.iterdir()] == ["PG_VERSION"]


async def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with running(Settings(scale=50, keys=(SECRET,))) as sim:
        ended = await pinstripe(
            "sync", "--once", "--data-dir", str(tmp_path / "file"), env=env_of(sim)
        )
    assert ended.code in (2, 5), ended.text
    assert_one_message(ended, code=ended.code, says=str(tmp_path / "file"), remedy="directory")


async def test_a_wrong_word_leads_to_the_help_of_its_command() -> None:
    wrong = await pinstripe("syncs", "pause", "shop", "--no-such-flag")
    assert_one_message(
        wrong, code=2, says="--no-such-flag", remedy="`pinstripe syncs pause --help`"
    )


async def test_the_version_is_a_flag_and_a_command() -> None:
    flag, command = await pinstripe("--version"), await pinstripe("version")
    assert flag.out == command.out
    assert flag.out.startswith("pinstripe ")


@pytest.mark.parametrize(
    ("words", "names"),
    [(("syncs", "add"), SYNC_SETTINGS), (("platform", "add"), PLATFORM_SETTINGS)],
)
async def test_help_names_each_setting_that_can_be_stored(
    words: tuple[str, ...], names: tuple[str, ...]
) -> None:
    shown = await pinstripe(*words, "--help")
    told = " ".join(shown.out.replace("│", " ").split()).partition("NAME=VALUE: ")[2]
    assert tuple(told.partition(".")[0].split(", ")) == names
