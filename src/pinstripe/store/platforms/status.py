"""How platforms stand: accounts by state, the pace of the sweep, workers and tasks.

    read_platforms -> `pinstripe status`, `/api/platforms`, the console, the metrics

One aggregate over the rows of `pinstripe.platform_account` for each platform: some milliseconds for 10,000.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from pinstripe.store.platforms.stored import SealedPlatform, load_platforms
from pinstripe.store.platforms.sweep import sweep_pace
from pinstripe.store.platforms.tasks import waiting_tasks
from pinstripe.store.platforms.workers import WorkerStatus, live_workers
from pinstripe.store.pool import Connection, translated


class AccountCounts(msgspec.Struct, frozen=True):
    """Accounts by state. `troubled` are active, and their last look or task failed."""

    active: int
    revoked: int
    troubled: int


class PlatformStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How one platform stands, as the database tells."""

    id: str
    schema: str
    account_id: str
    """The platform's own account, which is one of those that are copied."""
    livemode: bool
    paused: bool
    key_hint: str
    stripe_url: str
    partitions: int
    """Into how many tables each one is divided by account; 0: none."""
    webhook_secrets: int
    created_at: datetime | None
    accounts: AccountCounts
    looks_per_s: float
    """The pace of the sweep: looks at event lists a second, if each account is looked at when it is due."""
    oldest_look_s: float | None
    """Since the look at the account that waits for the longest time; null if there is none."""
    late: int
    """Accounts whose turn is over by more than their pace."""


class PlatformsStatus(msgspec.Struct, frozen=True):
    """All platforms, and who works for them."""

    platforms: list[PlatformStatus]
    workers: list[WorkerStatus]
    tasks: dict[str, int]
    """Tasks that wait or run, by name."""


_LACKING = """
SELECT "table", count(DISTINCT schema), min(reason), coalesce(min(remedy), '')
FROM (
  SELECT c.schema, coalesce(c.position ->> 'table', c.stream) AS "table", c.permission, c.reason, c.remedy
  FROM pinstripe.cursor c WHERE c.permission IS NOT NULL OR c.state = 'failed'
  UNION ALL SELECT q.schema, q."table", q.sqlstate, q.reason, q.remedy FROM pinstripe.quarantine q) AS found
JOIN pinstripe.sync s USING (schema)
WHERE s.platform_id = $1 GROUP BY "table", permission ORDER BY 2 DESC, 1 LIMIT 30
"""


async def read_lacking(connection: Connection, platform_id: str) -> list[tuple[str, int, str, str]]:
    """Return (table, in how many accounts, why, remedy) of what the key may not read, fails, or Postgres
    refuses. Slow with many accounts: it reads all cursors.
    """
    with translated():
        rows = await connection.fetch(_LACKING, platform_id)
    return [(row[0], row[1], row[2], row[3]) for row in rows]


async def read_platforms(connection: Connection) -> PlatformsStatus:
    """Return how all platforms stand."""
    return PlatformsStatus(
        [
            await read_platform(connection, platform)
            for platform in await load_platforms(connection)
        ],
        await live_workers(connection),
        await waiting_tasks(connection),
    )


_AS_STORED = "id schema account_id livemode paused key_hint stripe_url partitions created_at"


async def read_platform(connection: Connection, platform: SealedPlatform) -> PlatformStatus:
    """Return how one platform stands."""
    pace = await sweep_pace(connection, platform.id)
    return PlatformStatus(
        **{name: getattr(platform, name) for name in _AS_STORED.split()},
        webhook_secrets=len(platform.webhook_secrets),
        accounts=AccountCounts(pace.active, pace.revoked, pace.troubled),
        looks_per_s=pace.looks_per_s,
        oldest_look_s=pace.oldest_look_s,
        late=pace.late,
    )
