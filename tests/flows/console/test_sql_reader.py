"""As whom the SQL box reads: a role of its own, or one that an administrator has named."""

from __future__ import annotations

import pytest
from tests.flows.console.conftest import Console

from pinstripe.console.sql_run import Readers, SqlTarget
from pinstripe.errors import Misconfigured
from pinstripe.store.database_url import url_with_login
from pinstripe.store.pool import connect
from pinstripe.store.roles import drop_reader, renew_reader


async def test_a_role_that_an_administrator_named_is_used(console: Console) -> None:
    reader = await renew_reader(console.database, console.schema)
    place = SqlTarget(console.schema, console.database, reader.url)
    async with Readers().connection(place, statement_s=5) as connection:
        assert await connection.fetchval("SELECT current_user") == reader.role
    await drop_reader(console.database, console.schema)


async def test_a_named_role_that_may_write_is_not_used(console: Console) -> None:
    place = SqlTarget(console.schema, console.database, console.database)
    with pytest.raises(Misconfigured, match="can write"):
        async with Readers().connection(place, statement_s=5):
            pass


async def test_who_may_make_no_role_is_told_what_an_administrator_runs(console: Console) -> None:
    async with connect(console.database) as admin:
        await admin.execute("CREATE ROLE of_little_right LOGIN PASSWORD 'x'")
    try:
        url = url_with_login(console.database, "of_little_right", "x")
        with pytest.raises(Misconfigured) as told:
            async with Readers().connection(SqlTarget(console.schema, url), statement_s=5):
                pass
    finally:
        async with connect(console.database) as admin:
            await admin.execute("DROP ROLE of_little_right")
    assert "CREATE ROLE" in told.value.hint
    assert "GRANT SELECT ON ALL TABLES" in told.value.hint
