"""The HTTP server itself: what a caller may not do, and how what is under way ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from pinstripe.errors import Misconfigured
from pinstripe.serving import http_server
from pinstripe.serving.http_server import address_of, answering, listen


async def _hello(_: Request) -> Response:
    return PlainTextResponse("hello")


@asynccontextmanager
async def connected(
    app: Starlette,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    sock = listen("127.0.0.1", 0)
    port = int(address_of(sock).rpartition(":")[2])
    async with answering(app, sock):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()


def app() -> Starlette:
    return Starlette(routes=[Route("/", _hello)])


async def test_a_head_without_end_is_cut_off() -> None:
    async with connected(app()) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nx-more: " + b"a" * 70_000)
        async with asyncio.timeout(10):
            answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"head_too_large" in answer


async def test_a_refusal_is_read_by_a_caller_who_goes_on_sending() -> None:
    sock = listen("127.0.0.1", 0)
    port = int(address_of(sock).rpartition(":")[2])
    async with asyncio.timeout(20), answering(Starlette(routes=[Route("/", _hello)]), sock):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n")
        for _ in range(64):
            writer.write(b"x" * 65536)
            await asyncio.sleep(0)
        assert b"no_tunnel" in await reader.read()
        writer.close()


async def test_a_long_head_and_many_requests_on_one_connection_are_fine() -> None:
    async with connected(app()) as (reader, writer):
        for _ in range(20):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx-more: " + b"a" * 40_000 + b"\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"server:" not in head.lower()
            assert await reader.readexactly(5) == b"hello"


async def test_a_large_body_does_not_count_as_a_head() -> None:
    async with connected(app()) as (reader, writer):
        for _ in range(3):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 300000\r\n\r\n")
            writer.write(b"b" * 300_000)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(5) == b"hello"


async def test_a_request_that_is_under_way_is_answered_before_the_end() -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: Request) -> Response:
        began.set()
        await go_on.wait()
        return PlainTextResponse("done")

    sock = listen("127.0.0.1", 0)
    port = int(address_of(sock).rpartition(":")[2])
    async with asyncio.timeout(10):
        async with answering(Starlette(routes=[Route("/", slow)]), sock):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await began.wait()
            asyncio.get_running_loop().call_later(0.2, go_on.set)
        assert (await reader.read()).endswith(b"done")
        writer.close()


async def test_a_request_that_does_not_end_is_told_that_the_service_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "_END_S", 0.1)
    began = asyncio.Event()

    async def endless(_: Request) -> Response:
        began.set()
        await asyncio.Event().wait()
        return PlainTextResponse("never")

    sock = listen("127.0.0.1", 0)
    port = int(address_of(sock).rpartition(":")[2])
    async with asyncio.timeout(10):
        async with answering(Starlette(routes=[Route("/", endless)]), sock):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await began.wait()
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"ending"' in answer


async def test_a_head_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_HEAD_S", 0.1)
    async with asyncio.timeout(10), connected(app()) as (reader, writer):
        writer.write(b"GET / HT")
        assert await reader.read() == b""


@pytest.mark.parametrize("begun", [b"0\r\nx-trailer: ", b"0\r\n", b"5;"])
async def test_what_is_neither_head_nor_body_has_an_end_too(begun: bytes) -> None:
    """Trailers and the extensions of chunks: the parser would keep them, and copy them at each part."""
    more = b"a: b\r\n" * 10_000 if begun == b"0\r\n" else b"a" * 60_000
    async with asyncio.timeout(20), connected(app()) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + begun)
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                writer.write(more)
                await writer.drain()
            # Answered at once, by its head; then the connection ends.
            assert b"405 Method Not Allowed" in await reader.read()


async def test_requests_that_do_not_end_are_held_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "_HELD_BYTES", 1_000_000)
    sock = listen("127.0.0.1", 0)
    port = int(address_of(sock).rpartition(":")[2])
    head = b"GET / HTTP/1.1\r\nhost: x\r\nx-more: "
    body = b"POST /wait/x/y HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n"

    async def hold(request: Request) -> Response:
        await request.body()
        return PlainTextResponse("hello")

    routes = [Route("/", _hello), Route("/wait/x/y", hold, methods=["POST"])]
    async with asyncio.timeout(20), answering(Starlette(routes=routes), sock):
        other = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        other[1].write(head + b"a" * 40_000)
        crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
        for number, (_, writer) in enumerate(crowd):
            writer.write((head, body)[number % 2] + b"a" * 40_000)
        ended = [asyncio.ensure_future(reader.read()) for reader, _ in crowd]
        await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        other[1].write(b"\r\n\r\n")
        assert (await other[0].readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
        for _, writer in (other, *crowd):
            writer.close()
        await asyncio.gather(*ended, return_exceptions=True)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no such limit")
async def test_who_reads_nothing_of_an_answer_loses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_UNREAD_S", 1)
    gone = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"a" * 100_000
                await asyncio.sleep(0)
        finally:
            gone.set()

    async def stream(_: Request) -> Response:
        return StreamingResponse(endless())

    async with (
        asyncio.timeout(30),
        connected(Starlette(routes=[Route("/", stream)])) as (_, writer),
    ):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await gone.wait()


async def test_idle_connections_of_one_address_shut_nobody_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "_CONNECTIONS", 20)
    monkeypatch.setattr(http_server, "_FREED", 4)
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: Request) -> Response:
        began.set()
        await go_on.wait()
        return PlainTextResponse("done")

    sock = listen("127.0.0.1", 0)
    port = int(address_of(sock).rpartition(":")[2])
    get = b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n"
    routes = [Route("/", _hello), Route("/slow", slow)]
    async with asyncio.timeout(20), answering(Starlette(routes=routes), sock):
        busy = await asyncio.open_connection("127.0.0.1", port)
        busy[1].write(get % b"/slow")
        await began.wait()
        other = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(60)]
        for reader, writer in (
            await asyncio.open_connection("127.0.0.1", port),
            await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.3", 0)),
            other,
        ):
            writer.write(get % b"/")
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
            writer.close()
        go_on.set()
        assert (await busy[0].readuntil(b"done")).startswith(b"HTTP/1.1 200 ")
        for _, writer in (busy, *crowd):
            writer.close()


async def test_requests_that_wait_leave_places_for_other_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "_CONNECTIONS", 20)
    began, go_on = 0, asyncio.Event()

    async def slow(_: Request) -> Response:
        nonlocal began
        began += 1
        await go_on.wait()
        return PlainTextResponse("done")

    sock = listen("127.0.0.1", 0)
    port = int(address_of(sock).rpartition(":")[2])
    routes = [Route("/", _hello), Route("/slow", slow)]
    async with asyncio.timeout(20), answering(Starlette(routes=routes), sock):
        crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(18)]
        for _, writer in crowd:
            writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        while began < len(crowd):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        reader, refused = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        for address in ("127.0.0.2", "127.0.0.3"):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, local_addr=(address, 0)
            )
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
            writer.close()
        go_on.set()
        for reader, writer in crowd:
            assert (await reader.readuntil(b"done")).startswith(b"HTTP/1.1 200 ")
            writer.close()
        refused.close()


async def test_two_cannot_listen_on_one_port() -> None:
    with listen("127.0.0.1", 0) as sock:
        port = int(address_of(sock).rpartition(":")[2])
        with pytest.raises(Misconfigured, match=str(port)) as caught:
            listen("127.0.0.1", port)
    assert "--port" in caught.value.hint


async def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(Misconfigured, match=r"192\.0\.2\.1"):
        listen("192.0.2.1", 0)
