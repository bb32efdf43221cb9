"""`pinstripe sync-worker`: what a service runs for each of its syncs. Not for people.

It takes its settings from the service that started it, reports to it, and ends when that one goes
(`serving.wire`). What it does is what `pinstripe sync` does; it shows it only where it was told to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from pinstripe.cli.failure import root_cause
from pinstripe.cli.footprint import freeze_loaded
from pinstripe.cli.logs import configure
from pinstripe.cli.summary import Ending
from pinstripe.cli.sync import follow, show, standing_by, tell
from pinstripe.errors import Misconfigured, PinstripeError, WrongAccount, WrongKey, redact
from pinstripe.service import Service, open_service
from pinstripe.serving.wire import Order, Report, Superior
from pinstripe.sync.follow import Follower

_LOOK_S = 0.5


async def worker() -> int:
    """Gives the exit code; 0 where the service wanted it to end."""
    superior = await Superior.on_stdin()
    order = await superior.order()
    configure(order.config)
    working = asyncio.create_task(_work(order, superior))
    gone = asyncio.create_task(superior.gone())
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else 0
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _work(order: Order, superior: Superior) -> int:
    def lost(error: PinstripeError, _: float) -> None:
        superior.report(Report("waiting", error.message, error.hint))

    try:
        # A person who waits at the terminal is told at once that an address is wrong.
        return await standing_by(partial(_stay, order, superior), say=lost, met=not order.shown)
    except (Exception, BaseExceptionGroup) as error:
        ended = _ended(error)
        superior.report(ended)
        await superior.flushed()
        return ended.exit_code


def _ended(error: BaseException) -> Report:
    cause = root_cause(error)
    if isinstance(cause, PinstripeError):
        lasting = isinstance(cause, Misconfigured | WrongKey | WrongAccount)
        return Report("ended", cause.message, cause.hint, lasting, cause.exit_code)
    reason = redact(f"{type(cause).__name__}: {cause}".splitlines()[0])
    return Report("ended", f"Something went wrong inside Pinstripe ({reason}).", exit_code=70)


async def _stay(order: Order, superior: Superior, met: Callable[[], None]) -> int:
    def say(line: str) -> None:
        superior.report(Report("starting", line))
        if order.shown:
            tell(line)

    async with open_service(order.config, tell=say) as service:
        met()
        superior.report(Report("backfilling"))
        if order.shown:
            await follow(service, _show, lambda: superior.report(Report("following")))
        else:
            await _follow(service, superior)
    return 0


def _show(ending: Ending) -> None:
    show(ending.as_text() + "\n")


async def _follow(service: Service, superior: Superior) -> None:
    """As `follow`, without a word."""
    follower = await service.follow()
    async with asyncio.TaskGroup() as group:
        group.create_task(follower.run())
        group.create_task(service.telling(follower).run())
        freeze_loaded()
        await service.backfilled(followed=True)
        follower.backfilled()
        await _report(follower, superior)


async def _report(follower: Follower, superior: Superior) -> None:
    while True:
        superior.report(Report("following", follower.trouble, follower.remedy))
        await asyncio.sleep(_LOOK_S)
