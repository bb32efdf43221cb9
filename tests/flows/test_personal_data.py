"""Personal data that is not wanted rests nowhere, and what is erased does not come back.

A made-up name stands in every text of every type of object that can hold personal data. It is looked for in
a dump of the whole database, in the files of the data directory, and in the log at its finest.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import asyncpg
from tests.flows.harness.command import dumped, pinstripe
from tests.flows.harness.planting_people import NAME, id_of, planting_people
from tests.flows.harness.planting_stripe import Json, Planting
from tests.flows.harness.serving import SECRET, served

from pinstripe.catalog.endpoints import retrieve_endpoints
from pinstripe.catalog.model import spec

CUSTOMER = id_of("customer")
_NO_CUSTOMERS = ("account", "person", "v2.core.account", "v2.core.account_person")
"""Whose contact data is the account's own: they refer to the one file there is."""


def env_of(stripe: Planting, data_dir: Path, **more: str) -> dict[str, str]:
    return {
        "STRIPE_API_KEY": SECRET,
        "STRIPE_API_BASE": stripe.url,
        "PINSTRIPE_DATA_DIR": str(data_dir),
        "PINSTRIPE_CHANGES": "true",
        "PINSTRIPE_LOG": "debug",
        "PINSTRIPE_RATE_LIMIT": "none",
        "PINSTRIPE_ENDPOINT_RATE_LIMIT": "none",
        **more,
    }


async def serve_all(stripe: Planting, env: Mapping[str, str], pg: asyncpg.Connection) -> str:
    """Copy, follow the events, pass everything through the proxy, verify; return all that was printed."""
    async with served(env) as service:
        await service.until("default: following")
        for name, obj in stripe.objects.items():
            for method, path in _ways_to(name, str(obj["id"])):
                async with service.http.request(
                    method, f"{service.url}{path}", headers={"Authorization": f"Bearer {SECRET}"}
                ) as answer:
                    text = await answer.text()
                if answer.status == 200:
                    assert text == json.dumps(obj, indent=2)
        async with asyncio.timeout(60):
            while await pg.fetchval("SELECT count(*) FROM pinstripe.applied_event") < 100:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)
        service.process.terminate()
        out, err = await service.process.communicate()
        said = service.said + out.decode() + err.decode()
    verified = await pinstripe("verify", "--all", env=env)
    assert "No differences" in verified.text
    return said + verified.text


def _ways_to(name: str, key: str) -> list[tuple[str, str]]:
    ways = [
        ("POST", o.path)
        for o in spec().operations
        if o.kind == "create" and o.returns == (name,) and "{" not in o.path
    ]
    if name in retrieve_endpoints():
        path = retrieve_endpoints()[name].path
        ways.append(("GET", path[: path.index("{")] + key))
    return ways


async def test_personal_data_rests_nowhere_if_it_is_dropped_or_hashed(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    async with planting_people() as stripe:
        stripe.objects["invoice"]["customer_email"] = stripe.objects["customer"]["email"]
        env = env_of(
            stripe,
            tmp_path,
            DATABASE_URL=database,
            PINSTRIPE_PERSONAL_DATA="drop,hash:email",
            PINSTRIPE_COLUMNS="-customer.tax_exempt,-event.data_object",
        )
        said = await serve_all(stripe, env, pg)
    email = await pg.fetchval("SELECT email FROM stripe.customer")
    assert email.startswith("hash_")
    assert email == await pg.fetchval("SELECT customer_email FROM stripe.invoice")
    assert email != await pg.fetchval("SELECT billing_details_email FROM stripe.charge")
    assert await pg.fetchval("SELECT name FROM stripe.customer") is None
    assert await pg.fetchval("SELECT bool_and(data_object IS NULL) FROM stripe.event")
    assert await pg.fetchval("SELECT count(*) FROM stripe.event") > 100
    assert await pg.fetchval("SELECT count(*) FROM pinstripe.change") > 5
    assert NAME not in said, [line for line in said.splitlines() if NAME in line][:5]
    dump = await dumped(database)
    assert CUSTOMER in dump
    assert NAME not in dump, [line[:300] for line in dump.splitlines() if NAME in line][:5]
    assert not _files_with(tmp_path)


async def test_an_erased_customer_rests_nowhere_and_no_later_pass_brings_them_back(
    tmp_path: Path,
) -> None:
    """In Pinstripe's own Postgres, so that its files can be read too."""
    async with planting_people() as stripe:
        env = env_of(stripe, tmp_path)
        whole = await pinstripe("sync", "--once", env=env)
        assert whole.code in (0, 4), whole.text
        names = sorted({text for obj in _of_the_customer(stripe.objects) for text in _names(obj)})
        assert len(names) > 500
        assert _files_with(tmp_path / "postgres", names)
        erased = await pinstripe("erase", CUSTOMER, "--scrub", "--json", env=env)
        assert erased.code == 0, erased.text
        assert json.loads(erased.out)["rows"]["customer"] == 1
        again = await pinstripe("sync", "--once", env=env)
        verified = await pinstripe("verify", "--all", env=env)
        assert "No differences" in verified.text, verified.text
    left = _files_with(tmp_path / "postgres", names)
    assert not left, left
    said = whole.text + erased.text + again.text + verified.text
    assert NAME not in said


def _of_the_customer(objects: Mapping[str, Json]) -> list[Json]:
    """What names the customer, or something that does, in a field of its own or one level down."""
    mine = {CUSTOMER}
    while True:
        others = [o for name, o in objects.items() if name not in _NO_CUSTOMERS]
        found = [o for o in others if o["id"] in mine or mine & _ids(o)]
        if {o["id"] for o in found} <= mine:
            return found
        mine |= {o["id"] for o in found}


def _ids(obj: Json) -> set[str]:
    values = list(obj.values())
    values += [v for value in values if isinstance(value, dict) for v in value.values()]
    values += [v for value in values if isinstance(value, list) for v in value]
    return {v for v in values if isinstance(v, str)}


def _names(value: object) -> list[str]:
    if isinstance(value, str):
        return [value] if value.startswith(NAME) else []
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [name for item in inner for name in _names(item)]


def _files_with(directory: Path, names: Collection[str] = ()) -> list[str]:
    """The files that hold one of these names, or any."""
    found = []
    for folder, _, files in os.walk(directory):
        for file in files:
            content = (Path(folder) / file).read_bytes()
            there = {name.decode() for name in re.findall(rb"%s \d+\." % NAME.encode(), content)}
            if there & set(names) if names else there:
                found.append(f"{file}: {sorted(there)[:3]}")
    return found
