"""The role that reads the synced tables: what it may, what it may not, and how it comes and goes."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from tests.postgres.writing import make_schema

from pinstripe.errors import Misconfigured, Unreachable
from pinstripe.store.database_url import url_with_login
from pinstripe.store.pool import connect, translated
from pinstripe.store.roles import (
    Limits,
    ReadOnlyRole,
    drop_reader,
    find_reader,
    renew_reader,
    role_name,
    verifier,
)

_HERE = "stripe"


@asynccontextmanager
async def logged_in(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A session of somebody's own program, with what the role sets."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def reader(database: str) -> ReadOnlyRole:
    await make_schema(database, ["customer", "charge"])
    return await renew_reader(database, _HERE, expect=False)


async def login(reader: ReadOnlyRole, pg: asyncpg.Connection) -> str:
    """What the server keeps of the role's password."""
    return str(
        await pg.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = $1", reader.role)
    )


async def test_it_reads_every_table_and_those_that_come_later(
    database: str, reader: ReadOnlyRole
) -> None:
    async with connect(database) as owner:
        await owner.execute(
            "CREATE TABLE stripe.later (n int); INSERT INTO stripe.later VALUES (7)"
        )
    async with logged_in(reader.url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM customer") == 0
        assert await connection.fetchval("SELECT count(*) FROM stripe.charge") == 0
        assert await connection.fetchval("SELECT n FROM stripe.later") == 7


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO stripe.customer (id) VALUES ('cus_1')",
        "UPDATE stripe.customer SET email = ''",
        "DELETE FROM stripe.customer",
        "TRUNCATE stripe.customer",
        "DROP TABLE stripe.customer",
        "CREATE TABLE stripe.mine (n int)",
        "CREATE SCHEMA mine",
        "ALTER ROLE CURRENT_USER CREATEROLE",
        "SELECT * FROM pinstripe.sync",
        "SELECT * FROM pinstripe.stored_sync",
        "SELECT * FROM pg_authid",
    ],
)
async def test_it_can_do_nothing_else_even_if_it_lifts_its_own_limits(
    reader: ReadOnlyRole, statement: str
) -> None:
    connection = await asyncpg.connect(reader.url)
    try:
        with pytest.raises(
            (asyncpg.ReadOnlySQLTransactionError, asyncpg.InsufficientPrivilegeError)
        ):
            await connection.execute(statement)
        await connection.execute("SET default_transaction_read_only = off")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_statements_end_in_time_and_connections_are_few(database: str) -> None:
    await make_schema(database, ["customer"])
    made = await renew_reader(database, _HERE, limits=Limits(connections=1, statement_s=7))
    async with logged_in(made.url) as connection:
        assert await connection.fetchval("SHOW statement_timeout") == "7s"
        assert await connection.fetchval("SHOW transaction_read_only") == "on"
        with pytest.raises(asyncpg.TooManyConnectionsError):
            await asyncpg.connect(made.url)


async def test_the_server_gets_a_verifier_of_the_very_password(
    reader: ReadOnlyRole, pg: asyncpg.Connection
) -> None:
    kept = await login(reader, pg)
    assert reader.password not in kept
    # Postgres makes the same of the password, given the same salt.
    salt = base64.b64decode(kept.split("$")[1].partition(":")[2])
    assert verifier(reader.password, salt=salt) == kept
    assert reader.password not in repr(reader)


async def test_a_rotated_password_is_another_and_ends_sessions(
    database: str, reader: ReadOnlyRole, pg: asyncpg.Connection
) -> None:
    before = await login(reader, pg)
    session = await asyncpg.connect(reader.url)
    again = await renew_reader(database, _HERE, expect=True)
    assert again.role == reader.role
    assert again.password != reader.password
    assert await login(again, pg) != before
    with pytest.raises(Unreachable), translated():
        await session.fetchval("SELECT 1")
    assert (await renew_reader(database, _HERE)).role == reader.role


async def test_it_is_made_once_and_rotated_only_where_it_is(database: str) -> None:
    await make_schema(database, ["customer"])
    with pytest.raises(Misconfigured, match="There is no role"):
        await renew_reader(database, _HERE, expect=True)
    await renew_reader(database, _HERE, expect=False)
    with pytest.raises(Misconfigured, match="cannot be shown again"):
        await renew_reader(database, _HERE, expect=False)


async def test_a_dropped_reader_leaves_nothing_behind(
    database: str, reader: ReadOnlyRole, pg: asyncpg.Connection
) -> None:
    assert await find_reader(pg, _HERE) == reader.role
    assert await drop_reader(database, _HERE)
    assert await find_reader(pg, _HERE) is None
    assert not await drop_reader(database, _HERE)
    assert await pg.fetchval("SELECT count(*) FROM pg_default_acl") == 0


async def test_a_reader_with_grants_elsewhere_is_kept_and_the_remedy_said(
    database: str, reader: ReadOnlyRole, pg: asyncpg.Connection
) -> None:
    await pg.execute(
        f'CREATE TABLE public.other (n int); GRANT SELECT ON public.other TO "{reader.role}"'
    )
    with pytest.raises(Misconfigured, match="DROP OWNED BY"):
        await drop_reader(database, _HERE)
    assert await find_reader(pg, _HERE) == reader.role
    await pg.execute(f'DROP OWNED BY "{reader.role}"; DROP ROLE "{reader.role}"')


async def test_a_role_of_that_name_which_is_not_ours_is_left_alone(
    database: str, pg: asyncpg.Connection
) -> None:
    await make_schema(database, ["customer"])
    name = role_name(str(await pg.fetchval("SELECT current_database()")), _HERE)
    await pg.execute(f'CREATE ROLE "{name}"')
    try:
        for expect in (False, True):
            with pytest.raises(Misconfigured, match="did not make"):
                await renew_reader(database, _HERE, expect=expect)
        with pytest.raises(Misconfigured, match="did not make"):
            await drop_reader(database, _HERE)
    finally:
        await pg.execute(f'DROP ROLE "{name}"')


async def test_the_consoles_reader_is_another_than_that_of_people(
    database: str, reader: ReadOnlyRole
) -> None:
    own = await renew_reader(database, _HERE, purpose="console")
    assert own.role != reader.role
    await renew_reader(database, _HERE, purpose="console")
    async with logged_in(reader.url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM customer") == 0
    assert await drop_reader(database, _HERE, purpose="console")


async def test_without_a_schema_there_is_nothing_to_read(database: str) -> None:
    with pytest.raises(Misconfigured, match="no schema"):
        await renew_reader(database, _HERE, expect=False)


async def test_a_user_without_the_right_gets_the_script_for_an_administrator(
    database: str, pg: asyncpg.Connection
) -> None:
    name = str(await pg.fetchval("SELECT current_database()"))
    await pg.execute(
        f"CREATE ROLE plain_{name} LOGIN; GRANT CREATE ON DATABASE {name} TO plain_{name}"
    )
    url = url_with_login(database, f"plain_{name}", "x")
    try:
        await make_schema(url, ["customer"])
        with pytest.raises(Misconfigured, match="may not make the role") as caught:
            await renew_reader(url, _HERE, expect=False)
        script = caught.value.hint.partition(":\n")[2]
        await pg.execute(script.replace("...choose one...", "chosen"))
        role = await find_reader(pg, _HERE)
        assert role is not None
        async with logged_in(url_with_login(database, role, "chosen")) as connection:
            assert await connection.fetchval("SELECT count(*) FROM customer") == 0
        await drop_reader(database, _HERE)
    finally:
        await pg.execute(f"DROP OWNED BY plain_{name} CASCADE; DROP ROLE plain_{name}")


async def test_a_user_who_may_make_roles_and_nothing_more_can_do_it_all(
    database: str, pg: asyncpg.Connection
) -> None:
    name = str(await pg.fetchval("SELECT current_database()"))
    await pg.execute(
        f"CREATE ROLE maker_{name} LOGIN CREATEROLE; GRANT CREATE ON DATABASE {name} TO maker_{name}"
    )
    url = url_with_login(database, f"maker_{name}", "x")
    try:
        await make_schema(url, ["customer"])
        await renew_reader(url, _HERE, expect=False)
        reader = await renew_reader(url, _HERE, expect=True)
        async with logged_in(reader.url) as connection:
            assert await connection.fetchval("SELECT count(*) FROM customer") == 0
        assert await drop_reader(url, _HERE)
    finally:
        await pg.execute(f"DROP OWNED BY maker_{name} CASCADE; DROP ROLE maker_{name}")


def test_long_names_stay_apart() -> None:
    assert len(role_name("d" * 63, "s" * 63)) <= 63
    assert role_name("d" * 63, "s" * 63) != role_name("d" * 63, "t" * 63)
