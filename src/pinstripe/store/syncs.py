"""Which account is in which schema (`pinstripe.sync`), stored syncs, and pauses.

A schema holds one account in one mode. `check_owner` checks it before anything is written; `claim` writes
it down and decides between two processes that start together. `pinstripe.stored_sync` keeps the syncs
that a service runs beside the one of its flags and environment; their keys are encrypted by `encryption`.
`pinstripe.paused` holds for both. Every change notifies `CHANNEL`; a service also polls.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import asyncpg
import msgspec

from pinstripe.catalog.tables import tables
from pinstripe.errors import Misconfigured, UnknownSync
from pinstripe.store.pool import Connection, translated


@dataclass(frozen=True, slots=True)
class Sync:
    """One schema of synced tables. `account_id` and `livemode` are None until they are known."""

    schema: str
    account_id: str | None
    livemode: bool | None
    api_version: str


async def load_syncs(connection: Connection, scope: str = "") -> list[Sync]:
    """Return all syncs of this database, platforms left out, or the account of a platform that is this
    `scope`; none if Pinstripe never wrote here.
    """
    with translated():
        chosen = await alone(connection)
        if chosen is None:
            return []
        rows = await connection.fetch(
            "SELECT schema, account_id, livemode, api_version FROM pinstripe.sync s"
            f" WHERE {'s.schema = $1' if scope else chosen} ORDER BY schema",
            *([scope] if scope else []),
        )
    return [Sync(r[0], r[1], r[2], r[3]) for r in rows]


async def alone(connection: Connection) -> str | None:
    """Return the condition on `pinstripe.sync` as `s` that picks the syncs: what is no platform, and no
    account of one. None if the table is not there.
    """
    columns: int = await connection.fetchval(
        "SELECT count(*) FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass('pinstripe.sync')"
        " AND attname IN ('schema', 'platform_id')"
    )
    # Before this version migrates, no sync is part of a platform.
    return (None, "true", "s.platform_id IS NULL")[columns]


async def load_table_names(connection: Connection, schema: str) -> set[str]:
    """Return the tables of the catalog that exist in the schema."""
    with translated():
        rows = await connection.fetch(
            "SELECT tablename::text FROM pg_tables WHERE schemaname = $1", schema
        )
    return {row[0] for row in rows} & set(tables())


async def check_owner(
    connection: Connection, schema: str, *, account_id: str | None, livemode: bool
) -> None:
    """Raise Misconfigured if the schema holds another account, or this one in the other mode."""
    for sync in await load_syncs(connection):
        if sync.schema == schema:
            refuse_other(sync, account_id, livemode)


async def claim(
    connection: Connection, schema: str, *, account_id: str | None, livemode: bool
) -> None:
    """Write down the schema's account, unless it is known. Raises like `check_owner`."""
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
        refuse_other(Sync(row[0], row[1], row[2], row[3]), account_id, livemode)


def refuse_other(sync: Sync, account_id: str | None, livemode: bool) -> None:
    """Raises Misconfigured, with both named, where this is not the account and mode of the schema."""
    # A restricted key may not read its account; then only the mode can be compared.
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


CHANNEL = "pinstripe_syncs"
"""NOTIFY channel, without a payload."""

DEFAULT_ID = "default"
"""The sync that flags and environment describe. It is not stored: it cannot be added or removed."""

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")

_COLUMNS = (
    "id, schema, api_key, key_hint, webhook_secrets, stripe_url, stripe_account,"
    " settings::text AS settings, account_id, livemode, created_at"
)

_LOAD = f"""
SELECT {_COLUMNS}, EXISTS (SELECT FROM pinstripe.paused p WHERE p.schema = s.schema) AS paused
FROM pinstripe.stored_sync s
"""

_NOTIFY = f"SELECT pg_notify('{CHANNEL}', '')"


class SealedSync(msgspec.Struct, frozen=True, kw_only=True):
    """One row. `settings` has the text that a user writes, by the name of the setting."""

    id: str
    schema: str
    api_key: bytes
    key_hint: str
    webhook_secrets: tuple[bytes, ...]
    stripe_url: str
    stripe_account: str | None
    settings: Mapping[str, str]
    account_id: str | None
    livemode: bool
    created_at: datetime | None = None
    paused: bool = False

    def __repr__(self) -> str:
        return f"SealedSync({self.id!r})"


def check_id(sync_id: str) -> str:
    """Return the id. Raises Misconfigured if it cannot be part of a URL."""
    if not _ID.fullmatch(sync_id):
        raise Misconfigured(
            "This cannot be the id of a sync.",
            hint="Ids have up to 40 small letters, digits and hyphens, like shop-eu.",
        )
    if sync_id == DEFAULT_ID:
        raise Misconfigured(
            f'The id "{DEFAULT_ID}" belongs to the sync that flags and environment describe.',
            hint="Take another id; or set STRIPE_API_KEY for the service.",
        )
    return sync_id


async def load_stored(connection: Connection) -> list[SealedSync]:
    """Return all stored syncs by id; none if Pinstripe never wrote here."""
    with translated():
        if not await _is_there(connection):
            return []
        return [_sealed(row) for row in await connection.fetch(f"{_LOAD} ORDER BY id")]


async def get_stored(connection: Connection, sync_id: str) -> SealedSync:
    """Return the stored sync of this id. Raises UnknownSync."""
    with translated():
        row = None
        # Text that is no id may hold characters that Postgres cannot.
        if _ID.fullmatch(sync_id) and await _is_there(connection):
            row = await connection.fetchrow(f"{_LOAD} WHERE id = $1", sync_id)
    if row is None:
        raise unknown(sync_id)
    return _sealed(row)


async def insert_stored(connection: Connection, sync: SealedSync) -> None:
    """Store a sync. Raises Misconfigured if its id or schema is taken."""
    with translated():
        try:
            async with connection.transaction():
                await connection.execute(
                    "INSERT INTO pinstripe.stored_sync (id, schema, api_key, key_hint, webhook_secrets,"
                    " stripe_url, stripe_account, settings, account_id, livemode)"
                    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb, $9, $10)",
                    sync.id,
                    sync.schema,
                    sync.api_key,
                    sync.key_hint,
                    list(sync.webhook_secrets),
                    sync.stripe_url,
                    sync.stripe_account,
                    msgspec.json.encode(sync.settings).decode(),
                    sync.account_id,
                    sync.livemode,
                )
                if sync.paused:
                    await _pause(connection, sync.schema)
                await connection.execute(_NOTIFY)
        except asyncpg.UniqueViolationError as error:
            schema = "schema" in (error.constraint_name or "")
            what = f'schema "{sync.schema}"' if schema else f'id "{sync.id}"'
            raise Misconfigured(
                f"Another sync has the {what} already.",
                hint="Take another one, or remove that sync first: pinstripe syncs list shows it.",
            ) from error


async def update_stored(connection: Connection, sync: SealedSync) -> None:
    """Replace key, webhook secrets and settings. Raises UnknownSync."""
    with translated():
        async with connection.transaction():
            done = await connection.execute(
                "UPDATE pinstripe.stored_sync SET api_key = $2, key_hint = $3, webhook_secrets = $4,"
                " settings = $5::text::jsonb, account_id = coalesce(account_id, $6) WHERE id = $1",
                sync.id,
                sync.api_key,
                sync.key_hint,
                list(sync.webhook_secrets),
                msgspec.json.encode(sync.settings).decode(),
                sync.account_id,
            )
            await connection.execute(_NOTIFY)
    if done == "UPDATE 0":
        raise unknown(sync.id)


async def delete_stored(connection: Connection, sync_id: str) -> SealedSync:
    """Delete a stored sync and return it. Raises UnknownSync."""
    with translated():
        async with connection.transaction():
            sync = await get_stored(connection, sync_id)
            await connection.execute("DELETE FROM pinstripe.stored_sync WHERE id = $1", sync_id)
            await connection.execute("DELETE FROM pinstripe.paused WHERE schema = $1", sync.schema)
            await connection.execute(_NOTIFY)
    return sync


async def is_paused(connection: Connection, schema: str) -> bool:
    with translated():
        if await connection.fetchval("SELECT to_regclass('pinstripe.paused')") is None:
            return False
        return bool(
            await connection.fetchval("SELECT true FROM pinstripe.paused WHERE schema = $1", schema)
        )


async def pause_schema(connection: Connection, schema: str) -> None:
    """Pause the schema: no service syncs it until `resume_schema`."""
    with translated():
        async with connection.transaction():
            await _pause(connection, schema)
            await connection.execute(_NOTIFY)


async def resume_schema(connection: Connection, schema: str) -> None:
    """End the pause."""
    with translated():
        async with connection.transaction():
            await connection.execute("DELETE FROM pinstripe.paused WHERE schema = $1", schema)
            await connection.execute(_NOTIFY)


def unknown(sync_id: str) -> UnknownSync:
    """Return the error for an unknown id. Quotes it only if it is a valid one."""
    known = f'"{sync_id}"' if _ID.fullmatch(sync_id) else "of this id"
    return UnknownSync(
        f"There is no sync {known}.", hint="`pinstripe syncs list` shows those that are stored."
    )


async def _pause(connection: Connection, schema: str) -> None:
    await connection.execute(
        "INSERT INTO pinstripe.paused (schema) VALUES ($1) ON CONFLICT DO NOTHING", schema
    )


async def _is_there(connection: Connection) -> bool:
    there = await connection.fetchval("SELECT to_regclass('pinstripe.stored_sync')")
    return there is not None


def _sealed(row: asyncpg.Record) -> SealedSync:
    values = dict(row)
    values["settings"] = msgspec.json.decode(values["settings"], type=dict[str, str])
    values["webhook_secrets"] = tuple(values["webhook_secrets"])
    return SealedSync(**values)
