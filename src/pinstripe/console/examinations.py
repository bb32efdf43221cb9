"""Examinations of keys: at most one at a time for each sync, its progress, and its last report.

About a hundred small requests within the sync's own budget. What came of it is kept in memory with its
time, until the next one or until the sync has another key; a restart forgets it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from pinstripe.doctor.findings import KeyReport
from pinstripe.doctor.key import examine
from pinstripe.errors import NotPermitted, PinstripeError
from pinstripe.gateway.control import StoredSync
from pinstripe.gateway.parts import Gateway
from pinstripe.gateway.syncs import OpenSync
from pinstripe.webhook_endpoints import Endpoint, list_endpoints

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_OPENS_WITHIN_S = 60.0
"""A new sync is open when its process has made the tables, some seconds after it was added."""
_LOOK_S = 0.1
_TELL_S = 1.0


@dataclass(frozen=True, slots=True)
class Webhooks:
    """The endpoints at Stripe that call this sync; None where the key may not tell."""

    endpoints: tuple[Endpoint, ...] | None


@dataclass(slots=True)
class Examination:
    """One, under way or over. `of` tells keys apart; `done` and `total` count requests."""

    of: str
    done: int = 0
    total: int = 0
    report: KeyReport | None = None
    webhooks: Webhooks = field(default_factory=lambda: Webhooks(None))
    error: PinstripeError | None = None
    ended_at: datetime | None = None
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def runs(self) -> bool:
        return self.ended_at is None

    def tell(self, done: int, total: int) -> None:
        """What the doctor calls after each request."""
        self.done, self.total = done, total
        self.stir()

    def stir(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def follow(self) -> AsyncIterator[None]:
        """After each step, and every second anyway; ends when the examination has."""
        while self.runs:
            with suppress(TimeoutError):
                async with asyncio.timeout(_TELL_S):
                    await self._moved.wait()
            yield


class Examinations:
    """Of all syncs, by id."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._by_id: dict[str, Examination] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def of(self, sync: StoredSync) -> Examination | None:
        """The one that runs, or the last one of this very key."""
        found = self._by_id.get(sync.id)
        return found if found is not None and found.of == _mark(sync) else None

    def begin(self, gateway: Gateway, sync: StoredSync) -> Examination:
        """Begins one, unless one runs."""
        found = self.of(sync)
        if found is not None and found.runs:
            return found
        begun = self._by_id[sync.id] = Examination(_mark(sync))
        task = asyncio.create_task(self._run(gateway, sync.id, begun), name="examination")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return begun

    async def _run(self, gateway: Gateway, sync_id: str, begun: Examination) -> None:
        try:
            opened = await _opened(gateway, sync_id)
            stripe = opened.source.stripe
            begun.report = await examine(stripe, list(opened.mirror.tables), tell=begun.tell)
            begun.webhooks = Webhooks(await _endpoints(opened, sync_id))
        except PinstripeError as error:
            begun.error = error
        except Exception as error:
            # The outermost ring of this task: its sync may have been closed under it.
            _log.warning("examination.broken", sync=sync_id, error=type(error).__name__)
            begun.error = PinstripeError(
                "The examination broke off.", hint="Examine the key again; the log may say more."
            )
        finally:
            begun.ended_at = self._now()
            begun.stir()


def _mark(sync: StoredSync) -> str:
    return f"{sync.key_hint} {sync.stripe_account} {sync.schema}"


async def _opened(gateway: Gateway, sync_id: str) -> OpenSync:
    """The sync, as soon as it is open."""
    for _ in range(int(_OPENS_WITHIN_S / _LOOK_S)):
        opened = gateway.parts.syncs.get(sync_id)
        if opened is not None:
            return opened
        if gateway.closing:
            break
        await asyncio.sleep(_LOOK_S)
    raise PinstripeError(
        "The key could not be examined: its tables are not there yet.",
        hint="The overview says what keeps them. Examine the key again when the copy has begun.",
    )


async def _endpoints(opened: OpenSync, sync_id: str) -> tuple[Endpoint, ...] | None:
    """Those of ours, and those that call an address of this sync."""
    try:
        known = await list_endpoints(opened.source.stripe)
    except NotPermitted:
        return None
    path = f"/webhooks/stripe/{sync_id}"
    return tuple(e for e in known if e.sync_id == sync_id or e.url.endswith(path))
