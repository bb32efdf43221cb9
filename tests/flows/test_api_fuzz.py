"""Requests made up from the API's own description, fitting and not: never a 500, always what it promises.

`API_FUZZ_EXAMPLES` makes it longer.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.flows.harness.account import make_schema
from tests.flows.harness.api_service import SMALL, config_of, served

from pinstripe.gateway.api.openapi import describe
from pinstripe.gateway.app import ROUTES
from pinstripe.store.pool import connect
from pinstripe_simulator.server import running

CHECKS = (
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)
EXAMPLES = int(os.environ.get("API_FUZZ_EXAMPLES", "5"))
FINITE = [endpoint for endpoint in ROUTES if endpoint.stream is None]

schema = schemathesis.openapi.from_dict(describe(FINITE))


@asynccontextmanager
async def _service(postgres_url: str, directory: Path) -> AsyncIterator[tuple[str, str]]:
    """(URL of the service, URL of its Stripe)."""
    database = postgres_url.replace("/pinstripe?", "/fuzz?")
    async with connect(postgres_url) as admin:
        await admin.execute("CREATE DATABASE fuzz STRATEGY file_copy")
    await make_schema(database)
    async with running(SMALL) as sim, served(config_of(sim, database, directory)) as here:
        yield here.url, sim.url
    async with connect(postgres_url) as admin:
        await admin.execute("DROP DATABASE fuzz WITH (FORCE)")


@pytest.fixture(scope="module")
def service(postgres_url: str) -> Iterator[tuple[str, str]]:
    """In a loop of its own: the requests are made by code that blocks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="service")
    thread.start()
    with TemporaryDirectory() as directory:
        opened = _service(postgres_url, Path(directory))
        try:
            yield asyncio.run_coroutine_threadsafe(opened.__aenter__(), loop).result()
        finally:
            closing = opened.__aexit__(None, None, None)
            asyncio.run_coroutine_threadsafe(closing, loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_no_request_breaks_the_api(case: schemathesis.Case[Any], service: tuple[str, str]) -> None:
    url, stripe_url = service
    if isinstance(case.body, dict) and "stripe_url" in case.body:
        # Of all hosts that could be made up, only this one is to be called.
        case.body["stripe_url"] = stripe_url
    if case.path.startswith("/wait/"):
        case.query = {**(case.query or {}), "timeout": "0.05", "settle": "0"}
    answer: Response = case.call(base_url=url, timeout=20)
    assert answer.status_code != 500, answer.text
    case.validate_response(answer, checks=list(CHECKS))
