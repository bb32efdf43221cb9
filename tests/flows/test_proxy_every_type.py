"""`Pinstripe-Mirrored: yes` only if each object answered is a row: every operation, two versions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import asyncpg
import pytest
from tests.flows.harness.every_type import (
    ACCOUNT,
    OLDER,
    OURS,
    EveryType,
    answer_of,
    every_type,
    id_of,
    objects_in,
    path_of,
)
from tests.flows.harness.gateway_account import made_schema, serving

from pinstripe.catalog.model import Operation, object_types, spec
from pinstripe.catalog.tables import SINGLETONS, table_of_object
from pinstripe.client.api_key import ApiKey
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.gateway.proxy.objects import is_preview
from pinstripe.gateway.proxy.proxy import open_proxy
from pinstripe.gateway.proxy.upstream import hosts_at
from pinstripe.gateway.syncs import Syncs, open_sync

pytestmark = pytest.mark.migrated
KEY = "sk_test_thekeyofthistest123456"
OPERATIONS = [
    o
    for o in spec().operations
    if o.returns and o.base == "api" and not is_preview(o.path) and len(o.returns) < 6
]
# What has a table, and is never a row by the proxy: keys that live for minutes.
CREDENTIALS = {"ephemeral_key", "v2.billing.meter_event_session"}


@dataclass
class Front:
    stripe: EveryType
    url: str
    http: aiohttp.ClientSession
    pg: asyncpg.Connection

    async def ask(self, method: str, path: str, version: str) -> tuple[str, str, object]:
        """(mirrored, reason, JSON)."""
        headers = {"Authorization": f"Bearer {KEY}", "Stripe-Version": version}
        async with self.http.request(method, self.url + path, headers=headers) as answer:
            found = await answer.json()
            assert answer.status == 200, (method, path, found)
            return (
                answer.headers["pinstripe-mirrored"],
                answer.headers.get("pinstripe-reason", ""),
                found,
            )

    async def not_rows(self, answer: object) -> set[tuple[str, str]]:
        """The objects of an answer that are no rows."""
        missing = set()
        for name, key in objects_in(answer):
            table = table_of_object()[name]
            known = SINGLETONS.get(name)
            wanted = name if known == "" else key
            row = await self.pg.fetchval(f'SELECT id FROM stripe."{table}" WHERE id = $1', wanted)
            if row is None:
                missing.add((name, key))
        return missing


@asynccontextmanager
async def front(database: str, pg: asyncpg.Connection) -> AsyncIterator[Front]:
    await made_schema(database, "stripe", account_id=ACCOUNT)
    syncs = Syncs()
    async with (
        every_type() as stripe,
        open_sync(
            "default",
            database,
            "stripe",
            ApiKey.parse(KEY),
            budget=RateLimiter(account_rate=None, endpoint_rate=None),
            stripe_url=stripe.url,
        ) as sync,
    ):
        syncs.add(sync)
        async with (
            open_proxy(syncs, hosts=hosts_at(stripe.url), patience_s=20) as proxy,
            serving(proxy) as url,
            aiohttp.ClientSession() as http,
        ):
            yield Front(stripe, url, http, pg)


@pytest.mark.parametrize("version", [OURS, OLDER])
async def test_every_operation_says_yes_only_if_all_its_objects_are_rows(
    database: str, pg: asyncpg.Connection, version: str
) -> None:
    wrong, not_yes = [], {}
    async with front(database, pg) as it:
        for operation in OPERATIONS:
            if operation.returns[0] not in object_types():
                continue
            await _forget(it, operation)
            path = path_of(operation)
            mirrored, reason, answer = await it.ask(operation.method, path, version)
            missing = await it.not_rows(answer)
            if mirrored == "yes" and missing:
                wrong.append((operation.method, operation.path, missing))
            if mirrored != "yes":
                not_yes[operation.method, operation.path] = (mirrored, reason)
    assert wrong == []
    by_name = {(o.method, o.path): o for o in OPERATIONS}
    unexpected = {
        where: said
        for where, said in not_yes.items()
        if not _has_no_table(by_name[where]) or said != ("no", "no-objects")
    }
    assert unexpected == {}


async def _forget(it: Front, operation: Operation) -> None:
    """No row is there yet of what the operation answers with."""
    for table in {table_of_object()[name] for name, _ in objects_in(answer_of(operation))}:
        await it.pg.execute(f'DELETE FROM stripe."{table}"')


def _has_no_table(operation: Operation) -> bool:
    return any(n in CREDENTIALS or n not in table_of_object() for n in operation.returns)


async def test_what_stripe_does_not_show_yet_is_later_and_noted(
    database: str, pg: asyncpg.Connection
) -> None:
    async with front(database, pg) as it:
        person = f"/v1/accounts/{ACCOUNT}/persons/{id_of('person')}"
        it.stripe.hidden.add(person)
        mirrored, _, _ = await it.ask("POST", f"/v1/accounts/{ACCOUNT}/persons", OLDER)
        assert mirrored == "later"
        noted = await pg.fetch('SELECT kind, "table", id, parent FROM pinstripe.pending')
    assert [tuple(row) for row in noted] == [("fetch", "person", id_of("person"), ACCOUNT)]
