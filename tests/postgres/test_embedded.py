"""The embedded Postgres on real processes: started, shared, restarted, stopped."""

# A test has its loop to itself, it may block:
# ruff: noqa: ASYNC110, ASYNC220, ASYNC221, ASYNC222, ASYNC240

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pinstripe.errors import Misconfigured, Unreachable
from pinstripe.store.embedded import EmbeddedPostgres, running_url
from pinstripe.store.embedded.cluster import bound_log
from pinstripe.store.embedded.data_dir import NOBODY, Home
from pinstripe.store.pool import connect


@pytest.fixture
def home() -> Iterator[Path]:
    """A data directory that does not exist yet, in a directory that everyone may pass."""
    directory = Path(tempfile.mkdtemp(prefix="pinstripe-embedded-"))
    directory.chmod(0o755)
    yield directory / "postgres"
    shutil.rmtree(directory)


@pytest.fixture
async def server(home: Path) -> AsyncIterator[EmbeddedPostgres]:
    async with EmbeddedPostgres(home, fsync=False, restart_pause_s=0.0) as server:
        yield server


async def ask(url: str, question: str) -> object:
    async with connect(url) as connection:
        return await connection.fetchval(question)


async def write_five(url: str) -> None:
    async with connect(url) as connection:
        await connection.execute("CREATE TABLE public.kept AS SELECT 5 AS five")


async def until_restarted(server: EmbeddedPostgres) -> None:
    async with asyncio.timeout(20):
        while server.restarts == 0:
            await asyncio.sleep(0.01)


async def test_a_fresh_directory_becomes_a_database_in_utf8(server: EmbeddedPostgres) -> None:
    assert server.owned
    assert await ask(server.url, "SELECT current_database()::text") == "pinstripe"
    assert await ask(server.url, "SHOW server_encoding") == "UTF8"
    assert await ask(server.url, "SELECT lower('ÄÖÜ')") == "äöü"


async def test_the_printed_url_works_in_psql(server: EmbeddedPostgres) -> None:
    psql = server.psql
    if psql is None:
        pytest.skip("this Postgres came without psql")
    answer = subprocess.check_output([psql, server.url, "-Atc", "SELECT 42"], text=True)
    assert answer == "42\n"


async def test_data_outlives_a_stop(home: Path) -> None:
    async with EmbeddedPostgres(home) as server:
        await write_five(server.url)
    assert not (home / "server.json").exists()
    async with EmbeddedPostgres(home) as server:
        assert await ask(server.url, "SELECT five FROM public.kept") == 5


async def test_nothing_but_names_can_be_seen_from_outside(
    home: Path, server: EmbeddedPostgres
) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in home.iterdir()}
    assert modes.pop("cluster") == modes.pop("run") == 0o700
    assert set(modes.values()) == {0o600}


async def test_the_server_does_not_inherit_secrets(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_0123456789")
    monkeypatch.setenv("PGPORT", "7")
    async with EmbeddedPostgres(home, fsync=False) as server:
        environment = Path(f"/proc/{server.pid}/environ")
        if environment.exists():
            assert b"sk_test" not in environment.read_bytes()


async def test_a_second_process_is_a_guest_that_stops_nothing(
    home: Path, server: EmbeddedPostgres
) -> None:
    async with EmbeddedPostgres(home) as guest:
        assert not guest.owned
        assert (guest.url, guest.version) == (server.url, server.version)
        assert await running_url(home) == server.url
    assert await ask(server.url, "SELECT 1") == 1


async def test_who_only_looks_starts_and_makes_nothing(home: Path) -> None:
    assert await running_url(home) is None
    assert not home.exists()


async def test_two_that_start_at_once_share_one_server(home: Path) -> None:
    first, second = EmbeddedPostgres(home, fsync=False), EmbeddedPostgres(home, fsync=False)
    await asyncio.gather(first.start(), second.start())
    try:
        assert sorted([first.owned, second.owned]) == [False, True]
        assert first.url == second.url
    finally:
        await first.stop()
        await second.stop()


async def test_a_killed_server_is_started_anew_with_its_data(server: EmbeddedPostgres) -> None:
    await write_five(server.url)
    assert server.pid
    os.kill(server.pid, signal.SIGKILL)
    await until_restarted(server)
    assert await ask(server.url, "SELECT five FROM public.kept") == 5


async def test_a_backend_that_outlives_the_postmaster_is_waited_for(
    server: EmbeddedPostgres,
) -> None:
    assert server.pid
    async with connect(server.url) as connection:
        backend = await connection.fetchval("SELECT pg_backend_pid()")
        os.kill(backend, signal.SIGSTOP)
        os.kill(server.pid, signal.SIGKILL)
        waiting = asyncio.create_task(until_restarted(server))
        # It must not come back while a process may still write: give it every chance to.
        done, _ = await asyncio.wait([waiting], timeout=0.5)
        assert not done
        os.kill(backend, signal.SIGCONT)
        await waiting


async def test_a_server_that_cannot_be_started_anew_is_given_up(
    home: Path, server: EmbeddedPostgres
) -> None:
    assert server.pid
    version = home / "cluster" / "PG_VERSION"
    version.rename(home / "PG_VERSION.away")
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(Unreachable, match="keeps dying"):
        await asyncio.wait_for(server.watch(), 30)
    await server.stop()
    (home / "PG_VERSION.away").rename(version)
    await server.start()
    assert await ask(server.url, "SELECT 1") == 1


async def test_a_start_that_is_cancelled_leaves_no_process(home: Path) -> None:
    starting = asyncio.create_task(EmbeddedPostgres(home, fsync=False).start())
    while not list(home.glob("cluster.new-*")):
        await asyncio.sleep(0.005)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting
    assert await running_url(home) is None
    async with EmbeddedPostgres(home, fsync=False) as server:
        assert await ask(server.url, "SELECT 1") == 1
    assert not list(home.glob("cluster.new-*"))


async def test_a_pid_file_whose_number_was_reused_confuses_nobody(home: Path) -> None:
    async with EmbeddedPostgres(home, fsync=False):
        pid_file = home / "cluster" / "postmaster.pid"
        text = pid_file.read_text().splitlines()
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        pid_file.write_text("\n".join([str(stranger.pid), *text[1:]]) + "\n")
        async with EmbeddedPostgres(home, fsync=False) as server:
            assert await ask(server.url, "SELECT 1") == 1
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_half_a_cluster_is_made_anew(home: Path) -> None:
    home.mkdir()
    (home / "owner.lock").touch()
    (home / "cluster.new-half").mkdir()
    (home / "cluster.new-half" / "PG_VERSION").write_text("18\n")
    async with EmbeddedPostgres(home, fsync=False) as server:
        assert await ask(server.url, "SELECT 1") == 1
    assert not (home / "cluster.new-half").exists()


@pytest.mark.parametrize("name", ["x" * 120, "a,b", "it's 100 % new?&host=x"])
async def test_any_path_will_do(home: Path, name: str) -> None:
    async with EmbeddedPostgres(home / name, fsync=False) as server:
        assert await ask(server.url, "SELECT 1") == 1
        socket_dir = Path(str(await ask(server.url, "SHOW unix_socket_directories")))
        if not socket_dir.is_relative_to(home):
            assert socket_dir.stat().st_mode & 0o777 == 0o700
    if not socket_dir.is_relative_to(home):
        assert not socket_dir.exists()


async def test_tcp_asks_for_the_password_of_the_data_directory(home: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    async with EmbeddedPostgres(home, tcp_port=port, fsync=False) as server:
        assert server.tcp_url
        assert await ask(server.tcp_url, "SELECT 1") == 1
        password = (home / "password").read_text()
        with pytest.raises(Misconfigured, match="password authentication failed") as caught:
            await ask(server.tcp_url.replace(password, "wrong-word"), "SELECT 1")
        assert "wrong-word" not in str(caught.value)
        assert password not in (home / "postgres.log").read_text()
        first_url = server.tcp_url
    async with EmbeddedPostgres(home, tcp_port=port, fsync=False) as server:
        assert server.tcp_url == first_url


async def test_a_port_that_is_taken_is_named(home: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Misconfigured, match=str(port)):
            await EmbeddedPostgres(home, tcp_port=port).start()


async def test_a_failed_start_says_what_the_server_said(home: Path) -> None:
    async with EmbeddedPostgres(home, fsync=False):
        pass
    (home / "cluster" / "postgresql.auto.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(Unreachable, match="no_such_setting"):
        await EmbeddedPostgres(home, fsync=False).start()


async def test_a_cluster_of_another_version_is_refused_with_both_versions(home: Path) -> None:
    async with EmbeddedPostgres(home, fsync=False) as server:
        version = server.version
    (home / "cluster" / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(Misconfigured, match="Postgres 9") as caught:
        await EmbeddedPostgres(home).start()
    assert version in caught.value.message
    assert "Install Postgres 9" in caught.value.hint


async def test_a_directory_that_is_not_ours_is_left_alone(home: Path) -> None:
    home.mkdir()
    (home / "thesis.txt").touch()
    with pytest.raises(Misconfigured, match="not made by Pinstripe"):
        await EmbeddedPostgres(home).start()
    assert [path.name for path in home.iterdir()] == ["thesis.txt"]


async def test_another_servers_data_directory_is_left_alone(home: Path) -> None:
    home.mkdir()
    (home / "PG_VERSION").write_text("18\n")
    with pytest.raises(Misconfigured, match="another Postgres server"):
        await EmbeddedPostgres(home).start()


async def test_a_file_in_place_of_the_directory_is_refused(home: Path) -> None:
    home.touch()
    with pytest.raises(Misconfigured, match="not a directory"):
        await EmbeddedPostgres(home).start()


async def test_a_cluster_without_version_is_not_overwritten(home: Path) -> None:
    async with EmbeddedPostgres(home, fsync=False):
        pass
    (home / "cluster" / "PG_VERSION").unlink()
    with pytest.raises(Misconfigured, match="not a Postgres cluster"):
        await EmbeddedPostgres(home).start()


def test_a_long_log_keeps_its_end(home: Path) -> None:
    made = Home(home)
    made.prepare()
    made.log_file.write_bytes(b"old line\n" * 1_500_000 + b"the last line\n")
    bound_log(made)
    assert made.log_file.stat().st_size == 0
    kept = made.log_file.with_suffix(".log.1").read_bytes()
    assert kept.endswith(b"the last line\n")
    assert len(kept) == 1024 * 1024


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts the server as another user")
async def test_no_process_of_nobody_is_let_in(server: EmbeddedPostgres, home: Path) -> None:
    """The server runs under that name, which unrelated services share."""
    assert await ask(server.url, "SELECT 1") == 1
    (path,) = (home / "run").glob(".s.PGSQL.*[0-9]")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # Nothing but system calls: the child shares no loop with the test.
        os.chdir(path.parent)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with socket.socket(socket.AF_UNIX) as talk:
            talk.settimeout(10)
            talk.connect(path.name)
            words = b"\0\x03\0\0user\0postgres\0database\0pinstripe\0\0"
            talk.sendall((len(words) + 4).to_bytes(4, "big") + words)
            os.write(writer, talk.recv(4096))
        os._exit(0)
    os.close(writer)
    said = await asyncio.to_thread(os.read, reader, 4096)
    os.close(reader)
    os.waitpid(child, 0)
    assert said[:1] == b"E", said
    assert b"Peer authentication failed" in said
