"""`EmbeddedPostgres`: a Postgres in a data directory, for as long as a block lasts.

    async with EmbeddedPostgres(Path(".pinstripe/postgres")) as server:
        connection = await asyncpg.connect(server.url)

One Pinstripe process owns the server (`owned`); a second one on the same directory becomes its
guest: it gets the same URL and stops nothing. The owner starts a server that dies anew. An owner
that is killed takes its server along (see `process`), and the next one starts on the same data. It
never adopts a server that was left behind: nobody could tell with what that one was started.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from types import TracebackType

from pinstripe.errors import PinstripeError, Unreachable
from pinstripe.store.embedded.home import Home, ServerState, io_error
from pinstripe.store.embedded.owner import OwnServer
from pinstripe.store.pool import connect

_POLL_S = 0.02


class EmbeddedPostgres:
    """One server in `data_dir`.

    `tcp_port`: listen on 127.0.0.1 as well, with a generated password (see `tcp_url`).
    `fsync`: off only for data that may be lost. `start_timeout_s` covers crash recovery too.
    `restart_pause_s`: before the second restart in a row; doubled each time, up to 10 s.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        tcp_port: int | None = None,
        fsync: bool = True,
        start_timeout_s: float = 300.0,
        restart_pause_s: float = 0.25,
    ) -> None:
        self._home = Home(data_dir)
        self._server = OwnServer(
            self._home, tcp_port=tcp_port, fsync=fsync, restart_pause_s=restart_pause_s
        )
        self._start_timeout_s = start_timeout_s
        self._owner_lock: int | None = None
        self._state: ServerState | None = None

    @property
    def owned(self) -> bool:
        """Whether the server is ours, and ends with us."""
        return self._owner_lock is not None

    @property
    def url(self) -> str:
        """For asyncpg and psql, through the socket; without a password."""
        return self._known.url

    @property
    def tcp_url(self) -> str | None:
        """For other tools on this machine; holds the password. None if there is no TCP port."""
        return self._known.tcp_url

    @property
    def version(self) -> str:
        """Such as "18.6"."""
        return self._known.version

    @property
    def pid(self) -> int | None:
        """The postmaster's, if the server is ours."""
        return self._server.pid

    @property
    def restarts(self) -> int:
        """How often the server died and was started anew."""
        return self._server.restarts

    @property
    def psql(self) -> Path | None:
        """The `psql` that came with the server, if the server is ours and has one."""
        path = self._server.binaries.bin_dir / "psql" if self._server.binaries else None
        return path if path and path.exists() else None

    @property
    def _known(self) -> ServerState:
        if self._state is None:
            raise RuntimeError("This EmbeddedPostgres is not running.")
        return self._state

    async def __aenter__(self) -> EmbeddedPostgres:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Returns when the server answers: ours, or that of the process that owns `data_dir`."""
        self._home.prepare()
        deadline = time.monotonic() + self._start_timeout_s
        while (lock := self._home.take_lock(self._home.owner_lock)) is None:
            state = self._home.read_state()
            if state is not None and await _answers(state.url):
                self._state = state
                return
            if time.monotonic() > deadline:
                raise Unreachable(
                    f"Another Pinstripe process owns {self._home.data_dir}, but its Postgres does "
                    "not answer.",
                    hint="Stop that process, or wait until it has started.",
                )
            await asyncio.sleep(_POLL_S)
        self._owner_lock = lock
        try:
            self._state = await self._server.start(timeout_s=self._start_timeout_s)
        except OSError as error:
            await self.stop()
            raise io_error(error, self._home.data_dir) from error
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stops the server, if it is ours. Safe to call twice."""
        self._state = None
        if self._owner_lock is not None:
            try:
                await self._server.stop()
            finally:
                os.close(self._owner_lock)
                self._owner_lock = None

    async def watch(self) -> None:
        """Runs as long as the server can be kept alive, else raises: a task for a TaskGroup.

        A guest watches nothing: the owner does.
        """
        if self._server.supervisor is None:
            await asyncio.Event().wait()
        else:
            await asyncio.shield(self._server.supervisor)


async def running_url(data_dir: Path) -> str | None:
    """The URL of the server that another process runs in `data_dir`; None if none answers.

    Starts nothing and makes nothing.
    """
    home = Home(data_dir)
    if not home.is_owned():
        return None
    state = home.read_state()
    return state.url if state is not None and await _answers(state.url) else None


async def _answers(url: str) -> bool:
    try:
        async with connect(url):
            return True
    except PinstripeError:
        return False
