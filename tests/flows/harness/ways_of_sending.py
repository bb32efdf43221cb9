"""Every way of sending a body over HTTP/1.1, and what must come of it: the body to the byte, or nothing.

async for sent in ...: a `Sent` is one request on a connection of its own, with a path that names it
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

from tests.flows.harness.recording_stripe import Recorded

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
BODY = b"charge=ch_1&amount=100&note=\xc3\xa9%00\x00\r\n\r\n0\r\n\r\n"
"""With the ends of heads and chunks in it, which only its framing can tell from the real ones."""
SMUGGLED = b"POST /v1/smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True)
class Framing:
    """How the body is announced and sent. `good`: the one meaning it has is that of `BODY`."""

    name: str
    headers: bytes
    wire: bytes
    good: bool = True
    version: bytes = b"HTTP/1.1"


def _chunked(*, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    halves = BODY[:20], BODY[20:]
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(half), extension, half) for half in halves)
    return chunks + b"0" + extension + b"\r\n" + trailers + b"\r\n"


_LENGTH = b"Content-Length: %d\r\n" % len(BODY)
_CHUNKS = b"Transfer-Encoding: chunked\r\n"
_EXPECT = b"Expect: 100-continue\r\n"
_TRAILERS = b"Idempotency-Key: forged\r\nStripe-Account: acct_forged\r\n"

GOOD = (
    Framing("length", _LENGTH, BODY),
    Framing("chunks", _CHUNKS, _chunked()),
    Framing(
        "chunks of one byte", _CHUNKS, b"".join(b"1\r\n%c\r\n" % b for b in BODY) + b"0\r\n\r\n"
    ),
    Framing("extensions", _CHUNKS, _chunked(extension=b';a=b;c="d e"')),
    Framing("trailers", _CHUNKS + b"Trailer: Idempotency-Key\r\n", _chunked(trailers=_TRAILERS)),
    Framing("length, expect", _LENGTH + _EXPECT, BODY),
    Framing("chunks, expect", _CHUNKS + _EXPECT, _chunked()),
    Framing("length, 1.0", _LENGTH, BODY, version=b"HTTP/1.0"),
    Framing("length, expect, 1.0", _LENGTH + _EXPECT, BODY, version=b"HTTP/1.0"),
)
BAD = tuple(
    Framing(name, headers, wire, good=False, version=version)
    for name, headers, wire, version in (
        ("length and chunks", _LENGTH + _CHUNKS, _chunked(), b"HTTP/1.1"),
        ("chunks and length", _CHUNKS + _LENGTH, _chunked(), b"HTTP/1.1"),
        ("two lengths", _LENGTH + b"Content-Length: 4\r\n", BODY, b"HTTP/1.1"),
        ("one length twice", _LENGTH * 2, BODY, b"HTTP/1.1"),
        ("a list of lengths", b"Content-Length: 4, 4\r\n", BODY, b"HTTP/1.1"),
        ("length with a sign", b"Content-Length: +4\r\n", BODY, b"HTTP/1.1"),
        ("length in hex", b"Content-Length: 0x4\r\n", BODY, b"HTTP/1.1"),
        ("length of nothing", b"Content-Length:\r\n", BODY, b"HTTP/1.1"),
        ("length without end", b"Content-Length: " + b"9" * 30 + b"\r\n", BODY, b"HTTP/1.1"),
        ("space before colon", b"Content-Length : 4\r\n", BODY, b"HTTP/1.1"),
        ("chunks twice", _CHUNKS * 2, _chunked(), b"HTTP/1.1"),
        ("chunked, chunked", b"Transfer-Encoding: chunked, chunked\r\n", _chunked(), b"HTTP/1.1"),
        ("gzip, chunked", b"Transfer-Encoding: gzip, chunked\r\n", _chunked(), b"HTTP/1.1"),
        ("gzip then chunked", b"Transfer-Encoding: gzip\r\n" + _CHUNKS, _chunked(), b"HTTP/1.1"),
        ("identity", b"Transfer-Encoding: identity\r\n", BODY, b"HTTP/1.1"),
        ("xchunked", b"Transfer-Encoding: xchunked\r\n", _chunked(), b"HTTP/1.1"),
        ("folded coding", b"Transfer-Encoding:\r\n chunked\r\n", _chunked(), b"HTTP/1.1"),
        ("folded header", b"X-Fold: a\r\n b\r\n" + _LENGTH, BODY, b"HTTP/1.1"),
        ("folded first", b" X: a\r\n" + _LENGTH, BODY, b"HTTP/1.1"),
        ("chunks in 1.0", _CHUNKS, _chunked(), b"HTTP/1.0"),
        ("version 0.9", _LENGTH, BODY, b"HTTP/0.9"),
        ("version 2.0", _LENGTH, BODY, b"HTTP/2.0"),
        ("version 1.2", _LENGTH, BODY, b"HTTP/1.2"),
        ("another protocol", _LENGTH, BODY, b"RTSP/1.0"),
        ("bare LF in head", _LENGTH.replace(b"\r", b""), BODY, b"HTTP/1.1"),
        ("bare LF in chunks", _CHUNKS, _chunked().replace(b"\r\n", b"\n"), b"HTTP/1.1"),
        ("bare LF in extension", _CHUNKS, b"3;a\nabc\r\n0\r\n\r\n", b"HTTP/1.1"),
        ("hex with 0x", _CHUNKS, b"0x3\r\nabc\r\n0\r\n\r\n", b"HTTP/1.1"),
        ("negative chunk", _CHUNKS, b"-3\r\nabc\r\n0\r\n\r\n", b"HTTP/1.1"),
        ("chunk over 64 bits", _CHUNKS, b"1" + b"0" * 16 + b"3\r\nabc\r\n0\r\n\r\n", b"HTTP/1.1"),
        ("chunk longer than said", _CHUNKS, b"3\r\nabcd\r\n0\r\n\r\n", b"HTTP/1.1"),
        ("trailer that is none", _CHUNKS, b"3\r\nabc\r\n0\r\nnocolon\r\n\r\n", b"HTTP/1.1"),
        (
            "a length in the trailers",
            _CHUNKS,
            _chunked(trailers=b"Content-Length: 3\r\n"),
            b"HTTP/1.1",
        ),
        ("body without framing", b"", BODY, b"HTTP/1.1"),
    )
)
OFFERS: dict[str, bytes] = {
    "none": b"",
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAI\r\n",
    "websocket": b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "foo": b"Connection: upgrade\r\nUpgrade: foo\r\n",
    "tls": b"Connection: close, Upgrade\r\nUpgrade: TLS/1.0, HTTP/2.0\r\n",
    "no protocol": b"Connection: upgrade\r\nUpgrade:\r\n",
    "only the name": b"Upgrade: foo\r\n",
    "only the connection": b"Connection: Upgrade\r\n",
}
REAL_OFFERS = tuple(name for name, headers in OFFERS.items() if b"Upgrade:" in headers)
_AT_A_TIME = 50
DELIVERIES = ("whole", "head, body", "bytes", "second", "more after")


@dataclass(frozen=True)
class Sent:
    """One request. `path` names it at the upstream."""

    path: str
    method: str
    framing: Framing
    offer: str
    delivery: str

    @property
    def name(self) -> str:
        return f"{self.method} {self.framing.name} / {self.offer} / {self.delivery}"

    @property
    def segments(self) -> Sequence[bytes]:
        """What is written, in pieces that arrive one by one."""
        head = (
            f"{self.method} {self.path} ".encode()
            + self.framing.version
            + b"\r\nHost: x\r\n"
            + OFFERS[self.offer]
            + self.framing.headers
            + b"\r\n"
        )
        whole = head + self.framing.wire
        match self.delivery:
            case "whole":
                return (whole,)
            case "head, body":
                return head, self.framing.wire
            case "bytes":
                return tuple(whole[at : at + 1] for at in range(len(whole)))
            case "second":
                return (b"GET /v1/first HTTP/1.1\r\nHost: x\r\n\r\n" + whole,)
        return (whole + SMUGGLED,)

    async def answer(self, url: str, *, patience_s: float = 20.0) -> int:
        """Sends it; the status of its own answer, 0 if there was none, -1 if none came in time."""
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            with suppress(
                ConnectionError, RuntimeError
            ):  # The second: uvloop's, of what is closed.
                for segment in self.segments:
                    writer.write(segment)
                    await asyncio.sleep(0)  # The server, in this loop, reads it by itself.
                await writer.drain()
            async with asyncio.timeout(patience_s):
                if self.delivery == "second":
                    await _status(reader, body=True)
                return await _status(reader, body=False)
        except TimeoutError:
            return -1
        finally:
            writer.close()


async def send_all(ways: Iterable[Sent], url: str, *, patience_s: float = 20.0) -> dict[str, int]:
    """Sends them side by side; the status of each answer, by path."""
    places = asyncio.Semaphore(_AT_A_TIME)
    statuses: dict[str, int] = {}

    async def send(sent: Sent) -> None:
        async with places:
            statuses[sent.path] = await sent.answer(url, patience_s=patience_s)

    async with asyncio.TaskGroup() as group:
        for sent in ways:
            group.create_task(send(sent))
    return statuses


def bodies_by_path(requests: Sequence[Recorded]) -> dict[str, list[bytes]]:
    """What arrived at the upstream."""
    arrived: dict[str, list[bytes]] = {}
    for request in requests:
        arrived.setdefault(request.line.split(b" ")[1].decode(), []).append(request.body)
    return arrived


def wrong(
    ways: Sequence[Sent], statuses: Mapping[str, int], requests: Sequence[Recorded]
) -> list[str]:
    """What came otherwise than it must, in words."""
    arrived = bodies_by_path(requests)
    found = [
        f"a trailer became a header: {request.head!r}"
        for request in requests
        if any(b"forged" in value for _, value in request.headers)
    ]
    for sent in ways:
        came = statuses[sent.path], arrived.get(sent.path, [])
        if not _is_right(sent, *came):
            found.append(f"{sent.name}: {came}")
    if all(sent.offer in REAL_OFFERS for sent in ways) and "/v1/smuggled" in arrived:
        found.append("what followed an offer was run")
    return found


def _is_right(sent: Sent, status: int, bodies: list[bytes]) -> bool:
    if sent.framing.good:
        return (status, bodies) == (200, [BODY])
    if not sent.framing.headers:
        return bodies == [b""]  # There is no body; what follows is no request.
    # Without an answer where the caller was still sending, or another one's is the last.
    return (status >= 400 or not status) and not bodies


async def _status(reader: asyncio.StreamReader, *, body: bool) -> int:
    """Of the next answer that is not a mere 100."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0
        if not head.startswith(b"HTTP/1.1 100 "):
            break
    if body:
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
    return int(head.split(b" ", 2)[1])


def every_way(
    methods: Sequence[str] = METHODS,
    framings: Sequence[Framing] = (*GOOD, *BAD),
    offers: Sequence[str] = tuple(OFFERS),
    deliveries: Sequence[str] = DELIVERIES,
    *,
    folder: str = "/v1/way",
) -> Iterator[Sent]:
    """All of them, each under a path of its own."""
    for number, (method, framing, offer, delivery) in enumerate(
        product(methods, framings, offers, deliveries)
    ):
        yield Sent(f"{folder}/{number}", method, framing, offer, delivery)
