"""The lease for as long as a block lasts, told to people: whom it waits for, and that it was lost.

async with leading(lease, tell) as held:   # stands by until the lease is ours
...                                    # LostLease ends the block when another process takes over
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pinstripe.store.leases import Held, Lease


@asynccontextmanager
async def leading(lease: Lease, tell: Callable[[str], None]) -> AsyncIterator[Held]:
    """The lease for the block. Says whom it waits for, and ends the block when it is lost."""
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(_tell_standing_by(lease, tell))
        async with lease.held() as held:
            waiting.cancel()
            watching = group.create_task(held.watch())
            try:
                yield held
            finally:
                watching.cancel()


async def _tell_standing_by(lease: Lease, tell: Callable[[str], None]) -> None:
    while lease.standing_by is None:  # noqa: ASYNC110 (the lease has no event for it)
        await asyncio.sleep(0.2)
    tell(
        f'Another process syncs the schema "{lease.schema}" ({lease.standing_by.holder}). This one '
        "stands by and takes over when that one ends."
    )
