"""`GET|POST /wait/{kind}/{id}`: responds when the database holds what the caller needs to read.

    200 {"ok": true, "as_of": "2026-11-02T09:30:00.250Z", "waited_ms": 87}
    504 {"ok": false, "error": {...}, "missing": [...], "as_of": ..., "waited_ms": 30000}

A call waits for everything that it names, within one time limit. Transient errors (no worker, Postgres
down, the first copy not complete) are retried until the deadline and only then reported, with what is
missing. Errors that cannot pass (an unknown id, a bad parameter) are reported immediately.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, repeat

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pinstripe.errors import PinstripeError, Unreachable
from pinstripe.gateway.http.errors import JSON, ErrorDetail, HTTPError, failure, failure_of
from pinstripe.gateway.http.middleware import unless_disconnected
from pinstripe.gateway.syncs import AccountPlace, Named, OpenSync, Syncs
from pinstripe.gateway.wait.query import WaitQuery, parse_query
from pinstripe.gateway.wait.waiter import Waiter, WaitState
from pinstripe.store.cursors import load_checkpoints
from pinstripe.store.leases import load_lease
from pinstripe.store.platforms.stored import load_account
from pinstripe.store.platforms.workers import live_workers
from pinstripe.store.pool import Connection
from pinstripe.store.session import account_of

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
        settle_s: float,
        allows: Callable[[Request, Named | None], Awaitable[bool]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.open = 0
        """Calls that wait now."""
        self._syncs = syncs
        self._waiter = waits
        self._settle_s = settle_s
        self._allows = allows
        self._clock = clock

    async def answer(self, request: Request) -> Response:
        """Respond to one call."""
        began = self._clock()
        try:
            named = self._named(request)
            # Before anything else: a stranger must not learn what exists.
            if not await self._allows(request, named):
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
            options = parse_query(request.query_params.multi_items(), settle_s=self._settle_s)
            if self.open >= _MAX_OPEN:
                return failure(503, "too_many", f"{self.open} calls wait already.", "Try again.")
        except HTTPError as error:
            return error.response()
        self.open += 1
        try:
            work = self._opened(request, named, options, began)
            outcome = await unless_disconnected(request.receive, work)
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
        sync = await self._syncs.opened(request.path_params["id"], options.timeout_s)
        if sync is None:
            problem = ErrorDetail(
                "unavailable",
                "The tables of this sync are not open here yet.",
                "See `pinstripe status` and the logs of `pinstripe serve`.",
            )
            return self._never_open(problem, began)
        return await self._wait(sync, options, began)

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
                as_of = await self._waiter.reads(sync).as_of()
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
                as_of = await self._waiter.reads(sync).as_of()
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
        hint="`pinstripe status` shows the accounts of platforms.",
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
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
