"""The proxy passes on what it got, to the byte, and only to Stripe's hosts."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.flows.harness.gateway_account import serving
from tests.flows.harness.recording_stripe import PLAIN, Recorder, raw, recording

from pinstripe.gateway.proxy.proxy import open_proxy
from pinstripe.gateway.proxy.upstream import STRIPE, hosts_at
from pinstripe.gateway.syncs import Syncs

END = b"Connection: close\r\n\r\n"


@asynccontextmanager
async def proxied(**options: Any) -> AsyncIterator[tuple[Recorder, str]]:
    async with (
        recording() as stripe,
        open_proxy(Syncs(), hosts=hosts_at(stripe.url), **options) as proxy,
        serving(proxy) as url,
    ):
        yield stripe, url


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def error_of(answer: bytes) -> dict[str, str]:
    found: dict[str, str] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return found


async def test_paths_queries_and_bodies_arrive_byte_for_byte() -> None:
    async with proxied() as (stripe, url):
        path = b"/v1/plans/50%25%20off%2F%C3%A9t%C3%A9;a=b@c:d~!$&'()*+,=?expand[]=a%5Bb&x=%2f+|{}"
        body = b"name=\xc3\xa9&metadata[a]=%00+%20"
        await raw(
            url,
            b"POST /api.stripe.com" + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: "
            b"%d\r\n" % len(body) + END + body,
        )
        assert stripe.requests[0].line == b"POST " + path + b" HTTP/1.1"
        assert stripe.requests[0].body == body


async def test_headers_keep_their_order_and_those_of_the_connection_stay_behind() -> None:
    async with proxied() as (stripe, url):
        await raw(
            url,
            b"GET /v1/x HTTP/1.1\r\nHost: mine\r\nX-B: 1\r\nStripe-Version: 2024-06-20\r\nX-A: 2\r\n"
            b"X-B: 3\r\nIdempotency-Key:  k  k\r\nKeep-Alive: 5\r\nX-Hop: 1\r\nPinstripe-Wait: true\r\n"
            b"TE: trailers\r\nX-Utf: \xc3\xa9\r\nCookie: a=b\r\n"
            b"Connection: close, X-Hop, Idempotency-Key\r\n\r\n",
        )
        host = stripe.url.removeprefix("http://").encode()
        assert stripe.requests[0].headers == [
            (b"host", host),
            (b"x-b", b"1"),
            (b"stripe-version", b"2024-06-20"),
            (b"x-a", b"2"),
            (b"x-b", b"3"),
            (b"idempotency-key", b"k  k"),
            (b"x-utf", b"\xc3\xa9"),
            (b"cookie", b"a=b"),
        ]


async def test_answers_come_back_byte_for_byte_packed_or_not() -> None:
    async with proxied() as (stripe, url):
        packed = gzip.compress(b'{"a": 1}')
        stripe.answer = (
            b"HTTP/1.1 402 Odd Words\r\nContent-Type: application/json\r\nX-Two: 1\r\nX-Two: 2\r\n"
            b"Content-Encoding: gzip\r\nServer: nginx\r\nDate: then\r\nSet-Cookie: a\r\nKeep-Alive: 1\r\n"
            b"Pinstripe-Mirrored: forged\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed
        )
        answer = await raw(url, b"GET /v1/x HTTP/1.1\r\nHost: x\r\n" + END)
        head, _, body = answer.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert status(answer) == 402
        assert body == packed
        assert lines[1:8] == [
            b"content-type: application/json",
            b"x-two: 1",
            b"x-two: 2",
            b"content-encoding: gzip",
            b"server: nginx",
            b"date: then",
            b"set-cookie: a",
        ]
        assert b"pinstripe-mirrored: no" in lines
        assert b"forged" not in answer


async def test_what_is_not_json_is_passed_on_as_it_comes() -> None:
    async with proxied() as (stripe, url):
        pdf = bytes(range(256)) * 4000
        stripe.answer = (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/pdf\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"%x\r\n" % len(pdf) + pdf + b"\r\n0\r\n\r\n"
        )
        request = b"GET /files.stripe.com/v1/x HTTP/1.0\r\nHost: x\r\n\r\n"
        answer = await raw(url, request)
        assert answer.partition(b"\r\n\r\n")[2].replace(b"\r\n0\r\n\r\n", b"").endswith(pdf[-1000:])
        assert len(answer) > len(pdf)


@pytest.mark.parametrize("kind", [b"application/pdf", b"application/json"])
async def test_an_answer_that_breaks_off_is_never_a_complete_one(kind: bytes) -> None:
    async with proxied() as (stripe, url):
        stripe.hang_up = True
        stripe.answer = (
            b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nContent-Length: 100\r\n\r\n{"
        )
        answer = await raw(url, b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        if kind == b"application/json":
            assert status(answer) == 502
            assert error_of(answer)["type"] == "api_error"
            assert "may or may not have been done" in error_of(answer)["message"]
        else:
            assert b"content-length: 100" in answer
            assert answer.endswith(b"\r\n\r\n{")
        assert len(stripe.requests) == 1


async def test_a_large_body_streams_and_one_too_large_is_refused() -> None:
    async with proxied(body_limit=3_000_000) as (stripe, url):
        body = bytes(range(256)) * 8000
        head = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(body) + END
        assert status(await raw(url, head + body)) == 200
        assert stripe.requests[0].body == body

        head = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 3000001\r\n\r\n"
        assert status(await raw(url, head)) == 413

        chunked = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunked += (b"10000\r\n" + b"x" * 65536 + b"\r\n") * 60 + b"0\r\n\r\n"
        assert status(await raw(url, chunked)) in (0, 413)
        assert len(stripe.requests) == 1


async def test_a_caller_who_hangs_up_within_the_body_runs_nothing() -> None:
    async with proxied() as (stripe, url):
        head = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
        await raw(url, head + b"x" * 700_000, hang_up=True)
        await raw(url, head + b"x" * 100, hang_up=True)
        # What is answered after these was asked after these.
        await raw(url, b"GET /v1/x HTTP/1.1\r\nHost: x\r\n" + END)
        assert [r.line for r in stripe.requests] == [b"GET /v1/x HTTP/1.1"]


SMUGGLED = [
    b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\nGET /v1/evil HTTP/1.1\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    b"GET /v1/x HTTP/1.1\r\nHost: x\r\nX-A: a\rb: c\r\n\r\n",
    b"GET /v1/x HTTP/1.1\r\nHost: x\r\nX-A: a\x00b\r\n\r\n",
    b"GET /v1/x HTTP/1.1\r\nHost: x\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n",
    b"GET /v1/x y HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/x\\..\\y HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/../evil HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/%2e%2E/evil HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/a%2f..%2f..%2fevil HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/%252e%252e/evil HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /api.stripe.com%2f@evil.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /api.stripe.com@evil.example/v1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /api.stripe.com.evil.example/v1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /evil.example/v1/x HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET //evil.example/v1/x HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /dashboard.stripe.com/v1/x HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://evil.example/latest HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"TRACE /v1/x HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/x HTTP/1.1\r\nHost: x\r\nX-Latin: \xe9\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"GET /v1/" + b"a" * 20000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
]


SINGLE = [
    (b"Authorization", b"Bearer sk_test_a", b"Bearer sk_test_b"),
    (b"Stripe-Account", b"acct_1", b"acct_2"),
    (b"Stripe-Context", b"acct_1/acct_2", b"acct_1/acct_3"),
    (b"Stripe-Version", b"2024-06-20", b"2026-10-28.endive"),
    (b"Idempotency-Key", b"a", b"b"),
    (b"Content-Type", b"application/json", b"application/x-www-form-urlencoded"),
    (b"Host", b"x", b"y"),
]


@pytest.mark.parametrize(("name", "one", "two"), SINGLE, ids=[s[0].decode() for s in SINGLE])
async def test_a_header_that_must_be_single_is_refused_twice_joined_or_in_disguise(
    name: bytes, one: bytes, two: bytes
) -> None:
    line = name + b": " + one + b"\r\n"
    other = name + b": " + two + b"\r\n"
    disguised = name.replace(b"-", b"_").upper() + b": " + two + b"\r\n"
    refused = [line + other, other + line, line * 2, line + other.lower(), line + name + b":\r\n"]
    if b"-" in name:
        refused += [line + disguised, disguised]
    if name not in (b"Idempotency-Key", b"Content-Type", b"Host"):
        refused += [name + b": " + one + b", " + two + b"\r\n"]
    async with proxied() as (stripe, url):
        for headers in refused:
            host = b"" if name == b"Host" else b"Host: x\r\n"
            head = b"POST /v1/x HTTP/1.1\r\n" + host + headers + b"Content-Length: 1\r\n\r\n"
            answer = await raw(url, head + b"a")
            assert status(answer) == 400, headers
            assert error_of(answer)["type"] == "invalid_request_error"
        assert stripe.requests == []


async def test_account_and_context_must_name_the_same_account() -> None:
    async with proxied() as (stripe, url):
        for account, context, wanted in (
            (b"acct_1", b"acct_2", 400),
            (b"acct_1", b"acct_1/acct_2", 400),
            (b"acct_2", b"acct_1/acct_2", 200),
            (b"acct_2", b"acct_2", 200),
        ):
            both = b"Stripe-Account: " + account + b"\r\nStripe-Context: " + context + b"\r\n"
            answer = await raw(url, b"GET /v1/x HTTP/1.1\r\nHost: x\r\n" + both + b"\r\n")
            assert status(answer) == wanted
        assert len(stripe.requests) == 2


@pytest.mark.parametrize(
    "line",
    [
        b"GET /v1/x",
        b"GET /v1/x HTTP",
        b"GET /v1/x HTTP/0.9",
        b"GET /v1/x HTTP/2.0",
        b"GET /v1/x HTTP/3.0",
        b"POST /v1/x RTSP/1.0",
        b"OPTIONS /v1/x RTSP/1.0",
        b"SOURCE /v1/x ICE/1.0",
    ],
)
async def test_what_is_not_http_1_is_refused(line: bytes) -> None:
    async with proxied() as (stripe, url):
        for rest in (b"\r\n", b"\r\n\r\n", b"\r\nHost: x\r\n\r\n"):
            host, _, port = url.removeprefix("http://").partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(line + rest)
            writer.write_eof()
            answer = await asyncio.wait_for(reader.read(), 10)
            writer.close()
            assert status(answer) in (0, 400, 505)
        assert stripe.requests == []


async def test_an_absolute_target_must_agree_with_its_host() -> None:
    async with proxied() as (stripe, url):
        request = b"GET http://a.example/v1/x HTTP/1.1\r\nHost: b.example\r\n" + END
        assert status(await raw(url, request)) == 400
        assert stripe.requests == []


async def test_our_cookies_and_headers_do_not_travel() -> None:
    async with proxied() as (stripe, url):
        stripe.answer = PLAIN.replace(
            b"Date:", b"Set-Cookie: pinstripe_session=forged\r\nSet-Cookie: a=b\r\nDate:"
        )
        for cookie, passed in (
            (b"pinstripe_session=secret", []),
            (b"a=b; pinstripe_session=secret;c=d", [b"a=b; c=d"]),
            (b"a=pinstripe", [b"a=pinstripe"]),
        ):
            stripe.requests.clear()
            answer = await raw(
                url,
                b"GET /v1/x HTTP/1.1\r\nHost: x\r\nPinstripe-Wait: true\r\nPinstripe-Token: secret\r\n"
                b"Connection: close, Cookie2\r\nCookie: " + cookie + b"\r\n\r\n",
            )
            assert b"forged" not in answer
            assert b"set-cookie: a=b" in answer
            headers = stripe.requests[0].headers
            assert [v for n, v in headers if n == b"cookie"] == passed
            assert not any(n.startswith(b"pinstripe") for n, _ in headers)
        disguised = b"GET /v1/x HTTP/1.1\r\nHost: x\r\nPinstripe_Wait: true\r\n" + END
        assert status(await raw(url, disguised)) == 400


async def test_a_token_of_ours_is_not_sent_to_stripe() -> None:
    async with proxied(own_tokens=("the-admin-token", None)) as (stripe, url):
        packed = base64.b64encode(b"the-admin-token:")
        for value in (b"Bearer the-admin-token", b"the-admin-token", b"Basic " + packed):
            head = b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nAuthorization: "
            answer = await raw(url, head + value + b"\r\n\r\n")
            assert status(answer) == 401
            assert b"the-admin-token" not in answer
        assert stripe.requests == []


@pytest.mark.parametrize("request_", SMUGGLED, ids=range(len(SMUGGLED)))
async def test_what_two_servers_could_read_differently_goes_nowhere(request_: bytes) -> None:
    async with proxied() as (stripe, url):
        answer = await raw(url, request_)
        assert stripe.requests == []
        assert status(answer) in (0, 400, 404, 405, 413, 414)


async def test_an_absolute_target_reaches_nobody_but_stripe() -> None:
    async with proxied() as (stripe, url):
        await raw(url, b"GET http://evil.example/v1/x HTTP/1.1\r\nHost: evil.example\r\n" + END)
        told = [dict(r.headers)[b"host"] for r in stripe.requests]
        assert set(told) <= {stripe.url.removeprefix("http://").encode()}


async def test_stripe_away_is_an_error_in_stripes_shape_and_a_write_is_sent_once() -> None:
    async with proxied() as (stripe, url):
        stripe.answer, stripe.hang_up = b"", True
        answer = await raw(
            url, b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n" + END + b"a"
        )
        assert status(answer) == 502
        assert error_of(answer)["type"] == "api_error"
        assert len(stripe.requests) == 1
        answer = await raw(url, b"DELETE /v1/x HTTP/1.1\r\nHost: x\r\n" + END)
        assert status(answer) == 502
        assert len(stripe.requests) == 2

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
        async with open_proxy(Syncs(), hosts=hosts_at(nobody)) as proxy, serving(proxy) as url:
            answer = await raw(
                url, b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n" + END
            )
            assert status(answer) == 502
            assert "was not sent" in error_of(answer)["message"]


async def test_a_slow_body_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinstripe.gateway.proxy.upstream.SILENCE_S", 0.1)
    async with proxied() as (stripe, url):
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
        assert status(await asyncio.wait_for(reader.read(), 5)) == 408
        writer.close()
        assert stripe.requests == []


async def test_a_body_that_drips_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinstripe.gateway.proxy.upstream.SILENCE_S", 0.3)
    async with proxied() as (stripe, url):
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n")

        async def drip() -> None:
            while True:
                writer.write(b"a")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)
        dripping.cancel()
        writer.close()
        assert status(answer) == 408
        assert stripe.requests == []


async def test_an_endless_answer_ends_when_its_caller_goes() -> None:
    ended = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/csv\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        try:
            while True:
                writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                await writer.drain()
        except ConnectionError:
            ended.set()

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    upstream = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with open_proxy(Syncs(), hosts=hosts_at(upstream)) as proxy, serving(proxy) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /v1/x HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readexactly(500_000)
        assert not ended.is_set()
        writer.close()
        await asyncio.wait_for(ended.wait(), 10)
    server.close()


async def test_only_test_keys_cross_a_network_unencrypted() -> None:
    far = hosts_at("http://stripe.invalid")
    async with open_proxy(Syncs(), hosts=far) as proxy, serving(proxy) as url:
        for key, wanted in (
            (b"Bearer sk_live_abcdef", 403),
            (b"Bearer rk_live_abcdef", 403),
            (b"Bearer sk_org_live_abcdef", 403),
            (b"Basic " + base64.b64encode(b"sk_live_abcdef:"), 403),
            (b"sk_live_abcdef", 403),
            (b"Bearer sk_test_abcdef", 502),
        ):
            head = b"GET /v1/x HTTP/1.1\r\nHost: x\r\nAuthorization: " + key + b"\r\n\r\n"
            assert status(await raw(url, head)) == wanted


_SEGMENT = st.text(
    st.sampled_from([*"aZ0/.%2eEfF5c\\@:;?#&=[]{}|^`'\"<>~!$()*+,-_", "\x7f", "\x1f", " ", "é"]),
    max_size=12,
)


_REQUEST = st.tuples(
    st.sampled_from(["/v1/", "/v2/", "/", "//", "", *(f"/{host}" for host in STRIPE)]),
    st.lists(_SEGMENT, max_size=4).map("/".join),
    st.sampled_from(["X-A", "Stripe-Account", "Connection", "Transfer-Encoding", "Host", "TE"]),
    st.binary(max_size=10),
)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(_REQUEST, min_size=1, max_size=20))
async def test_no_path_or_header_reaches_another_host_or_breaks_us(
    requests: list[tuple[str, str, str, bytes]],
) -> None:
    async with proxied() as (stripe, url):
        host = stripe.url.removeprefix("http://").encode()
        for start, rest, name, value in requests:
            stripe.requests.clear()
            line = f"GET {start}{rest} HTTP/1.1\r\n{name}: ".encode()
            answer = await raw(url, line + value + b"\r\nHost: x\r\n" + END)
            assert status(answer) != 500
            for request in stripe.requests:
                assert [v for n, v in request.headers if n == b"host"] == [host]
                path = request.line.split(b" ")[1]
                assert (start + rest).encode().partition(b"#")[0].endswith(path)


def test_the_recorders_own_answer_is_complete() -> None:
    assert PLAIN.endswith(b"\r\n\r\n{}")
