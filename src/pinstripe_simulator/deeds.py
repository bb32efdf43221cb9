"""What can happen in an account, each a method: a sale, a refund, a changed mind, a silent edit.

Most deeds go through the operations that clients use, so that they make the events, balance
transactions and follow-up changes that Stripe makes; some are Stripe's own and name no request.
A deed that Stripe would refuse raises `StripeError`.
"""

from __future__ import annotations

from random import Random
from urllib.parse import quote

from pinstripe_simulator.account import Account
from pinstripe_simulator.answers import Request
from pinstripe_simulator.behaviours import charges, cycle, invoices, money_out, sessions
from pinstripe_simulator.behaviours.registry import behaves, write
from pinstripe_simulator.events import STRIPE_ITSELF, Cause
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.params import Params
from pinstripe_simulator.replies import StripeError
from pinstripe_simulator.table import StripeObject, Table
from pinstripe_simulator.values import HOSTILE, metadata

_ENTRIES = frozenset(("subscription_item", "line_item"))
_TRIES = 20
"""Attempts to hit an object that fits before a mutation gives up."""


class Deeds:
    """Changes `account`; `dice` decides what and how much."""

    def __init__(self, account: Account, dice: Random) -> None:
        self._account = account
        self._dice = dice

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

    def act(self, method: str, type_name: str, tail: str, **params: object) -> StripeObject:
        table = self._account.world.tables[type_name]
        id = table.id_at(self.any_position(table))
        top = self._account.world.routes.top_lists[type_name].path
        return self.post(f"{top}/{quote(id, safe='')}{tail}", dict(params), method=method)

    # --- the deeds ---------------------------------------------------------------------------

    def create_customer(self) -> None:
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

    def update_customer(self) -> None:
        number = self._dice.randrange(16)
        changes = {"description": HOSTILE[number], "metadata": {"edited": str(number)}}
        self.act("POST", "customer", "", **changes)

    def attach(self) -> None:
        customer = self.any("customer")["id"]
        self.post("/v1/payment_methods/pm_card_visa/attach", {"customer": customer})

    def pay(self) -> None:
        card = self._dice.choice(
            ("pm_card_visa",) * 8 + ("pm_card_chargeDeclined", "pm_card_authenticationRequired")
        )
        params: Params = {
            "amount": self._dice.randrange(50, 10**6),
            "currency": self._dice.choice(("usd", "eur", "jpy")),
            "customer": self.any("customer")["id"],
            "payment_method": card,
            "confirm": True,
            "capture_method": self._dice.choice(("automatic_async",) * 3 + ("automatic", "manual")),
        }
        intent = self.post("/v1/payment_intents", params)
        if intent.get("status") == "requires_capture":
            self.post(f"/v1/payment_intents/{intent['id']}/capture", {})

    def refund(self) -> None:
        charge = self.any("charge")
        if not charge.get("paid") or charge.get("refunded"):
            raise StripeError(400, "not refundable")
        left = int(charge["amount"]) - int(charge["amount_refunded"])
        if left < 1:
            raise StripeError(400, "nothing left to refund")
        amount = self._dice.randrange(1, left + 1)
        charges.refund(self.ledger(), charge, amount, metadata={})

    def subscribe(self) -> None:
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
        self.product()
        return self._newest("price")

    def change_subscription(self) -> None:
        found = self.any("subscription")
        if found["status"] == "canceled":
            raise StripeError(400, "canceled")
        params: Params = {"cancel_at_period_end": self._dice.random() < 0.5}
        items = found["items"]["data"]
        if items and self._dice.random() < 0.6:
            quantity = self._dice.randrange(1, 9)
            params = {"items": [{"id": items[0]["id"], "quantity": quantity}]}
        self.post(f"/v1/subscriptions/{found['id']}", params)

    def bill(self) -> None:
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

    def product(self) -> None:
        number = self._dice.randrange(16)
        product = self.post("/v1/products", {"name": HOSTILE[number]})
        price = {
            "product": product["id"],
            "unit_amount": self._dice.randrange(100, 10**5),
            "currency": "usd",
            "recurring": {"interval": self._dice.choice(("month", "year"))},
        }
        self.post("/v1/prices", price)

    def coupon(self) -> None:
        coupon = self.post("/v1/coupons", {"percent_off": 12.5, "duration": "once"})
        self.post("/v1/promotion_codes", {"promotion": {"type": "coupon", "coupon": coupon["id"]}})

    def dispute(self) -> None:
        charge = self.any("charge")
        if not charge.get("paid") or charge.get("disputed"):
            raise StripeError(400, "not disputable")
        money_out.open_dispute(self.ledger(), charge)

    def complete(self) -> None:
        table = self._account.world.tables["checkout.session"]
        found = self._account.world.objects.load(table, self.any_position(table))
        if found.get("status") != "open":
            raise StripeError(400, "not open")
        sessions.complete_session(self.ledger(), found)

    def balance(self) -> None:
        customer = self.any("customer")["id"]
        params = {"amount": self._dice.randrange(-5000, 5000), "currency": "usd"}
        self.post(f"/v1/customers/{customer}/balance_transactions", params)

    def renew(self) -> None:
        """The next period of a subscription; Stripe does it by itself."""
        found = self.any("subscription")
        if found["status"] not in ("active", "past_due"):
            raise StripeError(400, "not renewing")
        cycle.renew(self.ledger(), found)

    def announce(self) -> None:
        cycle.announce_upcoming(self.ledger(), self.any("subscription"))

    def payout(self) -> None:
        """A payout goes out, and an older one arrives."""
        amount = self._dice.randrange(1, 10**7)
        self.post("/v1/payouts", {"amount": amount, "currency": "usd"})
        cycle.payout_arrives(self.ledger(), self.any("payout"))

    def pay_out(self) -> None:
        """An automatic payout of what is available; an older one is reconciled, and may fail."""
        table = self._account.world.tables["payout"]
        for position in range(table.base, table.total):
            found = self._account.world.objects.load(table, position)
            if found["reconciliation_status"] == "in_progress":
                money_out.reconcile(self.ledger(), found)
                arrived = cycle.payout_arrives(self.ledger(), found)
                if self._dice.random() < 0.2:
                    money_out.payout_fails(self.ledger(), arrived)
        money_out.pay_out(self.ledger(), self._dice.choice(("usd", "usd", "eur", "jpy")))

    def transfer(self) -> None:
        destination = self.any("account")["id"]
        params = {"amount": 900, "currency": "usd", "destination": destination}
        made = self.post("/v1/transfers", params)
        if self._dice.random() < 0.4:
            self.post(f"/v1/transfers/{made['id']}/reversals", {"amount": 100})

    def set_up(self) -> None:
        params: Params = {"payment_method": "pm_card_visa", "confirm": True}
        self.post("/v1/setup_intents", params | {"customer": self.any("customer")["id"]})

    def edit(self) -> None:
        """Any type that has metadata: an event where Stripe has one, else silence."""
        table = self._account.world.tables[self._some_type("metadata")]
        found = self._account.world.objects.load(table, self.any_position(table))
        cause = Cause(self._account.request_id(), None)
        ledger = Ledger(self._account.world, self._account.events, cause)
        stamp = str(self._dice.randrange(10**9))
        ledger.change(found, {"metadata": {**(found.get("metadata") or {}), "edit": stamp}})

    def create_any(self) -> None:
        """Any type that clients may create and that hangs under nothing."""
        listed = self._account.world.routes.top_lists
        names = [
            o.returns[0]
            for o in self._account.spec.operations
            if o.kind == "create" and o.returns and not behaves(o) and "{" not in o.path
        ]
        tables = self._account.world.tables  # What it has nothing of, an account does not use.
        kinds = [n for n in names if n in listed and n in tables and tables[n].base]
        kinds = [n for n in kinds if not n.startswith("v2.")]
        name = self._dice.choice(kinds)
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
