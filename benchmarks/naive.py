"""What one would write in an afternoon: the official SDK, a loop, one INSERT a row.

On a smaller account of the same mix, without limits and latency, and compared by object: time and CPU.
It reads less (no nested lists, no references, few of the types), which speaks for it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator

from benchmarks import watch
from benchmarks.account import mix
from benchmarks.backfill import reference_run
from benchmarks.figures import Figure
from benchmarks.stage import Stage, stage

_SMALLER = 40
"""Times smaller is the loop's account: it takes milliseconds an object."""
_LISTS = (
    "balance_transactions",
    "charges",
    "payment_intents",
    "payment_methods",
    "events",
    "invoices",
    "invoice_payments",
    "checkout.sessions",
    "subscriptions",
    "refunds",
    "invoice_items",
    "payouts",
    "customers",
)
"""What the loop reads; no nested lists, no references, no canceled subscriptions."""


async def naive(objects: int) -> AsyncIterator[Figure]:
    """The product on the whole account, the loop on a small one of the same mix; both by object."""
    async with stage(mix(objects)) as at:
        ours = await reference_run(at)
    async with stage(mix(objects // _SMALLER)) as at:
        rows, wall_s, cpu_s = await _loop(at)
    theirs_us, ours_us = wall_s / rows * 1e6, ours.backfill_s / ours.rows * 1e6
    yield Figure("naive", "a loop over the SDK, row by row", rows / wall_s, "objects/s")
    yield Figure("naive", "the product", ours.rows_per_s, "objects/s")
    yield Figure("naive", "how many times as long the loop takes", theirs_us / ours_us, "x")
    cpu = cpu_s / rows * 1e6 / ours.us_a_row(ours.client_cpu_s)
    yield Figure("naive", "how many times the client's CPU it takes", cpu, "x")


async def _loop(at: Stage) -> tuple[int, float, float]:
    """Rows, seconds and seconds of CPU of the loop in a process of its own."""
    database = await at.database()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.naive",
        at.simulator.url,
        at.simulator.key,
        database,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        stdout=asyncio.subprocess.PIPE,
    )
    reader = asyncio.create_task(process.communicate())
    cpu_s = 0.0
    while not reader.done():
        cpu_s = max(cpu_s, watch.cpu_s(process.pid))
        await asyncio.sleep(0.05)
    out, _ = await reader
    if process.returncode != 0:
        raise RuntimeError("the loop over the SDK failed")
    told = json.loads(out)
    return told["rows"], told["seconds"], cpu_s


async def _main(url: str, key: str, database: str) -> None:
    # Only in this process: importing it takes a second.
    import asyncpg
    import stripe

    client = stripe.StripeClient(key, base_addresses={"api": url})
    connection = await asyncpg.connect(database)
    await connection.execute("CREATE TABLE object (id text PRIMARY KEY, body jsonb)")
    rows, started = 0, time.monotonic()
    for name in _LISTS:
        service: object = client.v1
        for part in name.split("."):
            service = getattr(service, part)
        first = service.list({"limit": 100})  # type: ignore[attr-defined]
        for entry in first.auto_paging_iter():
            await connection.execute(
                "INSERT INTO object VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET body = $2",
                entry.id,
                # Postgres takes no NUL in jsonb, and Stripe's objects may hold one.
                json.dumps(entry.to_dict(), default=str).replace("\\u0000", ""),
            )
            rows += 1
    seconds = time.monotonic() - started
    await connection.close()
    sys.stdout.write(json.dumps({"rows": rows, "seconds": seconds}))


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
