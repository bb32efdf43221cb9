"""Whatever way a body is sent in, the upstream gets it to the byte or gets nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from tests.flows.harness.gateway_account import serving
from tests.flows.harness.recording_stripe import recording
from tests.flows.harness.ways_of_sending import (
    BAD,
    GOOD,
    REAL_OFFERS,
    Sent,
    every_way,
    send_all,
    wrong,
)

from pinstripe.gateway.proxy.proxy import open_proxy
from pinstripe.gateway.proxy.upstream import hosts_at
from pinstripe.gateway.syncs import Syncs


async def tried(ways: Iterable[Sent]) -> list[str]:
    """What went wrong with them at a proxy."""
    ways = list(ways)
    async with recording() as stripe:
        async with (
            open_proxy(Syncs(), hosts=hosts_at(stripe.url)) as proxy,
            serving(proxy) as url,
        ):
            statuses = await send_all(ways, url)
        # The proxy has ended, and with it whatever it was about to send.
        return wrong(ways, statuses, stripe.requests)


async def test_a_body_arrives_to_the_byte_whatever_upgrade_is_offered() -> None:
    assert await tried(every_way(framings=GOOD, deliveries=("whole", "head, body", "second"))) == []


async def test_a_body_that_comes_byte_by_byte_arrives_to_the_byte() -> None:
    assert await tried(every_way(methods=("POST",), framings=GOOD, deliveries=("bytes",))) == []


async def test_what_is_framed_in_two_ways_or_none_goes_nowhere() -> None:
    deliveries = ("whole", "head, body", "second")
    offers = ("none", "h2c", "foo")
    assert await tried(every_way(("POST", "GET"), BAD, offers, deliveries)) == []
    assert await tried(every_way(("POST",), BAD, ("none", "foo"), ("bytes",))) == []


async def test_what_follows_a_request_that_offers_an_upgrade_is_no_request() -> None:
    ways = every_way(framings=GOOD, offers=REAL_OFFERS, deliveries=("more after",))
    assert await tried(ways) == []


async def test_tunnels_and_unknown_methods_are_refused_with_all_that_follows() -> None:
    async with (
        recording() as stripe,
        open_proxy(Syncs(), hosts=hosts_at(stripe.url)) as proxy,
        serving(proxy) as url,
    ):
        for sent in every_way(("CONNECT", "PRI", "FOO"), GOOD, deliveries=("whole", "more after")):
            assert await sent.answer(url) in (400, 405), sent.name
        for sent in every_way(("TRACE",), GOOD, deliveries=("whole",)):
            assert await sent.answer(url) == 405, sent.name
    assert stripe.requests == []


async def test_the_body_of_a_webhook_that_offers_an_upgrade_is_not_run() -> None:
    ran: list[str] = []

    async def here(request: Request) -> Response:
        ran.append(f"{request.method} {request.url.path} {(await request.body()).decode()}")
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/{path:path}", here, methods=["POST"])])
    order = "POST /api/syncs/default/pause HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    request = (
        "POST /webhooks/stripe/default HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\n"
        f"Upgrade: foo\r\nContent-Length: {len(order)}\r\n\r\n{order}"
    ).encode()
    head_ends = request.index(b"\r\n\r\n") + 4
    async with serving(app) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        for pieces in ((request,), (request[:head_ends], request[head_ends:], order.encode())):
            reader, writer = await asyncio.open_connection(host, int(port))
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            async with asyncio.timeout(10):
                answer = await reader.readuntil(b"ok")
                with suppress(ConnectionError):
                    assert await reader.read() == b""  # The connection ends with the answer.
            writer.close()
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" in answer
    assert ran == [f"POST /webhooks/stripe/default {order}"] * 2


async def test_what_was_read_whole_is_answered_though_rubbish_follows() -> None:
    async with (
        recording() as stripe,
        open_proxy(Syncs(), hosts=hosts_at(stripe.url)) as proxy,
        serving(proxy) as url,
    ):
        host, _, port = url.removeprefix("http://").partition(":")
        request = b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
        broken = b"POST /v1/y HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc"
        for rubbish in (b"\0\0\0", b"def", broken):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(request + rubbish)
            async with asyncio.timeout(10):
                answer = await reader.readuntil(b"{}")
                assert answer.startswith(b"HTTP/1.1 200 ")
                rest = await reader.read()
            writer.close()
            # Not even a refusal: it would look like the answer to something.
            assert rest.startswith(b"HTTP/1.1 400 ") if rubbish is broken else not rest
        assert [r.line for r in stripe.requests] == [b"POST /v1/x HTTP/1.1"] * 3
