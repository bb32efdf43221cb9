"""`EmbeddedPostgres`: a Postgres in a data directory, for as long as a block lasts.

    async with EmbeddedPostgres(Path(".pinstripe/postgres")) as server:
        connection = await asyncpg.connect(server.url)

One Pinstripe process owns the server (`owned`). A second process on the same directory is its guest: it
gets the same URL and stops nothing. The owner restarts a server that dies. If the owner is killed, its
server ends too (see `process`) and the next owner starts on the same data. A server that was left running
is never adopted, because its settings are unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import time
from pathlib import Path
from urllib.parse import quote

import structlog

from pinstripe.concurrency import wait_for
from pinstripe.errors import Misconfigured, PinstripeError, Unreachable, Unwritable
from pinstripe.store.embedded import cluster
from pinstripe.store.embedded.data_dir import Home, OsAccount, ServerState, io_error
from pinstripe.store.embedded.process import (
    Binaries,
    Process,
    find_binaries,
    is_server_process,
    within_reach,
)
from pinstripe.store.pool import connect

_POLL_S = 0.02
_START_S = 300.0
"""For a start, crash recovery included."""


class EmbeddedPostgres:
    """One server in `data_dir`.

    `tcp_port`: listen on 127.0.0.1 as well, with a generated password (see `tcp_url`).
    `fsync`: off only for data that may be lost.
    `restart_pause_s`: before the second restart in a row; doubled each time, up to 10 s.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        tcp_port: int | None = None,
        fsync: bool = True,
        restart_pause_s: float = 0.25,
    ) -> None:
        self._home = Home(data_dir)
        self._server = OwnServer(
            self._home, tcp_port=tcp_port, fsync=fsync, restart_pause_s=restart_pause_s
        )
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
        """How often the server died and was restarted."""
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

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Returns when the server answers: ours, or that of the process that owns `data_dir`."""
        self._home.prepare()
        deadline = time.monotonic() + _START_S
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
            self._state = await self._server.start(timeout_s=_START_S)
        except OSError as error:
            await self.stop()
            raise io_error(error, self._home.data_dir) from error
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop the server, if we own it. Safe to call twice."""
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


_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_DATABASE = "pinstripe"
_STOP_S = 30.0
_LOG_CHECK_S = 60.0
_MAX_RESTARTS = 8
"""In a row, each within a minute; with the backoff that is about half a minute of trying."""

_ESCALATION = ((2.0, signal.SIGINT), (60.0, signal.SIGQUIT), (75.0, signal.SIGKILL))
"""For a server left behind: seconds after which it gets a signal. Its watchdog comes first."""


class OwnServer:
    """The server as its owner runs it, with the owner lock held. `restarts`: how often it died."""

    def __init__(
        self, home: Home, *, tcp_port: int | None, fsync: bool, restart_pause_s: float
    ) -> None:
        self._home = home
        self._tcp_port = tcp_port
        self._fsync = fsync
        self._restart_pause_s = restart_pause_s
        self._account: OsAccount | None = None
        self._process: Process | None = None
        self._socket_dir: Path | None = None
        self.supervisor: asyncio.Task[None] | None = None
        self.binaries: Binaries | None = None
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self, *, timeout_s: float) -> ServerState:
        """Returns when the database answers, and keeps it alive from then on."""
        home, deadline = self._home, time.monotonic() + timeout_s
        self._account = home.account()
        found = find_binaries(cluster.major_of(home.cluster))
        self.binaries = await asyncio.to_thread(within_reach, found, self._account)
        os.close(await self._server_lock(deadline))  # an earlier server is gone
        home.remove_leftovers()
        if self._tcp_port is not None:
            _check_port(self._tcp_port)
        if not home.cluster.exists():
            await self._create_cluster(deadline)
        self._socket_dir = home.socket_dir(self._account)
        listen = cluster.Listen(
            self._socket_dir, self._tcp_port or 5432, tcp=self._tcp_port is not None
        )
        cluster.configure(
            home, self._account, major=self.binaries.major, listen=listen, fsync=self._fsync
        )
        await self._launch(deadline)
        password = self._password() if listen.tcp else None
        await _prepare_database(_socket_url(listen, "postgres"), password)
        await _close_to_readers(_socket_url(listen, _DATABASE))
        state = ServerState(
            url=_socket_url(listen, _DATABASE),
            tcp_url=f"postgresql://postgres:{password}@127.0.0.1:{listen.port}/{_DATABASE}"
            if password
            else None,
            version=self.binaries.version,
            socket_dir=str(self._socket_dir),
        )
        home.write_state(state)
        self.supervisor = asyncio.create_task(self._supervise(), name="postgres-supervisor")
        _log.info("postgres.started", version=state.version, data_dir=str(home.data_dir))
        return state

    async def stop(self) -> None:
        """Stop it in order, within a bounded time. Safe to call twice, and after half a start."""
        if self.supervisor is not None:
            self.supervisor.cancel()
            # Why it gave up was for `watch` to say.
            await asyncio.wait([self.supervisor])
            if not self.supervisor.cancelled():
                self.supervisor.exception()
            self.supervisor = None
        if self._process is not None:
            await self._process.stop(patience_s=_STOP_S)
            self._process = None
        if self._socket_dir is not None:
            self._home.forget(self._socket_dir)
            self._socket_dir = None

    async def _create_cluster(self, deadline: float) -> None:
        assert self.binaries is not None  # noqa: S101 (set by `start`)
        directory = cluster.new_directory(self._home, self._account)
        name = cluster.address(directory, self._account, major=self.binaries.major)
        argv = cluster.initdb_argv(self.binaries, name, fsync=self._fsync)
        since = self._log_size()
        try:
            process = await self._spawn(argv, directory, deadline)
            try:
                await process.exited.wait()
            finally:
                await process.stop(patience_s=5.0)  # if we were cancelled
            if process.returncode != 0:
                raise cluster.start_failure(self._home, "initdb", since=since)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)  # the disk may be full: leave room
            raise
        cluster.adopt(self._home, directory)

    async def _launch(self, deadline: float) -> None:
        """Starts `postgres`; returns when it takes connections."""
        assert self.binaries is not None  # noqa: S101 (set by `start`)
        name = cluster.address(self._home.cluster, self._account, major=self.binaries.major)
        since = self._log_size()
        argv = [str(self.binaries.postgres), "-D", name]
        process = self._process = await self._spawn(argv, self._home.cluster, deadline)
        while not process.exited.is_set():
            pid_file = cluster.read_pid_file(self._home.cluster)
            if pid_file is not None and pid_file.pid == process.pid and pid_file.ready:
                return
            if time.monotonic() > deadline:
                raise Unreachable(
                    f"Postgres in {self._home.data_dir} did not become ready in time.",
                    hint=f"It may still recover from a crash: see {self._home.log_file}.",
                )
            await wait_for(process.exited, _POLL_S)
        raise cluster.start_failure(self._home, "Postgres", since=since)

    async def _spawn(self, argv: list[str], directory: Path, deadline: float) -> Process:
        log = cluster.open_log(self._home)
        try:
            lock = await self._server_lock(deadline)
            return Process(argv, account=self._account, cwd=directory, lock=lock, log=log)
        finally:
            os.close(log)

    async def _server_lock(self, deadline: float) -> int:
        """The server lock, free of any earlier server: waits for it, then ends it.

        The lock falls when the last process is gone, so no backend of a server that was killed can
        still write to the cluster that the next one opens.
        """
        home, began, signals = self._home, time.monotonic(), list(_ESCALATION)
        while (lock := home.take_lock(home.server_lock)) is None:
            now = time.monotonic()
            if signals and now - began > signals[0][0]:
                _, number = signals.pop(0)
                left = cluster.read_pid_file(home.cluster)
                if left is not None and is_server_process(left.pid, home.cluster):
                    _log.warning("postgres.left_behind", pid=left.pid, signal=number.name)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(left.pid, number)
            if now > deadline:
                raise Unreachable(
                    f"A Postgres of an earlier run still works on {home.data_dir}.",
                    hint="Try again when it has ended.",
                )
            await asyncio.sleep(_POLL_S)
        try:
            if home.cluster.exists():
                cluster.remove_stale_pid_file(home.cluster)
            if self._socket_dir is not None:
                cluster.remove_stale_sockets(self._socket_dir)
        except BaseException:
            os.close(lock)
            raise
        return lock

    async def _supervise(self) -> None:
        """Restart the server when it dies; raise when restarts do not help."""
        failures = 0
        while True:
            assert self._process is not None  # noqa: S101 (set by `_launch`)
            began = time.monotonic()
            while not self._process.exited.is_set():
                await wait_for(self._process.exited, _LOG_CHECK_S)
                with contextlib.suppress(Unwritable, OSError):  # a full disk is not the end
                    cluster.bound_log(self._home)
            if time.monotonic() - began > 60.0:
                failures = 0
            _log.warning("postgres.died", status=self._process.returncode, failures=failures)
            await self._start_anew(failures)
            failures += 1

    async def _start_anew(self, failures: int) -> None:
        for attempt in range(failures, _MAX_RESTARTS):
            # The first restart has no pause: most deaths are one-off, and every waiter waits for it.
            await asyncio.sleep(
                min(self._restart_pause_s * 2 ** (attempt - 1), 10.0) if attempt else 0.0
            )
            try:
                await self._launch(time.monotonic() + 300.0)
            except (PinstripeError, OSError) as error:
                _log.warning("postgres.restart_failed", error=str(error), attempt=attempt)
                continue
            self.restarts += 1
            _log.info("postgres.restarted", restarts=self.restarts)
            return
        _log.error("postgres.given_up", log=str(self._home.log_file))
        raise Unreachable(
            f"Postgres in {self._home.data_dir} keeps dying.", hint=f"See {self._home.log_file}."
        )

    def _password(self) -> str:
        """The password for TCP: made once, so that a BI tool can keep it."""
        try:
            return self._home.password_file.read_text().strip()
        except FileNotFoundError:
            password = secrets.token_urlsafe(24)
            self._home.write_private(self._home.password_file, password.encode())
            return password

    def _log_size(self) -> int:
        cluster.bound_log(self._home)
        file = self._home.log_file
        return file.stat().st_size if file.exists() else 0


def _socket_url(listen: cluster.Listen, database: str) -> str:
    # The port names the socket; left out, PGPORT of the user's environment would count.
    host = quote(str(listen.socket_dir))
    return f"postgresql://postgres@/{database}?host={host}&port={listen.port}"


async def _prepare_database(url: str, password: str | None) -> None:
    async with connect(url) as connection:
        if password is not None:
            # Alphabet of `token_urlsafe`: nothing to quote. ALTER ROLE takes no parameters.
            await connection.execute(f"ALTER ROLE postgres PASSWORD '{password}'")
        exists = await connection.fetchval(
            "SELECT true FROM pg_database WHERE datname = $1", _DATABASE
        )
        if not exists:
            await connection.execute(f"CREATE DATABASE {_DATABASE}")


# What Postgres lets every role do that may connect. Large objects, temporary tables and messages in the
# log of changes all write to the disk. Before Postgres 15 `public` was open to all.
_OPEN = "SELECT has_function_privilege('public', 'pg_catalog.lo_create(oid)', 'EXECUTE')"

_CLOSE = f"""
DO $$
DECLARE written regprocedure;
BEGIN
  FOR written IN
    SELECT oid FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname IN (
      'lo_creat', 'lo_create', 'lo_from_bytea', 'lo_put', 'lo_open', 'lowrite', 'lo_truncate',
      'lo_truncate64', 'lo_unlink', 'pg_logical_emit_message')
  LOOP
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', written);
  END LOOP;
END $$;
REVOKE TEMPORARY ON DATABASE {_DATABASE} FROM PUBLIC;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
"""


async def _close_to_readers(url: str) -> None:
    """Revoke rights that only we need in our own server. Other servers are left alone."""
    async with connect(url) as connection:
        if await connection.fetchval(_OPEN):
            await connection.execute(_CLOSE)


def _check_port(port: int) -> None:
    """A plain answer before Postgres gives a longer one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise Misconfigured(
                f"Port {port} on 127.0.0.1 is taken or not allowed: {error.strerror}.",
                hint="Choose another port for the database.",
            ) from error
