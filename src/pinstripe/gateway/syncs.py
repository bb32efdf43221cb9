"""The syncs that this gateway serves: each with a door to Stripe and one to its tables.

What a sync is (`pinstripe.sync`, its key, its settings) is for `store`; which process copies it, for
`service`. Here are its open parts, for requests that name it by id or whose key belongs to its account.
A gateway holds no lease: what it writes are answers of Stripe, which the rows' own order lets in or not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from pinstripe.catalog.load import spec
from pinstripe.catalog.tables import Table, tables
from pinstripe.client.key import ApiKey
from pinstripe.client.limits import Budget
from pinstripe.client.session import Stripe
from pinstripe.errors import Misconfigured
from pinstripe.mirror import Mirror, open_mirror
from pinstripe.source.account import Source
from pinstripe.source.refusals import remember_refusals
from pinstripe.source.settle import settle
from pinstripe.store.migrate import effective_tables
from pinstripe.store.pool import Pool, connect, open_pool
from pinstripe.store.syncs import Sync, load_syncs, load_table_names


@dataclass(frozen=True, slots=True)
class OpenSync:
    """One sync, ready to be read and written. `id` is the name in wait and webhook addresses."""

    id: str
    schema: str
    account_id: str | None
    """None where the key may not tell."""
    livemode: bool
    source: Source = field(repr=False)
    """Stripe with the sync's own key, the mirror, and the pool."""
    webhook_secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def mirror(self) -> Mirror:
        return self.source.mirror

    @property
    def pool(self) -> Pool:
        return self.source.pool


class Syncs:
    """The open syncs by id. Who opens and closes them puts them in and takes them out."""

    def __init__(self) -> None:
        self._by_id: dict[str, OpenSync] = {}

    def __iter__(self) -> Iterator[OpenSync]:
        return iter(list(self._by_id.values()))

    def add(self, sync: OpenSync) -> None:
        self._by_id[sync.id] = sync

    def remove(self, sync_id: str) -> None:
        self._by_id.pop(sync_id, None)

    def get(self, sync_id: str) -> OpenSync | None:
        return self._by_id.get(sync_id)

    def of_account(self, account_id: str, *, livemode: bool) -> OpenSync | None:
        """The sync of this account in this mode, if one is served here."""
        for sync in self._by_id.values():
            if (sync.account_id, sync.livemode) == (account_id, livemode):
                return sync
        return None


@asynccontextmanager
async def open_sync(
    sync_id: str,
    database_url: str,
    schema: str,
    key: ApiKey,
    *,
    budget: Budget,
    stripe_url: str,
    stripe_account: str | None = None,
    webhook_secrets: tuple[str, ...] = (),
    proxy: str | None = None,
    changes: bool = False,
    writers: int = 2,
) -> AsyncIterator[OpenSync]:
    """The parts of a sync whose schema is there already, open for the block.

    Raises Misconfigured while no process has made the schema; Unreachable where Postgres is away.
    """
    known, effective = await _there(database_url, schema)
    async with (
        Stripe(
            key,
            api_version=spec().api_version,
            budget=budget,
            base_url=stripe_url,
            account=stripe_account,
            proxy=proxy,
        ) as stripe,
        await open_pool(
            database_url, min_size=1, max_size=8, application_name="pinstripe gateway"
        ) as pool,
        open_mirror(
            database_url,
            schema,
            effective,
            api_version=spec().api_version,
            writers=writers,
            changes=changes,
            session_name="pinstripe gateway",
        ) as mirror,
    ):
        source = Source(stripe, mirror, mirror.tables, pool)
        await remember_refusals(source, leads=False)
        mirror.settle = partial(settle, source)
        livemode = bool(known.livemode)
        yield OpenSync(sync_id, schema, known.account_id, livemode, source, webhook_secrets)


async def _there(database_url: str, schema: str) -> tuple[Sync, dict[str, Table]]:
    """Whose schema it is, and its tables as they stand there."""
    async with connect(database_url) as connection:
        known = next((s for s in await load_syncs(connection) if s.schema == schema), None)
        if known is None or known.livemode is None:
            raise Misconfigured(
                f'The schema "{schema}" is not there yet.',
                hint="`pinstripe sync` makes it; a moment later it is served here.",
            )
        there = await load_table_names(connection, schema)
        chosen = {name: table for name, table in tables().items() if name in there}
        return known, await effective_tables(connection, schema, chosen)
