"""What the mirror does with a batch."""

from __future__ import annotations

from typing import Protocol

from pinstripe.store.batch import Batch, Contested


class Scribe(Protocol):
    """`Writer` writes the batch, `store.compare.Comparer` only compares."""

    async def write(self, batch: Batch) -> list[Contested]: ...

    async def close(self) -> None: ...
