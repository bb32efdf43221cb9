"""`pinstripe sync`: brings the account in, says what came, stays with it."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Awaitable, Callable
from functools import partial

from pinstripe.cli.footprint import freeze_loaded
from pinstripe.cli.live_line import show_following
from pinstripe.cli.summary import Ending, summarise
from pinstripe.config import Config
from pinstripe.errors import FellBehind, LostLease, PinstripeError, Unreachable
from pinstripe.progress import showing
from pinstripe.service import Service, open_service

INCOMPLETE = 4
_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)


async def sync(config: Config, *, once: bool, as_json: bool) -> int:
    """Gives the exit code. Without `once` it returns only when it is cancelled."""

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
    """Runs `stay`, and again from the start when it lost its lease, the event log, Postgres or Stripe.

    What cannot be reached at the very first is an error, unless `met`: a wrong address does not mend
    itself. `say` gets what was lost, and how long the pause is before the next try.
    """
    say = say or _say

    def met_both() -> None:
        nonlocal met
        met = True

    for attempt in itertools.count():
        try:
            return await stay(met_both)
        except* (LostLease, FellBehind) as lost:
            say(_first(lost), 0.0)
        except* Unreachable as away:
            if not met:
                raise
            pause_s = _PAUSES_S[min(attempt, len(_PAUSES_S) - 1)]
            say(_first(away), pause_s)
            await asyncio.sleep(pause_s)
    raise AssertionError  # count() never ends


def _say(error: PinstripeError, pause_s: float) -> None:
    tell(f"{error} Trying again in {pause_s:.0f} s." if pause_s else f"{error}")


def _first(group: BaseExceptionGroup[PinstripeError]) -> PinstripeError:
    error: PinstripeError | BaseExceptionGroup[PinstripeError] = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _backfill(service: Service, *, followed: bool = False) -> Ending:
    freeze_loaded()
    async with showing(service):
        outcome = await service.backfilled(followed=followed)
    return await summarise(service, outcome)


async def follow(
    service: Service,
    report: Callable[[Ending], None],
    started: Callable[[], None] = lambda: None,
) -> None:
    """Backfills and follows at once, for people; returns only when it is cancelled."""
    follower = await service.follow()
    async with asyncio.TaskGroup() as group:
        group.create_task(follower.run())
        group.create_task(service.telling(follower).run())
        report(await _backfill(service, followed=True))
        follower.backfilled()
        tell("Following Stripe's events. Ctrl-C stops.")
        started()
        await show_following(follower)


def show(text: str) -> None:
    """To stdout: what the command was run for."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def tell(text: str) -> None:
    """To stderr: what goes on meanwhile."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
