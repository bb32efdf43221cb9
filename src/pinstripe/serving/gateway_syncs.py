"""Opens syncs for the gateway once their tables exist, and again when the tables change.

A sync may be configured before it can be opened: Postgres is unreachable, or its worker has not created
the schema. Until then the gateway forwards requests for it and says so in a header.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from pinstripe.client.api_key import ApiKey, proxy_for
from pinstripe.client.response import Margins
from pinstripe.concurrency import backoff, end, wait_for
from pinstripe.config.config import Config
from pinstripe.errors import PinstripeError
from pinstripe.gateway.syncs import Syncs, open_sync
from pinstripe.service import budget_for, personal_of
from pinstripe.store.pool import connect
from pinstripe.store.syncs import load_table_names

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_RETRY_S = (0.25, 0.5, 1.0, 2.0, 5.0)

_LOOK_S = 10.0
"""How soon a table that was added is seen."""


@dataclass(frozen=True, slots=True)
class GatewaySyncSpec:
    """What the gateway needs of one sync; in `config` the rates are the gateway's share."""

    config: Config
    database_url: str = field(repr=False)
    webhook_secrets: tuple[str, ...] = field(default=(), repr=False)


class SyncOpener:
    """Keeps `syncs` as is wanted."""

    def __init__(self, syncs: Syncs) -> None:
        self._syncs = syncs
        self._wishes: dict[str, GatewaySyncSpec] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stirred = asyncio.Event()

    async def want(self, wishes: Mapping[str, GatewaySyncSpec]) -> None:
        """From now on exactly these. Returns when those that are gone are closed."""
        self._syncs.expected = frozenset(wishes)
        changed = [n for n, options in self._wishes.items() if wishes.get(n) != options]
        await end(*(self._tasks.pop(name) for name in changed))
        for name, options in wishes.items():
            if name not in self._tasks:
                self._tasks[name] = asyncio.create_task(self._keep(name, options), name=name)
        self._wishes = dict(wishes)

    def stir(self) -> None:
        """Something has changed: what could not be opened is tried again now."""
        self._stirred.set()

    async def close(self) -> None:
        """Closes all."""
        await self.want({})

    async def _keep(self, name: str, options: GatewaySyncSpec) -> None:
        """Until cancelled: open, or trying to be."""
        attempt = 0
        while True:
            try:
                await self._open(name, options)
                attempt = 0
                continue
            except (PinstripeError, ExceptionGroup) as error:
                # Of a group: the mirror's writers, which end only on what nobody has thought of.
                _log.info("gateway.closed", sync=name, reason=str(error), attempt=attempt)
            await wait_for(self._stirred, backoff(_RETRY_S, attempt))
            self._stirred.clear()
            attempt += 1

    async def _open(self, name: str, options: GatewaySyncSpec) -> None:
        """Open for as long as the tables stay the same."""
        config, key = options.config, ApiKey.parse(options.config.api_key or "")
        async with open_sync(
            name,
            options.database_url,
            config.schema,
            key,
            budget=budget_for(config, key),
            stripe_url=config.stripe_url,
            stripe_account=config.stripe_account,
            webhook_secrets=options.webhook_secrets,
            proxy=proxy_for(config.stripe_url),
            changes=config.changes,
            margins=Margins(config.clock_margin, config.replica_lag),
            personal=personal_of(config),
        ) as opened:
            self._syncs.add(opened)
            _log.info("gateway.open", sync=name, schema=config.schema)
            try:
                await _until_other_tables(
                    options.database_url, config.schema, set(opened.mirror.tables)
                )
            finally:
                self._syncs.remove(name)


async def _until_other_tables(url: str, schema: str, tables: set[str]) -> None:
    """Returns when the schema holds other tables of the catalog than these."""
    while True:
        await asyncio.sleep(_LOOK_S)
        with suppress(PinstripeError):
            async with connect(url, application_name="pinstripe gateway") as connection:
                if await load_table_names(connection, schema) != tables:
                    return
