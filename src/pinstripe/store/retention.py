"""What bounds each table of `pinstripe.*` and the copied event log, and the deletion of what is too old.

Most tables have one row for each schema, list, table or object that is owed, and lose it when it is
settled. `Retention.trim` deletes from the others, some rows at a time, so that no transaction is long. The
worker runs it once an hour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from pinstripe.store.ddl import qualified
from pinstripe.store.events import has_events
from pinstripe.store.pool import Connection, translated

BOUNDS: Mapping[str, str] = {
    "applied_event": "twice the event window",
    "bell": "a row for each schema",
    "certificate": "the last 100 verifications of each schema",
    "change": "the setting `change_days`",
    "clock": "60 days",
    "confirmation": "an hour; those of passes and scans for two rounds of them, 8 bytes a row and round",
    "copied": "a row for each table",
    "cursor": "a row for each list",
    "erased": "a row for each object of an erased customer",
    "erasure": "a row for each erased customer",
    "filled": "a row for each table",
    "filling": "a row for each table, until its new columns are filled",
    "freshness": "a row for each table and way of reading",
    "lease": "a row for each schema",
    "lock": "66 rows",
    "member_set": "an hour, or as long as the table is in its initial load",
    "missing": "a row for each object that rows refer to and Stripe does not have",
    "paused": "a row for each schema",
    "pending": "a row for each object or list that is owed",
    "platform": "a row for each platform",
    "platform_account": "a row for each account of a platform",
    "platform_task": "a row for each account and task",
    "platform_worker": "a row for each worker, for an hour after its end",
    "process": "a row for each schema",
    "quarantine": "a row for each row or table that Postgres refuses",
    "refusal": "a row for each request that Stripe refuses in part",
    "request_count": "60 days",
    "stored_sync": "a row for each stored sync",
    "sync": "a row for each schema",
}
"""By table: how many rows there are, or how long they are kept."""

_CERTIFICATES = 100
_COUNTED_DAYS = 60
"""Stripe's read quota is of 30 days (https://docs.stripe.com/rate-limits)."""
_ROWS = 10_000
_CHANGES = """
DELETE FROM pinstripe.change WHERE position IN (
  SELECT position FROM pinstripe.change
  WHERE schema = $1 AND at < clock_timestamp() - $2::interval ORDER BY position LIMIT $3)
"""
_COUNTS = "DELETE FROM pinstripe.{} WHERE schema = $1 AND day < current_date - $2::int"
_OLD_CERTIFICATES = """
DELETE FROM pinstripe.certificate WHERE schema = $1 AND id <= (
  SELECT id FROM pinstripe.certificate WHERE schema = $1 ORDER BY id DESC OFFSET $2 LIMIT 1)
"""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long changes and events are kept. `events`: None for ever."""

    changes: timedelta
    events: timedelta | None = None

    async def trim(self, connection: Connection, schema: str) -> int:
        """Delete what is too old; return the number of changes and events. Not in a transaction."""
        with translated():
            for table in ("request_count", "clock"):
                await connection.execute(_COUNTS.format(table), schema, _COUNTED_DAYS)
            await connection.execute(_OLD_CERTIFICATES, schema, _CERTIFICATES)
            deleted = await _repeat(connection, _CHANGES, schema, self.changes)
            if self.events is not None:
                deleted += await _trim_events(connection, schema, self.events)
        return deleted


async def _trim_events(connection: Connection, schema: str, keep: timedelta) -> int:
    if not await has_events(connection, schema):
        return 0
    name = qualified(schema, "event")
    text = (
        f"DELETE FROM {name} WHERE id IN (SELECT id FROM {name} WHERE created IS NOT NULL"
        f" AND created < clock_timestamp() - $1::interval ORDER BY created LIMIT $2)"
    )
    return await _repeat(connection, text, keep)


async def _repeat(connection: Connection, text: str, *values: object) -> int:
    """Run the deletion until it finds less than it takes at a time; return the number of rows."""
    deleted = 0
    while True:
        status = await connection.execute(text, *values, _ROWS)
        count = int(status.rpartition(" ")[2])
        deleted += count
        if count < _ROWS:
            return deleted
