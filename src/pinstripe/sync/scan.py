"""The slow scan: reads lists by parent under every parent, endlessly, behind everything else.

The first copy reads a list by parent only where a row shows a sign that it holds something
(`signs_of`), and events name parents that change. What neither finds, the scan finds: it goes through
all parents in the order of their ids, again and again. Its position is a cursor of its own for each list,
so that a restart goes on where it was:

    {"table": "setup_attempt", "parent": "setup_intent", "after": "seti_…", "done": 310, "of": 5000,
     "began": 1795000000.5, "rounds": 0, "per_s": 10.0}

All lists share one pace, a fifth of the account's rate, and take turns: a list of a few parents does not
wait for one of a million. The next round of a list begins a day after the last began, later if the read
quota demands it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import structlog

from pinstripe.catalog.endpoints import ListEndpoint
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.concurrency import cancel
from pinstripe.errors import LostLease, PinstripeError
from pinstripe.source.source import SCAN, Source
from pinstripe.store.cursors import SCAN_OF, Checkpoint, State, load_checkpoints
from pinstripe.sync.backfill.child_lists import ChildListStream, is_whole
from pinstripe.sync.read_quota import DAY_S

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_SHARE = 0.2
"""Of the account's rate: the rest is for requests that a caller waits for."""

_UNLIMITED_PER_S = 50.0

_AT_ONCE = 4
"""Requests of one list under way: at 20/s enough for answers that take 200 ms."""

_AGAIN_S = {"refused": DAY_S, "failed": 3600.0}
"""Until a list is tried again that ended otherwise than by its last parent."""

_LOOK_S = 0.05


class Scan:
    """The scan of one account. `round_s` returns the seconds from the begin of one round to the next.

    `ended` is called with a list and the second, on Stripe's clock, when the round that is done began.
    """

    def __init__(
        self,
        source: Source,
        budget: RateLimiter,
        *,
        round_s: Callable[[], float],
        ended: Callable[[ListEndpoint, float], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._budget = budget
        self._round_s = round_s
        self._ended = ended
        self._clock = clock
        self.under_way: dict[str, float] = {}
        """By stream: when the round under way began, on Stripe's clock."""
        self._turns = asyncio.Lock()
        self._next_at = 0.0

    def per_s(self) -> float:
        """Return the pace: requests a second, of all lists together."""
        rate = self._budget.rate()
        return _UNLIMITED_PER_S if rate is None else rate * _SHARE

    async def run(self, endpoints: Sequence[ListEndpoint]) -> None:
        """Scan these lists until cancelled."""
        async with asyncio.TaskGroup() as group:
            for endpoint in endpoints:
                group.create_task(self._scan(endpoint))

    async def run_due(self, endpoints: Sequence[ListEndpoint], *, most_s: float) -> bool:
        """Read what is left of the rounds that are due, list after list, for so many seconds at most.

        Return whether all of it is read. For an account that is opened now and then.
        """
        try:
            async with asyncio.timeout(most_s):
                for endpoint in endpoints:
                    saved, wait_s = await self._last(endpoint)
                    if wait_s <= 0:
                        await self.round(endpoint, saved)
        except TimeoutError:
            return False
        return True

    async def _scan(self, endpoint: ListEndpoint) -> None:
        while True:
            try:
                saved, wait_s = await self._last(endpoint)
                await asyncio.sleep(max(wait_s, 0.0))
                pause_s = await self.round(endpoint, saved)
            except LostLease:
                raise
            except PinstripeError as error:
                _log.warning("scan.trouble", stream=endpoint.stream, error=error.message)
                pause_s = _AGAIN_S["failed"]
            await asyncio.sleep(pause_s)

    async def _last(self, endpoint: ListEndpoint) -> tuple[Checkpoint | None, float]:
        """Return the position, and the seconds until the next round; 0 if one is under way."""
        async with self._source.pool.acquire() as connection:
            cursors = await load_checkpoints(connection, self._source.mirror.schema)
        saved, copied = cursors.get(SCAN_OF + endpoint.stream), cursors.get(endpoint.stream)
        position = saved.position if saved is not None else {}
        began, is_through = float(position.get("began", 0.0)), bool(position.get("ended"))
        if copied is not None and is_whole(copied) and (copied.as_of or 0.0) > began:
            began, is_through = copied.as_of or 0.0, True  # The copy has read every parent.
        if not is_through:
            return saved, 0.0
        if saved is not None:
            # It lists again what the table has: added up, that would be several times its rows.
            begin = {**position, "after": "", "done": 0, "of": None}
            saved = replace(saved, position=begin, rows=0)
        return saved, began + self._round_s() - self._source.now()

    async def round(self, endpoint: ListEndpoint, saved: Checkpoint | None) -> float:
        """Read what is left of a round; return the seconds until the next one begins."""
        began = self._source.now()
        position = saved.position if saved is not None else {}
        if position.get("after"):
            began = float(position.get("began", began))
        self.under_way[endpoint.stream] = began
        work = _ScanStream(endpoint, self._source, saved, began=began, per_s=self.per_s)
        tasks: set[asyncio.Task[None]] = set()
        try:
            while not work.finished:
                await self._turn()
                start = work.claim() if len(tasks) < _AT_ONCE else None
                if start is not None:
                    tasks.add(start())
                elif tasks:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(_LOOK_S)
                for task in [t for t in tasks if t.done()]:
                    tasks.discard(task)
                    task.result()
        finally:
            await cancel(*tasks)
        await self._source.save([work.final()])
        if work.state == "done":
            await self._ended(endpoint, began)
            del self.under_way[endpoint.stream]
            return max(began + self._round_s() - self._source.now(), 0.0)
        return _AGAIN_S[work.state]

    async def _turn(self) -> None:
        """Wait for the next moment at which one of the lists may send a request."""
        async with self._turns:  # First come, first served: the lists take turns.
            await asyncio.sleep(max(self._next_at - self._clock(), 0.0))
            self._next_at = max(self._next_at, self._clock()) + 1.0 / self.per_s()


class _ScanStream(ChildListStream):
    """One round of one list. Its cursor counts as done all the time: nothing waits for it."""

    def __init__(
        self,
        endpoint: ListEndpoint,
        source: Source,
        saved: Checkpoint | None,
        *,
        began: float,
        per_s: Callable[[], float],
    ) -> None:
        table = source.tables_of(endpoint)[0]
        super().__init__(
            endpoint,
            table,
            source,
            source.pool,
            now=began,
            saved=None if saved is None else replace(saved, state="running"),
            stream=SCAN_OF + endpoint.stream,
            priority=SCAN,
        )
        position = saved.position if saved is not None else {}
        self._rounds = int(position.get("rounds", 0))
        self.as_of = began
        self._per_s = per_s

    def _checkpoint(self, after: str, done: int, state: State) -> Checkpoint:
        plain = super()._checkpoint(after, done, state)
        position = {
            **plain.position,
            "began": self.as_of,
            "rounds": self._rounds + (state == "done"),
            "ended": state == "done",
            "per_s": self._per_s(),
        }
        as_of = self.as_of if state == "done" else None
        shown: State = "done" if state == "running" else state
        return replace(plain, position=position, state=shown, as_of=as_of)
