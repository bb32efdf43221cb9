"""Upcoming invoices of a whole account: after the fill, and after any change, they are what Stripe says."""

from __future__ import annotations

import asyncpg
import msgspec
import pytest

from pinstripe.client.client import StripeClient
from pinstripe.config.config import Config
from pinstripe.errors import NotFound
from pinstripe.service import open_service
from pinstripe.sync.events.poller import EventPoller
from pinstripe.sync.refetch.worker import RefetchWorker
from pinstripe.sync.upcoming.rules import ENDED
from pinstripe.sync.upcoming.upcoming import Upcoming
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

pytestmark = pytest.mark.migrated


class _List(msgspec.Struct):
    data: list[dict[str, object]]
    has_more: bool
    url: str


class _Preview(msgspec.Struct):
    total: int
    currency: str
    lines: _List


Said = tuple[int, str, list[int]]


async def previews(stripe: StripeClient, subscriptions: list[str]) -> dict[str, Said]:
    """What Stripe says, asked for one by one."""
    found: dict[str, Said] = {}
    for key in subscriptions:
        try:
            response = await stripe.post(
                "/v1/invoices/create_preview", [("subscription", key)], endpoint="x"
            )
        except NotFound:
            continue
        made = msgspec.json.decode(response.body, type=_Preview)
        lines = made.lines.data
        if made.lines.has_more:
            more = await stripe.get(made.lines.url, [("limit", "100")], endpoint="y")
            page = msgspec.json.decode(more.body, type=_List)
            assert not page.has_more
            lines = page.data
        amounts = sorted(int(str(line["amount"])) for line in lines)
        found[key] = (made.total, made.currency, amounts)
    return found


async def rows(pg: asyncpg.Connection, owner: str) -> dict[str, Said]:
    found = await pg.fetch(
        f"SELECT {owner}_id, total, currency, (SELECT array_agg(amount ORDER BY amount)"
        " FROM stripe.upcoming_invoice_line_item l"
        f" WHERE l.upcoming_{owner}_id = u.{owner}_id) FROM stripe.upcoming_{owner}_invoice u"
    )
    return {key: (total, currency, list(amounts)) for key, total, currency, amounts in found}


async def agrees(sim: Running, stripe: StripeClient, pg: asyncpg.Connection) -> int:
    """Asserts that rows and lines are what Stripe says; how many subscriptions have one.

    An ended subscription has none here. No source says what Stripe previews for it while its customer has
    items pending (https://docs.stripe.com/api/subscriptions/cancel: they stay, and are charged at the end
    of the period); the simulator previews them.
    """
    living = [s for s in sim.control.truth("subscription") if s["status"] not in ENDED]
    said = await previews(stripe, [str(s["id"]) for s in living])
    assert await rows(pg, "subscription") == said
    owner_of = {str(s["id"]): str(s["customer"]) for s in living}
    by_customer: dict[str, list[Said]] = {}
    for key, preview in said.items():
        by_customer.setdefault(owner_of[key], []).append(preview)
    customers = await rows(pg, "customer")
    assert set(by_customer) <= set(customers)
    for key, candidates in by_customer.items():
        assert customers[key] in candidates
    return len(said)


async def test_they_are_stripes_own_after_the_fill_and_after_any_change(
    database: str, pg: asyncpg.Connection
) -> None:
    async with running(Settings(scale=1500, connected=False)) as sim:
        config = Config(
            api_key=sim.key,
            stripe_url=sim.url,
            database_url=database,
            rate_limit="none",
            endpoint_rate_limit="none",
        )
        async with open_service(config) as service:
            source = service.source
            await service.backfill.run()
            upcoming = Upcoming(source)
            await upcoming.fill()
            assert await agrees(sim, source.stripe, pg) > 10

            mark, since = sim.control.events(), int(sim.account.clock.now())
            await sim.control.mutate(400)
            worker = RefetchWorker(source)
            await EventPoller(source, worker, since=since).read_lookback(since - 1)
            # What was made and ended in one second has its row from a request, which comes first.
            await worker.drain()
            await source.mirror.conflicts.wait_resolved()
            events = list(reversed(sim.control.truth("event")[mark:]))
            for refetch in await upcoming.refetches(events):
                await upcoming.refreshers()[refetch.kind](refetch.id)
            assert await agrees(sim, source.stripe, pg) > 10
            assert upcoming.unpreviewable == 0
