"""A simulated account whose tables a gateway may write, and a server for what is under test.

    async with gateway_account(sim, database) as account, serving(app) as url: ...

`account.sync` is what `open_sync` gives, in `account.syncs`; no sync process runs (see `account`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.flows.harness.account import make_schema

from pinstripe.client.api_key import ApiKey
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.client.response import Margins
from pinstripe.gateway.syncs import OpenSync, Syncs, open_sync
from pinstripe.serving.http_server import address_of, answering, listen
from pinstripe.store.pool import connect
from pinstripe.store.syncs import claim
from pinstripe_simulator.server import Running


@dataclass(slots=True)
class GatewayAccount:
    """What a gateway has of one account. `url` is the database's."""

    sim: Running
    url: str
    syncs: Syncs
    sync: OpenSync
    key: str = field(repr=False)

    @property
    def bearer(self) -> dict[str, str]:
        """The headers of a caller who has the account's key."""
        return {"Authorization": f"Bearer {self.key}"}

    async def row(self, table: str, key: str) -> Mapping[str, Any] | None:
        """The row as SQL sees it now."""
        async with connect(self.url) as connection:
            found = await connection.fetchrow(
                f'SELECT * FROM "{self.sync.schema}"."{table}" WHERE id = $1', key
            )
            return dict(found) if found is not None else None

    async def count(self, table: str) -> int:
        async with connect(self.url) as connection:
            return int(
                await connection.fetchval(f'SELECT count(*) FROM "{self.sync.schema}"."{table}"')
            )


@asynccontextmanager
async def gateway_account(
    sim: Running,
    database: str,
    *,
    sync_id: str = "default",
    schema: str = "stripe",
    syncs: Syncs | None = None,
    account: str | None = None,
    webhook_secrets: tuple[str, ...] = (),
    without: str = "",
) -> AsyncIterator[GatewayAccount]:
    """An empty, migrated schema of `sim`'s account, open for the gateway.

    `account`: a connected account of it, instead of its own; `syncs`: where others are already. `without`:
    a table that is not synced.
    """
    await made_schema(database, schema, account_id=account or sim.account.id)
    if without:
        async with connect(database) as connection:
            await connection.execute(f'DROP TABLE "{schema}"."{without}" CASCADE')
    syncs = syncs if syncs is not None else Syncs()
    async with open_sync(
        sync_id,
        database,
        schema,
        ApiKey.parse(sim.key),
        budget=RateLimiter(account_rate=None, endpoint_rate=None),
        stripe_url=sim.url,
        stripe_account=account,
        webhook_secrets=webhook_secrets,
        # The simulator has no replicas here, and a caller does not wait for one to catch up.
        margins=Margins(replica_lag_s=0.2),
    ) as sync:
        syncs.add(sync)
        try:
            yield GatewayAccount(sim, database, syncs, sync, sim.key)
        finally:
            syncs.remove(sync_id)


async def made_schema(database: str, schema: str, *, account_id: str) -> None:
    """The tables, as a sync process leaves them when it has begun."""
    await make_schema(database, schema)
    async with connect(database) as connection:
        await claim(connection, schema, account_id=account_id, livemode=False)


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """An ASGI application behind the service's own HTTP server, in this loop; gives its base URL."""
    sock = listen("127.0.0.1", 0)
    async with answering(app, sock):
        yield address_of(sock)
