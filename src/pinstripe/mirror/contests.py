"""Decides contested rows: two snapshots that overlap in time and differ.

One GET of the object settles it, since its answer is surely newer. There is one at a time for each
row; what is contested meanwhile shares the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import structlog

from pinstripe.errors import PinstripeError
from pinstripe.store.batch import Contested

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

Settle = Callable[[str, str, datetime], Awaitable[bool]]
"""(table, key, version) -> fetch the object and put it over that version of the row; False where
Stripe cannot be asked."""


class Contests:
    """The rows that are contested. `count`: how many there were so far."""

    def __init__(self) -> None:
        self.settle: Settle | None = None
        self.count = 0
        self._open: dict[tuple[str, str], datetime] = {}
        self._settling: dict[tuple[str, str], asyncio.Task[None]] = {}

    def decide(self, contests: Sequence[Contested]) -> None:
        """Starts what settles these rows."""
        for contest in contests:
            self.count += 1
            place = (contest.table, contest.key)
            self._open[place] = contest.version
            if place not in self._settling:
                self._settling[place] = asyncio.create_task(self._settle(place))

    async def settled(self) -> None:
        """Returns when no contested row is open any more."""
        while self._settling:
            await asyncio.gather(*self._settling.values())

    def cancel(self) -> list[asyncio.Task[None]]:
        """Ends what is under way; gives the tasks to wait for."""
        tasks = list(self._settling.values())
        for task in tasks:
            task.cancel()
        return tasks

    async def _settle(self, place: tuple[str, str]) -> None:
        table, key = place
        try:
            while (version := self._open.pop(place, None)) is not None:
                if self.settle is None:
                    _log.warning("mirror.contested", table=table, id=key)
                    continue
                try:
                    await self.settle(table, key, version)
                except PinstripeError as error:
                    # The row keeps what it has; the next snapshot of it decides.
                    _log.warning("mirror.unsettled", table=table, error=error.message)
        finally:
            del self._settling[place]
