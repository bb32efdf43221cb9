"""Months of payments, refunds, disputes, invoices and payouts in the simulator, and what they add up to.

The sums are computed here from Stripe's objects, by the words of docs/concepts/metrics.md and nothing of
Pinstripe: the views of `metrics` are held against them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from random import Random
from zoneinfo import ZoneInfo

from pinstripe_simulator.behaviours import money_out
from pinstripe_simulator.events import STRIPE_ITSELF
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.replies import StripeError
from pinstripe_simulator.server import Running
from pinstripe_simulator.table import StripeObject

_DAY_S = 86_400
_CURRENCIES = ("usd", "eur", "jpy", "kwd")

Sums = dict[tuple[object, ...], tuple[object, ...]]
"""Key of a row -> its numbers."""


@dataclass
class Money:
    """Drives the account of `sim`. After `live` its clock stands at `until`."""

    sim: Running
    dice: Random

    def live(self, *, until: float, days: int) -> None:
        at = until - days * _DAY_S
        while at < until:
            self.sim.account.clock.freeze(int(at))
            for _ in range(self.dice.randrange(1, 4)):
                self._one()
            at += self.dice.randrange(_DAY_S // 3, 2 * _DAY_S)
        self.sim.account.clock.freeze(int(until))

    def _one(self) -> None:
        what = self.dice.choice(
            (
                *("sell", "sell", "sell", "fail", "hold", "capture", "refund", "dispute", "decide"),
                *("invoice", "invoice", "credit", "fee", "hold_back"),
                *("pay_out", "pay_out", "by_hand"),
            )
        )
        getattr(self, f"_{what}")(self.dice.choice(_CURRENCIES), self.dice.randrange(100, 90_000))

    # --- payments ------------------------------------------------------------------------------

    def _sell(self, currency: str, amount: int, **more: object) -> None:
        values: StripeObject = {"amount": amount, "currency": currency, "status": "succeeded"}
        values |= {"paid": True, "captured": True, "amount_captured": amount, "amount_refunded": 0}
        made = self.ledger().make("charge", values | more)
        if made["captured"]:
            self._book(made, "charge", int(made["amount_captured"]), fees=self._fees(amount))

    def _hold(self, currency: str, amount: int) -> None:
        self._sell(currency, amount, captured=False, amount_captured=0)

    def _fail(self, currency: str, amount: int) -> None:
        failed = {"status": "failed", "paid": False, "captured": False, "amount_captured": 0}
        why = {"failure_code": "card_declined", "failure_message": "No."}
        self._sell(currency, amount, **failed, **why)

    def _capture(self, currency: str, amount: int) -> None:
        """Of what is held, in full or in part."""
        held = self._any("charge", currency, status="succeeded", captured=False)
        if held:
            taken = min(amount, int(held["amount"]))
            self.ledger().change(held, {"captured": True, "amount_captured": taken})
            self._book(held, "charge", taken, fees=self._fees(taken))

    def _refund(self, currency: str, amount: int) -> None:
        charge = self._any("charge", currency, captured=True)
        if charge:
            values: StripeObject = {"amount": amount, "charge": charge["id"], "currency": currency}
            status = self.dice.choice(("succeeded", "succeeded", "succeeded", "pending", "failed"))
            made = self.ledger().make("refund", values | {"status": status})
            self._book(made, "refund", -amount)
            if status == "failed":
                self._book(made, "refund_failure", amount)

    def _dispute(self, currency: str, amount: int) -> None:
        charge = self._any("charge", currency, captured=True)
        if charge:
            values: StripeObject = {"amount": amount, "charge": charge["id"], "currency": currency}
            status = self.dice.choice(
                ("needs_response", "needs_response", "warning_needs_response")
            )
            made = self.ledger().make("dispute", values | {"status": status})
            if status == "needs_response":
                fees = [("stripe_fee", 1500)]
                self._book(made, "adjustment", -amount, fees=fees, category="dispute")

    def _decide(self, currency: str, _: int) -> None:
        dispute = self._any("dispute", currency, status="needs_response")
        if dispute:
            won = self.dice.random() < 0.5
            self.ledger().change(dispute, {"status": "won" if won else "lost"})
            if won:
                amount = int(dispute["amount"])
                self._book(dispute, "adjustment", amount, category="dispute_reversal")

    # --- invoices ------------------------------------------------------------------------------

    def _invoice(self, currency: str, amount: int) -> None:
        status = self.dice.choice(("paid", "open", "draft", "void", "uncollectible", "paid"))
        now = self.ledger().now()
        moments = dict.fromkeys(
            ("finalized_at", "paid_at", "voided_at", "marked_uncollectible_at"), None
        )
        paid = {"paid": amount, "open": amount // 3}.get(status, 0)
        values: StripeObject = {"currency": currency, "status": status, "total": amount}
        values |= {"amount_due": amount, "amount_paid": paid, "amount_remaining": amount - paid}
        if status != "draft":
            values["status_transitions"] = moments | {"finalized_at": now}
        else:
            values["status_transitions"] = moments
        self.ledger().make("invoice", values)

    def _credit(self, currency: str, amount: int) -> None:
        invoice = self._any("invoice", currency, status="paid")
        if invoice:
            status = self.dice.choice(("issued", "issued", "void"))
            values: StripeObject = {"amount": amount, "currency": currency, "status": status}
            self.ledger().make("credit_note", values | {"invoice": invoice["id"]})

    # --- the balance ---------------------------------------------------------------------------

    def _fee(self, currency: str, amount: int) -> None:
        """A fee of its own, once in a while with the tax on it."""
        kind = self.dice.choice(("stripe_fee", "tax_fee", "network_cost"))
        tax = [("tax", amount // 5)] if self.dice.random() < 0.4 else []
        # https://docs.stripe.com/reports/reporting-categories
        category = {"network_cost": "network_cost", "tax_fee": "tax"}.get(kind, "fee")
        self._book({"id": None, "currency": currency}, kind, -amount, fees=tax, category=category)

    def _hold_back(self, currency: str, amount: int) -> None:
        sign = self.dice.choice((-1, -1, 1))
        kind = "reserve_hold" if sign < 0 else "reserve_release"
        self._book({"id": None, "currency": currency}, kind, sign * (amount // 50))

    def _pay_out(self, currency: str, _: int) -> None:
        try:
            made = money_out.pay_out(self.ledger(), currency)
        except StripeError:
            return  # Nothing is available.
        if self.dice.random() < 0.9:
            money_out.reconcile(self.ledger(), made)
            made = self.ledger().get("payout", made["id"])
        if self.dice.random() < 0.8:
            self.ledger().change(made, {"status": "paid"})
            if self.dice.random() < 0.2:
                money_out.payout_fails(self.ledger(), self.ledger().get("payout", made["id"]))

    def _by_hand(self, currency: str, amount: int) -> None:
        self.sim.control.mutator.deeds.post(
            "/v1/payouts", {"amount": amount // 100 + 1, "currency": currency}
        )

    def _fees(self, amount: int) -> list[tuple[str, int]]:
        fees = [("stripe_fee", amount // 40 + 30), ("tax", amount // 200)]
        return fees if self.dice.random() < 0.7 else [*fees, ("application_fee", amount // 10)]

    def _book(
        self,
        source: StripeObject,
        kind: str,
        amount: int,
        *,
        fees: list[tuple[str, int]] | None = None,
        category: str = "",
    ) -> None:
        fee = sum(part for _, part in fees or ())
        values: StripeObject = {"amount": amount, "currency": source["currency"], "fee": fee}
        values |= {"net": amount - fee, "type": kind, "reporting_category": category or kind}
        values["balance_type"] = "payments"
        values |= {"source": source["id"], "available_on": self.ledger().now() + 2 * _DAY_S}
        values["fee_details"] = [
            {"amount": part, "currency": source["currency"], "type": name}
            for name, part in fees or ()
            if part
        ]
        made = self.ledger().make("balance_transaction", values, event="")
        if source["id"] and kind == "charge":
            self.ledger().change(source, {"balance_transaction": made["id"]}, event="")

    # --- tools -----------------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        return Ledger(self.sim.account.world, self.sim.account.events, STRIPE_ITSELF)

    def _any(self, type_name: str, currency: str, **wanted: object) -> StripeObject | None:
        found = [
            o
            for o in self.sim.account.world.truth(type_name)
            if o["currency"] == currency and all(o[k] == v for k, v in wanted.items())
        ]
        return self.dice.choice(found[-12:]) if found else None


@dataclass(frozen=True)
class Reckoning:
    """What the objects add up to. Each method's keys and numbers are those of the view of its name."""

    objects: Mapping[str, list[StripeObject]]
    links: set[tuple[str, str]]  # (payout, balance transaction), as Stripe lists them
    zone: str

    def cash_against_billed(self) -> Sums:
        names = ("billed", "credited", "unpaid", "collected", "refunded", "disputed")
        sums: dict[tuple[object, ...], dict[str, int]] = defaultdict(
            lambda: dict.fromkeys(names, 0)
        )

        def add(at: int, one: StripeObject, **amounts: int) -> None:
            for name, amount in amounts.items():
                sums[self._month(at), one["currency"]][name] += amount

        for i in self.objects["invoice"]:
            at = i["status_transitions"]["finalized_at"]
            if at and i["status"] != "void":
                open_amount = i["amount_remaining"] if i["status"] == "open" else 0
                add(at, i, billed=i["total"], unpaid=open_amount)
        for n in self.objects["credit_note"]:
            if n["status"] == "issued":
                add(n["created"], n, credited=n["amount"])
        booked = {b["id"]: b for b in self.objects["balance_transaction"]}
        for c in self.objects["charge"]:
            if c["captured"]:
                at = booked[c["balance_transaction"]]["created"]
                add(at, c, collected=c["amount_captured"])
        for r in self.objects["refund"]:
            if r["status"] == "succeeded":
                add(r["created"], r, refunded=r["amount"])
        for d in self.objects["dispute"]:
            if d["status"] in ("needs_response", "under_review", "lost"):
                add(d["created"], d, disputed=d["amount"])
        return {key: tuple(row.values()) for key, row in sums.items()}

    def payment_by_day(self) -> Sums:
        sums: dict[tuple[object, ...], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        for c in self.objects["charge"]:
            row = sums[self._day(c["created"]), c["currency"]]
            good = c["status"] == "succeeded"
            row[0 if good else 2] += 1
            row[1 if good else 3] += c["amount_captured"] if good else c["amount"]
        return {key: tuple(row) for key, row in sums.items()}

    def failed_payment(self) -> Sums:
        return {
            (c["id"],): (c["amount"], c["currency"], c["failure_code"])
            for c in self.objects["charge"]
            if c["status"] == "failed"
        }

    def fee_by_kind(self) -> Sums:
        """All that was taken: on other entries, and by entries of their own."""
        sums: dict[tuple[object, ...], list[int]] = defaultdict(lambda: [0, 0])
        for b in self.objects["balance_transaction"]:
            month = self._month(b["created"])
            parts = [(f["type"], -f["amount"]) for f in b["fee_details"] or ()]
            rest = -b["fee"] - sum(amount for _, amount in parts)
            if rest:
                parts.append(("unspecified", rest))
            if b["reporting_category"] in ("fee", "network_cost", "tax"):
                parts.append((b["type"], b["amount"]))
            for kind, amount in parts:
                row = sums[month, b["currency"], kind]
                row[0] += 1
                row[1] += amount
        return {key: tuple(row) for key, row in sums.items()}

    def not_paid_out(self) -> Sums:
        """A payout leaves the available balance when it is made, whatever its entry says."""
        sums: dict[tuple[object, ...], list[int]] = defaultdict(lambda: [0, 0])

        def add(currency: str, reason: str, amount: int) -> None:
            sums[currency, reason][0] += amount
            sums[currency, reason][1] += 1

        for b in self.objects["balance_transaction"]:
            pending = b["status"] == "pending" and b["type"] != "payout"
            add(b["currency"], "pending" if pending else "available", b["net"])
            if b["type"] in ("reserve_hold", "reserve_release"):
                add(b["currency"], "on hold", -b["net"])
        for p in self.objects["payout"]:
            if p["status"] in ("pending", "in_transit"):
                add(p["currency"], "in transit", p["amount"])
        return {
            key: tuple(row)
            for key, row in sums.items()
            if row[0] or key[1] in ("pending", "in transit")
        }

    def payout_statement(self) -> Sums:
        booked = {b["id"]: b for b in self.objects["balance_transaction"]}
        found: Sums = {}
        for p in self.objects["payout"]:
            lines = [
                booked[b] for id, b in self.links if id == p["id"] and b != p["balance_transaction"]
            ]
            by: dict[str, int] = defaultdict(int)
            for b in lines:
                by[b["reporting_category"]] += b["amount"]
            charges, disputes = by["charge"], by["dispute"] + by["dispute_reversal"]
            refunds = by["refund"] + by["refund_failure"]
            fees, total = -sum(b["fee"] for b in lines), sum(b["net"] for b in lines)
            other = sum(by.values()) - charges - refunds - disputes
            sums = (len(lines), charges, refunds, disputes, fees, other, total)
            found[(p["id"],)] = (p["amount"], *sums, self._state(p, lines, total))
        return found

    @staticmethod
    def _state(payout: StripeObject, lines: list[StripeObject], total: int) -> str:
        if not payout["automatic"]:
            return "manual"
        if not lines or payout["reconciliation_status"] == "in_progress":
            return "waiting"
        if total != payout["amount"]:
            return "differs"
        return "failed" if payout["status"] in ("failed", "canceled") else "ties out"

    def _day(self, at: int) -> date:
        return datetime.fromtimestamp(at, UTC).astimezone(ZoneInfo(self.zone)).date()

    def _month(self, at: int) -> date:
        return self._day(at).replace(day=1)


def columns_of(view: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(key, numbers) of a view that `Reckoning` computes."""
    return _COLUMNS[view]


def names() -> Iterator[str]:
    yield from _COLUMNS


_COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cash_against_billed": (
        ("month", "currency"),
        ("billed", "credited", "unpaid", "collected", "refunded", "disputed"),
    ),
    "payment_by_day": (("day", "currency"), ("payments", "amount", "failed", "failed_amount")),
    "failed_payment": (("charge_id",), ("amount", "currency", "failure_code")),
    "fee_by_kind": (("month", "currency", "kind"), ("transactions", "amount")),
    "not_paid_out": (("currency", "reason"), ("amount", "transactions")),
    "payout_statement": (
        ("payout_id",),
        (
            "amount",
            "lines",
            "charges",
            "refunds",
            "disputes",
            "fees",
            "other",
            "lines_total",
            "state",
        ),
    ),
}
