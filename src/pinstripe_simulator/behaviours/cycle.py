"""What Stripe does by itself when time passes: renewals, payouts that arrive, test clocks."""

from __future__ import annotations

from pinstripe_simulator.answers import Request
from pinstripe_simulator.behaviours import invoices, prorations
from pinstripe_simulator.behaviours.generic import target
from pinstripe_simulator.behaviours.subscriptions import (
    end_subscription,
    items_of,
    lines_of,
    period_end,
    priced,
)
from pinstripe_simulator.events import difference
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.replies import refused
from pinstripe_simulator.table import StripeObject

_RENEWING = ("active", "trialing", "past_due")
_MOST_RENEWALS = 24
"""Periods that one advance of a test clock may run through."""


def renew(ledger: Ledger, found: StripeObject) -> StripeObject:
    """The subscription in its next period, with the invoice for it, paid if the card pays."""
    if found.get("cancel_at_period_end"):
        return end_subscription(ledger, found)
    for item in items_of(ledger, found):
        start = int(item.get("current_period_end") or ledger.now())
        recurring = (item.get("price") or {}).get("recurring") or {"interval": "month"}
        changes = {
            "current_period_start": start,
            "current_period_end": period_end(start, recurring),
        }
        ledger.change(item, changes, event="")
    _enter_phase(ledger, found)
    customer = ledger.get("customer", found["customer"], param="customer")
    pulled_in = prorations.waiting(ledger, found)
    invoice = invoices.make_invoice(
        ledger,
        customer,
        [*map(prorations.line_of, pulled_in), *lines_of(ledger, found)],
        currency=str(found["currency"]),
        reason="subscription_cycle",
        subscription=found["id"],
        default_payment_method=found.get("default_payment_method"),
    )
    for item in pulled_in:
        ledger.change(item, {"invoice": invoice["id"]}, event="")
    if found.get("pause_collection"):
        invoice = _not_collected(ledger, invoice, found["pause_collection"]["behavior"])
        status = "active"
    else:
        invoice = invoices.finalize(ledger, invoice)
        if invoice["status"] != "paid":
            invoice = invoices.pay(ledger, invoice)
        status = "active" if invoice["status"] == "paid" else "past_due"
    moved = {"latest_invoice": invoice["id"], "status": status}
    after = ledger.change(found, moved, event="")
    ledger.tell("updated", after, previous=difference(found, after))
    return after


def _not_collected(ledger: Ledger, invoice: StripeObject, behavior: str) -> StripeObject:
    """What becomes of an invoice while payment collection is paused
    (https://docs.stripe.com/billing/subscriptions/pause-payment).
    """
    status = {"void": "void", "mark_uncollectible": "uncollectible"}.get(behavior, "draft")
    if status == "draft":
        return invoice
    moved = dict(invoice["status_transitions"]) | {"finalized_at": ledger.now()}
    return ledger.change(invoice, {"status": status, "status_transitions": moved})


def _enter_phase(ledger: Ledger, found: StripeObject) -> None:
    """Moves the items to what the schedule says of the period that begins, without prorations."""
    schedule = ledger.world.get("subscription_schedule", str(found.get("schedule")))
    items = items_of(ledger, found)
    for phase in schedule["phases"] if schedule is not None else ():
        start = int(items[0]["current_period_start"])
        if phase["start_date"] <= start < phase["end_date"]:
            for item, planned in zip(items, phase["items"], strict=False):
                changes = priced(ledger, str(planned["price"]))
                changes["quantity"] = planned.get("quantity", 1)
                ledger.change(item, changes, event="")


def announce_upcoming(ledger: Ledger, found: StripeObject) -> None:
    """`invoice.upcoming`: an invoice without an id, its lines without ids."""
    last = found.get("latest_invoice")
    if not isinstance(last, str):
        raise refused("nothing to announce")
    invoice = ledger.get("invoice", last)
    ledger.tell("invoice.upcoming", invoice | {"status": "draft", "number": None})


def payout_arrives(ledger: Ledger, found: StripeObject) -> StripeObject:
    """Paid, once in a while failed."""
    if found["status"] not in ("pending", "in_transit"):
        raise refused("not under way")
    changed = ledger.change(found, {"status": "paid"}, event="")
    ledger.tell("paid", changed)
    return changed


def advance_clock(request: Request, ledger: Ledger) -> StripeObject:
    """Moves a test clock; what is due on it until then happens."""
    clock = target(request, ledger)
    until = int(request.params["frozen_time"])
    if until <= int(clock.get("frozen_time") or 0):
        raise refused(
            "The time to advance to must be after the clock's current time.", param="frozen_time"
        )
    changed = ledger.change(clock, {"frozen_time": until, "status": "advancing"}, event="")
    ledger.tell("advancing", changed)
    table = ledger.table("subscription")
    for position in list(table.by_value.get(("test_clock", clock["id"]), ())):
        if not table.gone(position):
            _run_until(ledger, ledger.world.objects.load(table, position), until)
    changed = ledger.change(changed, {"status": "ready"}, event="")
    ledger.tell("ready", changed)
    return changed


def _run_until(ledger: Ledger, found: StripeObject, until: int) -> None:
    for _ in range(_MOST_RENEWALS):
        ends = [i.get("current_period_end") for i in items_of(ledger, found)]
        due = min((e for e in ends if isinstance(e, int)), default=until + 1)
        if found["status"] not in _RENEWING or due > until:
            return
        found = renew(ledger, found)
