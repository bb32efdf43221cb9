"""`pinstripe sync` and `pinstripe run`: bring the account in, say what came, stay with it."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace

from pinstripe.cli.demo import demo_account
from pinstripe.cli.failure import complain
from pinstripe.cli.footprint import freeze_loaded
from pinstripe.cli.summary import Ending, how_to_connect, summarise
from pinstripe.config import Config
from pinstripe.errors import NotPermitted
from pinstripe.progress import showing
from pinstripe.service import Service, open_service

INCOMPLETE = 4


async def sync(config: Config, *, once: bool, as_json: bool) -> int:
    """Gives the exit code. Without `once` it returns only when it is cancelled."""
    async with open_service(config, tell=_tell) as service:
        ending = await _backfill(service)
        if as_json:
            _print(json.dumps(ending.as_json()))
            _tell(ending.as_text())
        else:
            _print(ending.as_text())
        if once:
            return 0 if ending.complete else INCOMPLETE
        await _stay(service)
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
        ending = await _backfill(service)
        _print(ending.as_text() + "\n")
        _print(how_to_connect(service.database, config.schema) + "\n")
        try:
            await _stay(service)
        except NotPermitted as error:
            # The tables are there, and so is the Postgres that holds them: both stay, but say it.
            complain(f"What changes from now on is not seen. {error.message}", error.hint)
            await asyncio.Event().wait()
    return 0


async def _backfill(service: Service) -> Ending:
    freeze_loaded()
    async with showing(service):
        outcome = await service.backfill.run()
    return await summarise(service, outcome)


async def _stay(service: Service) -> None:
    _tell("Following Stripe's events, every few seconds. Ctrl-C stops.")
    await service.follow()


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
