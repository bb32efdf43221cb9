"""`GET|POST /wait/{kind}/{id}`: responds when the database holds what the caller needs to read.

    200 {"ok": true, "as_of": "2026-11-02T09:30:00.250Z", "waited_ms": 87}
    504 {"ok": false, "error": {...}, "missing": [...], "as_of": ..., "waited_ms": 30000}

A call waits for everything that it names, within one time limit. Transient errors (no worker, Postgres
down, the first copy not complete) are retried until the deadline and only then reported, with what is
missing. Errors that cannot pass (an unknown id, a bad parameter) are reported immediately. `parse_query`
makes a checked `WaitQuery` of the parameters that `WaitParameters` documents.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from itertools import chain, repeat

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from pinstripe.catalog.endpoints import retrieve_endpoint
from pinstripe.catalog.model import object_types
from pinstripe.catalog.relations import types_of
from pinstripe.catalog.tables import table_of_object, tables
from pinstripe.concurrency import cancel
from pinstripe.errors import PinstripeError, Unreachable
from pinstripe.gateway.http.auth import token_of
from pinstripe.gateway.http.errors import JSON, ErrorDetail, HTTPError, failure, failure_of
from pinstripe.gateway.http.middleware import disconnected, unless
from pinstripe.gateway.syncs import AccountPlace, Named, OpenSync, Syncs
from pinstripe.gateway.wait.waiter import Waiter, WaitState
from pinstripe.rows.extract import RowKey
from pinstripe.store.cursors import load_checkpoints
from pinstripe.store.leases import load_lease
from pinstripe.store.platforms.stored import load_account
from pinstripe.store.platforms.workers import live_workers
from pinstripe.store.pool import Connection
from pinstripe.store.session import account_of

TIMEOUT_S = 30.0
LONGEST_S = 300.0
LONGEST_SETTLE_S = 60.0
_MAX_NAMED = 100
"""Requests, objects and events that one call may wait for together."""
_LONGEST_ID = 500
_REPEATED = ("request", "event", "object")
_WORD = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class WaitParameters(msgspec.Struct, frozen=True):
    """The query parameters, for the description of the API. Those that name something may be repeated."""

    request: str | UnsetType = UNSET
    """A request id (req_...)."""
    object: str | UnsetType = UNSET
    """An object id; may be given repeatedly."""
    type: str | UnsetType = UNSET
    """The type of the objects, where their ids do not tell."""
    event: str | UnsetType = UNSET
    """An event id (evt_...)."""
    timeout: float | UnsetType = UNSET
    """Seconds, at most 300; 30 by default."""
    settle: float | UnsetType = UNSET
    """Seconds that a plain wait lets the event log settle."""
    previews: bool | UnsetType = UNSET
    """Whether upcoming invoices are waited for too."""
    account: str | UnsetType = UNSET
    """For a platform: which of its accounts (acct_...), its own by default. `Stripe-Account` works too."""


@dataclass(frozen=True, slots=True)
class WaitQuery:
    """One call. Without requests, objects and events it is the plain form."""

    requests: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    objects: tuple[RowKey, ...] = ()
    timeout_s: float = TIMEOUT_S
    settle_s: float = 0.0
    previews: bool = True

    @property
    def is_plain(self) -> bool:
        return not (self.requests or self.events or self.objects)


def parse_query(query: Sequence[tuple[str, str]], *, settle_s: float) -> WaitQuery:
    """Parse a query string's pairs. `settle_s` is the default of `settle`.

    Raises HTTPError (400) that names the parameter.
    """
    given: dict[str, list[str]] = {}
    for name, value in query:
        if name not in WaitParameters.__struct_fields__:
            raise _no_parameter(name)
        given.setdefault(name, []).append(value)
    for name, values in given.items():
        if len(values) > 1 and name not in _REPEATED:
            raise _bad(name, "is given more than once")
    exact = {name: list(dict.fromkeys(given.get(name, ()))) for name in _REPEATED}
    if sum(map(len, exact.values())) > _MAX_NAMED:
        raise _bad("object", f"and the others name more than {_MAX_NAMED} things to wait for")
    type_name = given.get("type", [""])[0]
    if type_name and not exact["object"]:
        raise _bad("type", "is given without an object")
    previews = given.get("previews", ["true"])[0]
    if previews not in ("true", "false"):
        raise _bad("previews", "must be true or false")
    return WaitQuery(
        requests=tuple(_id("request", key, "req_") for key in exact["request"]),
        events=tuple(_id("event", key, "evt_") for key in exact["event"]),
        objects=tuple((_table(key, type_name), key) for key in exact["object"]),
        timeout_s=_seconds(given, "timeout", TIMEOUT_S, LONGEST_S),
        settle_s=_seconds(given, "settle", settle_s, LONGEST_SETTLE_S),
        previews=previews == "true",
    )


def _id(name: str, key: str, prefix: str) -> str:
    if not key.startswith(prefix) or len(key) > _LONGEST_ID or not _WORD.fullmatch(key):
        raise _bad(name, f"is not an id that begins with {prefix}")
    return key


def _table(key: str, type_name: str) -> str:
    """The table of an object: by the type given, else by the prefix of the id."""
    if not key or len(key) > _LONGEST_ID or _UNPRINTABLE.search(key) or key in (".", ".."):
        raise _bad("object", "is not an id of Stripe")
    names = (_type(type_name),) if type_name else types_of(key)
    if len(names) != 1:
        known = (
            f"may be of several types: {', '.join(names)}" if names else "does not tell its type"
        )
        raise _bad("object", known, hint="Name the type too: ...&type=product")
    table = table_of_object().get(names[0])
    if table is None or retrieve_endpoint(table) is None:
        raise _bad(
            "object",
            f"is of the type {names[0]}, of which Stripe shows none by its id",
            hint="Wait for the request or the event that changed it, or without parameters.",
        )
    return table


def _type(name: str) -> str:
    """Stripe's name of the type, given that or the name of its table."""
    if name in object_types():
        return name
    if name in tables():
        return tables()[name].object_type
    near = get_close_matches(name, [*object_types(), *tables()], n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else "`pinstripe schema tables` lists all."
    raise _bad("type", "is not a type of Stripe object", hint=hint)


def _seconds(given: dict[str, list[str]], name: str, default: float, limit: float) -> float:
    text = given.get(name, [""])[0]
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= limit:  # not-a-number fails this too
        raise _bad(name, f"must be a number of seconds from 0 to {limit:g}")
    return seconds


def _bad(name: str, problem: str, *, hint: str = "") -> HTTPError:
    return HTTPError(400, "bad_request", f"The parameter {name} {problem}.", hint=hint)


def _no_parameter(name: str) -> HTTPError:
    known = WaitParameters.__struct_fields__
    near = get_close_matches(name, known, n=1)
    return HTTPError(
        400,
        "bad_request",
        f"There is no parameter {name[:40]!r}.",
        hint=f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}.",
    )


KINDS = ("stripe",)
_MAX_OPEN = 10_000
_OPENING_S = (0.1, 0.25, 0.5, 1.0)
"""Pauses between tries to open an account of a platform while Postgres cannot be reached."""
_REASON_S = 2.0
"""The longest that finding the obstacle may take after the deadline."""


class Missing(msgspec.Struct, frozen=True, omit_defaults=True):
    """What had not come when the time was over."""

    what: str
    """`poll`: no look at Stripe was answered; `pending`: requests that events made us ask; `request`,
    `event`, `object`: what the call named."""
    id: str = ""
    tables: dict[str, int] | None = None
    """For `pending`: how many requests are open, by table."""
    reason: str = ""


class Waited(msgspec.Struct, frozen=True):
    """The database holds what the call asked for."""

    ok: bool
    as_of: str | None
    """Everything that Stripe's event list showed at this moment is in the database."""
    waited_ms: int


class NotInTime(msgspec.Struct, frozen=True):
    """The time was over first."""

    ok: bool
    error: ErrorDetail
    missing: list[Missing]
    as_of: str | None
    waited_ms: int


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why the worker does not make progress. `code` is for programs."""

    code: str
    message: str
    hint: str


class WaitEndpoint:
    """The endpoint of one gateway. `allows`: whether the caller may wait for what the request names."""

    def __init__(
        self,
        syncs: Syncs,
        waits: Waiter,
        *,
        allows: Callable[[Request, Named | None], Awaitable[bool]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.open = 0
        """Calls that wait now."""
        self._syncs = syncs
        self._waiter = waits
        self._allows = allows
        self._clock = clock

    async def answer(self, request: Request) -> Response:
        """Respond to one call."""
        began = self._clock()
        try:
            named = self._named(request)
            # Before anything else: a stranger must not learn what exists.
            if not await self._allows(request, named):
                is_key = token_of(request).startswith(("sk_", "rk_"))
                if is_key and named is None and not self._syncs.are_open:
                    return failure(
                        503,
                        "unavailable",
                        "Not every sync is open here yet, so nobody can tell whose key this is.",
                        "Ask again, or wait with the wait token.",
                    )
                return failure(
                    401,
                    "unauthorized",
                    "Waiting needs a token.",
                    "Send `Authorization: Bearer TOKEN` with the wait token, or with a Stripe key of "
                    "this account.",
                )
            if named is None and request.path_params["id"] not in self._syncs.expected:
                raise _unknown(request.path_params["id"])
            if "account" in request.query_params and not isinstance(named, AccountPlace):
                raise _no_platform(request.path_params["id"])
            options = parse_query(
                request.query_params.multi_items(), settle_s=self._waiter.settle_s
            )
            if self.open >= _MAX_OPEN:
                return failure(503, "too_many", f"{self.open} calls wait already.", "Try again.")
        except HTTPError as error:
            return error.response()
        self.open += 1
        try:
            work = self._opened(request, named, options, began)
            outcome = await unless(disconnected(request.receive), work)
            return outcome or Response(status_code=499)  # The caller is gone.
        finally:
            self.open -= 1

    def _named(self, request: Request) -> Named | None:
        kind, sync_id = request.path_params["kind"], request.path_params["id"]
        if kind not in KINDS:
            raise HTTPError(
                404,
                "not_found",
                f"There is nothing to wait for at {kind[:40]!r}.",
                hint=f"There is: /wait/{KINDS[0]}/{{id}}.",
            )
        account_id = request.query_params.get("account", "")
        return self._syncs.named(sync_id, account_id or request.headers.get("stripe-account", ""))

    async def _opened(
        self, request: Request, named: Named | None, options: WaitQuery, began: float
    ) -> Response:
        """Respond once the sync is open: just after its start it is not, and without its tables."""
        if isinstance(named, AccountPlace):
            return await self._of_platform(named, options, began)
        while True:
            left_s = options.timeout_s - (self._clock() - began)
            sync = await self._syncs.opened(request.path_params["id"], left_s)
            if sync is None:
                problem = ErrorDetail(
                    "unavailable",
                    "The tables of this sync are not open here yet.",
                    "See `pinstripe status` and the logs of `pinstripe serve`.",
                )
                return self._never_open(problem, began)
            # It is opened anew when its settings or its tables change.
            answer = await unless(self._syncs.closed(sync), self._wait(sync, options, began))
            if answer is not None:
                return answer

    async def _of_platform(self, named: AccountPlace, options: WaitQuery, began: float) -> Response:
        """Respond for an account of a platform, which is opened for it."""
        pauses = chain(_OPENING_S, repeat(_OPENING_S[-1]))
        while True:
            try:
                sync = await named.platform.open(named.account_id)
            except Unreachable as error:
                pause_s = next(pauses)
                if self._clock() - began + pause_s > options.timeout_s:
                    problem = ErrorDetail(error.slug, error.message, error.hint)
                    return self._never_open(problem, began)
                await asyncio.sleep(pause_s)
                continue
            if sync is None:
                return _unknown_account(named).response()
            return await self._wait(sync, options, began)

    def _never_open(self, problem: ErrorDetail, began: float) -> Response:
        return _json(504, NotInTime(False, problem, [Missing("poll")], None, self._ms(began)))

    async def _wait(self, sync: OpenSync, options: WaitQuery, began: float) -> Response:
        try:
            _check_tables(sync, options)
        except HTTPError as error:
            return error.response()
        states, jobs = self._jobs(sync, options)
        try:
            async with asyncio.timeout(options.timeout_s - (self._clock() - began)):
                await _all(jobs)
                as_of = await self._waiter.as_of(sync)
        except TimeoutError:
            return await self._timed_out(sync, states, began)
        except PinstripeError as error:
            return failure_of(error)
        return _json(200, Waited(ok=True, as_of=_iso(as_of), waited_ms=self._ms(began)))

    def _jobs(
        self, sync: OpenSync, options: WaitQuery
    ) -> tuple[list[WaitState], list[Callable[[], Awaitable[None]]]]:
        states: list[WaitState] = []
        jobs: list[Callable[[], Awaitable[None]]] = []

        def add(
            what: str, key: str, wait: Callable[..., Awaitable[None]], **more: float | str
        ) -> None:
            state = WaitState(what, key, options.previews, exact=not options.is_plain)
            states.append(state)
            jobs.append(lambda: wait(sync, state, **more))

        if options.is_plain:
            add("poll", "", self._waiter.plain, settle_s=options.settle_s)
        for key in options.requests:
            add("request", key, self._waiter.request, settle_s=options.settle_s)
        for key in options.events:
            add("event", key, self._waiter.event, settle_s=options.settle_s)
        for table, key in options.objects:
            add("object", key, self._waiter.object, table=table)
        return states, jobs

    async def _timed_out(
        self, sync: OpenSync, states: Sequence[WaitState], began: float
    ) -> Response:
        waited_ms = self._ms(began)
        missing = [_missing(w) for w in states if w.what]
        obstacle: Obstacle | None = None
        as_of: datetime | None = None
        with suppress(PinstripeError, TimeoutError):
            async with asyncio.timeout(_REASON_S):
                async with sync.pool.acquire() as connection:
                    obstacle = await _find_obstacle(connection, sync.schema)
                as_of = await self._waiter.as_of(sync)
        unreachable = next((w.error for w in states if w.error), "")
        if obstacle is None and unreachable:
            obstacle = Obstacle("unavailable", unreachable, "See the logs of `pinstripe serve`.")
        if obstacle is None:
            obstacle = Obstacle(
                "timeout",
                "The time was over before the database held what was asked for.",
                "Ask again, or give more time: ?timeout=120.",
            )
        problem = ErrorDetail(obstacle.code, obstacle.message, obstacle.hint)
        return _json(504, NotInTime(False, problem, missing, _iso(as_of), waited_ms))

    def _ms(self, began: float) -> int:
        return round((self._clock() - began) * 1000)


def _unknown(sync_id: str) -> HTTPError:
    return HTTPError(
        404,
        "not_found",
        f"No sync {sync_id[:40]!r} is served here.",
        hint="`pinstripe syncs list` shows the ids of all.",
    )


def _no_platform(sync_id: str) -> HTTPError:
    return HTTPError(
        400,
        "bad_request",
        f"{sync_id[:40]!r} is a sync of one account: the parameter account is of platforms.",
        hint="Leave it out.",
    )


def _unknown_account(named: AccountPlace) -> HTTPError:
    return HTTPError(
        404,
        "not_found",
        f"The platform {named.platform.id!r} has no account {named.account_id[:40]!r}, or lost its "
        "authorization.",
        hint="The console and GET /api/platforms/ID/accounts list the accounts.",
    )


async def _all(jobs: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run them concurrently; the first error cancels the others."""
    if len(jobs) == 1:
        await jobs[0]()
        return
    tasks = [asyncio.ensure_future(job()) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        await cancel(*tasks)


def _check_tables(sync: OpenSync, options: WaitQuery) -> None:
    left_out = sorted({table for table, _ in options.objects} - sync.source.wanted.keys())
    if left_out:
        raise HTTPError(
            400,
            "bad_request",
            f"The table {left_out[0]} is not synced here.",
            hint="--tables chooses the tables of a sync.",
        )


def _missing(state: WaitState) -> Missing:
    tables: dict[str, int] = {}
    for each in state.pending if state.what == "pending" else ():
        tables[each.table] = tables.get(each.table, 0) + each.count
    return Missing(state.what, state.id, tables or None, state.error)


def _iso(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(status: int, body: Waited | NotInTime) -> Response:
    return Response(
        msgspec.json.encode(body), status, {"Cache-Control": "no-store"}, media_type=JSON
    )


async def _find_obstacle(connection: Connection, schema: str) -> Obstacle | None:
    """Return what keeps a wait from ending, as far as the database knows it."""
    if account_of(schema):
        obstacle = await _obstacle_of_account(connection, schema)
    else:
        obstacle = await _obstacle_of_sync(connection, schema)
    if obstacle is not None:
        return obstacle
    checkpoints = dict(await load_checkpoints(connection, schema))
    events = checkpoints.pop("events", None)
    if events is not None and events.reason:
        return Obstacle("sync_in_trouble", events.reason, events.remedy)
    running = sorted(c.stream for c in checkpoints.values() if c.state == "running")
    if running:
        some = ", ".join(running[:3]) + (" ..." if len(running) > 3 else "")
        return Obstacle(
            "copying",
            f"The first copy is not complete: {len(running)} lists are still being read ({some}).",
            "`pinstripe status` shows how far it is. The exact forms of waiting work meanwhile.",
        )
    return None


async def _obstacle_of_sync(connection: Connection, schema: str) -> Obstacle | None:
    lease = await load_lease(connection, schema)
    if lease is None or not lease.is_held:
        return Obstacle(
            "not_syncing",
            "No process syncs this account now.",
            "Start `pinstripe sync` or `pinstripe serve`, or resume the sync.",
        )
    return None


async def _obstacle_of_account(connection: Connection, scope: str) -> Obstacle | None:
    """What the platform's bookkeeping knows: no task of the account runs between two of its tasks."""
    account = await load_account(connection, scope)
    if account is not None and account.reason:
        code = "not_syncing" if account.state == "revoked" else "sync_in_trouble"
        return Obstacle(code, account.reason, account.remedy or "")
    if not await live_workers(connection):
        return Obstacle(
            "not_syncing", "No worker of platforms runs now.", "Start `pinstripe worker`."
        )
    return None
