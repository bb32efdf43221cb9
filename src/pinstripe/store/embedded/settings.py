"""The three files that configure an embedded Postgres, as text. Pure.

They are written anew at each start. A user's own settings belong into `ALTER SYSTEM`, which
Postgres keeps in `postgresql.auto.conf` and reads last.
"""

from __future__ import annotations

import os
from pathlib import Path

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
