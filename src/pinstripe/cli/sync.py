"""`pinstripe sync` and `pinstripe run`: bring the account in, say what came, stay with it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import replace

from pinstripe.cli.demo import demo_account
from pinstripe.cli.failure import complain
from pinstripe.cli.footprint import freeze_loaded
from pinstripe.cli.summary import Ending, how_to_connect, summarise
from pinstripe.config import Config
from pinstripe.progress import showing
from pinstripe.service import Service, open_service
from pinstripe.sync.follow import Follower

INCOMPLETE = 4


async def sync(config: Config, *, once: bool, as_json: bool) -> int:
    """Gives the exit code. Without `once` it returns only when it is cancelled."""

    def report(ending: Ending) -> None:
        if as_json:
            _print(json.dumps(ending.as_json()))
            _tell(ending.as_text())
        else:
            _print(ending.as_text())

    async with open_service(config, tell=_tell) as service:
        if once:
            ending = await _backfill(service)
            report(ending)
            return 0 if ending.complete else INCOMPLETE
        await _follow(service, report)
    return 0


async def run(config: Config) -> int:
    """As `sync`, for people; without a key it shows the demo account. Ends when it is cancelled."""
    if config.api_key is not None:
        return await _run(config)
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
            )
        )


async def _run(config: Config) -> int:
    async with open_service(config, tell=_tell) as service:

        def report(ending: Ending) -> None:
            _print(ending.as_text() + "\n")
            _print(how_to_connect(service.database, config.schema) + "\n")

        await _follow(service, report)
    return 0


async def _backfill(service: Service, *, followed: bool = False) -> Ending:
    freeze_loaded()
    async with showing(service):
        outcome = await service.backfill.run(followed=followed)
    return await summarise(service, outcome)


async def _follow(service: Service, report: Callable[[Ending], None]) -> None:
    """Backfills and follows at once; returns only when it is cancelled."""
    follower = await service.follow()
    async with asyncio.TaskGroup() as group:
        group.create_task(follower.run())
        report(await _backfill(service, followed=True))
        follower.backfilled()
        _tell("Following Stripe's events. Ctrl-C stops.")
        await _tell_troubles(follower)


async def _tell_troubles(follower: Follower) -> None:
    """Says once when following meets trouble, and once when it is over."""
    told = ""
    while True:
        await asyncio.sleep(1.0)
        trouble = follower.trouble
        if trouble and not told:
            complain(f"What changes now is not seen yet. {trouble}", follower.remedy)
        elif told and not trouble:
            _tell("Following again.")
        told = trouble


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
