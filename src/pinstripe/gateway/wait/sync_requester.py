"""Rings the process that syncs, wherever it runs, and hears that it has looked.

    ring -> Postgres (NOTIFY) -> the process that syncs looks at Stripe -> answer -> all who waited

Rings of one moment are one: a thousand waiters, or a flood of webhooks, are a handful of rings a second.
A NOTIFY says no more than that an answer's row is worth a look: any user of the database may send one.
An answer that none brought is found a second later.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

import structlog

from pinstripe.concurrency import Coalescer
from pinstripe.errors import PinstripeError
from pinstripe.gateway.syncs import OpenSync
from pinstripe.store.events import APPLIED
from pinstripe.store.listener import Listener
from pinstripe.store.sync_requests import ACKS, SyncAck, last_acks, request_sync

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_SPACING_S = 0.05
"""Between two rings of one sync: it looks more rarely than that anyway."""
_NET_S = 1.0
_READ_SPACING_S = 0.002
"""Between two reads of answers, however many hints come."""


class SyncRequester:
    """One for a gateway. `run` has to run beside it."""

    def __init__(self, database_url: Callable[[], str | None]) -> None:
        """`database_url` gives None while there is no database."""
        self.requests_sent: Counter[str] = Counter()
        """Rings sent so far, by schema."""
        self._listening = Listener(
            database_url,
            {ACKS: self._on_answer, APPLIED: self._on_applied},
            name="pinstripe gateway",
        )
        self._coalescers: dict[str, Coalescer[float, tuple[int, int]]] = {}
        self._answers: dict[str, SyncAck] = {}
        self._session = 0
        self._changed: dict[str, asyncio.Future[None]] = {}
        self._hinted: set[str] = set()
        self._hint = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled; outlives lost connections."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listening.run())
                group.create_task(self._net())
                group.create_task(self._read_answers())
        finally:
            await asyncio.gather(*(rope.close() for rope in self._coalescers.values()))

    async def request_sync(self, sync: OpenSync, *, lookback_s: float = 0.0) -> int:
        """Asks for a look at Stripe that begins after this call; gives the number of the ring.

        `lookback_s`: how late events may be that it must not miss. Raises Unreachable.
        """
        return (await self._request(sync, lookback_s))[0]

    def request_sync_soon(self, sync: OpenSync) -> None:
        """As `ring`, for who does not want to wait even for Postgres. Trouble is passed over."""
        self._coalescer(sync.schema).trigger(0.0)

    async def acked(self, sync: OpenSync, *, lookback_s: float = 0.0) -> SyncAck:
        """Rings, and returns when a look that began after this call is done.

        Waits as long as it takes: put a time limit around it. Raises Unreachable.
        """
        number, session = await self._request(sync, lookback_s)
        while True:
            stirred = self.changed(sync.schema)
            if session != self._listening.session:
                number, session = await self._request(sync, lookback_s)
            said = self._answer(sync.schema)
            if said is not None and said.number >= number:
                return said
            await stirred

    def changed(self, schema: str) -> asyncio.Future[None]:
        """Done when something was applied or answered next. Shared; safe to give up."""
        future = self._changed.get(schema)
        if future is None or future.done():
            future = self._changed[schema] = asyncio.get_running_loop().create_future()
        return asyncio.shield(future)

    async def _request(self, sync: OpenSync, lookback_s: float) -> tuple[int, int]:
        return await self._coalescer(sync.schema).get(lookback_s)

    def _coalescer(self, schema: str) -> Coalescer[float, tuple[int, int]]:
        rope = self._coalescers.get(schema)
        if rope is None:

            async def pull(lookbacks: Collection[float]) -> Mapping[float, tuple[int, int]]:
                rung = await self._send(schema, max(lookbacks))
                return dict.fromkeys(lookbacks, rung)

            rope = self._coalescers[schema] = Coalescer(pull, spacing_s=_SPACING_S)
        return rope

    async def _send(self, schema: str, lookback_s: float) -> tuple[int, int]:
        """(number, session in which it holds)."""
        async with self._listening.connection() as connection:
            number = await request_sync(connection, schema, lookback_s)
            self.requests_sent[schema] += 1
            return number, self._listening.session

    def _answer(self, schema: str) -> SyncAck | None:
        """The latest answer of this session."""
        return self._answers.get(schema) if self._session == self._listening.session else None

    def _on_answer(self, payload: str) -> None:
        if payload in self._coalescers:  # only schemas that were rung from here
            self._hinted.add(payload)
            self._hint.set()

    async def _read_answers(self) -> None:
        """Reads the rows that a NOTIFY spoke of: once for all that came meanwhile."""
        while True:
            await self._hint.wait()
            self._hint.clear()
            hinted, self._hinted = self._hinted, set()
            with suppress(PinstripeError):
                async with self._listening.connection() as connection:
                    self._take(await last_acks(connection, list(hinted)))
            await asyncio.sleep(_READ_SPACING_S)

    def _take(self, answers: Mapping[str, SyncAck]) -> None:
        if self._session != self._listening.session:
            self._answers.clear()
            self._session = self._listening.session
        for schema, said in answers.items():
            known = self._answers.get(schema)
            if known is None or said.number > known.number:
                self._answers[schema] = said
            self._notify(schema)

    def _on_applied(self, payload: str) -> None:
        self._notify(payload.rpartition(" ")[0])

    def _notify(self, schema: str) -> None:
        future = self._changed.pop(schema, None)
        if future is not None and not future.done():
            future.set_result(None)

    async def _net(self) -> None:
        """Finds what no NOTIFY has brought, while somebody waits."""
        while True:
            await asyncio.sleep(_NET_S)
            waiting = list(self._changed)
            if not waiting:
                continue
            with suppress(PinstripeError):
                async with self._listening.connection() as connection:
                    self._take(await last_acks(connection, waiting))
            for schema in waiting:
                self._notify(schema)  # Whoever waits for something else looks again, too.
