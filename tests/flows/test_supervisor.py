"""Processes that die, refuse, hang and are not wanted any more; small ones that speak as a worker does."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pinstripe.config.config import Config
from pinstripe.errors import Misconfigured
from pinstripe.gateway.syncs import SyncState
from pinstripe.serving import supervisor
from pinstripe.serving.supervisor import (
    StartWorker,
    Supervisor,
    WorkerReport,
    WorkerSpec,
    decode_order,
    encode,
)

KEY = "sk_test_thisisthesecretofatest123"
JOB = WorkerSpec(Config(api_key=KEY))

# The order is the first line of stdin; its schema tells what to do.
WORKER = """
import json, os, signal, socket, sys
parent = socket.socket(fileno=0)
lines = parent.makefile("rwb", buffering=0)
order = json.loads(lines.readline())["config"]["schema"]
def say(**words): lines.write(json.dumps({"activity": "following", **words}).encode() + b"\\n")
if order == "dies": say(); sys.exit(7)
if order == "killed": os.kill(os.getpid(), 9)
if order == "refused":
    say(activity="ended", reason="No such key.", remedy="Another one.", lasting=True); sys.exit(2)
if order == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN); say(reason=str(os.getpid()))
    while True: signal.pause()
if order == "garbled": lines.write(b"what?\\n"); sys.exit(1)
say()
lines.read()
"""


class Watched:
    """What a supervisor's processes have reported."""

    def __init__(self) -> None:
        self.reports: list[WorkerReport] = []
        self._news = asyncio.Event()

    def hear(self, _: str, report: WorkerReport) -> None:
        self.reports.append(report)
        self._news.set()

    async def heard(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.reports) < count:
                self._news.clear()
                await self._news.wait()


ARGV = (sys.executable, "-S", "-c", WORKER)


@asynccontextmanager
async def supervised() -> AsyncIterator[tuple[Supervisor, Watched]]:
    watched = Watched()
    found = Supervisor(partial(supervisor.start, argv=ARGV), heard=watched.hear)
    try:
        yield found, watched
    finally:
        await found.close()


def job(schema: str) -> WorkerSpec:
    return replace(JOB, config=replace(JOB.config, schema=schema))


def _is_there(pid: object) -> bool:
    return Path(f"/proc/{pid}").exists()


async def until(found: Supervisor, activity: str) -> SyncState:
    async with asyncio.timeout(20):
        while True:
            state = found.state("one")
            if state is not None and state.activity == activity:
                return state
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "PAUSES_S", (0.01, 0.02))


async def test_a_process_that_dies_is_started_again_and_counted() -> None:
    async with supervised() as (found, watched):
        await found.want({"one": job("dies")})
        await watched.heard(3)
        state = found.state("one")
        assert state is not None
        assert state.restarts >= 2


async def test_the_first_process_is_there_before_its_order() -> None:
    early = supervisor.EarlyStart(shown=False, argv=ARGV)
    assert early._early is not None
    first = await asyncio.shield(early._early)
    found = Supervisor(early.start)
    try:
        await found.want({"one": job("well")})
        assert (await until(found, "following")).pid == first.pid
        await found.want({"one": replace(job("well"), paused=True)})
        await until(found, "paused")
        await found.want({"one": job("well")})  # Later ones are started when they are wanted.
        assert (await until(found, "following")).pid != first.pid
    finally:
        await found.close()


async def test_a_first_process_that_nobody_wants_ends_in_silence(
    capfd: pytest.CaptureFixture[str],
) -> None:
    early = supervisor.EarlyStart(shown=True)
    assert early._early is not None
    process = (await asyncio.shield(early._early)).process
    await early.close()
    assert process.returncode == 0
    assert capfd.readouterr() == ("", "")


async def test_the_way_of_its_death_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "PAUSES_S", (600.0,))
    for schema, told in (("dies", "code 7"), ("killed", "signal 9"), ("garbled", "code 1")):
        async with supervised() as (found, _):
            await found.want({"one": job(schema)})
            state = await until(found, "waiting")
            assert told in state.reason
            assert state.remedy
            assert state.pid is None


async def test_a_refusal_waits_for_another_wish_and_then_starts_at_once() -> None:
    async with supervised() as (found, watched):
        await found.want({"one": job("refused")})
        state = await until(found, "failed")
        assert (state.reason, state.remedy) == ("No such key.", "Another one.")
        await found.want({"one": job("well")})
        state = await until(found, "following")
        assert state.reason == ""
        assert state.restarts == 0
        assert len(watched.reports) == 2


async def test_a_pause_ends_the_process_and_the_end_of_it_starts_another() -> None:
    async with supervised() as (found, _):
        await found.want({"one": job("well")})
        first = (await until(found, "following")).pid
        await found.want({"one": replace(job("well"), paused=True)})
        paused = await until(found, "paused")
        assert paused.pid is None
        assert not _is_there(first)
        await found.want({"one": job("well")})
        assert (await until(found, "following")).pid not in (None, first)


async def test_what_cannot_be_started_says_why_and_starts_nothing() -> None:
    async with supervised() as (found, watched):
        trouble = Misconfigured("The key is gone.", hint="Bring it back.")
        await found.want({"one": replace(job("well"), trouble=trouble)})
        state = await until(found, "failed")
        assert (state.reason, state.remedy) == ("The key is gone.", "Bring it back.")
        assert watched.reports == []


async def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_CALM_S", 0.05)
    monkeypatch.setattr(supervisor, "_SIGNAL_S", 0.05)
    async with supervised() as (found, watched):
        await found.want({"one": job("stubborn")})
        await watched.heard(1)
        pid = watched.reports[0].reason
        await found.want({})
        assert found.state("one") is None
        assert not _is_there(pid)


async def test_each_sync_has_a_process_of_its_own() -> None:
    async with supervised() as (found, watched):
        await found.want({"one": job("well"), "two": job("well")})
        await watched.heard(2)
        one, two = found.state("one"), found.state("two")
        assert one is not None
        assert two is not None
        assert one.pid != two.pid
        await found.want({"two": job("well")})
        assert found.state("one") is None
        assert found.state("two") == two


def test_an_order_arrives_as_it_was_sent_and_its_repr_shows_no_key() -> None:
    order = StartWorker(
        Config(api_key=KEY, data_dir=Path("/data"), rate_limit=3.5, tables=("a", "-b"))
    )
    assert decode_order(encode(order)) == order
    assert KEY not in repr(order)
