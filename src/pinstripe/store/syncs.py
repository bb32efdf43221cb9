"""Which account stands in which schema: the rows of `pinstripe.sync`.

One schema holds one account in one mode. `check_owner` looks before anything is written; `claim`
writes the account down, and is what decides where two processes begin at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from pinstripe.catalog.tables import tables
from pinstripe.errors import Misconfigured
from pinstripe.store.pool import Connection, translated


@dataclass(frozen=True, slots=True)
class Sync:
    """One schema of synced tables. `account_id` and `livemode` are None until they are known."""

    schema: str
    account_id: str | None
    livemode: bool | None
    api_version: str


async def load_syncs(connection: Connection) -> list[Sync]:
    """All syncs of this database; none if Pinstripe never wrote here."""
    with translated():
        if await connection.fetchval("SELECT to_regclass('pinstripe.sync')") is None:
            return []
        rows = await connection.fetch(
            "SELECT schema, account_id, livemode, api_version FROM pinstripe.sync ORDER BY schema"
        )
    return [Sync(r[0], r[1], r[2], r[3]) for r in rows]


async def load_table_names(connection: Connection, schema: str) -> set[str]:
    """The tables of the catalog that the schema has; of a sync that brings some, only those."""
    with translated():
        rows = await connection.fetch(
            "SELECT tablename::text FROM pg_tables WHERE schemaname = $1", schema
        )
    return {row[0] for row in rows} & set(tables())


async def check_owner(
    connection: Connection, schema: str, *, account_id: str | None, livemode: bool
) -> None:
    """Raises Misconfigured if the schema holds another account, or this one in the other mode."""
    for sync in await load_syncs(connection):
        if sync.schema == schema:
            _refuse_other(sync, account_id, livemode)


async def claim(
    connection: Connection, schema: str, *, account_id: str | None, livemode: bool
) -> None:
    """Writes down whose schema it is, unless that is known. Raises as `check_owner`."""
    with translated():
        row = await connection.fetchrow(
            "UPDATE pinstripe.sync SET account_id = coalesce(account_id, $2),"
            " livemode = coalesce(livemode, $3) WHERE schema = $1"
            " RETURNING schema, account_id, livemode, api_version",
            schema,
            account_id,
            livemode,
        )
    if row is not None:
        _refuse_other(Sync(row[0], row[1], row[2], row[3]), account_id, livemode)


def _refuse_other(sync: Sync, account_id: str | None, livemode: bool) -> None:
    # A restricted key may not be told whose it is; then only the mode can be compared.
    same_account = None in (sync.account_id, account_id) or sync.account_id == account_id
    same_mode = sync.livemode is None or sync.livemode == livemode
    if same_account and same_mode:
        return
    there = _named(sync.account_id, sync.livemode)
    raise Misconfigured(
        f'The schema "{sync.schema}" holds {there}, but the key belongs to '
        f"{_named(account_id, livemode)}.",
        hint="Sync it into a schema of its own with --schema, or use another database.",
    )


def _named(account_id: str | None, livemode: bool | None) -> str:
    mode = {True: "live mode", False: "test mode", None: "an unknown mode"}[livemode]
    return f"{account_id or 'an account'} in {mode}"
