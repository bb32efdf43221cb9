"""Runs one worker process for each sync: starts it, restarts it when it dies, stops it when it is
removed.

`Supervisor.want` sets the syncs. A worker that dies is restarted after a growing pause. One whose
settings or key are wrong is retried when those change, and now and then in case the cause was at
Stripe. `state` returns the current state of each.

A worker runs the code of `pinstripe sync` in its own interpreter, so that decoding a large page never
delays a request to the gateway. It talks to the service over a socket pair on its stdin: the first line
is `StartWorker` with all settings, key included, which therefore appear in no command line and no
environment. Then the worker sends a `WorkerReport` for each change. When the service ends, however it
ends, the worker reads EOF and ends too.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from pinstripe.concurrency import backoff, cancel, end, wait_for
from pinstripe.config.config import Config
from pinstripe.config.settings import SETTINGS
from pinstripe.errors import PinstripeError, redact
from pinstripe.gateway.syncs import Activity, SyncState

_ARGV = (sys.executable, "-m", "pinstripe", "sync-worker")
_STABLE_S = 6.0
"""How long a process may take to end in order; then it is told by a signal, and at last killed."""

_SIGNAL_S = 2.0


@dataclass(frozen=True, slots=True)
class SyncProcess:
    """A running process. End it with `stop`."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def pid(self) -> int:
        return self.process.pid

    def begin(self, order: StartWorker) -> None:
        self.writer.write(encode(order))

    async def reports(self) -> AsyncIterator[WorkerReport]:
        """What it says, until it ends."""
        try:
            while line := await self.reader.readline():
                yield decode_report(line)
        except (ConnectionError, msgspec.MsgspecError, ValueError):
            return  # It died in the middle of a line.

    async def ended(self) -> int:
        """The exit code; negative: the signal that killed it."""
        return await self.process.wait()

    async def stop(self) -> None:
        """Ends it, in order if it lets itself be ended so."""
        self.writer.close()
        for impatience, wait_s in (
            (None, _STABLE_S),
            (self.process.terminate, _SIGNAL_S),
            (self.process.kill, None),
        ):
            if impatience is not None and self.process.returncode is None:
                impatience()
            try:
                async with asyncio.timeout(wait_s):
                    await self.process.wait()
                return
            except TimeoutError:
                continue


async def start(order: StartWorker, *, argv: Sequence[str] = _ARGV) -> SyncProcess:
    """A process with this order. Raises OSError where the machine lets no process start."""
    process = await _launch(argv, shown=order.shown)
    process.begin(order)
    return process


class EarlyStart:
    """Starts processes, the first one before it has an order: it loads its code while Postgres starts."""

    def __init__(self, *, shown: bool, argv: Sequence[str] = _ARGV) -> None:
        self._shown, self._argv = shown, argv
        self._early: asyncio.Task[SyncProcess] | None
        self._early = asyncio.create_task(_launch(argv, shown=shown))

    async def start(self, order: StartWorker) -> SyncProcess:
        """As the function of this name."""
        if self._early is None or order.shown != self._shown:
            return await start(order, argv=self._argv)
        early, self._early = self._early, None
        process = await early
        process.begin(order)
        return process

    async def close(self) -> None:
        """End the first one if nothing has used it."""
        early, self._early = self._early, None
        if early is not None:
            with suppress(OSError):
                await (await early).stop()


async def _launch(argv: Sequence[str], *, shown: bool) -> SyncProcess:
    """A process that waits for its order."""
    ours, its = socket.socketpair()
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=its.fileno(),
            stdout=None if shown else asyncio.subprocess.DEVNULL,
            env=_environment(),
            # Ctrl-C in the terminal is for the service, which then ends its processes in order.
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        its.close()
    return SyncProcess(process, *await opened(ours))


def _environment() -> dict[str, str]:
    """Ours, without any setting: those of the sync are in its order."""
    settings = {setting.env for setting in SETTINGS}
    return {name: value for name, value in os.environ.items() if name not in settings}


_LINE_BYTES = 1024 * 1024
"""The longest line: settings may name all tables."""


class StartWorker(msgspec.Struct, frozen=True):
    """The start message. `shown`: print progress and summary on the terminal."""

    config: Config
    shown: bool = False


class WorkerReport(msgspec.Struct, frozen=True):
    """A state message. `lasting`: it will not change until settings or key do."""

    activity: Literal["starting", "backfilling", "following", "waiting", "ended"]
    reason: str = ""
    remedy: str = ""
    lasting: bool = False
    exit_code: int = 0


def encode(message: StartWorker | WorkerReport) -> bytes:
    return msgspec.json.encode(message, enc_hook=str) + b"\n"


def decode_order(line: bytes) -> StartWorker:
    return msgspec.json.decode(line, type=StartWorker, dec_hook=_path)


def decode_report(line: bytes) -> WorkerReport:
    return msgspec.json.decode(line, type=WorkerReport)


def _path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"no {kind.__name__} is ever sent")


class ParentLink:
    """The service, as its child sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._told: WorkerReport | None = None

    @classmethod
    async def on_stdin(cls) -> ParentLink:
        """The service that started this process."""
        return cls(*await opened(socket.socket(fileno=0)))

    async def order(self) -> StartWorker | None:
        """None if the service has ended, or has no work for this process."""
        line = await self._reader.readline()
        return decode_order(line) if line else None

    def report(self, report: WorkerReport) -> None:
        """Send the state to the service, if it changed."""
        if report != self._told:
            self._told = report
            self._writer.write(encode(report))

    async def flushed(self) -> None:
        """Returns when all was read, or the service is gone."""
        try:
            await self._writer.drain()
        except ConnectionError:
            return

    async def gone(self) -> None:
        """Returns when the service wants this process to end, or has ended itself."""
        try:
            await self._reader.read()
        except ConnectionError:
            return


async def opened(sock: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams over one end of the pair."""
    return await asyncio.open_unix_connection(sock=sock, limit=_LINE_BYTES)


_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Before a process is started again, by how often it died in a row."""

_CALM_S = 60.0
"""A process that ran for so long has not died in a row."""

_LASTING_S = 60.0
"""Between two tries with settings or a key that were refused."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """The worker of one sync. `trouble`: why it cannot be started at all."""

    config: Config
    paused: bool = False
    shown: bool = False
    trouble: PinstripeError | None = None


Start = Callable[[StartWorker], Awaitable[SyncProcess]]


class Supervisor:
    """The processes of all syncs."""

    def __init__(
        self,
        start: Start,
        *,
        heard: Callable[[str, WorkerReport], None] = lambda _, __: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`heard` gets each report, with the id of the sync."""
        self._start = start
        self._heard = heard
        self._now = now
        self._keepers: dict[str, tuple[_Keeper, asyncio.Task[None]]] = {}

    def state(self, sync_id: str) -> SyncState | None:
        """Return the state of its worker; None for an unknown sync."""
        found = self._keepers.get(sync_id)
        return None if found is None else found[0].state

    async def want(self, jobs: Mapping[str, WorkerSpec]) -> None:
        """From now on exactly these. Returns when the processes of those that are gone have ended."""
        gone = [self._keepers.pop(name) for name in set(self._keepers) - set(jobs)]
        for name, job in jobs.items():
            if name in self._keepers:
                self._keepers[name][0].want(job)
            else:
                keeper = _Keeper(name, job, self._start, self._heard, now=self._now)
                self._keepers[name] = (keeper, asyncio.create_task(keeper.run(), name=name))
        await end(*[task for _, task in gone])

    async def close(self) -> None:
        """Stop all workers concurrently and in order."""
        await self.want({})


class _Keeper:
    """One sync's process."""

    def __init__(
        self,
        name: str,
        job: WorkerSpec,
        start: Start,
        heard: Callable[[str, WorkerReport], None],
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._name = name
        self._job = job
        self._start = start
        self._heard = heard
        self._now = now
        self._changed = asyncio.Event()
        self._deaths = 0
        self._last = WorkerReport("starting")
        self.state = SyncState("starting", now())

    def want(self, job: WorkerSpec) -> None:
        if job != self._job:
            self._job = job
            self._changed.set()

    async def run(self) -> None:
        """Until cancelled; then its process has ended."""
        while True:
            self._changed.clear()
            job = self._job
            if job.paused:
                self._show("paused")
                await self._changed.wait()
            elif job.trouble is not None:
                self._show("failed", job.trouble.message, job.trouble.hint)
                await self._changed.wait()
            else:
                await self._one(job)

    async def _one(self, job: WorkerSpec) -> None:
        """One life of the process, and the pause after it."""
        self._show("starting")
        self._last = WorkerReport("starting")
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            process = await self._start(StartWorker(job.config, job.shown))
        except OSError as error:
            reason = f"No worker could be started: {error.strerror}"
        else:
            self.state = replace(self.state, pid=process.pid)
            if await self._lived(process):
                return
            reason = _told_by(await process.ended())
        if loop.time() - began > _CALM_S:
            self._deaths = 0
        await self._pause(reason)

    async def _lived(self, process: SyncProcess) -> bool:
        """Listens to the end of the process. Whether we ended it, because something else is wanted."""
        listening = asyncio.create_task(self._listen(process))
        changed = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait((listening, changed), return_when=asyncio.FIRST_COMPLETED)
            return changed.done()
        finally:
            # To the end even if we are told twice: a process that is left alone would go on syncing.
            stopping = asyncio.create_task(process.stop())
            try:
                await asyncio.shield(stopping)
            except asyncio.CancelledError:
                await stopping
                raise
            finally:
                await cancel(listening, changed)
                self.state = replace(self.state, pid=None)

    async def _listen(self, process: SyncProcess) -> None:
        async for report in process.reports():
            self._last = report
            if report.activity != "ended":
                self._show(report.activity, report.reason, report.remedy)
            self._heard(self._name, report)

    async def _pause(self, reason: str) -> None:
        """Shows why it ended, and waits for another try or another wish."""
        last, pause_s = self._last, backoff(PAUSES_S, self._deaths)
        self._deaths += 1
        if last.activity == "ended":
            reason = last.reason
            pause_s = _LASTING_S if last.lasting else pause_s
            self._show("failed" if last.lasting else "waiting", reason, last.remedy)
        else:
            self._show("waiting", reason, "It is being restarted; see its log lines for details.")
        _log.error("sync.ended", sync=self._name, reason=redact(reason), again_s=pause_s)
        if await wait_for(self._changed, pause_s):
            self._deaths = 0
        else:
            self.state = replace(self.state, restarts=self.state.restarts + 1)

    def _show(self, activity: Activity, reason: str = "", remedy: str = "") -> None:
        state = self.state
        since = state.since if state.activity == activity else self._now()
        self.state = replace(state, activity=activity, since=since, reason=reason, remedy=remedy)


def _told_by(code: int) -> str:
    if code < 0:
        return f"Its worker was killed by signal {-code}."
    return f"Its worker exited with code {code}."
