"""Opens one account of a platform for a task, on sessions that all accounts share.

    async with open_platform(url, "stripe", wanted) as platform:
        async with open_account(platform, "acct_1", stripe, held=held) as source:
            ...  # a `Source` and its mirror, as those of a sync: poll, backfill, refetch, verify

Opening takes some short reads and no connection. The mirror's schema is the account's scope; its
statements find that account's rows and no others (`store.session`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import Table
from pinstripe.client.client import StripeClient
from pinstripe.mirror import open_mirror
from pinstripe.mirror.writer import SharedStages
from pinstripe.rows.extract import Extractor
from pinstripe.rows.personal import Personal
from pinstripe.service import join_source
from pinstripe.source.source import Source
from pinstripe.store.leases import Held
from pinstripe.store.migrate import effective_tables, migrate_platform
from pinstripe.store.pool import Pool, open_pool
from pinstripe.store.rewrite import check_policy
from pinstripe.store.session import schema_of, scope_of

_STATEMENTS = 300
_LARGE = 5_000
"""Rows of an account whose statements are planned for it alone."""

_POOLED = 5
_WRITING = 3
"""Sessions of a worker for reads and short transactions, and for writers. With those that listen and
verify, a worker has at most 10."""


@dataclass(frozen=True, slots=True)
class OpenPlatform:
    """What a worker shares among the accounts of one platform. `tables`: as the database has them."""

    url: str
    schema: str
    wanted: Mapping[str, Table]
    tables: Mapping[str, Table]
    pool: Pool
    stages: SharedStages
    extractor: Extractor
    changes: bool


@asynccontextmanager
async def open_platform(
    url: str,
    schema: str,
    wanted: Mapping[str, Table],
    *,
    personal: Personal | None = None,
    changes: bool = False,
    session_name: str = "pinstripe",
    pooled: int = _POOLED,
    writing: int = _WRITING,
) -> AsyncIterator[OpenPlatform]:
    """The shared part, for the block. The schema has been made by `migrate_platform`.

    `personal`, `changes`: as `open_mirror` takes them; raises Misconfigured where the rows follow another
    policy. `session_name`: `store.leases.session_name` of the worker. `pooled`, `writing`: the most
    sessions, which are opened when they are needed.
    """
    stages = SharedStages(url, session_name=session_name, size=writing)
    try:
        async with await open_pool(
            url, min_size=1, max_size=pooled, application_name=session_name, statements=_STATEMENTS
        ) as pool:
            async with pool.acquire() as connection:
                await check_policy(connection, schema, personal)
                tables = await effective_tables(connection, schema, wanted)
            extractor = Extractor(tables, personal=personal)
            yield OpenPlatform(url, schema, wanted, tables, pool, stages, extractor, changes)
    finally:
        stages.close()


@asynccontextmanager
async def open_account(
    platform: OpenPlatform,
    account_id: str,
    stripe: StripeClient,
    *,
    held: Held | None,
    rows: int = 0,
) -> AsyncIterator[Source]:
    """One account of the platform, for the block.

    `stripe`: a client of that account (`StripeClient.for_account`). `held`: the lease of its scope
    (`store.leases.take_lease`), which fences every write; None for a process that runs beside the worker,
    such as the proxy. `rows`: about how many the account has.
    """
    scope = scope_of(platform.schema, account_id)
    async with open_mirror(
        platform.url,
        scope,
        platform.tables,
        api_version=spec().api_version,
        writers=1,
        changes=platform.changes,
        extractor=platform.extractor.for_account(),
        shared=platform.stages,
    ) as mirror:
        pool = platform.pool.of_account(
            account_id, is_large=lambda: rows + mirror.written.total() > _LARGE
        )
        yield await join_source(stripe, mirror, pool, held, mend=_mend)


async def _mend(source: Source, table: str) -> None:
    """Makes a table of the platform, or a column, that was dropped, and its view."""
    async with source.pool.acquire() as connection:
        await migrate_platform(
            connection,
            schema_of(source.mirror.schema),
            {table: source.wanted[table]},
            sdk_version=spec().sdk_version,
            api_version=spec().api_version,
        )
