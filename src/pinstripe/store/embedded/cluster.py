"""Postgres's own data directory: made once, checked and configured at each start.

`initdb` works under a temporary name and the finished cluster is renamed, so a kill halfway leaves nothing
that the next start could take for a cluster. The three configuration files are pure text and are written
at each start. Users put their own settings into `ALTER SYSTEM`: Postgres keeps them in
`postgresql.auto.conf`, which it reads last.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pinstripe.encryption import OWN_DIRECTORY
from pinstripe.errors import Misconfigured, PinstripeError, Unreachable, Unwritable
from pinstripe.store.embedded.data_dir import NOBODY, Home, OsAccount, give
from pinstripe.store.embedded.process import Binaries, is_server_process

_HERE = "/proc/self/cwd"
"""A process's own directory, reached without passing through the directories above it."""

_NEEDED_BYTES = 100 * 1024 * 1024
"""An empty cluster has 40 MB, its database 8 MB, the first checkpoints grow the WAL by 32 MB."""

_LOG_BYTES = 10 * 1024 * 1024
_LOG_KEPT_BYTES = 1024 * 1024


def major_of(cluster: Path) -> int | None:
    """The major version that wrote `cluster`; None if there is no cluster yet."""
    if not cluster.exists():
        return None
    try:
        return int((cluster / "PG_VERSION").read_text().strip().partition(".")[0])
    except (FileNotFoundError, ValueError) as error:
        raise Misconfigured(
            f"{cluster} is not a Postgres cluster: its PG_VERSION is missing or odd.",
            hint=f"Restore it from a backup, or remove {cluster.parent} and sync anew.",
        ) from error
    except PermissionError as error:
        raise Misconfigured(
            f"{cluster} does not belong to the user with uid {os.geteuid()}.",
            hint="Run Pinstripe as the user who made it, or choose another data directory.",
        ) from error


def address(directory: Path, account: OsAccount | None, *, major: int) -> str:
    """What the server, started in `directory`, calls it.

    A directory above it may be closed to the server's user (/root is 0700, and a checkout under it
    must work). The child enters it while it is still root, and then calls it by `_HERE`.
    """
    if account is None:
        return str(directory)
    if _is_reachable(directory, account):
        return str(directory)
    # Before 16 the programs looked for themselves by leaving their directory and coming back.
    if major < 16 or not Path(_HERE).exists():
        # Then our own directory is to be passed, though not listed.
        for each in (d for d in directory.parents if d.name == OWN_DIRECTORY):
            each.chmod(0o711)
        if _is_reachable(directory, account):
            return str(directory)
        raise Misconfigured(
            f"Postgres must not run as root, and uid {account.uid} cannot reach {directory}.",
            hint="Choose a data directory below directories that everyone may pass, such as /var.",
        )
    return _HERE


def _is_reachable(directory: Path, account: OsAccount) -> bool:
    """Whether that user may pass all that is above it."""
    tried = subprocess.run(  # noqa: S603 (our own argv)
        ["/bin/sh", "-c", 'cd -- "$1"', "sh", str(directory)],
        cwd="/",
        user=account.uid,
        group=account.gid,
        extra_groups=[],
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return tried.returncode == 0


def new_directory(home: Home, account: OsAccount | None) -> Path:
    """An empty directory for `initdb`, where there is room for what it writes.

    On a full disk `initdb` could not even log why it failed.
    """
    free = shutil.disk_usage(home.data_dir).free
    if free < _NEEDED_BYTES:
        raise Unwritable(
            f"{home.data_dir} has {free >> 20} MB of free space; a new database needs "
            f"{_NEEDED_BYTES >> 20} MB.",
            hint="Make room, or choose another data directory.",
        )
    directory = Path(tempfile.mkdtemp(prefix="cluster.new-", dir=home.data_dir))
    give(directory, account)
    return directory


def initdb_argv(binaries: Binaries, directory: str, *, fsync: bool) -> list[str]:
    """The same on every machine: UTF-8, sorted by code point, no locale of the system's."""
    argv = [str(binaries.initdb), "-D", directory, "-U", "postgres", "-E", "UTF8"]
    argv += ["--locale=C", "--auth=trust"]  # auth: replaced before the server listens
    if binaries.major >= 17:
        argv += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    if not fsync:
        argv += ["--no-sync"]
    return argv


def adopt(home: Home, directory: Path) -> None:
    """Rename the finished cluster to its name."""
    directory.rename(home.cluster)
    descriptor = os.open(home.data_dir, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Listen:
    """Where a server listens: always on the socket, on TCP if `tcp`."""

    socket_dir: Path
    port: int
    tcp: bool


def configure(
    home: Home, account: OsAccount | None, *, major: int, listen: Listen, fsync: bool
) -> None:
    """Write the configuration files into the cluster."""
    server_socket_dir = str(listen.socket_dir)
    if (
        listen.socket_dir.parent == home.data_dir
        and address(home.data_dir, account, major=major) == _HERE
    ):
        # Postgres shortens "cwd/.." as text, to a wrong path: a link is left to the kernel.
        link = home.cluster / "run"
        if not link.is_symlink():
            link.symlink_to(f"../{listen.socket_dir.name}")
        server_socket_dir = f"{_HERE}/{link.name}"
    names = _user_names(account)
    texts = {
        "postgresql.conf": server_conf(
            major=major,
            socket_dir=server_socket_dir,
            port=listen.port,
            tcp=listen.tcp,
            fsync=fsync,
            shared_memory_is_small=is_small(Path("/dev/shm")),  # noqa: S108
        ),
        "pg_hba.conf": access_conf(named=bool(names)),
        "pg_ident.conf": user_map(names, major=major),
    }
    for name, text in texts.items():
        # A new file, renamed: the cluster is another user's, whose symlinks root must not follow.
        descriptor, new = tempfile.mkstemp(dir=home.cluster)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        give(Path(new), account)
        Path(new).replace(home.cluster / name)


def _user_names(account: OsAccount | None) -> list[str]:
    """The machine's users who may connect through the socket: we, who made the cluster, and root.

    Root may become any of them anyway, and may want to look (`sudo pinstripe status`). Not `nobody`,
    whose name the server has where root starts it: that name is shared by services that have nothing to
    do with each other, and nothing of ours connects under it.
    """
    uids = {os.geteuid(), 0, account.uid if account and account.uid != NOBODY else 0}
    try:
        return sorted(pwd.getpwuid(uid).pw_name for uid in uids)
    except KeyError:
        return []


@dataclass(frozen=True)
class PidFile:
    """What Postgres writes into postmaster.pid."""

    pid: int
    ready: bool


def read_pid_file(cluster: Path) -> PidFile | None:
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
        # Line 8 is the state that `pg_ctl -w` waits for.
        return PidFile(int(lines[0]), len(lines) >= 8 and lines[7].strip() == "ready")
    except (FileNotFoundError, ValueError, IndexError):
        return None


def remove_stale_pid_file(cluster: Path) -> None:
    """To be called with the server lock held: then no process of a server of ours is alive.

    The pid in the file may be another program's by now, and Postgres would refuse to start.
    """
    found = read_pid_file(cluster)
    if found is not None and is_server_process(found.pid, cluster):
        raise Misconfigured(
            f"A Postgres that Pinstripe did not start (pid {found.pid}) runs on {cluster}.",
            hint="Stop it first.",
        )
    (cluster / "postmaster.pid").unlink(missing_ok=True)


def remove_stale_sockets(socket_dir: Path) -> None:
    """To be called with the server lock held, as above.

    Postgres asks whether the pid in a socket's lock file is taken; that of a killed server whose
    new parent does not reap (a container without init) is, for ever.
    """
    for path in socket_dir.glob(".s.PGSQL.*"):
        path.unlink()


def open_log(home: Home) -> int:
    """A descriptor to append to; bounded, see `bound_log`."""
    bound_log(home)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(home.log_file, flags, 0o600)


def bound_log(home: Home) -> None:
    """Truncate a log that is too long to its end; the server goes on appending to it."""
    try:
        size = home.log_file.stat().st_size
    except FileNotFoundError:
        return
    if size <= _LOG_BYTES:
        return
    with home.log_file.open("r+b") as file:
        file.seek(size - _LOG_KEPT_BYTES)
        end = file.read()
        file.truncate(0)
    home.write_private(home.log_file.with_suffix(".log.1"), end)


def start_failure(home: Home, program: str, *, since: int) -> PinstripeError:
    """The error for a `program` that ended instead of starting, with its last words."""
    with home.log_file.open("rb") as file:
        file.seek(since)
        said = file.read().decode(errors="replace")
    last_lines = " | ".join(said.strip().splitlines()[-8:])
    message = f"{program} failed in {home.data_dir}: {last_lines}"
    if "No space left on device" in said or "File too large" in said or "quota" in said:
        return Unwritable(message, hint="Make room, or choose another data directory.")
    if "could not bind" in said or "Address already in use" in said:
        return Misconfigured(message, hint="Another program listens on this port: choose another.")
    if "could not look up effective user ID" in said:
        return Misconfigured(
            message, hint="This uid needs a name in /etc/passwd; or set DATABASE_URL."
        )
    if "shared memory" in said or "semaphore" in said:
        return Misconfigured(message, hint="Give the machine or container more shared memory.")
    return Unreachable(message, hint=f"The whole log is {home.log_file}.")


_FIXED = (
    "# One writer per table, a few waiters, a few BI tools.",
    "max_connections = 100",
    "# Hot rows and the indexes of a middle-sized account; the rest is the page cache's work.",
    "shared_buffers = 128MB",
    "# Nobody replicates from here: a COPY into a table of the same transaction needs no WAL.",
    "wal_level = minimal",
    "max_wal_senders = 0",
    "max_logical_replication_workers = 0",
    "# The binaries have no lz4, and pglz saves 17 % of the WAL of upserts for 15 % more time.",
    "wal_compression = off",
    "# Fewer checkpoints in a backfill: each one starts the full-page images anew. The price",
    "# is a longer recovery after a crash, some seconds.",
    "max_wal_size = 2GB",
    "checkpoint_timeout = 15min",
    "# A recycled file keeps what was in it, and an erasure has to reach the WAL too.",
    "wal_recycle = off",
    "# Building indexes at the end of a backfill.",
    "maintenance_work_mem = 128MB",
    "# The upserts are short: compiling them costs more than they take.",
    "jit = off",
    "# Upserts leave dead rows; autovacuum is what removes them.",
    "autovacuum = on",
    "timezone = 'UTC'",
    "log_timezone = 'UTC'",
    "log_line_prefix = '%m [%p] '",
    "log_checkpoints = off",
    "# Errors and statements may hold a customer's data, and go to whoever sent them; the log",
    "# gets LOG, FATAL and PANIC, which are the server's own.",
    "log_min_error_statement = panic",
    "log_min_messages = log",
)
"""Settings, each after its reason, that are the same everywhere."""


def server_conf(
    *, major: int, socket_dir: str, port: int, tcp: bool, fsync: bool, shared_memory_is_small: bool
) -> str:
    """The text of postgresql.conf: safe, for bulk writes on a machine of one or two cores."""
    listen = "127.0.0.1" if tcp else ""
    lines = [
        "# Written by Pinstripe at each start. For settings of your own use ALTER SYSTEM.",
        f"listen_addresses = {_quote(listen)}",
        f"port = {port}",
        f"unix_socket_directories = {_quote(socket_dir)}",
        "unix_socket_permissions = 0700",
        "password_encryption = 'scram-sha-256'",
        "# A commit is durable when it returns; the mirror's cursor vouches for it.",
        f"fsync = {_on(fsync)}",
        "synchronous_commit = on",
        f"full_page_writes = {_on(fsync)}",
        *_FIXED,
    ]
    if shared_memory_is_small:
        lines += [
            "# /dev/shm is small here (64 MB in a container): a parallel query would not fit.",
            "dynamic_shared_memory_type = mmap",
        ]
    if major >= 18:
        lines += [
            "# No processes that read ahead: they cost 1.4 MB, and we mostly write.",
            "io_method = sync",
        ]
    return "\n".join(lines) + "\n"


def access_conf(*, named: bool) -> str:
    """The text of pg_hba.conf: who may connect, and how they prove who they are.

    On the socket, which stands in a directory of mode 0700, the kernel says who is there (`peer`).
    A uid without a name (a container started with an arbitrary uid) cannot use peer: for it the
    directory is the only guard, and it suffices.
    """
    local = "peer map=pinstripe" if named else "trust"
    return (
        f"local all all {local}\n"
        "host all all 127.0.0.1/32 scram-sha-256\n"
        "host all all ::1/128 scram-sha-256\n"
    )


def user_map(names: list[str], *, major: int) -> str:
    """The text of pg_ident.conf: these users of the machine may be any role (16+) or `postgres`."""
    role = "all" if major >= 16 else "postgres"
    return "".join(f'pinstripe "{name}" {role}\n' for name in names)


def is_small(shared_memory: Path) -> bool:
    """Whether shared memory holds less than the 256 MB that a parallel query may ask for."""
    try:
        facts = os.statvfs(shared_memory)
    except OSError:
        return False
    return facts.f_frsize * facts.f_blocks < 256 * 1024 * 1024


def _on(value: bool) -> str:
    return "on" if value else "off"


def _quote(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
