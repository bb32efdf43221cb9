"""`pinstripe sync`: backfills an account, prints a summary, and keeps following it.

While it follows, one status line is kept up to date, and problems are printed when they start and end.

`pinstripe sync-worker` is the same for a service: it reads its settings from the service, reports to
it, and ends when the service does (`serving.supervisor`). It prints progress only if the service asks
for it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial

from pinstripe.cli.runtime import complain, configure, freeze_loaded, root_cause, show, tell
from pinstripe.cli.summary import Ending, counted, showing, summarise
from pinstripe.concurrency import backoff, cancel, first_error
from pinstripe.config.config import Config
from pinstripe.errors import (
    FellBehind,
    LostLease,
    Misconfigured,
    PinstripeError,
    Unreachable,
    Unwritable,
    WrongAccount,
    WrongKey,
    redact,
)
from pinstripe.service import Service, open_service
from pinstripe.serving.supervisor import ParentLink, StartWorker, WorkerReport
from pinstripe.sync.follower import Follower

INCOMPLETE = 4
_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)


async def sync(config: Config, *, once: bool, as_json: bool) -> int:
    """Return the exit code. Without `once`, run until cancelled."""

    def report(ending: Ending) -> None:
        if as_json:
            show(json.dumps(ending.as_json()))
            tell(ending.as_text())
        else:
            show(ending.as_text())

    if not once:
        return await standing_by(partial(_stay, config, report))
    async with open_service(config, tell=tell) as service:
        ending = await _backfill(service)
        report(ending)
        return 0 if ending.complete else INCOMPLETE


async def _stay(config: Config, report: Callable[[Ending], None], met: Callable[[], None]) -> int:
    async with open_service(config, tell=tell) as service:
        met()
        await follow(service, report)
    return 0


async def standing_by(
    stay: Callable[[Callable[[], None]], Awaitable[int]],
    *,
    say: Callable[[PinstripeError, float], None] | None = None,
    met: bool = False,
) -> int:
    """Run `stay`; restart it when it loses its lease, the event log, Postgres or Stripe.

    A server that is away or takes no writes is an error on the first try, unless `met`: a wrong URL does
    not fix itself.
    `say` is called with the error and the pause before the next try.
    """
    say = say or _say

    def met_both() -> None:
        nonlocal met
        met = True

    for attempt in itertools.count():
        try:
            return await stay(met_both)
        except* (LostLease, FellBehind) as lost:
            say(first_error(lost), 0.0)
        except* (Unreachable, Unwritable) as away:
            if not met:
                raise
            pause_s = backoff(_PAUSES_S, attempt)
            say(first_error(away), pause_s)
            await asyncio.sleep(pause_s)
    raise AssertionError  # count() never ends


def _say(error: PinstripeError, pause_s: float) -> None:
    tell(f"{error} Retrying in {pause_s:.0f} s." if pause_s else f"{error}")


async def _backfill(service: Service, follower: Follower | None = None) -> Ending:
    freeze_loaded()
    on_ready = follower.backfilled if follower is not None else _nothing
    async with showing(service):
        outcome = await service.backfilled(followed=follower is not None, on_ready=on_ready)
    # Nothing counts whole tables beside a sync that goes on.
    return await summarise(service, outcome, exact=follower is None)


def _nothing() -> None:
    """A run that ends does not wait for the moment at which it is ready."""


async def follow(
    service: Service, report: Callable[[Ending], None], started: Callable[[], None] = lambda: None
) -> None:
    """Backfill and follow concurrently, with progress, until cancelled."""
    follower = await service.follow()
    async with asyncio.TaskGroup() as group:
        group.create_task(follower.run())
        group.create_task(service.telling(follower).run())
        report(await _backfill(service, follower))
        tell("Following Stripe's events. Press Ctrl-C to stop.")
        started()
        await show_following(follower)


_LOOK_S = 1.0
_PLAIN_S = 30.0
"""Between two lines where there is no terminal; none if nothing happened."""


async def show_following(follower: Follower) -> None:
    """Until cancelled, on stderr."""
    told, shown, plain_at = "", follower.poller.stats.events, time.monotonic()
    on_terminal = sys.stderr.isatty()
    while True:
        before = follower.poller.stats.events
        await asyncio.sleep(_LOOK_S)
        trouble = follower.trouble
        if trouble and not told:
            complain(f"Changes are not being synced. {trouble}", follower.remedy)
        elif told and not trouble:
            _write("Following again.\n")
        told = trouble
        if trouble:
            continue
        events = follower.poller.stats.events
        if on_terminal:
            _write(f"\r\x1b[2K{line(follower, events - before)}")
        elif events != shown and time.monotonic() - plain_at >= _PLAIN_S:
            _write(line(follower, events - before) + "\n")
            shown, plain_at = events, time.monotonic()


def line(follower: Follower, per_second: int) -> str:
    """How far the database is true, and what came lately."""
    seen = follower.poller.stats
    behind_s = max(follower.poller.now() - seen.as_of, 0.0)
    waiting = len(follower.refetches)
    asking = f", {counted(waiting, 'pending request')}" if waiting else ""
    applied = counted(seen.events, "event")
    return f"following: {applied} applied ({per_second}/s), {behind_s:.1f} s behind{asking}"


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


_REPORT_S = 0.5


async def worker() -> int:
    """Return the exit code; 0 if the service ended it."""
    superior = await ParentLink.on_stdin()
    order = await superior.order()
    if order is None:
        return 0
    configure(order.config)
    working = asyncio.create_task(_work(order, superior))
    gone = asyncio.create_task(superior.gone())
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else 0
    finally:
        await cancel(working, gone)


async def _work(order: StartWorker, superior: ParentLink) -> int:
    def lost(error: PinstripeError, _: float) -> None:
        superior.report(WorkerReport("waiting", error.message, error.hint))

    try:
        # On a terminal, a wrong URL is reported immediately.
        return await standing_by(
            partial(_keep_syncing, order, superior), say=lost, met=not order.shown
        )
    except (Exception, BaseExceptionGroup) as error:
        ended = _ended(error)
        superior.report(ended)
        await superior.flushed()
        return ended.exit_code


def _ended(error: BaseException) -> WorkerReport:
    cause = root_cause(error)
    if isinstance(cause, PinstripeError):
        lasting = isinstance(cause, Misconfigured | WrongKey | WrongAccount)
        return WorkerReport("ended", cause.message, cause.hint, lasting, cause.exit_code)
    reason = redact(f"{type(cause).__name__}: {cause}".splitlines()[0])
    return WorkerReport("ended", f"Internal error in Pinstripe ({reason}).", exit_code=70)


async def _keep_syncing(order: StartWorker, superior: ParentLink, met: Callable[[], None]) -> int:
    def say(line: str) -> None:
        superior.report(WorkerReport("starting", line))
        if order.shown:
            tell(line)

    async with open_service(order.config, tell=say) as service:
        met()
        superior.report(WorkerReport("backfilling"))
        if order.shown:
            await follow(service, _show, lambda: superior.report(WorkerReport("following")))
        else:
            await _follow(service, superior)
    return 0


def _show(ending: Ending) -> None:
    show(ending.as_text() + "\n")


async def _follow(service: Service, superior: ParentLink) -> None:
    """As `follow`, without a word."""
    follower = await service.follow()
    async with asyncio.TaskGroup() as group:
        group.create_task(follower.run())
        group.create_task(service.telling(follower).run())
        freeze_loaded()
        await service.backfilled(followed=True, on_ready=follower.backfilled)
        await _report(follower, superior)


async def _report(follower: Follower, superior: ParentLink) -> None:
    while True:
        superior.report(WorkerReport("following", follower.trouble, follower.remedy))
        await asyncio.sleep(_REPORT_S)
