"""Objects with ids of their users' own, deleted and made again within one second."""

from __future__ import annotations

import time

import pytest
from tests.flows.harness.account import open_copy, quiet
from tests.flows.harness.scripted_stripe import Object, scripted_stripe

from pinstripe.client.response import AsOf, Margins, as_of_response
from pinstripe.rows.extract import RowSet
from pinstripe.store.pool import connect

pytestmark = pytest.mark.migrated

KINDS = ("plan", "coupon", "product")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_alive", [True, False])
@pytest.mark.parametrize("newest", ["created", "deleted"])
async def test_what_was_deleted_and_made_within_one_second_is_as_stripe_has_it(
    database: str, kind: str, is_alive: bool, newest: str
) -> None:
    def made(number: int) -> Object:
        return {"id": "gold", "object": kind, "metadata": {"n": str(number)}, "created": 1}

    now = int(time.time())
    async with scripted_stripe() as stripe:
        path = f"/v1/{kind}s"
        stripe.lists[path] = [made(1)]
        async with open_copy(stripe, database, margins=Margins()) as copy:
            response = await copy.source.stripe.get(f"{path}/gold", endpoint="x")
            found = RowSet()
            copy.mirror.extractor.object(made(1), found)
            await copy.mirror.write([(found, as_of_response(response))])
            stripe.lists[path] = [made(2)] if is_alive else []
            for word in ("deleted", "created") if newest == "created" else ("created", "deleted"):
                state = made(1 if word == "deleted" and newest == "created" else 2)
                stripe.event(f"{kind}.{word}", state, created=now)
            stripe.asked.clear()
            live, refetches = copy.live(now - 10)
            await live.read_lookback(now - 10)
            await refetches.work_off()
            await quiet(copy, refetches)
        async with connect(database) as connection:
            row = await connection.fetchrow(f"SELECT metadata->>'n', deleted FROM stripe.{kind}")
    assert stripe.paths().count(f"{path}/gold") == 1
    assert row is not None
    assert bool(row[1]) is not is_alive
    if is_alive:
        assert row[0] == "2"


async def test_what_hung_under_the_old_one_does_not_hang_under_the_new(database: str) -> None:
    product: Object = {"id": "gold", "object": "product", "created": 1}
    feature: Object = {"id": "prodft_1", "object": "product_feature", "livemode": False}
    now = int(time.time())
    async with scripted_stripe() as stripe:
        stripe.lists["/v1/products"] = [product]
        stripe.lists["/v1/products/gold/features"] = []
        margins = Margins(replica_lag_s=0.2)
        async with open_copy(stripe, database, margins=margins) as copy:
            found = RowSet()
            copy.mirror.extractor.object(product, found)
            copy.mirror.extractor.object(feature, found, parents={"product": "gold"})
            await copy.mirror.write([(found, AsOf(now - 20.0, now - 19.0))])
            stripe.event("product.deleted", product, created=now)
            stripe.event("product.created", product, created=now)
            live, refetches = copy.live(now - 10)
            await live.read_lookback(now - 10)
            await refetches.work_off()
            await quiet(copy, refetches)
        async with connect(database) as connection:
            rows = await connection.fetch("SELECT id, deleted FROM stripe.product_feature")
            assert [tuple(row) for row in rows] == [("prodft_1", True)]
            assert await connection.fetchval("SELECT deleted FROM stripe.product") is not True
