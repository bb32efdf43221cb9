"""The tasks of platforms: Procrastinate's tables in the schema `pinstripe_tasks`, and requests for a task.

    async with pool.transaction() as connection:
        ...                                                  # what makes the work necessary
        await request_tasks(connection, "poll", [scope])     # commits with it

One account has one running task at a time (Procrastinate's `lock` is the scope), and one waiting task of a
kind (`queueing_lock`). A task is never scheduled for later: Procrastinate passes over every task of an
account that has an earlier or more urgent one, due or not. What is due later stands in
`pinstripe.platform_account`. See docs/decisions/034-procrastinate.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from pinstripe.errors import Drifted
from pinstripe.store.locks import lock_row
from pinstripe.store.pool import Connection, translated

SCHEMA = "pinstripe_tasks"
SEARCH_PATH = f"{SCHEMA}, pg_catalog, pg_temp"

TaskName = Literal["poll", "backfill", "relist", "refetch", "preview", "verify"]
Queue = Literal["live", "bulk"]


class _Kind(NamedTuple):
    queue: Queue
    priority: int


KINDS: Mapping[TaskName, _Kind] = MappingProxyType(
    {
        "poll": _Kind("live", 30),
        "refetch": _Kind("live", 20),
        "preview": _Kind("bulk", 12),
        "backfill": _Kind("bulk", 10),
        "relist": _Kind("bulk", 5),
        "verify": _Kind("bulk", 0),
    }
)
"""Higher goes first. The queues have workers of their own: nothing live waits for a first copy."""

WAITED_PRIORITY = 40
"""Of a poll that a caller waits for."""

WAITED_COPY_PRIORITY = 14
"""Of the first copy of an account that a caller waits for: before other ones, and before previews."""

STALLED_S = 15.0
"""Tasks of a worker that was silent for so long are fetched by others."""

_UNHELD_S = 30.0
"""A task that began so long ago, and whose account nobody holds, has ended without saying so."""

_DISCOVERY_S = 3600.0
"""The same of a look for new accounts, which holds no lease and takes minutes where there are many."""

_WAIT_S = 60

_NAME = "procrastinate"


async def ensure_tasks(connection: Connection) -> None:
    """Create `pinstripe_tasks`, or bring it to the installed Procrastinate. After `ensure_bookkeeping`.

    Several processes may call it at once. Raises Drifted if a newer Procrastinate has made the schema.
    """
    with translated():
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = '{_WAIT_S}s'")
            if await _applied(connection) == _version():
                return
            await lock_row(connection, "migration")
            await connection.execute(f"SET LOCAL search_path = {SEARCH_PATH}")
            await _apply(connection, await _applied(connection))
            await connection.execute(_ours())
            await connection.execute(_PATHS)
            await connection.execute(f"COMMENT ON SCHEMA {SCHEMA} IS '{_version()}'")


async def request_tasks(
    connection: Connection, task: TaskName, scopes: Sequence[str], *, priority: int | None = None
) -> int:
    """Request the task for these scopes, in the caller's transaction; return how many are new.

    Scopes are taken in their order, so that two callers with the same ones do not wait for each other.
    """
    kind = KINDS[task]
    with translated():
        found: int = await connection.fetchval(
            f"SELECT count(*) FILTER (WHERE {SCHEMA}.request_job($1, $2, scope, $3))"
            " FROM (SELECT DISTINCT s AS scope FROM unnest($4::text[]) s ORDER BY 1) AS sorted",
            kind.queue,
            task,
            kind.priority if priority is None else priority,
            list(scopes),
        )
    return found


DISCOVER = "discover"
"""The task that looks for new accounts of all platforms."""


async def request_discovery(connection: Connection) -> None:
    """Request a look for new accounts, in the caller's transaction."""
    with translated():
        await connection.execute(f"SELECT {SCHEMA}.request_job('bulk', $1, '', 50)", DISCOVER)


async def waiting_tasks(connection: Connection) -> dict[str, int]:
    """Return how many tasks wait or run, by their name; empty where there is no platform."""
    with translated():
        if await _applied(connection) is None:
            return {}
        rows = await connection.fetch(
            f"SELECT task_name, count(*) FROM {SCHEMA}.procrastinate_jobs"
            " WHERE status IN ('todo', 'doing') GROUP BY 1"
        )
    return {row[0]: row[1] for row in rows}


async def waits_in(connection: Connection, queue: Queue) -> bool:
    """Return whether a task of the queue waits that could begin."""
    with translated():
        found: bool = await connection.fetchval(
            f"SELECT EXISTS (SELECT FROM {SCHEMA}.procrastinate_jobs WHERE status = 'todo'"
            " AND queue_name = $1)",
            queue,
        )
    return found


# A task is dropped where one of its kind waits already. Whoever works for an account holds its lease:
# a live worker may have lost the session in which a task was to end, and the account would wait for ever.
_TAKE_UP = f"""
WITH stalled AS (
  SELECT j.id, EXISTS (SELECT FROM {SCHEMA}.procrastinate_jobs w
    WHERE w.status = 'todo' AND w.queueing_lock = j.queueing_lock) AS is_double
  FROM {SCHEMA}.procrastinate_jobs j
  LEFT JOIN {SCHEMA}.procrastinate_workers w ON w.id = j.worker_id
  LEFT JOIN pinstripe.lease l ON l.schema = j.lock
  WHERE j.status = 'doing' AND (
    (w.last_heartbeat > clock_timestamp() - make_interval(secs => $1)) IS NOT TRUE
    OR coalesce(l.expires_at, '-infinity') < clock_timestamp() AND NOT EXISTS (
      SELECT FROM {SCHEMA}.procrastinate_events e WHERE e.job_id = j.id AND e.at > clock_timestamp()
      - make_interval(secs => CASE WHEN l.schema IS NULL THEN $3::float8 ELSE $2::float8 END)))
  FOR UPDATE OF j SKIP LOCKED),
ended AS (DELETE FROM {SCHEMA}.procrastinate_jobs j USING stalled s WHERE j.id = s.id AND s.is_double),
again AS (
  UPDATE {SCHEMA}.procrastinate_jobs j SET status = 'todo', worker_id = NULL, attempts = attempts + 1
  FROM stalled s WHERE j.id = s.id AND NOT s.is_double)
SELECT j.task_name, j.lock FROM stalled s JOIN {SCHEMA}.procrastinate_jobs j USING (id)
"""


async def take_up_stalled(connection: Connection) -> list[tuple[str, str]]:
    """Let the tasks be fetched again that nobody works at; return (task, scope) of each."""
    with translated():
        rows = await connection.fetch(_TAKE_UP, STALLED_S, _UNHELD_S, _DISCOVERY_S)
    return [(row[0], row[1]) for row in rows]


async def drop_tasks(connection: Connection, scopes_of: str) -> None:
    """Delete the waiting tasks of all accounts of a schema."""
    with translated():
        if await _applied(connection) is None:
            return
        await connection.execute(
            f"DELETE FROM {SCHEMA}.procrastinate_jobs"
            " WHERE status = 'todo' AND pg_catalog.starts_with(lock, $1)",
            f"{scopes_of}@",
        )


# Each function of Procrastinate names its tables without a schema.
_PATHS = f"""
DO $$
DECLARE
  f record;
BEGIN
  FOR f IN SELECT p.oid::regprocedure AS name FROM pg_catalog.pg_proc p
           WHERE p.pronamespace = '{SCHEMA}'::regnamespace LOOP
    EXECUTE format('ALTER FUNCTION %s SET search_path = {SEARCH_PATH}', f.name);
  END LOOP;
END $$;
"""

_APPLIED = """
SELECT pg_catalog.obj_description(n.oid, 'pg_namespace') FROM pg_catalog.pg_namespace n
WHERE n.nspname = $1
"""


async def _applied(connection: Connection) -> str | None:
    """The version of the schema, as `_version` has it; None if there is no schema."""
    found: str | None = await connection.fetchval(_APPLIED, SCHEMA)
    return found


async def _apply(connection: Connection, applied: str | None) -> None:
    if applied is None:
        await connection.execute(f"CREATE SCHEMA {SCHEMA}")
        await connection.execute((_folder() / "schema.sql").read_text())
    elif applied.split()[0] > _newest():
        raise Drifted(
            f"The schema {SCHEMA} was made by a newer Procrastinate than this one.",
            hint="Upgrade Pinstripe here too, or stop the newer workers and drop that schema.",
        )
    else:
        for migration in _migrations():
            if migration.name > applied.split()[0]:
                await connection.execute(migration.read_text())


def _version() -> str:
    """Procrastinate's last migration, and which text of our own function."""
    return f"{_newest()} {sha256(_ours().encode()).hexdigest()[:8]}"


def _ours() -> str:
    return files("pinstripe.store").joinpath("sql", "tasks.sql").read_text()


def _folder() -> Path:
    # By its metadata: importing Procrastinate takes as long as half of a start.
    return Path(str(distribution(_NAME).locate_file(f"{_NAME}/sql")))


def _migrations() -> list[Path]:
    """Named by version, as `03.04.00_50_post_….sql`: their order is that of their names."""
    return sorted((_folder() / "migrations").glob("*.sql"))


def _newest() -> str:
    return _migrations()[-1].name
