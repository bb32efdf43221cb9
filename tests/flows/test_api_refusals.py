"""What the gateway refuses, on every route: one error shape, the right status, never a 500."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from tests.flows.harness.account import make_schema
from tests.flows.harness.api_service import ADMIN, SMALL, ApiService, config_of, served

from pinstripe.gateway.api.endpoint import Endpoint
from pinstripe.gateway.app import ROUTES
from pinstripe.gateway.http import middleware
from pinstripe.store.pool import connect
from pinstripe_simulator.server import Running, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATHS = sorted({endpoint.path for endpoint in ROUTES})
ADMINS = [endpoint for endpoint in ROUTES if endpoint.policy == "admin"]
BODIES = [endpoint for endpoint in ROUTES if endpoint.body is not None]
AUTH = {"Authorization": f"Bearer {ADMIN}"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sim() -> AsyncIterator[Running]:
    async with running(SMALL) as simulator:
        yield simulator


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(
    sim: Running, postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ApiService]:
    directory: Path = tmp_path_factory.mktemp("service")
    database = postgres_url.replace("/pinstripe?", "/refusals?")
    async with connect(postgres_url) as admin:
        await admin.execute("CREATE DATABASE refusals STRATEGY file_copy")
    await make_schema(database)
    async with served(replace(config_of(sim, database, directory), admin_token=ADMIN)) as service:
        yield service
    async with connect(postgres_url) as admin:
        await admin.execute("DROP DATABASE refusals WITH (FORCE)")


def at(path: str, sync: str = "default") -> str:
    named = path.replace("{id}", sync).replace("{kind}", "stripe")
    return re.sub(r"\{\w+\}", "x", named)


def shape(answer: httpx.Response, status: int) -> str:
    """The code of a failure that has the one shape."""
    assert answer.status_code == status, (answer.request.url, answer.text)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in answer.headers
    found = answer.json()
    assert list(found) == ["error"]
    assert list(found["error"]) == ["code", "message", "hint"]
    assert found["error"]["message"].endswith(".")
    assert isinstance(found["error"]["code"], str)
    return str(found["error"]["code"])


@pytest.mark.parametrize("path", PATHS)
async def test_another_method_is_405_and_names_those_there_are(here: ApiService, path: str) -> None:
    there = {e.method for e in ROUTES if e.path == path}
    for method in ("PUT", "TRACE", "PROPFIND", "DELETE", "POST"):
        if method in there:
            continue
        answer = await here.http.request(method, at(path), headers=AUTH)
        assert shape(answer, 405) == "method_not_allowed"
        assert there <= set(answer.headers["allow"].split(", "))


@pytest.mark.parametrize("endpoint", ADMINS, ids=lambda e: f"{e.method} {e.path}")
async def test_all_but_a_few_need_the_admin_token(here: ApiService, endpoint: Endpoint) -> None:
    answer = await here.http.request(endpoint.method, at(endpoint.path))
    assert shape(answer, 401) == "unauthorized"
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("endpoint", ADMINS, ids=lambda e: f"{e.method} {e.path}")
async def test_unknown_parameters_and_ids_are_named(here: ApiService, endpoint: Endpoint) -> None:
    path = at(endpoint.path)
    if not endpoint.raw and endpoint.body is None:
        answer = await here.http.request(endpoint.method, f"{path}?no_such=1", headers=AUTH)
        assert shape(answer, 400) == "bad_request"
    if "{id}" in endpoint.path and endpoint.body is None:
        answer = await here.http.request(
            endpoint.method, at(endpoint.path, "no-such"), headers=AUTH
        )
        is_platform = endpoint.path.startswith("/api/platforms/")
        assert shape(answer, 404) == ("unknown_platform" if is_platform else "unknown_sync")


@pytest.mark.parametrize("path", [path for path in PATHS if "{" in path])
async def test_nul_and_odd_characters_in_ids_are_no_500(here: ApiService, path: str) -> None:
    methods = {e.method for e in ROUTES if e.path == path}
    for odd in ("%00", "a%00b", "%FF%FE", "%F0%9F%98%80", "..%2f", "%0d%0aX: y", "a" * 3000):
        for method in methods:
            answer = await here.http.request(method, at(path, odd), headers=AUTH)
            assert answer.status_code < 500 or path == "/readyz", (answer.url, answer.text)
            if "%00" in odd and "{id}" in path:
                assert shape(answer, 400) == "bad_request"


@pytest.mark.parametrize("endpoint", BODIES, ids=lambda e: f"{e.method} {e.path}")
async def test_bodies_that_do_not_fit_are_refused(here: ApiService, endpoint: Endpoint) -> None:
    async def post(body: bytes, media: str = "application/json") -> httpx.Response:
        headers = AUTH | {"Content-Type": media}
        return await here.http.request(
            endpoint.method, at(endpoint.path), content=body, headers=headers
        )

    assert shape(await post(b"{}", "text/plain"), 415) == "not_json"
    for body in (
        b"",
        b"{",
        b"[]",
        b"null",
        b'"\xff"',
        b"[" * 50_000,
        b'{"no_such": 1}',
        b'{"api_key": 1}',
        b'{"id": "second", "api_key": "\\u0000"}',
        b'{"settings": {"tables": "\\u0000"}}',
        b'{"webhook_secrets": "x"}',
    ):
        assert shape(await post(body), 400) == "bad_request"
    assert shape(await post(b'{"a": "' + b"x" * 70_000 + b'"}'), 413) == "too_large"


async def test_bodies_that_are_too_large_are_refused_before_they_are_read(here: ApiService) -> None:
    for path in ("/api/syncs", "/webhooks/stripe/default", "/no/such/page"):
        headers = AUTH | {"Content-Length": str(10**12), "Content-Type": "application/json"}
        reader, writer = await asyncio.open_connection(*here.url[7:].split(":"))
        told = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
        writer.write(f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{told}\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)
        assert b" 413 " in head, (path, head)
        writer.close()
        await writer.wait_closed()


async def test_a_body_that_does_not_come_is_not_waited_for(
    here: ApiService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "BODY_S", 0.05)
    reader, writer = await asyncio.open_connection(*here.url[7:].split(":"))
    told = "".join(f"{k}: {v}\r\n" for k, v in AUTH.items())
    writer.write(
        f"POST /api/syncs HTTP/1.1\r\nHost: localhost\r\n{told}Content-Type: application/json\r\n"
        "Content-Length: 100\r\n\r\n{".encode()
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)
    assert b" 408 " in head
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("path", ["/api/none", "/api/syncs/", "/no/such", "/wait", "/webhooks/x/y"])
async def test_unknown_addresses_are_404(here: ApiService, path: str) -> None:
    answer = await here.http.get(path, headers=AUTH)
    assert shape(answer, 404) == "not_found"


async def test_numbers_beyond_all_bounds_are_400(here: ApiService) -> None:
    base = "/api/syncs/default"
    for query in (
        "events?since=99999999999999999999",
        "events?since=-1",
        "events?limit=0",
        "events?limit=501",
        "events?limit=x",
        "events?limit=1&limit=2",
        "events?since=1e400",
        "changes?after=9223372036854775808",
        "changes?after=1&before=2",
        "changes/stream?after=9",
        "events?starting_after=evt_none",
    ):
        answer = await here.http.get(f"{base}/{query}", headers=AUTH)
        assert shape(answer, 400) == "bad_request"
    headers = AUTH | {"Last-Event-ID": "x"}
    answer = await here.http.get(f"{base}/changes/stream", headers=headers)
    assert shape(answer, 400) == "bad_request"


async def test_readiness_tells_strangers_no_reasons(here: ApiService) -> None:
    for headers, is_told in (({}, False), (AUTH, True)):
        answer = await here.http.get("/readyz", headers=headers)
        assert answer.status_code == 503
        checks = {check["name"]: check for check in answer.json()["checks"]}
        assert set(checks) == {"database", "sync:default" if is_told else "syncs"}
        check = checks["sync:default" if is_told else "syncs"]
        assert check["ok"] is False
        assert bool(check["reason"]) is is_told


@pytest.mark.parametrize("name", sorted(n.decode() for n in middleware._ONCE - {b"host"}))
async def test_a_header_that_grants_access_is_refused_twice(here: ApiService, name: str) -> None:
    for path in ("/wait/stripe/default?timeout=0", "/api/syncs", "/webhooks/stripe/default"):
        twice = [(name, "one"), (name, "two")]
        answer = await here.http.request("POST", path, headers=twice)
        assert answer.status_code == 400, path
        assert "twice" in answer.text


async def test_waiting_tells_strangers_nothing_of_which_syncs_there_are(here: ApiService) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        told = [
            await here.http.get(f"/wait/stripe/{name}?timeout=0", headers=headers)
            for name in ("default", "nothing")
        ]
        assert told[0].status_code == told[1].status_code == 401
        assert told[0].content == told[1].content
    answer = await here.http.get("/wait/stripe/nothing", headers=AUTH)
    assert shape(answer, 404) == "not_found"


async def test_without_a_database_the_gateway_answers_and_says_so(
    sim: Running, tmp_path: Path
) -> None:
    away = config_of(sim, "postgresql://nobody@127.0.0.1:1/none", tmp_path)
    async with served(away) as here:
        assert (await here.http.get("/healthz")).status_code == 200
        assert (await here.http.get("/metrics")).text.count("pinstripe_database_up 0.0") == 1
        answer = await here.http.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["checks"][0]["name"] == "database"
        assert (await here.http.get("/api/syncs")).status_code == 200
        for path in ("status", "events", "changes", "permissions", "changes/stream"):
            answer = await here.http.get(f"/api/syncs/default/{path}")
            assert shape(answer, 503) == "unavailable"
