"""Cursors: how far each stream has been read. Also initial loads, freshness, and requests refused in part.

A `Checkpoint` is an immutable value. It is saved in the transaction that writes the rows it covers, so
after a crash the rows are exactly those that the cursor describes.

Until the initial load of a table is done (`pinstripe.copied`), the change feed shows only what events
caused in it; a restart during the load does not end it. `pinstripe.freshness` keeps how far a table is
known to be true by something else than events: its newest page, or a full refresh.

`pinstripe.refusal` has what Stripe refuses beside whole streams: a property of `expand[]`, which several
streams and single GETs may use, or a list that needs a parent, whose stream is read well in another way. A
refusal holds for `AGAIN`, in this process and later ones; then the request is made once more, since Stripe
may have given the account more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec

from pinstripe.errors import PinstripeError, Refused
from pinstripe.store.pool import Connection, translated

State = Literal["running", "done", "refused", "failed"]

BESIDE = ("single requests: ", "newest of ")
"""Prefixes of streams that note a failed request beside the lists; dropped once it succeeds."""

SCAN_OF = "scan of "
"""Prefix of the streams of the slow scan; the list by parent follows."""

READY = "ready"
"""The stream that says that the first copy was complete once: from then on the events alone count. It is
"running" for an account of a platform that is followed while lists of its first copy fail."""

LEFT_OUT = "left_out"
"""Code of a child list whose parents are not synced: the user's choice, no fault, but a gap."""

UNEXPANDED = "unexpanded"
"""Code of a list that Stripe returns without the requested `expand[]`."""

SOME_REFUSED = "some_refused"
"""Code of child lists that Stripe refuses for some parents."""

PARENT_INCOMPLETE = "parent_incomplete"
"""Code of child lists whose parents are not listed to the end yet."""


FOLLOWED = "events"
"""The stream whose `as_of` says up to when all events are applied."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The position of one stream. `position` is JSON of the stream's own making; empty if it has none.

    `requests` and `seconds` are totals since the stream began, `rows` since it last began anew; `as_of` is
    the Unix second on Stripe's clock up to which it is complete. `reason` is for people, `code` for
    decisions. `next_try`: when a stream that was refused or failed is retried, Unix seconds.
    """

    stream: str
    state: State
    position: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    remedy: str = ""
    rows: int = 0
    requests: int = 0
    seconds: float = 0.0
    as_of: float | None = None
    code: str = ""
    permission: str = ""
    next_try: float | None = None

    @property
    def table(self) -> str:
        """The table that the stream fills, as its position says; "" if it does not."""
        return str(self.position.get("table", ""))


def ended_by(
    error: PinstripeError,
    stream: str,
    position: Mapping[str, Any] | None = None,
    *,
    next_try: float | None = None,
    state: State | None = None,
) -> Checkpoint:
    """Return the cursor of a stream that an error ended: "refused" if Stripe refused it, else "failed"."""
    return Checkpoint(
        stream,
        state or ("refused" if error.is_answer else "failed"),
        position or {},
        reason=error.message,
        remedy=error.hint,
        code=error.slug,
        permission=permission_of(error),
        next_try=next_try,
    )


def followed(until: float) -> Checkpoint:
    """The cursor of the events when all up to this second on Stripe's clock are applied."""
    return Checkpoint(FOLLOWED, "running", position={"table": "event"}, as_of=float(until))


def permission_of(error: PinstripeError) -> str:
    """Return the permission that the key lacks, as Stripe names it; "" for other errors."""
    return error.permission if isinstance(error, Refused) else ""


_SAVE = """
INSERT INTO pinstripe.cursor AS c
  (schema, stream, state, position, reason, remedy, rows, requests, seconds, as_of, code, permission,
   next_try_at, updated_at)
SELECT $1, u.stream, u.state, u.position::jsonb, nullif(u.reason, ''), nullif(u.remedy, ''),
       u.rows, u.requests, u.seconds, to_timestamp(u.as_of), nullif(u.code, ''),
       nullif(u.permission, ''), to_timestamp(u.next_try), clock_timestamp()
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[],
            $9::float8[], $10::float8[], $11::text[], $12::text[], $13::float8[])
  AS u (stream, state, position, reason, remedy, rows, requests, seconds, as_of, code, permission,
        next_try)
ON CONFLICT (schema, stream) DO UPDATE SET
  state = EXCLUDED.state, position = EXCLUDED.position, reason = EXCLUDED.reason,
  remedy = EXCLUDED.remedy, rows = EXCLUDED.rows, requests = EXCLUDED.requests,
  seconds = EXCLUDED.seconds, as_of = EXCLUDED.as_of, code = EXCLUDED.code,
  permission = EXCLUDED.permission, next_try_at = EXCLUDED.next_try_at,
  updated_at = EXCLUDED.updated_at
"""


async def save_checkpoints(
    connection: Connection, schema: str, checkpoints: Sequence[Checkpoint]
) -> None:
    """Replace the cursors of these streams. Of several for one stream the last counts."""
    latest = {c.stream: c for c in checkpoints}
    if not latest:
        return
    ordered = [latest[stream] for stream in sorted(latest)]
    await connection.execute(
        _SAVE,
        schema,
        [c.stream for c in ordered],
        [c.state for c in ordered],
        [msgspec.json.encode(c.position or None).decode() for c in ordered],
        [c.reason for c in ordered],
        [c.remedy for c in ordered],
        [c.rows for c in ordered],
        [c.requests for c in ordered],
        [c.seconds for c in ordered],
        [c.as_of for c in ordered],
        [c.code for c in ordered],
        [c.permission for c in ordered],
        [c.next_try for c in ordered],
    )


async def drop_checkpoints(connection: Connection, schema: str, streams: Sequence[str]) -> None:
    """Delete these cursors."""
    await connection.execute(
        "DELETE FROM pinstripe.cursor WHERE schema = $1 AND stream = ANY($2::text[])",
        schema,
        list(streams),
    )


async def forget_checkpoints(connection: Connection, schema: str) -> None:
    """Delete all cursors of a schema: the next backfill reads every list again."""
    await connection.execute("DELETE FROM pinstripe.cursor WHERE schema = $1", schema)


async def load_checkpoints(connection: Connection, schema: str) -> Mapping[str, Checkpoint]:
    """Return all cursors of a schema, by stream."""
    with translated():
        rows = await connection.fetch(
            "SELECT stream, state, position::text, coalesce(reason, ''), coalesce(remedy, ''), rows,"
            " requests, seconds, extract(epoch FROM as_of)::float8, coalesce(code, ''),"
            " coalesce(permission, ''), extract(epoch FROM next_try_at)::float8"
            " FROM pinstripe.cursor WHERE schema = $1",
            schema,
        )
    return {
        r[0]: Checkpoint(
            stream=r[0],
            state=r[1],
            position=msgspec.json.decode(r[2] or "null") or {},
            reason=r[3],
            remedy=r[4],
            rows=r[5],
            requests=r[6],
            seconds=r[7],
            as_of=r[8],
            code=r[9],
            permission=r[10],
            next_try=r[11],
        )
        for r in rows
    }


async def load_as_of(connection: Connection, schema: str) -> datetime | None:
    """Return up to which moment of Stripe's clock all events are applied; None before the first poll."""
    as_of: datetime | None = await connection.fetchval(
        "SELECT as_of FROM pinstripe.cursor WHERE schema = $1 AND stream = 'events'", schema
    )
    return as_of


async def load_loaded(connection: Connection, schema: str) -> set[str]:
    """Return the tables whose initial load is done."""
    with translated():
        rows = await connection.fetch(
            'SELECT "table" FROM pinstripe.copied WHERE schema = $1', schema
        )
    return {row[0] for row in rows}


ALL_LOADED = "*"
"""In place of a table: all of an account of a platform, which would otherwise have a row for each."""


async def mark_loaded(connection: Connection, schema: str, tables: Sequence[str]) -> None:
    """Mark the initial load of these tables as done."""
    with translated():
        await connection.execute(
            'INSERT INTO pinstripe.copied (schema, "table") SELECT $1, unnest($2::text[])'
            " ON CONFLICT DO NOTHING",
            schema,
            tables,
        )


@dataclass(frozen=True, slots=True)
class Freshness:
    """`known_to` is a Unix second on Stripe's clock; `how` one of "newest", "due", "pass"."""

    table: str
    how: str
    known_to: float


async def note_freshness(
    connection: Connection, schema: str, tables: Sequence[str], how: str, known_to: float
) -> None:
    """Note that these tables were read `how`, and up to when they are true."""
    await connection.execute(
        'INSERT INTO pinstripe.freshness (schema, "table", how, known_to)'
        " SELECT $1, t, $3, to_timestamp($4) FROM unnest($2::text[]) AS t"
        ' ON CONFLICT (schema, "table", how) DO UPDATE'
        " SET known_to = EXCLUDED.known_to, updated_at = now()",
        schema,
        list(tables),
        how,
        known_to,
    )


async def load_freshness(connection: Connection, schema: str) -> list[Freshness]:
    rows = await connection.fetch(
        'SELECT "table", how, extract(epoch FROM known_to)::float8 FROM pinstripe.freshness'
        " WHERE schema = $1",
        schema,
    )
    return [Freshness(*row) for row in rows]


AGAIN = timedelta(days=7)
LIST = "list"
"""`what` of a list that is refused as such; else it is a value of `expand[]`."""


@dataclass(frozen=True, slots=True)
class RememberedRefusal:
    """What Stripe refuses beside whole tables. It is requested again after a week."""

    endpoint: str
    """As Stripe names the operation: GET /v1/payment_methods."""
    what: str
    """A property that cannot be expanded; or `list`, which is read by parent instead."""
    reason: str
    """In Stripe's words."""
    remedy: str = ""


async def load_refusals(
    connection: Connection, schema: str, *, is_due: bool = False, drops_due: bool = False
) -> Sequence[RememberedRefusal]:
    """Return the refusals that hold; with `is_due` also those that are due for another request, which
    `drops_due` deletes, so that it is made.
    """
    drop = (
        "WITH due AS (DELETE FROM pinstripe.refusal"
        " WHERE schema = $1 AND next_try_at <= clock_timestamp()) "
    )
    with translated():
        rows = await connection.fetch(
            f"{drop if drops_due else ''}SELECT endpoint, what, reason, remedy FROM pinstripe.refusal"
            " WHERE schema = $1 AND ($2 OR next_try_at > clock_timestamp()) ORDER BY endpoint, what",
            schema,
            is_due,
        )
    return [RememberedRefusal(*row) for row in rows]


async def note_refusal(connection: Connection, schema: str, refused: RememberedRefusal) -> None:
    """Note a refusal, for `AGAIN` from now on."""
    with translated():
        await connection.execute(
            "INSERT INTO pinstripe.refusal (schema, endpoint, what, reason, remedy, next_try_at)"
            " VALUES ($1, $2, $3, $4, $5, clock_timestamp() + $6)"
            " ON CONFLICT (schema, endpoint, what) DO UPDATE SET reason = excluded.reason,"
            " remedy = excluded.remedy, checked_at = clock_timestamp(), next_try_at = excluded.next_try_at",
            schema,
            refused.endpoint,
            refused.what,
            refused.reason,
            refused.remedy,
            AGAIN,
        )
