"""The first copy: against Stripe's limits, without limits, and in memory.

`limits`: what the limits allow is the largest of three times. All necessary requests at the account's
rate; the busiest endpoint's at the endpoint's rate; the longest list that Stripe lets nobody read but
page after page (payment methods have no `created` filter), at the latency of an answer. Necessary are
the pages of `account.necessary_pages`, one list for each parent that has children where Stripe has them
only there (balance transactions of a payout among them), the one-off reads (singletons, references that no
list shows), each counted as the simulator saw it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from benchmarks.account import SHAPES, mix, necessary_pages
from benchmarks.figures import Figure
from benchmarks.stage import Run, Stage, stage, sync_once
from pinstripe.catalog.endpoints import list_endpoints
from pinstripe.store.pool import connect

ACCOUNT_RATE = 100.0
ENDPOINT_RATE = 25.0
LATENCY_S = 0.15
_SLACK = 0.25
"""Of the simulator's limiter. It counts requests when it comes to them, in bunches on a busy machine,
not when they were sent; that no second of ours holds more than the rate is a property test."""
_UNLIMITED = ("--rate-limit", "none", "--endpoint-rate-limit", "none")
_PAYOUTS = "SELECT count(DISTINCT payout_id) FROM stripe.payout_balance_transaction"
"""Each has a list of its own, which no other list shows."""
_WITHOUT_CREATED = "GET /v1/payment_methods"


@dataclass(frozen=True, slots=True)
class Needed:
    """What a perfect reader would need."""

    requests: int
    seconds: float


async def limits(objects: int, share: float = 1.0) -> AsyncIterator[Figure]:
    """Speed and requests under Stripe's limits, with answers that take 150 ms, of each shape of account.

    With a `share` below 1 the account and the rates are that part, and answers take as much longer: the
    same seconds and proportions with less CPU, for a machine that has other work.
    """
    for shape in SHAPES:
        async for figure in _limits(round(objects * share), shape, share):
            yield figure


async def _limits(objects: int, shape: str, share: float) -> AsyncIterator[Figure]:
    bench = f"limits, {shape}"
    rates = (ACCOUNT_RATE * share, ENDPOINT_RATE * share)
    async with stage(mix(objects, shape)) as at:
        await at.simulator.control("latency", fixed_s=LATENCY_S / share)
        slack = share * (1 + _SLACK) - 1
        await at.simulator.control("limits", preset="live", slack=slack)
        given = ("--rate-limit", str(rates[0]), "--endpoint-rate-limit", str(rates[1]))
        database = await at.database()
        run = await sync_once(at, *given, database=database)
        async with connect(database) as connection:
            payouts = await connection.fetchval(_PAYOUTS)
        needed = _needed(await at.counts(), run, share, payouts)
    yield Figure(bench, "objects", run.rows, "")
    yield Figure(bench, "time of the backfill", run.backfill_s, "s")
    yield Figure(bench, "what the limits allow", needed.seconds, "s")
    reached = run.backfill_s / needed.seconds
    yield Figure(bench, "time for what the limits allow", reached, "", 1.05)
    wasted = run.requests / needed.requests
    yield Figure(bench, "requests for each necessary one", wasted, "", 1.02)
    refused = run.summary["rate_limited"] / run.requests
    yield Figure(bench, "share of requests that were refused (429)", refused, "", 0.005)
    yield Figure(bench, "lists left to the scan", run.summary["scan_owed"], "")
    most = run.state["most_per_second"]
    yield Figure(bench, "most requests that arrived within a second", most, "")


async def throughput(objects: int, *, runs: int = 3) -> AsyncIterator[Figure]:
    """Without limits and latency: the median of some runs."""
    async with stage(mix(objects)) as at:
        made = [await sync_once(at, *_UNLIMITED) for _ in range(runs)]
    run = sorted(made, key=lambda r: r.rows_per_s)[len(made) // 2]
    cheap = min(made, key=_cpu_s)
    yield Figure("throughput", "objects", run.rows, "")
    yield Figure("throughput", "median speed", run.rows_per_s, "objects/s", 8000, "more")
    yield Figure("throughput", "best speed", max(r.rows_per_s for r in made), "objects/s")
    # CPU is told from the run that was disturbed least: what others do on the machine only adds.
    yield Figure("throughput", "CPU of the client", cheap.us_a_row(cheap.client_cpu_s), "us/object")
    yield Figure("throughput", "CPU of Postgres", cheap.us_a_row(cheap.postgres_cpu_s), "us/object")
    both = cheap.us_a_row(_cpu_s(cheap))
    yield Figure("throughput", "CPU of client and Postgres", both, "us/object", 110)
    simulator = cheap.us_a_row(cheap.simulator_cpu_s)
    yield Figure("throughput", "CPU of the simulator, beside", simulator, "us/object")


async def memory(objects: int) -> AsyncIterator[Figure]:
    """The most that the process of the sync had in memory."""
    async with stage(mix(objects)) as at:
        run = await sync_once(at, *_UNLIMITED)
    yield Figure("memory", f"peak with {run.rows:,} objects", run.peak_rss_mb, "MB", 150)


async def reference_run(at: Stage) -> Run:
    """One run without limits, for others to compare with."""
    return await sync_once(at, *_UNLIMITED)


def _cpu_s(run: Run) -> float:
    return run.client_cpu_s + run.postgres_cpu_s


def _needed(counts: Mapping[str, int], run: Run, share: float, payouts: int) -> Needed:
    pages = necessary_pages(counts)
    pages["GET /v1/balance_transactions"] += payouts
    made: dict[str, int] = run.state["by_endpoint"]
    for name, requests in _under_parents(counts).items():
        # Where the mirror knows that there can be nothing, it does not ask: not needed then.
        pages[name] = pages.get(name, 0) + min(requests, made.get(name, 0))
    # Read once each: singletons, and what is only referred to.
    known = {endpoint.name for endpoint in list_endpoints()} | set(pages)
    once = sum(count for name, count in made.items() if name not in known)
    total = sum(pages.values()) + once
    seconds = max(
        total / ACCOUNT_RATE,
        max(pages.values()) / ENDPOINT_RATE,
        pages[_WITHOUT_CREATED] * LATENCY_S,
    )
    seconds /= share
    return Needed(total, seconds)


def _under_parents(counts: Mapping[str, int]) -> dict[str, int]:
    """One request for each parent that can have children, by endpoint; no list fills a page here."""
    found: dict[str, int] = {}
    for endpoint in list_endpoints():
        if endpoint.parent:
            children = sum(counts.get(name, 0) for name in endpoint.objects)
            parents = min(counts.get(endpoint.parent, 0), children)
            found[endpoint.name] = found.get(endpoint.name, 0) + parents
    return found
