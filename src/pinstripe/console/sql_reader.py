"""Connections for what people type: as a role that may read one schema and nothing else.

Never our own connection with fewer rights for a while: whoever may run a statement there could take them
back. The role is made when it is first needed, with a password that only this process knows; where our
user may not make roles, `PINSTRIPE_READER_URL` names one that an administrator made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg

from pinstripe.errors import Misconfigured, PinstripeError, Unreachable
from pinstripe.store.ddl import quote
from pinstripe.store.pool import connect_dedicated, hang_up, sqlstate, translated
from pinstripe.store.reader_role import Limits, renew_reader

_AT_ONCE = 5
"""Statements and downloads that run side by side; the role may have twice as many sessions."""

_LIMITS = Limits(connections=2 * _AT_ONCE, statement_s=10)
_LOGIN_REFUSED = {"28P01", "28000"}

_MAY_WRITE = """
SELECT rolsuper OR has_schema_privilege(current_user, $1, 'CREATE')
  OR EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = to_regnamespace($2)
             AND c.relkind IN ('r', 'p') AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE'))
FROM pg_roles WHERE rolname = current_user
"""


@dataclass(frozen=True, slots=True)
class Place:
    """What is to be read. `database_url` is our own; `reader_url` a role made by others, "" for none."""

    schema: str
    database_url: str | None = field(repr=False)
    reader_url: str = field(default="", repr=False)


class Readers:
    """The read-only roles of this process, by schema."""

    def __init__(self) -> None:
        self._urls: dict[str, str] = {}
        self._making = asyncio.Lock()
        self._places = asyncio.Semaphore(_AT_ONCE)

    @asynccontextmanager
    async def connection(
        self, place: Place, *, statement_s: int
    ) -> AsyncIterator[asyncpg.Connection]:
        """A session of its own, whose every statement ends after `statement_s`.

        Raises Misconfigured where there is no role to be had, with what to do about it in the hint.
        """
        async with self._places:
            connection = await self._connect(place)
            try:
                with translated():
                    if place.reader_url:
                        await _check_reads_only(connection, place.schema)
                    await connection.execute(
                        f"SET search_path = {quote(place.schema)}; "
                        "SET default_transaction_read_only = on; "
                        f"SET statement_timeout = '{statement_s}s'; "
                        "SET idle_in_transaction_session_timeout = '60s'; SET lock_timeout = '5s'"
                    )
                yield connection
            finally:
                await hang_up(connection)

    async def _connect(self, place: Place) -> asyncpg.Connection:
        if place.reader_url:
            return await _open(place.reader_url)
        known = self._urls.get(place.schema)
        if known is not None:
            try:
                return await _open(known)
            except PinstripeError as error:
                # Another process has made a password of its own, or somebody dropped the role.
                if sqlstate(error) not in _LOGIN_REFUSED:
                    raise
        async with self._making:
            if self._urls.get(place.schema) == known:
                self._urls[place.schema] = await _renewed(place)
            return await _open(self._urls[place.schema])


async def _renewed(place: Place) -> str:
    if not place.database_url:
        raise Unreachable("The database is not there yet.", hint="Try again in some seconds.")
    reader = await renew_reader(place.database_url, place.schema, purpose="console", limits=_LIMITS)
    return reader.url


async def _open(url: str) -> asyncpg.Connection:
    return await connect_dedicated(url, application_name="pinstripe console")


async def _check_reads_only(connection: asyncpg.Connection, schema: str) -> None:
    if await connection.fetchval(_MAY_WRITE, schema, quote(schema)):
        raise Misconfigured(
            "The user of PINSTRIPE_READER_URL may write, so the SQL box does not use it.",
            hint="Name a role that may only read: `pinstripe reader create` makes one.",
        )
