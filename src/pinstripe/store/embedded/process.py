"""One run of a Postgres program as our direct child, which does not outlive us.

A shell starts a watchdog and then becomes the program, so the program's pid is the one that we
know. The watchdog reads from a pipe whose other end is ours: when we die, however we die, the pipe
closes and the watchdog asks Postgres to shut down. (Linux's PR_SET_PDEATHSIG was weighed: it fires
when the *thread* that forked ends, is cleared by setuid, and macOS has none.)

Descriptor 3 of the program holds the server lock, for as long as one of its processes lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from pathlib import Path

from pinstripe.errors import Misconfigured
from pinstripe.store.embedded.home import Account

_LAUNCH = """
exec 3>&1 1>/dev/null 4<&0 0</dev/null
( (
  exec 3>&- 2>/dev/null
  cd /
  read -r line <&4 && exit
  kill -INT $$
  n=0
  while kill -0 $$ && [ $n -lt 60 ]; do sleep 1; n=$((n+1)); done
  kill -QUIT $$
) & )
exec "$@" 4<&-
"""
"""A line in the pipe dismisses the watchdog; its end (we are dead) wakes it.

SIGINT is Postgres's fast shutdown: sessions are ended, data is written. SIGQUIT, a minute later,
leaves the rest to crash recovery. The watchdog is nobody's child by design: Postgres would
take the exit of an unknown child for the crash of a backend.
"""


class Process:
    """A running program; `exited` is set when it has ended."""

    def __init__(
        self,
        argv: list[str],
        *,
        account: Account | None,
        cwd: Path,
        lock: int,
        log: int,
    ) -> None:
        """Takes over `lock`: from here on only the program's processes hold it."""
        self.exited = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        try:
            self._popen = subprocess.Popen(  # noqa: S603 (our own argv)
                ["/bin/sh", "-c", _LAUNCH, "pinstripe-postgres", *argv],
                stdin=subprocess.PIPE,
                stdout=lock,
                stderr=log,
                cwd=cwd,
                env=_environment(),
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
                start_new_session=True,  # Ctrl-C in a terminal is for us; we stop it in order
            )
        except PermissionError as error:
            raise Misconfigured(
                f"Cannot start Postgres in {cwd}: {error.strerror}.",
                hint="Root needs CAP_SETUID and CAP_SETGID here; or run as a normal user.",
            ) from error
        finally:
            os.close(lock)
        self.pid = self._popen.pid
        threading.Thread(target=self._await_exit, name="postgres-exit", daemon=True).start()

    @property
    def returncode(self) -> int | None:
        return self._popen.returncode

    def send_signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    async def stop(self, *, patience_s: float) -> None:
        """Ends the program: in order, after `patience_s` at once, and then by force."""
        for number, wait_s in (
            (signal.SIGINT, patience_s),
            (signal.SIGQUIT, 10.0),
            (signal.SIGKILL, 10.0),
        ):
            if self.exited.is_set():
                return
            self.send_signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self.exited.wait()

    def _await_exit(self) -> None:
        """In a thread: uvloop's child watcher cannot start a child as another user."""
        self._popen.wait()
        if self._popen.stdin is not None:
            with contextlib.suppress(OSError):  # the watchdog is dead too
                self._popen.stdin.write(b"\n")
                self._popen.stdin.flush()
            with contextlib.suppress(OSError):
                self._popen.stdin.close()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self.exited.set)


def _environment() -> dict[str, str]:
    """Nothing of ours: neither the Stripe key nor a PGDATA or PGPORT meant for another server.

    English messages in the log; a library path only if the machine needs one.
    """
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    return {"PATH": os.defpath, "LC_ALL": "C", **kept}


def is_server_process(pid: int, cluster: Path) -> bool:
    """Whether `pid` is a live Postgres process of `cluster`, not a reused number or a zombie."""
    if Path("/proc/self/cwd").exists():
        try:
            # Every Postgres process stands in its data directory; a zombie stands nowhere.
            return Path(f"/proc/{pid}/cwd").samefile(cluster)
        except OSError:
            return False
    answer = subprocess.run(  # noqa: S603 (our own argv)
        ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return str(cluster) in answer.stdout
