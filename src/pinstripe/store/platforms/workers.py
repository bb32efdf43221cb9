"""The live workers of platforms (`pinstripe.platform_worker`), which share the rates of requests.

    join -> beat, beat, ... -> leave

Each worker takes one of as many equal parts of every rate as there are live ones. The sum stays below the
rate in every second, also when workers come and go:

- A newcomer takes nothing before every older worker has lowered its rate for it and said so (`seen`).
- A worker that is silent for `LOST_S` takes nothing more, by its own clock. The others count it in until
  `TTL_S`; the time between is longer than the second in which its last requests count.
- A worker that leaves waits a second before it deletes its row.

Only Postgres's clock says who is alive.
"""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import version
from typing import NamedTuple

import msgspec

from pinstripe.store.pool import Connection, translated

TTL_S = 10.0
"""A worker that has not beaten for so long is dead."""

LOST_S = 7.0
"""A worker that could not beat for so long takes nothing more, and joins anew."""

BEAT_S = 1.0

_FORGET_S = 3600.0


class View(NamedTuple):
    """What a worker sees at its heartbeat. `is_member`: it is alive itself; else it has to join anew.

    `live`: how many workers are alive; `newest`: the youngest of them. `older_seen`: the youngest worker
    for which all older ones have made room; None if there is no older one.
    """

    is_member: bool
    live: int
    newest: int
    older_seen: int | None


class WorkerStatus(msgspec.Struct, frozen=True):
    """A worker that lives."""

    name: str
    version: str
    joined_at: datetime
    running: int
    """Tasks under way."""


_BEAT = """
WITH beaten AS (
  UPDATE pinstripe.platform_worker SET heartbeat_at = clock_timestamp(), seen = $2, running = $3
  WHERE id = $1 AND heartbeat_at > clock_timestamp() - make_interval(secs => $4) RETURNING id),
live AS (
  SELECT id, seen FROM pinstripe.platform_worker
  WHERE heartbeat_at > clock_timestamp() - make_interval(secs => $5))
SELECT EXISTS (SELECT FROM beaten), count(*), coalesce(max(id), 0), min(seen) FILTER (WHERE id < $1)
FROM live
"""


async def join(connection: Connection, name: str) -> int:
    """Add a worker; return its number. It may take nothing yet."""
    with translated():
        await connection.execute(
            "DELETE FROM pinstripe.platform_worker"
            " WHERE heartbeat_at < clock_timestamp() - make_interval(secs => $1)",
            _FORGET_S,
        )
        worker: int = await connection.fetchval(
            "INSERT INTO pinstripe.platform_worker (name, version) VALUES ($1, $2) RETURNING id",
            name,
            version("pinstripe"),
        )
    return worker


async def beat(
    connection: Connection,
    worker: int,
    *,
    seen: int,
    running: int = 0,
    lost_s: float = LOST_S,
    ttl_s: float = TTL_S,
) -> View:
    """Write the heartbeat, and return what there is. `seen`: the caller's share makes room for the workers
    up to this one.
    """
    with translated():
        row = await connection.fetchrow(_BEAT, worker, seen, running, lost_s, ttl_s)
    assert row is not None  # noqa: S101 (an aggregate has one row)
    return View(*row)


async def leave(connection: Connection, worker: int) -> None:
    """Delete the worker: the others take its share. Its last request is a second ago."""
    with translated():
        await connection.execute("DELETE FROM pinstripe.platform_worker WHERE id = $1", worker)


async def live_workers(connection: Connection) -> list[WorkerStatus]:
    """Return the live workers, the oldest first; none where there is no platform."""
    with translated():
        if await connection.fetchval("SELECT to_regclass('pinstripe.platform_worker')") is None:
            return []
        rows = await connection.fetch(
            "SELECT name, version, joined_at, running FROM pinstripe.platform_worker"
            " WHERE heartbeat_at > clock_timestamp() - make_interval(secs => $1) ORDER BY id",
            TTL_S,
        )
    return [WorkerStatus(*row) for row in rows]
