"""Lives of customers in the simulator, month after month up to now, and what each was worth at their ends.

The worth is computed here from Stripe's objects as they were at that moment, with fractions, and knows
nothing of invoices or of Pinstripe: it is what the views of `metrics` are held against.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from fractions import Fraction
from random import Random
from typing import Any

from pinstripe_simulator.account import Settings
from pinstripe_simulator.behaviours import cycle
from pinstripe_simulator.behaviours.subscriptions import items_of
from pinstripe_simulator.events import STRIPE_ITSELF
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.server import Running
from pinstripe_simulator.table import StripeObject

EMPTY = Settings(
    future_fields=False,
    mix=dict.fromkeys(
        (
            *("customer", "subscription", "invoice", "invoiceitem", "price", "charge", "event"),
            *("payout", "balance_transaction", "payment_intent", "refund", "dispute"),
        ),
        0,
    ),
)
_DAY_S = 86_400
_MONTHS: dict[str, Fraction] = {
    "day": Fraction(12, 365),
    "week": Fraction(84, 365),
    "month": Fraction(1),
    "year": Fraction(12),
}
_PRICES = (
    ("usd", 1999, "month", 1),
    ("usd", 4900, "month", 1),
    ("usd", 12_001, "year", 1),
    ("usd", 700, "week", 1),
    ("eur", 9999, "month", 3),
    ("jpy", 1501, "month", 1),
    ("kwd", 12_340, "month", 1),
    ("kwd", 99_990, "year", 1),
)

Worth = dict[tuple[date, str], tuple[str, str, int]]
"""(month, subscription) -> (customer, currency, amount a month)."""


@dataclass
class Lives:
    """Drives the account of `sim`. After `live` its clock stands at the present."""

    sim: Running
    dice: Random
    worth: Worth = field(default_factory=dict)
    done: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    _prices: list[StripeObject] = field(default_factory=list)
    _coupons: list[str] = field(default_factory=list)

    def live(self, *, customers: int, months: int) -> None:
        start = _months_ago(months)
        self._at(start)
        self._set_up()
        begins = sorted(
            start + self.dice.randrange(1, (months - 1) * 30 * _DAY_S) for _ in range(customers)
        )
        now, marks = time.time(), list(_month_starts(start))
        at = start
        while at < now:
            at = min(at + _DAY_S, now)
            while marks and marks[0] <= at:
                self._renew_until(marks[0])
                self._at(marks[0])
                self._record(marks.pop(0) - 1)
            self._renew_until(at)
            self._at(at)
            while begins and begins[0] <= at:
                begins.pop(0)
                self._begin()
            self._change()
        self._record(now)

    # --- what happens ------------------------------------------------------------------------

    def _set_up(self) -> None:
        product = self._post("/v1/products", name="A thing")["id"]
        for currency, amount, interval, count in _PRICES:
            recurring = {"interval": interval, "interval_count": count}
            made = self._post(
                "/v1/prices",
                currency=currency,
                unit_amount=amount,
                product=product,
                recurring=recurring,
            )
            self._prices.append(made)
        terms: StripeObject
        for terms in (
            {"percent_off": 25, "duration": "forever"},
            {"percent_off": 33.3, "duration": "forever"},
            {"percent_off": 100, "duration": "forever"},
            {"percent_off": 50, "duration": "repeating", "duration_in_months": 3},
            {"amount_off": 501, "currency": "usd", "duration": "forever"},
            {"percent_off": 50, "duration": "once"},
        ):
            made = self.sim.control.mutator.deeds.post("/v1/coupons", terms)
            self._coupons.append(str(made["id"]))

    def _begin(self) -> None:
        customer = self._post("/v1/customers", payment_method="pm_card_visa")["id"]
        method = self.newest("payment_method")["id"]
        if self.dice.random() < 0.1:
            method = None  # Nothing to charge: the subscription becomes past due.
        settings = {"default_payment_method": method}
        if method:
            self._post(f"/v1/customers/{customer}", invoice_settings=settings)
        self._subscribe(str(customer), trial=14 if self.dice.random() < 0.2 else 0)

    def _subscribe(self, customer: str, *, trial: int = 0) -> None:
        price = self.dice.choice(self._prices)
        params: StripeObject = {
            "customer": customer,
            "items": [{"price": price["id"], "quantity": self.dice.randrange(1, 5)}],
        }
        if trial:
            params["trial_period_days"] = trial
        if self.dice.random() < 0.5:
            params["discounts"] = [{"coupon": self.dice.choice(self._coupons)}]
            self.done["coupon"] += 1
        made = self._post("/v1/subscriptions", **params)
        if self.dice.random() < 0.2 and not trial:
            self._schedule(made)

    def _schedule(self, found: StripeObject) -> None:
        """From the third period on another quantity."""
        item = items_of(self.ledger(), found)[0]
        length = int(item["current_period_end"]) - int(item["current_period_start"])
        later = int(item["current_period_start"]) + int(1.5 * length)
        phase: StripeObject = {"start_date": later, "end_date": later + 100 * length}
        phase["items"] = [{"price": item["price"]["id"], "quantity": 7}]
        made = self.ledger().make(
            "subscription_schedule",
            {
                "phases": [phase],
                "status": "active",
                "subscription": found["id"],
                "customer": found["customer"],
            },
        )
        self.ledger().change(found, {"schedule": made["id"]}, event="")
        self.done["schedule"] += 1

    def _change(self) -> None:
        """Now and then something happens to one of them."""
        living = [s for s in self._subscriptions() if s["status"] in ("active", "past_due")]
        if not living or self.dice.random() < 0.5:
            return
        one = self.dice.choice(living)
        what = self.dice.choice(
            ("quantity", "price", "more", "less", "cancel", "end", "pause", "pause", "return")
        )
        if getattr(self, f"_{what}")(one):
            self.done[what] += 1

    def _quantity(self, one: StripeObject) -> bool:
        item = self._item(one)
        self._update(one, {"id": item["id"], "quantity": self.dice.randrange(1, 9)})
        return True

    def _price(self, one: StripeObject) -> bool:
        item = self._item(one)
        like = [p for p in self._prices if self._fits(p, item["price"])]
        self._update(one, {"id": item["id"], "price": self.dice.choice(like)["id"]})
        return True

    def _more(self, one: StripeObject) -> bool:
        """One more item, which shares the period of the others."""
        if one["status"] != "active" or one.get("schedule"):
            return False
        item = self._item(one)
        like = [p for p in self._prices if self._fits(p, item["price"])]
        self._update(one, {"price": self.dice.choice(like)["id"], "quantity": 2})
        return True

    def _less(self, one: StripeObject) -> bool:
        items = items_of(self.ledger(), one)
        if len(items) < 2:
            return False
        self._update(one, {"id": items[-1]["id"], "deleted": True})
        return True

    def _cancel(self, one: StripeObject) -> bool:
        self._post(f"/v1/subscriptions/{one['id']}", method="DELETE")
        return True

    def _end(self, one: StripeObject) -> bool:
        self._post(f"/v1/subscriptions/{one['id']}", cancel_at_period_end=True)
        return True

    def _pause(self, one: StripeObject) -> bool:
        behavior = self.dice.choice(("void", "keep_as_draft", "mark_uncollectible"))
        pause = {"behavior": behavior, "resumes_at": None}
        self.ledger().change(one, {"pause_collection": pause})
        return True

    def _return(self, one: StripeObject) -> bool:
        """A customer who had left comes back."""
        paying = {s["customer"] for s in self._subscriptions() if s["status"] != "canceled"}
        left = [s["customer"] for s in self._subscriptions() if s["customer"] not in paying]
        if left:
            self._subscribe(str(self.dice.choice(left)))
        return bool(left)

    # --- time --------------------------------------------------------------------------------

    def _renew_until(self, until: float) -> None:
        """Each renewal in its own second, the earliest first."""
        while True:
            due = [
                (int(items_of(self.ledger(), s)[0]["current_period_end"]), str(s["id"]))
                for s in self._subscriptions()
                if s["status"] in ("active", "trialing", "past_due")
            ]
            at, id = min(due, default=(int(until) + 1, ""))
            if at >= until:
                return
            self._at(at)
            found = self.ledger().get("subscription", id)
            if found.get("pause_collection") and self._is_paused_period(found):
                found = self.ledger().change(found, {"pause_collection": None})
                self.done["resume"] += 1
            cycle.renew(self.ledger(), found)

    def _is_paused_period(self, found: StripeObject) -> bool:
        """One period without collection is enough: it resumes with the next."""
        last = self.ledger().get("invoice", str(found["latest_invoice"]))
        return last["status"] in ("void", "draft", "uncollectible")

    def _at(self, at: float) -> None:
        self.sim.account.clock.freeze(int(at))

    # --- what it is worth ----------------------------------------------------------------------

    def _record(self, at: float) -> None:
        month = datetime.fromtimestamp(at, UTC).date().replace(day=1)
        for one in self._subscriptions():
            amount = self._worth(one)
            if amount > 0:
                key = (month, str(one["id"]))
                self.worth[key] = (str(one["customer"]), str(one["currency"]), amount)

    def _worth(self, one: StripeObject) -> int:
        """Of a subscription now, by the default definitions."""
        ledger = self.ledger()
        if one["status"] not in ("active", "past_due"):
            return 0
        if one.get("pause_collection"):
            last = ledger.get("invoice", str(one["latest_invoice"]))
            if last["status"] not in ("paid", "open"):
                return 0
        total, months = Fraction(0), []
        for item in items_of(ledger, one):
            recurring = item["price"]["recurring"]
            length = _MONTHS[recurring["interval"]] * int(recurring["interval_count"])
            months.append(length)
            total += Fraction(int(item["price"]["unit_amount"]) * int(item["quantity"])) / length
        for id in one["discounts"] or ():
            coupon = ledger.get("coupon", ledger.get("discount", id)["source"]["coupon"])
            if coupon["duration"] == "forever":
                total *= 1 - Fraction(str(coupon.get("percent_off") or 0)) / 100
                if coupon.get("amount_off") and coupon["currency"] == one["currency"]:
                    total -= Fraction(int(coupon["amount_off"])) / min(months)
        return max(0, int(total + Fraction(1, 2)))

    # --- tools -------------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        return Ledger(self.sim.account.world, self.sim.account.events, STRIPE_ITSELF)

    def _post(self, path: str, *, method: str = "POST", **params: Any) -> StripeObject:
        return self.sim.control.mutator.deeds.post(path, dict(params), method=method)

    def _update(self, one: StripeObject, item: StripeObject, **more: Any) -> None:
        self._post(f"/v1/subscriptions/{one['id']}", items=[item], **more)

    def _subscriptions(self) -> list[StripeObject]:
        return list(self.sim.account.world.truth("subscription"))

    def newest(self, type_name: str) -> StripeObject:
        table = self.sim.account.world.tables[type_name]
        return self.sim.account.world.objects.load(table, table.total - 1)

    def _item(self, one: StripeObject) -> StripeObject:
        return items_of(self.ledger(), one)[0]

    @staticmethod
    def _fits(price: StripeObject, other: StripeObject) -> bool:
        return bool(
            price["currency"] == other["currency"]
            and price["recurring"]["interval"] == other["recurring"]["interval"]
        )


def _months_ago(months: int) -> float:
    today = datetime.now(UTC).date()
    count = today.year * 12 + today.month - 1 - months
    return datetime(count // 12, count % 12 + 1, 1, tzinfo=UTC).timestamp()


def _month_starts(start: float) -> Iterator[float]:
    """Midnights that end a month, from the one after `start` up to now."""
    at = datetime.fromtimestamp(start, UTC)
    while True:
        count = at.year * 12 + at.month
        at = datetime(count // 12, count % 12 + 1, 1, tzinfo=UTC)
        if at.timestamp() > time.time():
            return
        yield at.timestamp()
