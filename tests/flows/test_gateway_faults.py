"""The whole service in trouble: Postgres, the process that syncs and Stripe die under its writers.

No answer of Stripe's is lost, and everything is mirrored afterwards.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tests.flows.harness.serving import SECRET, Served, env_of, served

from pinstripe.errors import PinstripeError
from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.pool import connect
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

pytestmark = pytest.mark.migrated
ACCOUNT = Settings(scale=60, keys=(SECRET,), future_fields=False)
HEADERS = {"Authorization": f"Bearer {SECRET}"}
WRITERS = 6


class Writing:
    """Writers who go on until told to stop. `last`: the name that each customer's last answer has."""

    def __init__(self, service: Served) -> None:
        self.last: dict[str, str] = {}
        self.told: list[str] = []
        """What the proxy said of each answer: mirrored yes, no, later."""
        self._service = service
        self._enough = asyncio.Event()

    async def write(self, writer: int) -> None:
        key = await self._post("/v1/customers", f"{writer} new")
        number = 0
        while not self._enough.is_set():
            number += 1
            await self._post(f"/v1/customers/{key}", f"{writer} {number}")

    async def at_least(self, more: int) -> None:
        """Returns when so many answers more have come."""
        goal = len(self.told) + more
        async with asyncio.timeout(60):
            while len(self.told) < goal:  # noqa: ASYNC110 (what is looked at has no event)
                await asyncio.sleep(0.01)

    def enough(self) -> None:
        self._enough.set()

    async def _post(self, path: str, name: str) -> str:
        async with self._service.http.post(
            self._service.url + path, data={"name": name}, headers=HEADERS
        ) as answer:
            body = await answer.json()
            assert (answer.status, body.get("name")) == (200, name), body
            self.told.append(answer.headers["Pinstripe-Mirrored"])
        key = str(body["id"])
        self.last[key] = name
        return key


@asynccontextmanager
async def writing(service: Served) -> AsyncIterator[Writing]:
    """Writers at work for the block."""
    deeds = Writing(service)
    async with asyncio.TaskGroup() as group:
        for number in range(WRITERS):
            group.create_task(deeds.write(number))
        try:
            await deeds.at_least(2 * WRITERS)
            yield deeds
        finally:
            deeds.enough()


async def all_mirrored(database: str, deeds: Writing, sim: Running) -> None:
    """Returns when Postgres has what the writers were told, which is what Stripe has."""
    customers = sim.account.world.truth("customer")
    # Those of test clocks are listed under their clocks, whose table is not wanted here.
    truth = {str(o["id"]): o["name"] for o in customers if not o.get("test_clock")}
    assert deeds.last.items() <= truth.items()
    for _ in range(100):
        rows = await _rows(database)
        if rows == truth:
            break
        await asyncio.sleep(0.2)
    assert dict(rows.items() - truth.items()) == dict(truth.items() - rows.items())


async def _rows(database: str) -> dict[str, str]:
    try:
        async with connect(database) as connection:
            rows = await connection.fetch(
                "SELECT id, name FROM stripe.customer WHERE deleted IS NOT TRUE"
            )
    except PinstripeError:
        return {}  # It is not back yet.
    return {row[0]: row[1] for row in rows}


async def test_a_postgres_that_is_killed_loses_no_answer_and_gets_them_all_afterwards() -> None:
    with TemporaryDirectory(prefix="pinstripe-tests-") as directory:
        async with (
            EmbeddedPostgres(Path(directory) / "postgres") as server,
            running(ACCOUNT) as sim,
            served(env_of(sim, server.url)) as service,
        ):
            await service.until("default: following")
            async with writing(service) as deeds:
                for _ in range(2):
                    assert server.pid is not None
                    os.kill(server.pid, signal.SIGKILL)
                    await deeds.at_least(5 * WRITERS)
            await all_mirrored(server.url, deeds, sim)
            assert "no" not in deeds.told
            await service.until_state(activity="following")


async def test_a_process_that_syncs_is_killed_under_the_writers_and_nobody_notices(
    database: str,
) -> None:
    async with running(ACCOUNT) as sim, served(env_of(sim, database)) as service:
        await service.until("default: following")
        async with writing(service) as deeds:
            os.kill((await service.state())["pid"], signal.SIGKILL)
            await deeds.at_least(5 * WRITERS)
        assert set(deeds.told) == {"yes"}
        assert deeds.last.items() <= (await _rows(database)).items()
        await service.until("default: following")
        status, waited = await service.get("/wait/stripe/default?timeout=60")
        assert (status, waited["ok"]) == (200, True)
        await all_mirrored(database, deeds, sim)


async def test_a_stripe_that_is_down_slow_or_cuts_its_answers_is_told_in_stripes_own_shape(
    database: str,
) -> None:
    async with AsyncExitStack() as stack:
        sim = await stack.enter_async_context(running(ACCOUNT))
        async with served(env_of(sim, database)) as service:
            await service.until("default: following")
            for kind in ("reset_after", "cut", "reset_in_body"):
                sim.control.fault(kind=kind, count=1, method="POST")
                await _is_502(service, "may or may not have been done")
            sim.control.fault(kind="drip", count=1, method="POST", seconds=0.5)
            assert (await service.make_customer("Drop by drop"))[1] == "yes"
            assert (await service.get("/wait/stripe/default?timeout=60"))[0] == 200
            # What the cut answers would have said came by its events.
            await all_mirrored(database, Writing(service), sim)

            await stack.aclose()
            await _is_502(service, "was not sent")
            port = int(sim.url.rpartition(":")[2])
            async with running(ACCOUNT, port=port):
                assert (await service.make_customer("Back again"))[1] == "yes"


async def _is_502(service: Served, said: str) -> None:
    async with service.http.post(
        f"{service.url}/v1/customers", data={"name": "Perhaps"}, headers=HEADERS
    ) as answer:
        body = await answer.json()
        assert (answer.status, body["error"]["type"]) == (502, "api_error")
        assert said in body["error"]["message"]
