"""The four trips that nearly everything here is for, and which functions of ours each of them enters.

    a page of a list -> rows                      `backfill`
    a new customer -> event -> row -> waiter      `event`
    a POST through the proxy -> row -> reply      `proxy`
    two wrong rows -> found -> repaired           `verify`

Each runs warm, on a real Postgres and over HTTP, several times; what counts is what every run enters.
Nothing that a timer starts belongs to a trip: whatever has an interval has one of hours here.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType

import aiohttp
from tests.flows.harness.account import copying, make_schema
from tests.flows.harness.api_service import config_of
from tests.flows.harness.gateway_account import gateway_account, serving
from tests.flows.harness.waiting import gateway, made_customer, syncing
from tests.house.tree import ROOT, SIMULATOR

from pinstripe.catalog.tables import tables
from pinstripe.gateway.proxy.proxy import open_proxy
from pinstripe.gateway.proxy.upstream import hosts_at
from pinstripe.gateway.wait.waiter import SyncRequester
from pinstripe.service import open_service
from pinstripe.store.pool import connect
from pinstripe.sync.events.poller import PollIntervals
from pinstripe.sync.relist import Intervals
from pinstripe.sync.verify.verify import VerifyOptions, open_verify
from pinstripe_simulator.account import Settings
from pinstripe_simulator.nastiness import preset
from pinstripe_simulator.server import Running, running

RUNS = 4
_PLAIN = Settings(nastiness=preset("calm"), future_fields=False)
"""Refusals and stale reads would add functions to a trip by chance."""
SMALL = replace(_PLAIN, scale=60)
VERIFIED = (
    "customer",
    "customer_balance_transaction",
    "balance",
    "charge",
    "invoice",
    "line_item",
    "event",
)
# One page and four: those are never written in one commit.
FEW, MANY = replace(_PLAIN, scale=2000), replace(_PLAIN, scale=8000)
_NEVER_S = 36_000.0

Entered = frozenset[tuple[str, str]]
"""(file below `src`, qualified name) of each function."""


class Recorder:
    """Counts what of ours is entered within `with recorder.on():`, in all threads begun there too."""

    def __init__(self) -> None:
        self._found: Counter[CodeType] = Counter()

    @contextmanager
    def on(self) -> Iterator[None]:
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def _note(self, frame: FrameType, what: str, _: object) -> None:
        if what == "call":
            self._found[frame.f_code] += 1

    def counts(self) -> Mapping[tuple[str, str], int]:
        source = ROOT / "src"
        found: Counter[tuple[str, str]] = Counter()
        for code, count in self._found.items():
            path = Path(code.co_filename)
            # Names in angle brackets: comprehensions, which later Pythons do not call, and lambdas.
            ours = path.is_relative_to(source) and SIMULATOR not in str(path)
            if ours and code.co_name[0] != "<":
                found[path.relative_to(source).as_posix(), code.co_qualname] += count
        return found

    def entered(self) -> Entered:
        return frozenset(self.counts())


def _common(runs: list[Entered]) -> Entered:
    """What every run entered."""
    return frozenset.intersection(*runs)


async def backfill(database: str, _: Path) -> Entered:
    """What is entered the more often, the more pages a list has."""
    async with running(FEW) as few_pages, running(MANY) as many_pages:
        await _list_once(database, "warm", many_pages)
        runs = []
        for run in range(RUNS // 2):
            few = await _list_once(database, f"few_{run}", few_pages)
            many = await _list_once(database, f"many_{run}", many_pages)
            runs.append(frozenset(f for f, count in many.items() if count > few.get(f, 0)))
    return _common(runs)


async def _list_once(database: str, schema: str, sim: Running) -> Mapping[tuple[str, str], int]:
    """The table of customers alone, read to its end; how often each function was entered."""
    chosen = {"customer": tables()["customer"]}
    await make_schema(database, schema, chosen)
    recorder = Recorder()
    async with copying(database, sim, schema=schema, chosen=chosen) as copy:
        with recorder.on():
            outcome = await copy.run()
    assert outcome.complete
    return recorder.counts()


async def event(database: str, _: Path) -> Entered:
    """A customer is made at Stripe; a plain `/wait` answers, and there is the row."""
    pace = PollIntervals(near_every_s=_NEVER_S, window_every_s=_NEVER_S)
    quiet = Intervals(*[_NEVER_S] * 4)
    runs = []
    async with (
        running(SMALL) as sim,
        gateway(sim, database) as here,
        syncing(sim, database, complete=False, pace=pace, intervals=quiet) as follower,
    ):
        await follower.relist.run_due()  # Nothing of it is due after that.
        follower.backfilled()
        for run in range(2 + RUNS):
            made = await made_customer(here.stripe, f"Ada {run}")
            recorder = Recorder()
            with recorder.on():
                answer = await here.wait()
            assert answer.status_code == 200, answer.text
            row = await here.account.row("customer", made[0])
            assert row is not None
            runs.append(recorder.entered())
    return _common(runs[2:])


async def proxy(database: str, _: Path) -> Entered:
    """A customer of which there is a row is changed through the proxy; until the reply is there."""
    runs = []
    async with running(SMALL) as sim, gateway_account(sim, database) as account:
        requester = SyncRequester(lambda: database)
        async with (
            open_proxy(
                account.syncs, hosts=hosts_at(sim.url), request_sync=requester.request_sync
            ) as app,
            serving(app) as url,
            aiohttp.ClientSession(url, headers=account.bearer) as http,
        ):
            async with http.post("/v1/customers", data={"name": "Ada"}) as answer:
                key = (await answer.json())["id"]
            for run in range(2 + RUNS):
                recorder = Recorder()
                with recorder.on():
                    answer = await http.post(f"/v1/customers/{key}", data={"name": f"G {run}"})
                    await answer.read()
                assert answer.headers["Pinstripe-Mirrored"] == "yes"
                row = await account.row("customer", key)
                assert row is not None
                assert row["name"] == f"G {run}"
                runs.append(recorder.entered())
    return _common(runs[2:])


_STALE = """
UPDATE stripe.charge SET amount = 4242,
  _as_of = now() - interval '1 day', _as_of_latest = now() - interval '1 day'
WHERE id = (SELECT min(id) FROM stripe.charge)
"""
_MISSING = "DELETE FROM stripe.charge WHERE id = (SELECT max(id) FROM stripe.charge)"


async def verify(database: str, directory: Path) -> Entered:
    """A complete copy in which a row is missing and one is stale, until both are as at Stripe."""
    runs = []
    async with running(SMALL) as sim:
        config = replace(config_of(sim, database, directory), tables=VERIFIED, changes=False)
        async with open_service(config) as service:
            assert (await service.backfill.run()).complete
        async with (
            open_service(config, leads=False) as service,
            connect(database) as connection,
        ):
            for _ in range(1 + RUNS // 2):
                await connection.execute(_STALE)
                await connection.execute(_MISSING)
                options = VerifyOptions(repair=True, followed=False, grace_s=0.0)
                recorder = Recorder()
                with recorder.on():
                    async with open_verify(
                        database,
                        service.source,
                        service.budget,
                        options,
                        account_created=service.account.birth,
                    ) as run:
                        report = await run.run()
                assert sum(len(t.repaired) for t in report.tables.values()) == 2
                assert report.differences == 0
                runs.append(recorder.entered())
    return _common(runs[1:])


TRIPS: dict[str, Callable[[str, Path], Awaitable[Entered]]] = {
    "backfill": backfill,
    "event": event,
    "proxy": proxy,
    "verify": verify,
}
