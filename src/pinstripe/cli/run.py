"""`pinstripe run`: the service for a person at a terminal; without a key it shows the demo account."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from pinstripe.cli.demo import Demo, demo_account, start_traffic
from pinstripe.cli.summary import how_to_connect, how_to_serve
from pinstripe.cli.sync import show, tell
from pinstripe.config import Config
from pinstripe.errors import PinstripeError
from pinstripe.serving.service import Manner, open_serving
from pinstripe.serving.wire import Report
from pinstripe.store.stored_syncs import DEFAULT_ID

_TRAFFIC = 2


async def run(config: Config) -> int:
    """Ends when it is cancelled."""
    if config.api_key is not None:
        return await _run(config, _nothing)
    async with demo_account(config) as demo:
        show(
            "This is the demo, no key is needed: a simulated Stripe account with about "
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
        )


async def demo(config: Config) -> int:
    """The demo account, though there be a key; and never in the database of a real one."""
    return await run(replace(config, api_key=None, stripe_account=None, database_url=None))


async def _nothing() -> None:
    """What happens when following begins, if nobody wants anything to."""


async def _start_traffic(demo: Demo) -> None:
    """Lets things happen in the demo account, so that there is something to follow."""
    await start_traffic(demo, per_second=_TRAFFIC)
    tell(f"The demo account now changes {_TRAFFIC} times a second; watch it with:")
    tell('  SELECT created, type FROM "stripe".event ORDER BY created DESC LIMIT 10;')


async def _run(config: Config, started: Callable[[], Awaitable[None]]) -> int:
    first: asyncio.Future[Report] = asyncio.get_running_loop().create_future()

    def heard(sync_id: str, report: Report) -> None:
        if sync_id != DEFAULT_ID or first.done():
            return
        if report.activity == "following":
            first.set_result(report)
        elif report.activity == "ended":
            first.set_exception(_error(report))

    async with open_serving(config, Manner(shown=True, other_port=True), heard, tell) as serving:
        await first
        show(how_to_connect(serving.database, config.schema) + "\n")
        show(how_to_serve(serving.url, config) + "\n")
        await started()
        await asyncio.Event().wait()
    return 0


def _error(report: Report) -> PinstripeError:
    """What ended the first process, as if it had been ours."""
    error = PinstripeError(report.reason, hint=report.remedy)
    error.exit_code = report.exit_code
    return error
