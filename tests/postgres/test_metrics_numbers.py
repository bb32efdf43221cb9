"""Revenue in cases that the lives of `tests/flows/test_metrics.py` have not, on rows as Stripe answers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from tests.postgres.writing import Writing, writing

from pinstripe.client.response import StripeObject
from pinstripe.console.insights import panels

pytestmark = pytest.mark.migrated

NAMES = (
    *("customer", "subscription", "subscription_item", "price", "coupon", "discount"),
    *("invoice", "line_item", "invoice_item"),
)


@pytest.fixture
async def w(database: str) -> AsyncIterator[Writing]:
    async with writing(database, *NAMES) as made:
        yield made


def month(ago: int) -> datetime:
    """The first moment of a month before this one."""
    today = datetime.now(UTC)
    count = today.year * 12 + today.month - 1 - ago
    return datetime(count // 12, count % 12 + 1, 1, tzinfo=UTC)


def price(id: str, amount: int | None, currency: str = "usd", **more: object) -> StripeObject:
    made: StripeObject = {"id": id, "object": "price", "currency": currency, "type": "recurring"}
    made |= {"recurring": {"interval": "month", "interval_count": 1, "usage_type": "licensed"}}
    made |= {"billing_scheme": "per_unit", "unit_amount": amount, "product": f"prod_{id}"}
    return made | ({"unit_amount_decimal": str(amount)} if amount is not None else {}) | more


def subscription(id: str, **more: object) -> StripeObject:
    made: StripeObject = {"id": id, "object": "subscription", "customer": f"cus_{id}"}
    made |= {"currency": "usd", "status": "active", "discounts": [], "latest_invoice": f"in_{id}"}
    return made | {"start_date": int(month(3).timestamp())} | more


def item(of: str, what: StripeObject, quantity: int = 1) -> StripeObject:
    made: StripeObject = {"id": f"si_{of}_{what['id']}", "object": "subscription_item"}
    return made | {"subscription": of, "price": what["id"], "quantity": quantity, "discounts": []}


def invoice(id: str, of: str, **more: object) -> StripeObject:
    parent = {"subscription_details": {"subscription": of}, "type": "subscription_details"}
    made: StripeObject = {"id": id, "object": "invoice", "status": "paid", "parent": parent}
    return made | {"billing_reason": "subscription_cycle", "amount_paid": 1} | more


def line(
    id: str,
    of: str,
    what: StripeObject,
    begins: datetime,
    ends: datetime,
    *,
    amount: int,
    **more: object,
) -> StripeObject:
    """Stripe names the subscription in the parent alone (seen in live answers)."""
    proration = bool(more.pop("proration", False))
    details: StripeObject = {"subscription": of, "subscription_item": f"si_{of}_{what['id']}"}
    details |= {"proration": proration, "invoice_item": None, "proration_details": None}
    unit = str(amount) if proration else what.get("unit_amount_decimal")
    pricing = {"price_details": {"price": what["id"], "product": what["product"]}}
    made: StripeObject = {
        "id": id,
        "object": "line_item",
        "invoice": more.pop("invoice", f"in_{of}"),
    }
    made |= {"amount": amount, "currency": what["currency"], "quantity": 1, "discounts": []}
    made |= {"parent": {"type": "subscription_item_details", "subscription_item_details": details}}
    made |= {"period": {"start": int(begins.timestamp()), "end": int(ends.timestamp())}}
    made |= {"pricing": {**pricing, "type": "price_details", "unit_amount_decimal": unit}}
    return made | {"discount_amounts": [], "taxes": []} | more


async def put(w: Writing, *objects: StripeObject) -> None:
    await w.put(*((one, 0, 1) for one in objects))


async def worth(pg: asyncpg.Connection) -> dict[str, int]:
    rows = await pg.fetch("SELECT subscription_id, mrr FROM metrics.subscription_mrr")
    return {row[0]: row[1] for row in rows}


async def at_end_of(pg: asyncpg.Connection, ago: int) -> dict[str, int]:
    rows = await pg.fetch(
        "SELECT subscription_id, mrr FROM metrics.subscription_month WHERE month = $1",
        month(ago).date(),
    )
    return {row[0]: row[1] for row in rows}


async def test_a_proration_counts_by_its_price_and_not_by_its_share_of_it(w: Writing) -> None:
    """Stripe says of a proration's unit what the share of it is: -600 where a unit costs 1000."""
    small, large = price("small", 1000), price("large", 3000)
    begins, ends = month(2) + timedelta(days=2), month(1) + timedelta(days=2)
    changed = month(2) + timedelta(days=17)
    await put(
        w,
        small,
        large,
        subscription("sub_1"),
        invoice("in_sub_1", "sub_1"),
        line("il_1", "sub_1", small, begins, ends, amount=1000),
        line("il_2", "sub_1", small, changed, ends, amount=-600, proration=True),
        line("il_3", "sub_1", large, changed, ends, amount=1800, proration=True),
    )
    assert await at_end_of(w.pg, 2) == {"sub_1": 3000}


async def test_a_trial_converts_though_its_lines_do_not_name_the_subscription(w: Writing) -> None:
    paid = price("paid", 1000)
    trial = {
        "trial_start": int(month(2).timestamp()),
        "trial_end": int((month(2) + timedelta(days=7)).timestamp()),
    }
    first = line("il_1", "sub_1", paid, month(2) + timedelta(days=7), month(1), amount=1000)
    await put(w, paid, subscription("sub_1", **trial), invoice("in_sub_1", "sub_1"), first)
    row = await w.pg.fetchrow("SELECT month, converted FROM metrics.trial_conversion")
    assert tuple(row or ()) == (month(2).date(), 1)
    assert (await w.row("line_item", "il_1"))["subscription_id"] == "sub_1"


async def test_a_fixed_amount_is_that_of_the_currency_and_of_its_products(w: Writing) -> None:
    one, other, euros = price("one", 3000), price("other", 2000), price("euros", 5000, "eur")
    off = {"amount_off": 1000, "currency": "usd", "duration": "forever"}
    coupon: StripeObject = {"id": "co_1", "object": "coupon", **off}
    coupon["currency_options"] = {"usd": {"amount_off": 1000}, "eur": {"amount_off": 900}}
    limited: StripeObject = {"id": "co_2", "object": "coupon", **off}
    limited["applies_to"] = {"products": ["prod_one"]}
    discounts: list[StripeObject] = [
        {"id": f"di_{n}", "object": "discount", "source": {"coupon": f"co_{n}", "type": "coupon"}}
        for n in (1, 2)
    ]
    begins, ends = month(2), month(1)
    taken = {"discount_amounts": [{"amount": 900, "discount": "di_1"}]}
    limits = {"discounts": ["di_2"]}
    await put(
        w,
        *(one, other, euros, coupon, limited, *discounts),
        subscription("sub_eur", currency="eur", discounts=["di_1"]),
        item("sub_eur", euros),
        invoice("in_sub_eur", "sub_eur"),
        line("il_1", "sub_eur", euros, begins, ends, amount=5000, **taken),
        subscription("sub_one", discounts=["di_2"]),
        item("sub_one", one),
        subscription("sub_other", discounts=["di_2"]),
        item("sub_other", other),
        invoice("in_sub_other", "sub_other"),
        line("il_2", "sub_other", other, begins, ends, amount=2000, **limits),
    )
    assert await worth(w.pg) == {"sub_eur": 4100, "sub_one": 2000, "sub_other": 2000}
    assert await at_end_of(w.pg, 2) == {"sub_eur": 4100, "sub_other": 2000}


async def test_a_fixed_amount_takes_no_more_than_its_products_cost(w: Writing) -> None:
    cheap, dear = price("cheap", 300), price("dear", 5000)
    coupon: StripeObject = {"id": "co_1", "object": "coupon", "amount_off": 1000, "currency": "usd"}
    coupon |= {"duration": "forever", "applies_to": {"products": ["prod_cheap"]}}
    discount: StripeObject = {"id": "di_1", "object": "discount", "source": {"coupon": "co_1"}}
    sold = subscription("sub_1", discounts=["di_1"])
    await put(w, cheap, dear, coupon, discount, sold, item("sub_1", cheap), item("sub_1", dear))
    assert await worth(w.pg) == {"sub_1": 5000}


async def test_tiers_are_those_of_the_currency(w: Writing) -> None:
    """Stripe shows those of further currencies only where it is asked for each of them."""
    tiers = [{"up_to": None, "unit_amount_decimal": "1000", "flat_amount_decimal": None}]
    theirs = [{"up_to": None, "unit_amount_decimal": "150000", "flat_amount_decimal": None}]
    tiered: StripeObject = {"billing_scheme": "tiered", "tiers_mode": "graduated", "tiers": tiers}
    known = price("known", None, currency_options={"jpy": {"tiers": theirs}}) | tiered
    not_shown = price("not_shown", None, currency_options={"jpy": {"tiers": None}}) | tiered
    last = line("il_1", "sub_2", not_shown, month(0), month(0) + timedelta(days=31), amount=450_000)
    await put(
        w,
        *(known, not_shown),
        subscription("sub_1", currency="jpy"),
        item("sub_1", known, 2),
        subscription("sub_2", currency="jpy"),
        item("sub_2", not_shown, 3),
        invoice("in_sub_2", "sub_2"),
        last | {"currency": "jpy", "quantity": 3},
        subscription("sub_3"),
        item("sub_3", known, 2),
    )
    assert await worth(w.pg) == {"sub_1": 300_000, "sub_2": 450_000, "sub_3": 2000}


async def test_tax_in_a_price_is_taken_off_after_another_item_was_added(w: Writing) -> None:
    """The latest invoice is then for the new item alone."""
    old, new = price("old", 1200), price("new", 2400)
    ends = month(0) + timedelta(days=31)
    vat = {"taxes": [{"amount": 200, "tax_behavior": "inclusive"}]}
    more = {"taxes": [{"amount": 400, "tax_behavior": "inclusive"}], "invoice": "in_2"}
    await put(
        w,
        *(old, new),
        subscription("sub_1", latest_invoice="in_2"),
        item("sub_1", old),
        item("sub_1", new),
        invoice("in_sub_1", "sub_1"),
        invoice("in_2", "sub_1"),
        line("il_1", "sub_1", old, month(0), ends, amount=1200, **vat),
        line("il_2", "sub_1", new, month(0), ends, amount=2400, proration=True, **more),
    )
    assert await worth(w.pg) == {"sub_1": 3000}


async def test_a_draft_that_was_deleted_counts_nothing(w: Writing) -> None:
    """What it had taken up waits again, and counts there."""
    small, large = price("small", 1000), price("large", 3000)
    begins, ends = month(2) + timedelta(days=2), month(1) + timedelta(days=2)
    changed = month(2) + timedelta(days=17)
    details = {"subscription": "sub_1", "subscription_item": "si_1"}
    waits: StripeObject = {
        "id": "ii_1",
        "object": "invoiceitem",
        "proration": True,
        "invoice": None,
    }
    waits |= {"amount": 1800, "currency": "usd", "quantity": 1, "discounts": []}
    waits["parent"] = {"subscription_details": details, "type": "subscription_details"}
    waits["period"] = {"start": int(changed.timestamp()), "end": int(ends.timestamp())}
    waits["pricing"] = {"price_details": {"price": "large"}, "unit_amount_decimal": "1800"}
    await put(
        w,
        *(small, large, waits),
        subscription("sub_1"),
        invoice("in_sub_1", "sub_1"),
        line("il_1", "sub_1", small, begins, ends, amount=1000),
        invoice("in_2", "sub_1", status="draft", deleted=True),
        line("il_2", "sub_1", large, changed, ends, amount=1800, proration=True, invoice="in_2"),
    )
    assert await at_end_of(w.pg, 2) == {"sub_1": 4000}


async def test_the_insights_show_the_day_of_the_settings(database: str) -> None:
    """East of the server's time zone a day begins earlier: it was missing until it began there as well."""
    async with writing(database, "charge", "upcoming_subscription_invoice") as w:
        charge: StripeObject = {"id": "ch_1", "object": "charge", "currency": "usd"}
        charge |= {"status": "succeeded", "amount_captured": 700, "created": int(time.time())}
        await put(w, charge)
        await w.pg.execute("UPDATE metrics.settings SET time_zone = 'Etc/GMT-14'")
        await w.pg.execute("SET timezone = 'Etc/GMT+12'")
        found = {panel.title: panel.sql for panel in panels("metrics", "usd")}
        rows = await w.pg.fetch(found["Payments by day"])
        assert (len(rows), rows[-1]["amount"]) == (30, 700)
        assert await w.pg.fetch(found["Upcoming invoices"]) == []
