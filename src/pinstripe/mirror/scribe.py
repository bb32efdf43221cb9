"""What the mirror does with a batch."""

from __future__ import annotations

from typing import Protocol

from pinstripe.store.batch import Batch, Contested
from pinstripe.store.quarantine import Parted


class Scribe(Protocol):
    """`Writer` writes the batch, `store.compare.Comparer` only compares."""

    failed_at: str
    """The table at which the last write failed; "" where it was at none."""

    async def write(self, batch: Batch) -> list[Contested]: ...

    async def write_apart(self, batch: Batch) -> Parted:
        """As `write`, without the rows and tables that Postgres refuses."""

    async def close(self) -> None: ...
