"""Decides contested rows: two snapshots that overlap in time and differ.

One GET of the object settles it, since its answer is surely newer. There is one at a time for each
row; what is contested meanwhile shares the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence

import structlog

from pinstripe.errors import PinstripeError
from pinstripe.store.batch import Contested

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

Settle = Callable[[Contested], Awaitable[bool]]
"""Fetches the object and puts it over that version of the row; False where Stripe cannot be asked."""


class Contests:
    """The rows that are contested. `count`: how many there were so far."""

    def __init__(self) -> None:
        self.settle: Settle | None = None
        self.count = 0
        self._open: dict[tuple[str, str], Contested] = {}
        self._settling: dict[tuple[str, str], asyncio.Task[bool]] = {}

    def decide(self, contests: Sequence[Contested]) -> None:
        """Starts what settles these rows."""
        for contest in contests:
            self.count += 1
            place = (contest.table, contest.key)
            self._open[place] = contest
            if place not in self._settling:
                self._settling[place] = asyncio.create_task(self._settle(place))

    def settling(self, rows: Mapping[str, Container[str]]) -> list[asyncio.Task[bool]]:
        """What settles those of these rows (table -> keys) that are open now.

        Each gives whether its row was decided; one that could not be keeps what it has.
        """
        if not self._settling:
            return []
        return [t for (table, key), t in self._settling.items() if key in rows.get(table, ())]

    async def settled(self) -> None:
        """Returns when no contested row is open any more."""
        while self._settling:
            await asyncio.gather(*self._settling.values())

    def cancel(self) -> list[asyncio.Task[bool]]:
        """Ends what is under way; gives the tasks to wait for."""
        tasks = list(self._settling.values())
        for task in tasks:
            task.cancel()
        return tasks

    async def _settle(self, place: tuple[str, str]) -> bool:
        table, key = place
        decided = True
        try:
            while (contested := self._open.pop(place, None)) is not None:
                decided = False
                if self.settle is None:
                    _log.warning("mirror.contested", table=table, id=key)
                    continue
                try:
                    decided = await self.settle(contested)
                except PinstripeError as error:
                    # The row keeps what it has; the next snapshot of it decides.
                    _log.warning("mirror.unsettled", table=table, error=error.message)
        finally:
            del self._settling[place]
        return decided
