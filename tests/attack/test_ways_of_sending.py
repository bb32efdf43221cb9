"""Every way of sending a body, in full; by Java's clients; through real servers in front."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pinstripe.gateway.proxy.proxy import open_proxy
from pinstripe.gateway.proxy.upstream import hosts_at
from pinstripe.gateway.syncs import Syncs
from tests.attack.fronts import HAS_HAPROXY, HAS_NGINX, haproxy, nginx
from tests.flows.harness.gateway_account import serving
from tests.flows.harness.recording_stripe import Recorder, recording
from tests.flows.harness.ways_of_sending import (
    BAD,
    DELIVERIES,
    GOOD,
    METHODS,
    REAL_OFFERS,
    SMUGGLED,
    bodies_by_path,
    every_way,
    send_all,
    wrong,
)

Front = Callable[..., AbstractAsyncContextManager[str]]

_nginx = pytest.mark.skipif(not HAS_NGINX, reason="nginx is not installed")
_haproxy = pytest.mark.skipif(not HAS_HAPROXY, reason="HAProxy is not installed")
FRONTS = [
    pytest.param(nginx, marks=_nginx, id="nginx"),
    pytest.param(partial(nginx, buffering=False), marks=_nginx, id="nginx that streams"),
    pytest.param(partial(nginx, connection=""), marks=_nginx, id="nginx that keeps connections"),
    pytest.param(haproxy, marks=_haproxy, id="HAProxy"),
]


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[Recorder, str]]:
    async with (
        recording() as stripe,
        open_proxy(Syncs(), hosts=hosts_at(stripe.url)) as proxy,
        serving(proxy) as url,
    ):
        yield stripe, url


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("delivery", DELIVERIES)
async def test_every_way_arrives_to_the_byte_or_not_at_all(method: str, delivery: str) -> None:
    ways = list(every_way((method,), deliveries=(delivery,)))
    async with proxied() as (stripe, url):
        statuses = await send_all(ways, url)
        offered = [way for way in ways if way.offer in REAL_OFFERS]
    assert len(offered) > len(ways) / 2
    assert wrong(ways, statuses, stripe.requests) == []


# What Debian's libhttpclient-java and libhttpclient5-java install, and what they need.
_JARS = [
    Path("/usr/share/java") / f"{name}.jar"
    for name in (
        *("httpclient5", "httpcore5", "httpcore5-h2", "slf4j-api", "slf4j-nop"),
        *("httpclient", "httpcore", "commons-logging", "commons-codec"),
    )
]
_java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no JDK")
_apache = pytest.mark.skipif(
    not all(jar.exists() for jar in _JARS), reason="Apache's HTTP clients are not installed"
)
PROGRAMS = [
    pytest.param("Sending.java", 40, marks=_java, id="the JDK's"),
    pytest.param("Apache.java", 80, marks=(_java, _apache), id="Apache's 4 and 5"),
]


@pytest.mark.parametrize(("program", "requests"), PROGRAMS)
@pytest.mark.parametrize("size", [1, 100, 20_000, 400_000])
async def test_what_a_client_of_javas_sends_arrives(
    tmp_path: Path, size: int, program: str, requests: int
) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "body").write_bytes(body)
    async with proxied() as (stripe, url):
        process = await asyncio.create_subprocess_exec(
            "java",
            "-cp",
            ":".join(map(str, _JARS)),
            str(Path(__file__).with_name(program)),
            url,
            str(tmp_path / "body"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complaints = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, complaints.decode()
    lines = [line.split(" ") for line in said.decode().splitlines()]
    assert len(lines) == requests
    assert {status for _, status in lines} == {"200"}
    assert bodies_by_path(stripe.requests) == {path: [body] for path, _ in lines}


@pytest.mark.parametrize("front", FRONTS)
async def test_through_a_server_in_front_bodies_arrive_to_the_byte(
    front: Front, tmp_path: Path
) -> None:
    ways = list(every_way(framings=GOOD, deliveries=("whole", "head, body", "bytes")))
    async with proxied() as (stripe, url), front(tmp_path, url) as outer:
        statuses = await send_all(ways, outer)
        found = wrong(ways, statuses, stripe.requests)
    # HAProxy refuses what it takes for an attempt to smuggle: a body with GET in HTTP/1.0.
    arrived = bodies_by_path(stripe.requests)
    refused = {w.name for w in ways if statuses[w.path] != 200 and w.path not in arrived}
    assert [line for line in found if line.partition(": ")[0] not in refused] == []
    assert len(refused) < len(ways) / 10


@pytest.mark.parametrize("front", FRONTS)
async def test_through_a_server_in_front_the_malformed_is_run_once_or_never(
    front: Front, tmp_path: Path
) -> None:
    """It may be mended on the way; but whoever is told of a success or refusal is told the truth.

    Without an answer are those that a server in front waits for, and those that go on sending.
    """
    offers = ("none", "h2c", "foo")
    ways = list(every_way(("POST",), BAD, offers, deliveries=("whole", "bytes")))
    async with proxied() as (stripe, url), front(tmp_path, url) as outer:
        statuses = await send_all(ways, outer, patience_s=2)
    arrived = bodies_by_path(stripe.requests)
    assert set(arrived) <= {way.path for way in ways}
    for way in ways:
        status, times = statuses[way.path], len(arrived.get(way.path, []))
        allowed = {200: (1,), 0: (0, 1), -1: (0, 1)}.get(status, (0,))
        assert times in allowed, (way.name, status, times)


@pytest.mark.parametrize("front", FRONTS)
async def test_what_a_server_in_front_does_not_expose_is_not_reached_through_it(
    front: Front, tmp_path: Path
) -> None:
    ran: list[tuple[str, bytes]] = []

    async def here(request: Request) -> Response:
        ran.append((request.url.path, await request.body()))
        return PlainTextResponse("ok")

    methods = [*METHODS]
    app = Starlette(routes=[Route("/{path:path}", here, methods=methods)])
    deliveries = ("whole", "more after")
    good = list(every_way(framings=GOOD, deliveries=deliveries, folder="/webhooks/stripe"))
    bad = list(every_way(("POST",), BAD, deliveries=deliveries, folder="/webhooks/stripe/bad"))
    async with serving(app) as url, front(tmp_path, url, only="/webhooks/") as outer:
        await send_all(good, outer)
        await send_all(bad, outer, patience_s=1)
    assert len(ran) > len(good) / 2
    assert [path for path, _ in ran if not path.startswith("/webhooks/stripe/")] == []
    assert SMUGGLED.startswith(b"POST /v1/")
