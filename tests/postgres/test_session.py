"""The start of a session: what roles and databases set is in nobody's way, poolers are seen for what
they are, and TLS is as the URL asks.
"""

from __future__ import annotations

import asyncio
import datetime
import getpass
import os
import pwd
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.flows.harness.command import pinstripe
from tests.flows.harness.pooler import transaction_pooler

from pinstripe.errors import Misconfigured, PinstripeError, Unreachable
from pinstripe.store import session
from pinstripe.store.database_url import read_url
from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.migrate import ensure_bookkeeping
from pinstripe.store.pool import check_server, check_sessions, connect, open_pool

# What administrators set for a role or a database, in the hope to protect it.
_SET_BY_OTHERS = {
    "statement_timeout": "2s",
    "lock_timeout": "2s",
    "idle_in_transaction_session_timeout": "2s",
    "idle_session_timeout": "2s",
    "transaction_timeout": "2s",
    "search_path": "public, pg_catalog",
    "datestyle": "German, DMY",
    "intervalstyle": "sql_standard",
    "timezone": "Asia/Kathmandu",
    "bytea_output": "escape",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "row_security": "off",
    "exit_on_error": "on",
    "extra_float_digits": "-15",
    "jit": "on",
    "quote_all_identifiers": "on",
}


async def test_what_a_database_sets_for_its_sessions_is_in_nobodys_way(
    database: str, pg: asyncpg.Connection
) -> None:
    name = await pg.fetchval("SELECT current_database()")
    for key, value in _SET_BY_OTHERS.items():
        quoted = value if "," in value else f"'{value}'"
        await pg.execute(f"ALTER DATABASE {name} SET {key} = {quoted}")
    async with connect(database) as connection:
        shown = {key: await connection.fetchval(f"SHOW {key}") for key in _SET_BY_OTHERS}
    assert {shown[key] for key in _SET_BY_OTHERS if key.endswith("_timeout")} <= {
        *("0", "30s", "1min")
    }
    assert shown["search_path"] == "pg_catalog"
    assert shown["quote_all_identifiers"] == "off"
    assert shown["timezone"] == "UTC"
    assert shown["default_transaction_isolation"] == "read committed"
    same = {key for key, value in _SET_BY_OTHERS.items() if shown[key] == value}
    assert same == set()


async def test_every_session_of_a_pool_is_set_alike(database: str, pg: asyncpg.Connection) -> None:
    name = await pg.fetchval("SELECT current_database()")
    await pg.execute(f"ALTER DATABASE {name} SET search_path = public")
    async with await open_pool(database, min_size=2, max_size=2) as pool:
        for _ in range(3):
            async with pool.acquire() as one, pool.acquire() as two:
                assert await one.fetchval("SHOW search_path") == "pg_catalog"
                assert await two.fetchval("SHOW search_path") == "pg_catalog"


async def test_what_a_process_that_stands_still_has_locked_comes_free(database: str) -> None:
    """Else all that share its rows would wait: a worker for accounts that a frozen gateway has woken."""
    async with connect(database) as frozen, connect(database) as other:
        shown = await frozen.fetchval("SHOW idle_in_transaction_session_timeout")
        assert shown == "30s"
        await other.execute(
            "CREATE TABLE public.place (id int); INSERT INTO public.place VALUES (1)"
        )
        await frozen.execute("SET idle_in_transaction_session_timeout = '0.2s'")
        await frozen.execute("BEGIN; UPDATE public.place SET id = 2")
        async with asyncio.timeout(30):
            await other.execute("UPDATE public.place SET id = 3")


async def test_what_an_administrator_decides_stays(database: str, pg: asyncpg.Connection) -> None:
    """Providers make a full disk read-only so; commits may wait for standbys."""
    name = await pg.fetchval("SELECT current_database()")
    await pg.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await pg.execute(f"ALTER DATABASE {name} SET synchronous_commit = remote_apply")
    async with connect(database) as connection:
        assert not (await check_server(connection)).writable
        assert await connection.fetchval("SHOW synchronous_commit") == "remote_apply"


async def test_options_of_the_url_reach_the_server(database: str) -> None:
    async with connect(f"{database}&options=-c%20geqo%3Doff") as connection:
        assert await connection.fetchval("SHOW geqo") == "off"


async def test_a_host_that_does_not_answer_keeps_none_from_the_next(database: str) -> None:
    """A machine that is down refuses nothing: of it no word comes at all."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    there = read_url(database)
    assert there.hosts
    assert there.ports
    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        hosts = f"127.0.0.1:{port},{quote(there.hosts[0], safe='')}:{there.ports[0]}"
        url = f"postgresql://{there.user}@{hosts}/{there.database}?connect_timeout=2"
        async with connect(url) as connection:
            assert await connection.fetchval("SELECT 1") == 1
        async with asyncio.timeout(1.9), connect(url) as again:  # It is tried last for a while.
            assert await again.fetchval("SELECT 1") == 1
        with pytest.raises(Unreachable, match="in time"):
            async with connect(f"postgresql://127.0.0.1:{port}/x?connect_timeout=2"):
                pass


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_JP", "SQL_ASCII"])
async def test_a_database_that_is_not_in_utf8_is_refused_before_anything_is_written(
    postgres_url: str, encoding: str
) -> None:
    name = f"in_{encoding.lower()}"
    async with connect(postgres_url) as admin:
        await admin.execute(
            f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
        )
    try:
        async with connect(postgres_url.replace("/pinstripe?", f"/{name}?")) as connection:
            for check in (check_server, ensure_bookkeeping):
                with pytest.raises(Misconfigured, match=encoding) as caught:
                    await check(connection)
                assert "ENCODING 'UTF8'" in caught.value.hint
            made = "SELECT count(*) FROM pg_namespace WHERE nspname = 'pinstripe'"
            assert await connection.fetchval(made) == 0
    finally:
        async with connect(postgres_url) as admin:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_the_service_refuses_such_a_database_in_words(
    postgres_url: str, tmp_path: Path
) -> None:
    async with connect(postgres_url) as admin:
        await admin.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        url = postgres_url.replace("/pinstripe?", "/latin?")
        env = {"DATABASE_URL": url, "PINSTRIPE_DATA_DIR": str(tmp_path)}
        ended = await pinstripe("serve", "--port", "0", env=env)
        assert ended.code == 2, ended.text
        assert "LATIN1" in ended.err
        assert "UTF8" in ended.err
        async with connect(url) as connection:
            made = "SELECT count(*) FROM pg_namespace WHERE nspname = 'pinstripe'"
            assert await connection.fetchval(made) == 0
    finally:
        async with connect(postgres_url) as admin:
            await admin.execute("DROP DATABASE latin WITH (FORCE)")


# --- poolers


@asynccontextmanager
async def pgbouncer(database: str, mode: str, settings: str = "") -> AsyncIterator[str]:
    """A real pgbouncer as it comes, before the database of a URL."""
    there = read_url(database, {})
    assert there.hosts
    assert there.ports
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = probe.getsockname()[1]
    with TemporaryDirectory(prefix="pgb-") as directory:
        file = Path(directory) / "pgbouncer.ini"
        file.write_text(
            f"[databases]\n{there.database} = host={directory} port={there.ports[0]} "
            f"user={there.user} dbname={there.database}\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {listen}\nauth_type = any\n"
            f"pool_mode = {mode}\nunix_socket_dir =\n{settings}"
        )
        as_root = os.getuid() == 0
        if as_root:
            shutil.chown(directory, "nobody")
            shutil.chown(file, "nobody")
        name = f".s.PGSQL.{there.ports[0]}"
        # The server lets in this test's user only, and pgbouncer does not run as root.
        async with _relay(Path(directory) / name, to=Path(there.hosts[0]) / name):
            process = await asyncio.create_subprocess_exec(
                *("pgbouncer", "-q", *(("-u", "nobody") if as_root else ()), str(file)),
                stderr=asyncio.subprocess.DEVNULL,
            )
            try:
                await _listens(listen)
                yield f"postgresql://{there.user}@127.0.0.1:{listen}/{there.database}"
            finally:
                process.terminate()
                await process.wait()


@asynccontextmanager
async def _relay(at: Path, *, to: Path) -> AsyncIterator[None]:
    """A socket that anybody may use, connected by this process to another."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_unix_connection(str(to))
        await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))

    async with await asyncio.start_unix_server(relay, str(at)):
        at.chmod(0o777)  # noqa: ASYNC240 (a file of this test)
        yield


async def _listens(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


_WITH_PGBOUNCER = pytest.mark.skipif(not shutil.which("pgbouncer"), reason="needs pgbouncer")


@_WITH_PGBOUNCER
@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_a_pooler_that_does_not_keep_sessions_is_refused_before_it_is_set(
    database: str, mode: str
) -> None:
    """Settings would stay with a server that other clients get next."""
    async with pgbouncer(database, mode) as url:
        with pytest.raises(Misconfigured, match=f"{mode} mode") as caught:
            await check_sessions(url)
        assert "session mode" in caught.value.hint
        with pytest.raises(Misconfigured, match=f"{mode} mode"):
            async with connect(url):
                pass
        client = await asyncpg.connect(url, statement_cache_size=0)
        try:
            path = await client.fetchval("SELECT current_setting('search_path')")
        finally:
            await client.close()
        assert path == '"$user", public'


@_WITH_PGBOUNCER
async def test_a_pooler_in_session_mode_is_as_good_as_none(database: str) -> None:
    """Without `ignore_startup_parameters`: nothing unusual is asked for at the start."""
    async with pgbouncer(database, "session") as url:
        await check_sessions(url)
        async with (
            await open_pool(url, min_size=2, max_size=2) as pool,
            pool.acquire() as connection,
        ):
            assert await connection.fetchval("SHOW search_path") == "pg_catalog"
            assert await connection.fetchval("SHOW jit") == "off"


async def test_a_pooler_that_hides_itself_is_found_at_the_start(database: str) -> None:
    with TemporaryDirectory(prefix="pinstripe-") as directory:
        async with transaction_pooler(database, Path(directory)) as url:
            with pytest.raises(Misconfigured, match="transaction mode"):
                await check_sessions(url)


@pytest.mark.parametrize(
    ("code", "said", "kind", "hint"),
    [
        ("08P01", "no more connections allowed (max_client_conn)", Unreachable, "limits"),
        ("XX000", "MaxClientsInSessionMode: max clients reached", Unreachable, "limits"),
        ("08P01", "unsupported startup parameter: options", Misconfigured, "startup_parameters"),
    ],
)
async def test_a_pooler_without_room_passes_and_is_no_wrong_parameter(
    code: str, said: str, kind: type[PinstripeError], hint: str
) -> None:
    """pgbouncer and Supavisor give one code to all that they say themselves."""
    fields = b"".join(f"{k}{v}\0".encode() for k, v in (("S", "FATAL"), ("C", code), ("M", said)))

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"E" + (len(fields) + 5).to_bytes(4, "big") + fields + b"\0")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(kind) as caught:
            async with connect(f"postgresql://me@127.0.0.1:{port}/x?sslmode=disable"):
                pass
    assert said in caught.value.message
    assert hint in caught.value.hint


async def test_a_pooler_that_has_no_server_for_us_is_told_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It answers the login, and has the first statement wait: pgbouncer for two minutes."""
    monkeypatch.setattr(session, "CONNECT_S", 0.5)
    ready = (
        b"R\0\0\0\x08\0\0\0\0",
        b"S\0\0\0\x18server_version\x0016.0\0",
        b"K\0\0\0\x0c\0\0\0\x01\0\0\0\x01",
        b"Z\0\0\0\x05I",
    )

    async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"".join(ready))
        while await reader.read(1000):
            pass
        writer.close()

    async with await asyncio.start_server(welcome, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"postgresql://me@127.0.0.1:{port}/x?sslmode=disable"
        with pytest.raises(Unreachable, match="in time") as caught:
            async with asyncio.timeout(30), connect(url):
                pass
        assert "pooler" in caught.value.hint
        pool = await open_pool(url, min_size=0, max_size=1)
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1.*in time") as caught:
            async with asyncio.timeout(30), pool, pool.acquire():
                pass
        assert "pooler" in caught.value.hint


# --- who listens at a socket


async def test_the_user_behind_a_socket_is_the_one_that_the_url_names(
    database: str,
) -> None:
    hosts = read_url(database, {}).hosts or [""]
    owner = pwd.getpwuid(os.stat(hosts[0]).st_uid).pw_name  # noqa: PTH116
    async with connect(f"{database}&requirepeer={owner}") as connection:
        assert await connection.fetchval("SELECT 1") == 1
    other = "daemon" if owner != "daemon" else getpass.getuser()
    with pytest.raises(Misconfigured, match="requirepeer"):
        async with connect(f"{database}&requirepeer={other}"):
            pass


# --- TLS


def signed(name: str, issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None) -> tuple[
    x509.Certificate, ec.EllipticCurvePrivateKey
]:  # fmt: skip
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    by, by_key = issuer or (subject, key)
    now = datetime.datetime.now(datetime.UTC)
    alternatives = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer is not None:
        made = made.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return made.sign(by_key, hashes.SHA256()), key


def write(path: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    path.with_suffix(".crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    path.with_suffix(".key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@asynccontextmanager
async def server_with_tls(database: str) -> AsyncIterator[tuple[str, Path]]:
    """(URL by TCP without parameters, certificate of the authority). pgbouncer speaks for the server."""
    authority, authority_key = signed("authority", None)
    server, server_key = signed("server", (authority.subject, authority_key))
    with TemporaryDirectory(prefix="tls-") as directory:
        os.chmod(directory, 0o755)  # noqa: PTH101
        write(Path(directory) / "authority", authority, authority_key)
        write(Path(directory) / "server", server, server_key)
        settings = (
            f"client_tls_sslmode = allow\nclient_tls_key_file = {directory}/server.key\n"
            f"client_tls_cert_file = {directory}/server.crt\n"
        )
        async with pgbouncer(database, "session", settings) as url:
            yield url, Path(directory) / "authority.crt"


async def encrypted(url: str) -> bool:
    async with connect(url) as connection:
        transport = connection._transport  # type: ignore[attr-defined]
        return transport.get_extra_info("ssl_object") is not None


@_WITH_PGBOUNCER
async def test_tls_is_as_the_url_asks(database: str) -> None:
    async with server_with_tls(database) as (url, authority):
        assert not await encrypted(f"{url}?sslmode=disable")
        assert await encrypted(f"{url}?sslmode=prefer")
        assert await encrypted(f"{url}?sslmode=require")
        assert await encrypted(f"{url}?sslmode=no-verify")
        named = url.replace("127.0.0.1", "db.example.com") + "?hostaddr=127.0.0.1"
        roots = f"sslrootcert={authority}"
        for good in ("verify-full", "verify-ca", "require", "require&channel_binding=require"):
            assert await encrypted(f"{url}?sslmode={good}&{roots}")
        assert await encrypted(f"{named}&sslmode=verify-ca&{roots}")
        for bad, why in (
            (f"{named}&sslmode=verify-full&{roots}", "mismatch"),
            (f"{url}?sslmode=verify-full&sslrootcert=system", "issuer"),
            (f"{url}?channel_binding=require", "issuer"),
        ):
            with pytest.raises(Misconfigured, match=f"(?i){why}") as caught:
                await encrypted(bad)
            assert "sslrootcert" in caught.value.hint


async def test_a_server_without_tls_is_named_as_that(database: str, tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path / "postgres", fsync=False, tcp_port=0) as postgres:
        assert postgres.tcp_url is not None
        with pytest.raises(Misconfigured, match="does not speak TLS") as caught:
            await encrypted(f"{postgres.tcp_url}?sslmode=require")
        assert "ssl = on" in caught.value.hint
        assert not await encrypted(f"{postgres.tcp_url}?sslmode=prefer&channel_binding=prefer")


async def test_keepalives_are_set_on_the_socket(tmp_path: Path) -> None:
    async with (
        EmbeddedPostgres(tmp_path / "postgres", fsync=False, tcp_port=0) as postgres,
        connect(f"{postgres.tcp_url}?keepalives_idle=31&tcp_user_timeout=9000") as connection,
    ):
        sock = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 31
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 9000
