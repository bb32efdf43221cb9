"""`pinstripe sync` and `pinstripe run`: bring the account in, say what came, stay with it."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from pinstripe.cli.demo import Demo, demo_account, start_traffic
from pinstripe.cli.footprint import freeze_loaded
from pinstripe.cli.live_line import show_following
from pinstripe.cli.summary import Ending, how_to_connect, summarise
from pinstripe.config import Config
from pinstripe.errors import LostLease, Unreachable
from pinstripe.progress import showing
from pinstripe.service import Service, open_service

INCOMPLETE = 4
_TRAFFIC = 2
_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)


async def _nothing() -> None:
    """What happens when following begins, if nobody wants anything to."""


async def sync(config: Config, *, once: bool, as_json: bool) -> int:
    """Gives the exit code. Without `once` it returns only when it is cancelled."""

    def report(ending: Ending) -> None:
        if as_json:
            _print(json.dumps(ending.as_json()))
            _tell(ending.as_text())
        else:
            _print(ending.as_text())

    if not once:
        return await _standing_by(partial(_stay, config, report))
    async with open_service(config, tell=_tell) as service:
        ending = await _backfill(service)
        report(ending)
        return 0 if ending.complete else INCOMPLETE


async def _stay(config: Config, report: Callable[[Ending], None], met: Callable[[], None]) -> int:
    async with open_service(config, tell=_tell) as service:
        met()
        await _follow(service, report)
    return 0


async def _standing_by(stay: Callable[[Callable[[], None]], Awaitable[int]]) -> int:
    """Runs `stay`, and again from the start when it lost its lease, or Postgres or Stripe for a while.

    What cannot be reached at the very first is an error: a wrong address does not mend itself.
    """
    met = False

    def met_both() -> None:
        nonlocal met
        met = True

    for attempt in itertools.count():
        try:
            return await stay(met_both)
        except* LostLease as lost:
            _tell(f"{lost.exceptions[0]}")
        except* Unreachable as away:
            if not met:
                raise
            pause_s = _PAUSES_S[min(attempt, len(_PAUSES_S) - 1)]
            _tell(f"{_first(away)} Trying again in {pause_s:.0f} s.")
            await asyncio.sleep(pause_s)
    raise AssertionError  # count() never ends


def _first(group: BaseExceptionGroup[Unreachable]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def run(config: Config) -> int:
    """As `sync`, for people; without a key it shows the demo account. Ends when it is cancelled."""
    if config.api_key is not None:
        return await _standing_by(partial(_run, config, _nothing))
    async with demo_account(config) as demo:
        _print(
            "No STRIPE_API_KEY is set: this is the demo. A simulated Stripe account with about "
            f"{config.demo_scale:,} objects runs at {demo.url}; its key: {demo.key}"
        )
        return await _run(
            replace(
                config,
                api_key=demo.key,
                stripe_url=demo.url,
                data_dir=demo.data_dir,
                rate_limit="none",
                endpoint_rate_limit="none",
            ),
            partial(_start_traffic, demo),
            lambda: None,
        )


async def _start_traffic(demo: Demo) -> None:
    """Lets things happen in the demo account, so that there is something to follow."""
    await start_traffic(demo, per_second=_TRAFFIC)
    _tell(f"The demo account now changes {_TRAFFIC} times a second; watch it with:")
    _tell('  SELECT created, type FROM "stripe".event ORDER BY created DESC LIMIT 10;')


async def _run(
    config: Config, started: Callable[[], Awaitable[None]], met: Callable[[], None]
) -> int:
    async with open_service(config, tell=_tell) as service:
        met()

        def report(ending: Ending) -> None:
            _print(ending.as_text() + "\n")
            _print(how_to_connect(service.database, config.schema) + "\n")

        await _follow(service, report, started)
    return 0


async def _backfill(service: Service, *, followed: bool = False) -> Ending:
    freeze_loaded()
    async with showing(service):
        outcome = await service.backfilled(followed=followed)
    return await summarise(service, outcome)


async def _follow(
    service: Service,
    report: Callable[[Ending], None],
    started: Callable[[], Awaitable[None]] = _nothing,
) -> None:
    """Backfills and follows at once; returns only when it is cancelled."""
    follower = await service.follow()
    async with asyncio.TaskGroup() as group:
        group.create_task(follower.run())
        report(await _backfill(service, followed=True))
        follower.backfilled()
        _tell("Following Stripe's events. Ctrl-C stops.")
        await started()
        await show_following(follower)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
