"""Work of days, beside the follower: scheduled verifications, and erasures that fall due.

Both are looked for once a minute, so that a restart neither repeats nor forgets one: the database says when
the last verification ended and which customers were deleted.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import structlog

from pinstripe.client.rate_limit import RateLimiter
from pinstripe.errors import PinstripeError
from pinstripe.source.source import Source
from pinstripe.store.erasures import erase, schedule_deleted
from pinstripe.store.read_quota import load_read_use
from pinstripe.store.status import estimate_rows
from pinstripe.store.verifications import next_verification, plan_verification
from pinstripe.sync.verify.verify import VerifyOptions, open_verify

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_LOOK_S = 60.0
_REST = 100.0
"""Looking for deleted customers takes a hundredth of the time at most, however many there are."""
_PAGE = 100
_SINGLE = 3000
"""GETs of single rows and of short lists that a verification sends beside its pages, at most about."""
_MOST_SHARE = 0.5
"""Of the read allowance: the other half is for following the account."""


async def erase_deleted(source: Source, *, after_days: float) -> None:
    """Erase each customer that Stripe has deleted, `after_days` later. Runs until cancelled."""
    schema = source.mirror.schema
    while "customer" in source.mirror.tables:
        began = time.monotonic()
        try:
            async with source.pool.acquire() as connection:
                due = await schedule_deleted(connection, schema, after_days=after_days)
                for customer in due:
                    await erase(connection, schema, customer, reason="deleted")
        except PinstripeError as error:
            _log.warning("erasure.trouble", error=error.message)
        await asyncio.sleep(max(_LOOK_S, _REST * (time.monotonic() - began)))


async def verify_on_schedule(
    source: Source,
    budget: RateLimiter,
    url: str,
    *,
    every: timedelta | None,
    livemode: bool,
    account_created: int,
) -> None:
    """Verify when the last verification is `every` old. Runs until cancelled; None: only says so.

    The first one is due that long after the sync was created. Where it would take more than half of the
    read allowance, none is made, and `status` says why.
    """
    schema = source.mirror.schema
    while True:
        try:
            note = await _why_not(source, livemode=livemode) if every is not None else "Turned off."
            async with source.pool.acquire() as connection:
                due = await next_verification(connection, schema, every or timedelta())
                await plan_verification(connection, schema, None if note else due, note)
                now = await connection.fetchval("SELECT clock_timestamp()")
            if not note and now >= due:
                options = VerifyOptions(followed=True)
                async with open_verify(
                    url, source, budget, options, account_created=account_created
                ) as run:
                    report = await run.run()
                _log.info("verify.done", schema=schema, differences=report.differences)
        except PinstripeError as error:
            _log.warning("verify.trouble", error=error.message)
        await asyncio.sleep(_LOOK_S)


async def _why_not(source: Source, *, livemode: bool) -> str:
    """Why a verification costs too much; "" if it does not."""
    schema = source.mirror.schema
    async with source.pool.acquire() as connection:
        use = await load_read_use(connection, schema, livemode=livemode)
        rows = sum((await estimate_rows(connection, [schema]))[schema].values())
    cost = rows // _PAGE + _SINGLE
    if use.allowed is None or use.used + cost <= use.allowed * _MOST_SHARE:
        return ""
    return (
        f"The read allowance is short: about {cost:,} requests of {use.allowed:,} in 30 days, of which "
        f"{use.used:,} are used. Run `pinstripe verify` when it suits you."
    )
