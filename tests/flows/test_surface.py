"""What users and their programs rely on and only a running service shows: see `tests.house.surface`.

SURFACE=write .venv/bin/pytest -q tests/house/test_surface.py tests/flows/test_surface.py
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.flows.harness.api_service import SMALL, api_service, config_of, served
from tests.flows.harness.command import pinstripe
from tests.house.surface import compare

from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import running

pytestmark = pytest.mark.migrated

_VALUE = re.compile("=[^;]*")
_LABEL = re.compile(r'(\w+)="')
# What differs from answer to answer, or is there by chance.
_PASSING = {"content-length", "date", "etag", "pinstripe-as-of", "request-id"}
# What depends on when the files were checked out.
_DATES = {"last-modified"}


async def test_the_metrics_are_the_ones_that_are_stored(database: str, tmp_path: Path) -> None:
    """Names, kinds, texts and labels."""
    async with (
        running(SMALL) as sim,
        api_service(sim, database, tmp_path, rate_limit=100.0) as here,
    ):
        stripe = {"Authorization": f"Bearer {sim.key}"}
        made = await here.http.post("/v1/customers", data={"name": "Ada"}, headers=stripe)
        assert made.status_code == 200
        assert (await here.http.get("/wait/stripe/default")).status_code == 200
        assert (await here.http.post("/webhooks/stripe/default", content=b"{}")).status_code == 400
        text = (await here.http.get("/metrics")).text
    compare("metrics.txt", "\n".join(sorted(set(_metrics(text)))))


def _metrics(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.startswith("#"):
            yield line
        else:
            name, _, labels = line.rpartition(" ")[0].partition("{")
            yield f"{name} {' '.join(_LABEL.findall(labels))}".rstrip()


async def test_answers_have_the_headers_that_are_stored(database: str, tmp_path: Path) -> None:
    async with running(SMALL) as sim, api_service(sim, database, tmp_path) as here:
        stripe = {"Authorization": f"Bearer {sim.key}"}
        asked: tuple[tuple[str, str, dict[str, str]], ...] = (
            ("GET", "/api", {}),
            ("GET", "/api/syncs/none", {}),
            ("PUT", "/api", {}),
            ("GET", "/wait/stripe/default", {}),
            ("GET", "/healthz", {}),
            ("GET", "/metrics", {}),
            ("GET", "/syncs/default", {}),
            ("GET", "/static/console.css", {}),
            ("GET", "/v1/customers?limit=1", stripe),
            ("GET", "/v1/nonsense", stripe),
            ("POST", "/v1/customers", {**stripe, "Pinstripe-Wait": "10"}),
            ("CONNECT", "/v1/customers", stripe),
        )
        found: list[str] = []
        for method, path, headers in asked:
            answer = await here.http.request(method, path, headers=headers)
            found += _headers(method, path, answer)
    compare("headers.txt", "\n".join(found))


def _headers(method: str, path: str, answer: httpx.Response) -> Iterator[str]:
    yield f"{method} {path} {answer.status_code}"
    for name, value in sorted(answer.headers.items()):
        if name == "set-cookie":
            yield f"  {name}: {_VALUE.sub('=...', value, count=1)}"
        elif name in _DATES:
            yield f"  {name}: ..."
        elif name not in _PASSING and (name.startswith("pinstripe-") or "/v1/" not in path):
            yield f"  {name}: {value}"


ASKED = (("verify",), ("check",), ("syncs", "list"))


async def test_commands_print_the_json_that_is_stored(database: str, tmp_path: Path) -> None:
    """The shape of it: keys, and the kinds of values."""
    async with running(Settings(scale=60)) as sim:
        env = {
            "STRIPE_API_KEY": sim.key,
            "STRIPE_API_BASE": sim.url,
            "DATABASE_URL": database,
            "PINSTRIPE_DATA_DIR": str(tmp_path),
            "PINSTRIPE_TABLES": "customer,event",
            "PINSTRIPE_RATE_LIMIT": "none",
            "PINSTRIPE_ENDPOINT_RATE_LIMIT": "none",
        }
        config = config_of(sim, database, tmp_path)
        first = await pinstripe("sync", "--once", "--json", env=env)
        async with served(config) as here:
            wait = ("wait", "--url", here.url, "--timeout", "1")
            ended = await asyncio.gather(
                *(pinstripe(*words, "--json", env=env) for words in (*ASKED, wait))
            )
        status = await pinstripe("status", "--json", env=env)
    ends = zip((("sync",), *ASKED, ("wait",), ("status",)), (first, *ended, status), strict=True)
    texts = (f"{' '.join(words)} {end.code}\n{_shape(json.loads(end.out))}" for words, end in ends)
    compare("json.txt", "\n".join(texts))


def _shape(value: object) -> str:
    """Every path in it, with the kinds of what stands there.

    >>> _shape({"a": [{"b": 1}, {"b": None, "c": "x"}]})
    '  a[].b: int null\\n  a[].c: str'
    """
    kinds: defaultdict[str, set[str]] = defaultdict(set)
    for path, kind in _paths("", value):
        kinds[path].add(kind)
    return "\n".join(
        f"  {path}: {' '.join(sorted(found))}" for path, found in sorted(kinds.items())
    )


def _paths(path: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _paths(f"{path}.{key}".removeprefix("."), part)
    elif isinstance(value, list) and value:
        for part in value:
            yield from _paths(f"{path}[]", part)
    else:
        yield path, "null" if value is None else type(value).__name__
