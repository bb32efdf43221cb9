"""Platforms and their accounts: the tables `pinstripe.platform` and `pinstripe.platform_account`.

    insert_platform -> add_accounts: those that the platform has -> set_state: revoked, active again

An account of a platform is added before anything is stored of it: its row in `pinstripe.sync`, named by its
scope, is what the rest of the bookkeeping refers to. Secrets come sealed from `serving.vault`, which alone
opens them. Deleting a platform deletes the bookkeeping of all its accounts, and leaves their rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

import asyncpg
import msgspec

from pinstripe.catalog.model import spec
from pinstripe.errors import Misconfigured, UnknownSync
from pinstripe.store.pool import Connection, translated
from pinstripe.store.syncs import CHANNEL

AccountState = Literal["active", "revoked"]
"""`revoked`: the account withdrew its authorisation. Its rows stay, and nothing is requested."""


class SealedPlatform(msgspec.Struct, frozen=True, kw_only=True):
    """One row. `settings` has the text that a user writes, by the name of the setting."""

    id: str
    schema: str
    api_key: bytes
    key_hint: str
    stripe_url: str
    account_id: str
    livemode: bool
    partitions: int = 0
    webhook_secrets: tuple[bytes, ...] = ()
    settings: Mapping[str, str] = {}
    paused: bool = False
    created_at: datetime | None = None

    def __repr__(self) -> str:
        return f"SealedPlatform({self.id!r})"


class PlatformAccount(msgspec.Struct, frozen=True, kw_only=True):
    """One account of a platform. Times are on Postgres's clock; `last_event_at` is on Stripe's."""

    account_id: str
    livemode: bool
    state: AccountState
    since: datetime
    revoked_at: datetime | None
    looked_at: datetime | None
    next_look_at: datetime
    last_event_at: datetime | None
    woken_at: datetime | None
    looks: int
    events: int
    failures: int
    code: str | None
    reason: str | None
    remedy: str | None


_STORED = (
    "id, schema, partitions, api_key, key_hint, webhook_secrets, stripe_url, settings, account_id,"
    " livemode, paused"
)
_INSERT = f"""
INSERT INTO pinstripe.platform ({_STORED})
VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb, $9, $10, $11)
"""

_CHANGED = "id, api_key, key_hint, webhook_secrets, settings, paused"
_UPDATE = """
UPDATE pinstripe.platform SET api_key = $2, key_hint = $3, webhook_secrets = $4,
  settings = $5::text::jsonb, paused = $6 WHERE id = $1
"""

_NOTIFY = f"SELECT pg_notify('{CHANNEL}', '')"

# The first copy ends with a poll, which gives the account its turn: until then no look is spent on it.
# The scope, as `scopes.scope_of` makes it, in one statement for any number of accounts.
_ADD = """
WITH p AS (SELECT * FROM pinstripe.platform WHERE id = $1), added AS (
  INSERT INTO pinstripe.platform_account AS a (platform_id, account_id, livemode, next_look_at)
  SELECT p.id, u.id, p.livemode, clock_timestamp() + interval '1 day' FROM p, unnest($2::text[]) AS u (id)
  ON CONFLICT (platform_id, account_id) DO UPDATE
    SET state = 'active', revoked_at = NULL, next_look_at = EXCLUDED.next_look_at, failures = 0,
        code = NULL, reason = NULL, remedy = NULL, woken_at = clock_timestamp()
    WHERE a.state = 'revoked'
  RETURNING account_id), scopes AS (
  INSERT INTO pinstripe.sync (schema, account_id, livemode, api_version, sdk_version, platform_id)
  SELECT p.schema || '@' || u.id, u.id, p.livemode, $3, $4, p.id FROM p, unnest($2::text[]) AS u (id)
  ON CONFLICT (schema) DO NOTHING RETURNING schema), leases AS (
  INSERT INTO pinstripe.lease (schema, holder, fence, expires_at)
  SELECT schema, '', 0, to_timestamp(0) FROM scopes)
SELECT account_id FROM added ORDER BY 1
"""

_REVOKE = """
UPDATE pinstripe.platform_account SET state = 'revoked', revoked_at = clock_timestamp(), code = 'revoked',
  reason = $3,
  remedy = 'Its rows stay as they are. It goes on when the account authorises the platform again.'
WHERE platform_id = $1 AND account_id = ANY($2::text[]) AND state = 'active'
  AND (failures < 2 AND woken_at > clock_timestamp() - interval '4 s') IS NOT TRUE RETURNING account_id
"""

_ACCOUNT_COLUMNS = (
    "a.account_id, a.livemode, a.state, a.since, a.revoked_at, a.looked_at, a.next_look_at,"
    " a.last_event_at, a.woken_at, a.looks, a.events, a.failures, a.code, a.reason, a.remedy"
)

_ACCOUNTS = f"""
SELECT {_ACCOUNT_COLUMNS} FROM pinstripe.platform_account a
WHERE platform_id = $1 AND account_id > $2 AND strpos(account_id, $4) > 0 AND ($5::text IS NULL OR CASE $5
    WHEN 'troubled' THEN state = 'active' AND failures > 0 ELSE state = $5 END)
ORDER BY account_id LIMIT $3
"""

_ACCOUNT = f"""
SELECT {_ACCOUNT_COLUMNS} FROM pinstripe.platform_account a
JOIN pinstripe.sync s ON s.platform_id = a.platform_id AND s.account_id = a.account_id WHERE s.schema = $1
"""


async def load_platforms(connection: Connection) -> list[SealedPlatform]:
    """Return all platforms by id; none if this version never wrote here."""
    with translated():
        if await connection.fetchval("SELECT to_regclass('pinstripe.platform')") is None:
            return []
        rows = await connection.fetch(
            f"SELECT {_STORED}, created_at FROM pinstripe.platform ORDER BY id"
        )
    return [_sealed(row) for row in rows]


async def get_platform(connection: Connection, platform_id: str) -> SealedPlatform:
    """Return the platform of this id. Raises UnknownSync."""
    for platform in await load_platforms(connection):
        if platform.id == platform_id:
            return platform
    raise _unknown()


async def insert_platform(connection: Connection, platform: SealedPlatform) -> None:
    """Store a platform with its own account. Raises Misconfigured if its id or schema is taken.

    Its schema is made before (`migrate.migrate_platform`).
    """
    with translated():
        try:
            async with connection.transaction():
                await _refuse_taken(connection, platform)
                await connection.execute(_INSERT, *_values(platform, _STORED))
                await connection.execute(
                    "UPDATE pinstripe.sync SET platform_id = $1, account_id = $2, livemode = $3"
                    " WHERE schema = $4",
                    platform.id,
                    platform.account_id,
                    platform.livemode,
                    platform.schema,
                )
                await add_accounts(connection, platform.id, [platform.account_id])
                await connection.execute(_NOTIFY)
        except asyncpg.UniqueViolationError as error:
            schema = "schema" in (error.constraint_name or "")
            what = f'schema "{platform.schema}"' if schema else f'id "{platform.id}"'
            raise _taken(what) from error


async def _refuse_taken(connection: Connection, platform: SealedPlatform) -> None:
    for name, value in (("id", platform.id), ("schema", platform.schema)):
        taken = f"SELECT EXISTS (SELECT FROM pinstripe.stored_sync WHERE {name} = $1)"
        if await connection.fetchval(taken, value):
            raise _taken(f'{name} "{value}"')


def _taken(what: str) -> Misconfigured:
    return Misconfigured(
        f"Another platform or sync has the {what} already.",
        hint="Take another one, or remove the other first: pinstripe platform list and pinstripe syncs "
        "list show them.",
    )


async def update_platform(connection: Connection, platform: SealedPlatform) -> None:
    """Replace key, webhook secrets, settings and pause. Raises UnknownSync."""
    with translated():
        async with connection.transaction():
            done = await connection.execute(_UPDATE, *_values(platform, _CHANGED))
            await connection.execute(_NOTIFY)
    if done == "UPDATE 0":
        raise _unknown()


async def delete_platform(connection: Connection, platform_id: str) -> SealedPlatform:
    """Delete a platform with the bookkeeping of its accounts, and return it. Raises UnknownSync."""
    with translated():
        async with connection.transaction():
            platform = await get_platform(connection, platform_id)
            await connection.execute("DELETE FROM pinstripe.platform WHERE id = $1", platform_id)
            await connection.execute(_NOTIFY)
    return platform


async def add_accounts(
    connection: Connection, platform_id: str, account_ids: Sequence[str]
) -> list[str]:
    """Add accounts; return those that are new, or that have authorised the platform again."""
    with translated():
        rows = await connection.fetch(
            _ADD, platform_id, sorted({*account_ids}), spec().api_version, spec().sdk_version
        )
    return [row[0] for row in rows]


async def revoke_accounts(
    connection: Connection, platform_id: str, account_ids: Sequence[str], reason: str
) -> list[str]:
    """Flag accounts that took their authorisation back; return them. Their rows stay.

    Not those that something named in the last seconds: they may have given it again since the request
    that Stripe refused, and the next ones tell.
    """
    with translated():
        rows = await connection.fetch(_REVOKE, platform_id, list(account_ids), reason)
    return [row[0] for row in rows]


async def load_accounts(
    connection: Connection,
    platform_id: str,
    *,
    after: str = "",
    limit: int = 1000,
    search: str = "",
    state: AccountState | Literal["troubled"] | None = None,
) -> list[PlatformAccount]:
    """Return the accounts of a platform by id, `limit` at most, those behind the id `after`.

    `search`: a part of the id. `state`: only those; `troubled` are active and their last look failed.
    """
    with translated():
        rows = await connection.fetch(_ACCOUNTS, platform_id, after, limit, search, state)
    return [PlatformAccount(**row) for row in rows]


async def load_account(connection: Connection, scope: str) -> PlatformAccount | None:
    """Return the account that a scope names; None if its platform is gone."""
    with translated():
        row = await connection.fetchrow(_ACCOUNT, scope)
    return None if row is None else PlatformAccount(**row)


def _unknown() -> UnknownSync:
    return UnknownSync(
        "There is no platform of this id.", hint="`pinstripe platform list` shows those that are."
    )


def _values(platform: SealedPlatform, columns: str) -> list[object]:
    """The values of these columns, as a statement takes them."""
    settings = msgspec.json.encode(platform.settings).decode()
    names = columns.split(", ")
    return [settings if name == "settings" else getattr(platform, name) for name in names]


def _sealed(row: asyncpg.Record) -> SealedPlatform:
    values = dict(row)
    values["settings"] = msgspec.json.decode(values["settings"], type=dict[str, str])
    values["webhook_secrets"] = tuple(values["webhook_secrets"])
    return SealedPlatform(**values)
