"""What Postgres refuses, by remedy and reach: codes one by one, and no customer's data in any message."""

from __future__ import annotations

import inspect
import re

import asyncpg
import pytest

from pinstripe.errors import (
    DatabaseFault,
    Drifted,
    Misconfigured,
    PinstripeError,
    Scope,
    Unreachable,
    Unwritable,
)
from pinstripe.store.pool import connect, sqlstate, translated
from pinstripe.store.sqlstates import REMEDIES

SECRET = "jane@example.com"


def driver_codes() -> set[str]:
    """Every code that the driver has a class for, warnings (class 01) apart."""
    classes = vars(asyncpg.exceptions).values()
    codes = {getattr(c, "sqlstate", None) for c in classes if inspect.isclass(c)}
    return {code for code in codes if code and not code.startswith("01")}


def test_each_code_has_a_remedy_of_its_own() -> None:
    assert driver_codes() <= set(REMEDIES)
    assert all(re.fullmatch("[0-9A-Z]{5}", code) for code in REMEDIES)


async def refused(pg: asyncpg.Connection, statement: str) -> PinstripeError:
    with pytest.raises(PinstripeError) as caught, translated():
        await pg.execute(statement)
    return caught.value


@pytest.mark.parametrize(
    ("code", "kind", "scope", "hint"),
    [
        ("40001", Unreachable, "passing", "retries"),
        ("40P01", Unreachable, "passing", "retries"),
        ("57P01", Unreachable, "passing", "retries"),
        ("57P02", Unreachable, "passing", "retries"),
        ("57P03", Unreachable, "passing", "retries"),
        ("57014", Unreachable, "passing", "statement_timeout"),
        ("25P03", Unreachable, "passing", "idle_in_transaction_session_timeout"),
        ("57P05", Unreachable, "passing", "idle_session_timeout"),
        ("55P03", Unreachable, "passing", "pg_blocking_pids"),
        ("53300", Unreachable, "passing", "max_connections"),
        ("53100", Unwritable, "server", "disk"),
        ("53200", Unwritable, "server", "max_locks_per_transaction"),
        ("53400", Unwritable, "server", "temp_file_limit"),
        ("25006", Unwritable, "server", "primary"),
        ("42501", Unwritable, "table", "right"),
        ("26000", Misconfigured, "server", "pooler"),
        ("25P01", Misconfigured, "server", "pooler"),
        ("42P01", Drifted, "table", "migration"),
        ("428C9", Drifted, "table", "GENERATED"),
        ("2BP01", Drifted, "table", "view"),
        ("XX002", Drifted, "table", "REINDEX"),
        ("XX000", Drifted, "row", "log"),
        ("22P02", Drifted, "row", "column"),
        ("22P05", Drifted, "row", "encoding"),
        ("23505", Drifted, "row", "unique index"),
        ("23503", Drifted, "row", "foreign key"),
        ("54000", Drifted, "row", "index"),
        ("P0001", Drifted, "row", "trigger"),
        ("QQQ99", Drifted, "row", "trigger"),  # a trigger's own code
    ],
)
async def test_every_code_has_its_remedy(
    pg: asyncpg.Connection, code: str, kind: type[PinstripeError], scope: Scope, hint: str
) -> None:
    error = await refused(pg, f"DO $$ BEGIN RAISE SQLSTATE '{code}'; END $$")
    assert type(error) is kind
    assert isinstance(error, Unreachable) is (scope == "passing")
    assert sqlstate(error) == code
    assert error.fault == DatabaseFault(code, scope)
    assert hint in error.hint


async def test_a_code_that_nobody_knows_is_trouble_of_one_table(pg: asyncpg.Connection) -> None:
    """An extension's function raises what it likes."""
    error = asyncpg.PostgresError.new({"C": "QQ123", "M": "the extension says no"})
    with pytest.raises(Drifted) as caught, translated():
        raise error
    assert caught.value.fault == DatabaseFault("QQ123", "table")
    assert "the extension says no" in caught.value.message


@pytest.mark.parametrize(
    ("hand", "scope", "names", "hint"),
    [
        ("ALTER TABLE t ADD CHECK (email IS NULL)", "row", ("public", "t", "t_email_check"), "drop"),
        ("CREATE UNIQUE INDEX ours ON t ((1))", "row", ("public", "t", "ours"), "unique index"),
        ("ALTER TABLE t ALTER n SET NOT NULL", "row", ("public", "t", ""), "NOT NULL"),
        ("ALTER TABLE t ALTER email TYPE varchar(3)", "row", ("", "", ""), "schema ddl"),
        ("CREATE DOMAIN d AS text CHECK (value <> 'x'); ALTER TABLE t ADD p d NOT NULL DEFAULT 'y'; "
         "ALTER TABLE t ALTER p DROP DEFAULT", "row", ("public", "t", ""), "NOT NULL"),
        ("ALTER TABLE t DROP COLUMN email", "table", ("", "", ""), "migration"),
        ("DROP TABLE t", "table", ("", "", ""), "migration"),
        ("ALTER TABLE t RENAME TO u; CREATE VIEW t AS SELECT DISTINCT * FROM u", "table", ("", "", ""),
         "ordinary"),
        ("ALTER TABLE t DROP COLUMN email; ALTER TABLE t ADD email text GENERATED ALWAYS AS ('x') STORED",
         "table", ("", "", ""), "GENERATED"),
        ("CREATE TRIGGER no BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION complain()", "row",
         ("", "", ""), "trigger"),
        ("CREATE FUNCTION bad() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'; "
         "CREATE TRIGGER no BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION bad()", "row", ("", "", ""),
         "trigger"),
    ],
)  # fmt: skip
async def test_what_hands_do_to_a_table_is_named_without_values(
    pg: asyncpg.Connection, hand: str, scope: Scope, names: tuple[str, str, str], hint: str
) -> None:
    await pg.execute(
        "CREATE TABLE t (email text, n int); INSERT INTO t VALUES (NULL, 1);"
        "CREATE FUNCTION complain() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'not %, please', NEW.email; END $$"
    )
    await pg.execute(hand)
    error = await refused(pg, f"INSERT INTO t (email) VALUES ('{SECRET}')")
    assert error.fault
    assert error.fault.scope == scope
    assert (error.fault.schema, error.fault.table, error.fault.constraint) == names
    assert hint in error.hint
    assert SECRET not in str(error)


async def test_a_trigger_that_raises_is_named(pg: asyncpg.Connection) -> None:
    await pg.execute(
        "CREATE FUNCTION complain(text) RETURNS void LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'not %, please', $1 USING ERRCODE = '23514'; END $$"
    )
    error = await refused(pg, f"SELECT complain('{SECRET}')")
    assert "complain(text)" in error.message
    assert SECRET not in str(error)


async def test_a_policy_refuses_a_row_and_a_missing_right_a_table(pg: asyncpg.Connection) -> None:
    await pg.execute(
        "CREATE TABLE t (email text); ALTER TABLE t ENABLE ROW LEVEL SECURITY;"
        "CREATE POLICY p ON t WITH CHECK (email IS NULL); GRANT INSERT ON t TO pg_monitor;"
        "CREATE TABLE u (email text); SET ROLE pg_monitor"
    )
    policy = await refused(pg, f"INSERT INTO t VALUES ('{SECRET}')")
    right = await refused(pg, f"INSERT INTO u VALUES ('{SECRET}')")
    assert policy.fault == DatabaseFault("42501", "row")
    assert right.fault == DatabaseFault("42501", "table")
    assert "policy" in policy.hint
    assert SECRET not in f"{policy} {right}"


@pytest.mark.parametrize(
    "statement",
    [
        f"SELECT '{SECRET}'::bigint",
        f"SELECT '{SECRET}'::timestamptz",
        f"SELECT '{{\"a\": {SECRET}}}'::jsonb",
        f"SELECT '{SECRET}'::uuid",
        f"SELECT '{SECRET}'::text[]",
    ],
)
async def test_a_value_that_does_not_fit_is_not_shown(
    pg: asyncpg.Connection, statement: str
) -> None:
    error = await refused(pg, statement)
    assert error.fault
    assert error.fault.scope == "row"
    assert SECRET not in str(error)


async def test_a_value_that_the_driver_refuses_is_not_shown(pg: asyncpg.Connection) -> None:
    with pytest.raises(Drifted) as caught, translated():
        await pg.fetchval("SELECT $1::bigint", SECRET)
    assert SECRET not in str(caught.value)


async def test_a_value_too_long_for_an_index_is_one_rows_trouble(pg: asyncpg.Connection) -> None:
    await pg.execute("CREATE TABLE t (id text PRIMARY KEY)")
    long = "(SELECT string_agg(md5(g::text || random()), '') FROM generate_series(1, 200) g)"
    error = await refused(pg, f"INSERT INTO t VALUES ({long})")
    assert error.fault == DatabaseFault("54000", "row", "public", "t", constraint="t_pkey")


async def test_a_gigabyte_is_one_rows_trouble(pg: asyncpg.Connection) -> None:
    error = await refused(pg, "SELECT repeat('x', 1073741820) || 'xxxxxxxxxxxxxxxxxxx'")
    assert error.fault
    assert error.fault.scope == "row"


async def test_a_plan_made_stale_by_an_alter_table_passes(pg: asyncpg.Connection) -> None:
    await pg.execute("CREATE TABLE t (n int)")
    async with pg.transaction():
        await pg.fetch("SELECT * FROM t")
        await pg.execute("ALTER TABLE t ALTER n TYPE text")
        with pytest.raises(Unreachable) as caught, translated():
            await pg.fetch("SELECT * FROM t")
    assert caught.value.fault == DatabaseFault("0A000", "passing")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("no_such_parameter", "1"),
        ("work_mem", "much"),
        ("max_connections", "7"),
        ("role", "nobody"),
    ],
)
async def test_a_parameter_that_the_server_refuses_at_the_start_is_a_setting_to_correct(
    database: str, name: str, value: str
) -> None:
    with pytest.raises(Misconfigured, match=name) as caught:
        async with connect(f"{database}&options=-c%20{name}%3D{value}"):
            pass
    assert "DATABASE_URL" in caught.value.hint
    assert caught.value.fault
    assert caught.value.fault.scope == "server"
