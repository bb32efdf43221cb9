"""Life in the account: random but repeatable changes over many types, singly or in bursts.

Most go through the same operations that clients use, so that they make the events, balance
transactions and follow-up changes that Stripe makes; some are Stripe's own doing and name no
request. A burst falls into one second, where only the order of the log tells what came last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from urllib.parse import quote

from pinstripe.simulator.account import Account
from pinstripe.simulator.answers import Request
from pinstripe.simulator.behaviours import charges, invoices, money_out, sessions
from pinstripe.simulator.behaviours.registry import write
from pinstripe.simulator.events import STRIPE_ITSELF, Cause
from pinstripe.simulator.ledger import Ledger
from pinstripe.simulator.params import Params
from pinstripe.simulator.replies import StripeError
from pinstripe.simulator.table import StripeObject, Table
from pinstripe.simulator.values import HOSTILE, metadata

# Objects whose creation does more than make them; `_create_any` leaves them to the deeds.
_WITH_LIVES = frozenset(
    (
        "charge",
        "checkout.session",
        "customer",
        "event",
        "invoice",
        "invoiceitem",
        "payment_intent",
        "payout",
        "price",
        "product",
        "quote",
        "refund",
        "subscription",
        "subscription_item",
        "subscription_schedule",
        "transfer",
    )
)
_ENTRIES = frozenset(("subscription_item", "line_item"))
_TRIES = 20
"""Attempts to hit an object that fits before a mutation gives up."""


class Mutator:
    """Changes `account`, the same way for the same seed."""

    def __init__(self, account: Account, seed: int) -> None:
        self._account = account
        self._dice = Random(f"{seed}/mutate")  # noqa: S311 - a dice, not a secret
        self.done: dict[str, int] = {}
        self._deeds: tuple[tuple[int, str, Callable[[], object]], ...] = (
            (10, "create customer", self._create_customer),
            (14, "update customer", self._update_customer),
            (1, "delete customer", lambda: self._act("DELETE", "customer", "")),
            (4, "attach card", self._attach),
            (12, "pay", self._pay),
            (4, "refund", self._refund),
            (6, "subscribe", self._subscribe),
            (5, "change subscription", self._change_subscription),
            (2, "cancel subscription", lambda: self._act("DELETE", "subscription", "")),
            (4, "bill", self._bill),
            (3, "product and price", self._product),
            (3, "deactivate price", lambda: self._act("POST", "price", "", active=False)),
            (1, "delete product", lambda: self._act("DELETE", "product", "")),
            (2, "coupon", self._coupon),
            (1, "delete coupon", lambda: self._act("DELETE", "coupon", "")),
            (1, "dispute", self._dispute),
            (2, "complete session", self._complete),
            (2, "balance", self._balance),
            (8, "edit any object", self._edit),
            (3, "create any object", self._create_any),
        )

    def burst(self, count: int) -> int:
        """`count` mutations at once; how many took effect."""
        return sum(self.one() for _ in range(count))

    async def run(self, count: int, per_second: float) -> int:
        """`count` mutations at a steady rate; 0: as fast as the loop allows."""
        effective = 0
        for _ in range(count):
            effective += self.one()
            await asyncio.sleep(1 / per_second if per_second else 0)
        return effective

    def one(self) -> bool:
        """One random mutation; False if Stripe would have refused it."""
        weights = [w for w, _, _ in self._deeds]
        _, name, deed = self._dice.choices(self._deeds, weights)[0]
        try:
            deed()
        except StripeError:
            return False
        self.done[name] = self.done.get(name, 0) + 1
        return True

    # --- the tools ---------------------------------------------------------------------------

    def post(self, path: str, params: Params, *, method: str = "POST") -> StripeObject:
        """Perform a write as if a client had asked."""
        match = self._account.world.routes.match(method, path)
        if match is None:
            raise StripeError(404, f"no {method} {path}")
        request = Request(
            account=self._account,
            match=match,
            params=params,
            path=path,
            version=self._account.spec.api_version,
            id=self._account.request_id(),
            idempotency_key=None,
        )
        made = write(request)
        return made if isinstance(made, dict) else {}

    def ledger(self) -> Ledger:
        """For what Stripe does by itself."""
        return Ledger(self._account.world, self._account.events, STRIPE_ITSELF)

    def any_position(self, table: Table) -> int:
        """A living object, new ones preferred a little; StripeError if none is found."""
        for _ in range(_TRIES):
            fresh = table.total - table.base
            recent = fresh and self._dice.random() < 0.5
            low = table.base if recent else 0
            if table.total > low:
                position = self._dice.randrange(low, table.total)
                if not table.gone(position):
                    return position
        raise StripeError(404, f"no {table.name} left")

    def any(self, type_name: str) -> StripeObject:
        table = self._account.world.tables_of(type_name)[0]
        return self._account.world.objects.load(table, self.any_position(table))

    def _act(self, method: str, type_name: str, tail: str, **params: object) -> StripeObject:
        table = self._account.world.tables[type_name]
        id = table.id_at(self.any_position(table))
        top = self._account.world.routes.top_lists[type_name].path
        return self.post(f"{top}/{quote(id, safe='')}{tail}", dict(params), method=method)

    # --- the deeds ---------------------------------------------------------------------------

    def _create_customer(self) -> None:
        number = self._dice.randrange(16)
        made = self.post(
            "/v1/customers",
            {
                "name": HOSTILE[number],
                "metadata": metadata(number),
                "email": "new@example.com",
                "payment_method": "pm_card_visa",
            },
        )
        method = self._newest("payment_method")
        settings = {"default_payment_method": method["id"]}
        self.post(f"/v1/customers/{made['id']}", {"invoice_settings": settings})

    def _newest(self, type_name: str) -> StripeObject:
        table = self._account.world.tables[type_name]
        return self._account.world.objects.load(table, table.total - 1)

    def _update_customer(self) -> None:
        number = self._dice.randrange(16)
        changes = {"description": HOSTILE[number], "metadata": {"edited": str(number)}}
        self._act("POST", "customer", "", **changes)

    def _attach(self) -> None:
        customer = self.any("customer")["id"]
        self.post("/v1/payment_methods/pm_card_visa/attach", {"customer": customer})

    def _pay(self) -> None:
        card = self._dice.choice(
            ("pm_card_visa",) * 8 + ("pm_card_chargeDeclined", "pm_card_authenticationRequired")
        )
        params: Params = {
            "amount": self._dice.randrange(50, 10**6),
            "currency": self._dice.choice(("usd", "eur", "jpy")),
            "customer": self.any("customer")["id"],
            "payment_method": card,
            "confirm": True,
            "capture_method": self._dice.choice(("automatic",) * 4 + ("manual",)),
        }
        intent = self.post("/v1/payment_intents", params)
        if intent.get("status") == "requires_capture":
            self.post(f"/v1/payment_intents/{intent['id']}/capture", {})

    def _refund(self) -> None:
        charge = self.any("charge")
        if not charge.get("paid") or charge.get("refunded"):
            raise StripeError(400, "not refundable")
        left = int(charge["amount"]) - int(charge["amount_refunded"])
        if left < 1:
            raise StripeError(400, "nothing left to refund")
        amount = self._dice.randrange(1, left + 1)
        charges.refund(self.ledger(), charge, amount, metadata={})

    def _subscribe(self) -> None:
        customer = self.any("customer")
        price = self._recurring_price()
        params: Params = {
            "customer": customer["id"],
            "items": [{"price": price["id"], "quantity": self._dice.randrange(1, 4)}],
        }
        if self._dice.random() < 0.2:
            params["trial_period_days"] = 14
        self.post("/v1/subscriptions", params)

    def _recurring_price(self) -> StripeObject:
        for _ in range(_TRIES):
            price = self.any("price")
            if price.get("active") and price.get("recurring") and price.get("unit_amount"):
                return price
        self._product()
        return self._newest("price")

    def _change_subscription(self) -> None:
        found = self.any("subscription")
        if found["status"] == "canceled":
            raise StripeError(400, "canceled")
        params: Params = {"cancel_at_period_end": self._dice.random() < 0.5}
        items = found["items"]["data"]
        if items and self._dice.random() < 0.6:
            quantity = self._dice.randrange(1, 9)
            params = {"items": [{"id": items[0]["id"], "quantity": quantity}]}
        self.post(f"/v1/subscriptions/{found['id']}", params)

    def _bill(self) -> None:
        """An invoice with an item, through a random part of its life."""
        customer = self.any("customer")["id"]
        amount = self._dice.randrange(1, 10**5)
        item = {"customer": customer, "amount": amount, "currency": "usd", "description": "Extra"}
        self.post("/v1/invoiceitems", item)
        params = {"customer": customer, "pending_invoice_items_behavior": "include"}
        invoice = self.post("/v1/invoices", params)
        path = f"/v1/invoices/{invoice['id']}"
        end = self._dice.choice(("draft", "delete", "open", "pay", "pay", "void"))
        if end == "delete":
            self.post(path, {}, method="DELETE")
        elif end != "draft":
            opened = self.post(f"{path}/finalize", {})
            if end == "pay":
                invoices.pay(self.ledger(), opened, method="pm_card_visa")
            elif end == "void":
                self.post(f"{path}/void", {})

    def _product(self) -> None:
        number = self._dice.randrange(16)
        product = self.post("/v1/products", {"name": HOSTILE[number]})
        price = {
            "product": product["id"],
            "unit_amount": self._dice.randrange(100, 10**5),
            "currency": "usd",
            "recurring": {"interval": self._dice.choice(("month", "year"))},
        }
        self.post("/v1/prices", price)

    def _coupon(self) -> None:
        coupon = self.post("/v1/coupons", {"percent_off": 12.5, "duration": "once"})
        self.post("/v1/promotion_codes", {"promotion": {"type": "coupon", "coupon": coupon["id"]}})

    def _dispute(self) -> None:
        charge = self.any("charge")
        if not charge.get("paid") or charge.get("disputed"):
            raise StripeError(400, "not disputable")
        money_out.open_dispute(self.ledger(), charge)

    def _complete(self) -> None:
        table = self._account.world.tables["checkout.session"]
        found = self._account.world.objects.load(table, self.any_position(table))
        if found.get("status") != "open":
            raise StripeError(400, "not open")
        sessions.complete_session(self.ledger(), found)

    def _balance(self) -> None:
        customer = self.any("customer")["id"]
        params = {"amount": self._dice.randrange(-5000, 5000), "currency": "usd"}
        self.post(f"/v1/customers/{customer}/balance_transactions", params)

    def _edit(self) -> None:
        """Any type that has metadata: an event where Stripe has one, else silence."""
        table = self._account.world.tables[self._some_type("metadata")]
        found = self._account.world.objects.load(table, self.any_position(table))
        cause = Cause(self._account.request_id(), None)
        ledger = Ledger(self._account.world, self._account.events, cause)
        stamp = str(self._dice.randrange(10**9))
        ledger.change(found, {"metadata": {**(found.get("metadata") or {}), "edit": stamp}})

    def _create_any(self) -> None:
        """Any type that clients may create and that hangs under nothing."""
        names = [
            o.returns[0]
            for o in self._account.spec.operations
            if o.kind == "create" and "{" not in o.path and o.path.startswith("/v1/") and o.returns
        ]
        listed = self._account.world.routes.top_lists
        name = self._dice.choice([n for n in names if n in listed and n not in _WITH_LIVES])
        cause = Cause(self._account.request_id(), None)
        Ledger(self._account.world, self._account.events, cause).make(name, {})

    def _some_type(self, field: str) -> str:
        """A type that clients may update; entries of lists inside objects are left alone."""
        world = self._account.world
        names = {
            o.returns[0]
            for o in self._account.spec.operations
            if o.kind == "update" and o.path.startswith("/v1/") and o.returns
        }
        return self._dice.choice(
            sorted(
                n
                for n in names - _ENTRIES
                if n in world.tables and field in world.routes.fields[n] and world.tables[n].total
            )
        )
