"""The upcoming invoice of a subscription or a customer: computed, not kept but for its lines."""

from __future__ import annotations

from typing import Any

from pinstripe_simulator.answers import Request
from pinstripe_simulator.behaviours import invoices
from pinstripe_simulator.behaviours.drafts import line_of, pending_items
from pinstripe_simulator.behaviours.subscriptions import items_of, lines_of
from pinstripe_simulator.blank import blank
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.lists import by_reference, limit_of
from pinstripe_simulator.replies import missing, refused
from pinstripe_simulator.table import StripeObject
from pinstripe_simulator.versions import before_basil

_SHOWN = 10
"""Lines in the preview itself."""
_KEPT = 500
"""Previews whose lines can still be listed; Stripe keeps them for 72 hours."""
_ENDED = ("canceled", "incomplete_expired")


def preview(request: Request, ledger: Ledger) -> StripeObject:
    """The upcoming invoice: no event, and nothing kept but the lines that it cannot show."""
    customer, found, lines = _upcoming(request, ledger)
    made = _as_preview(ledger, customer, lines, found)
    entries = _entries(ledger, customer, lines)
    if before_basil(request.version):
        asked = f"subscription={found['id']}" if found else f"customer={customer['id']}"
        url = f"/v1/invoices/upcoming/lines?{asked}"
    else:
        kept = request.account.previews
        id = f"upcoming_in_{request.id.removeprefix('req_')}"
        kept[id] = entries
        while len(kept) > _KEPT:
            del kept[next(iter(kept))]
        url = f"/v1/invoices/{id}/lines"
        entries = [entry | {"invoice": id} for entry in entries]
    made["lines"] = _list(entries, {"limit": _SHOWN}, url) | {"total_count": len(lines)}
    return made


def upcoming_lines(request: Request, ledger: Ledger) -> StripeObject:
    """Until acacia: the lines, computed anew."""
    customer, _, lines = _upcoming(request, ledger)
    return _list(_entries(ledger, customer, lines), request.params, request.path)


def preview_lines(request: Request, ledger: Ledger) -> StripeObject:
    """The lines of a preview that was made a while ago."""
    id = request.match.path_values[0]
    if id not in request.account.previews:
        raise missing("invoice", id)
    return _list(request.account.previews[id], request.params, request.path)


def _upcoming(
    request: Request, ledger: Ledger
) -> tuple[StripeObject, StripeObject | None, list[dict[str, Any]]]:
    """Customer, subscription and lines; Stripe's 404 where there is nothing to invoice."""
    params = request.params
    found = None
    if params.get("subscription"):
        found = ledger.get("subscription", params["subscription"], param="subscription")
    elif not params.get("customer"):
        raise refused("You must provide a customer, subscription or schedule.")
    customer_id = found["customer"] if found else params["customer"]
    customer = ledger.get("customer", customer_id, param="customer")
    if found is None and before_basil(request.version):
        found = _first_to_invoice(ledger, customer["id"])
    lines = [] if found is None or _ends(found) else lines_of(ledger, found)
    lines += [line_of(item) for item in pending_items(ledger, customer["id"])]
    if not lines:
        raise invoices.nothing_to_invoice(customer["id"])
    return customer, found, lines


def _ends(found: StripeObject) -> bool:
    return found["status"] in _ENDED or bool(found.get("cancel_at_period_end"))


def _first_to_invoice(ledger: Ledger, customer_id: str) -> StripeObject | None:
    """The customer's subscription whose period ends first."""
    table = ledger.table("subscription")
    places = by_reference(ledger.world.objects, table, {"customer": customer_id}) or ()
    living = [ledger.world.objects.load(table, p) for p in places if not table.gone(p)]
    due = [s for s in living if not _ends(s)]
    return min(due, key=lambda s: _end_of(ledger, s), default=None)


def _end_of(ledger: Ledger, found: StripeObject) -> int:
    ends = [item.get("current_period_end") for item in items_of(ledger, found)]
    return min((end for end in ends if isinstance(end, int)), default=0)


def _entries(
    ledger: Ledger, customer: StripeObject, lines: list[dict[str, Any]]
) -> list[StripeObject]:
    table = ledger.world.tables["line_item"]
    made = []
    for number, line in enumerate(lines):
        entry = blank(table, table.total, ledger.world.objects, ledger.now())
        made.append(entry | line | {"id": f"il_tmp_{number:04}{customer['id'][-8:]}"})
    return made


def _list(entries: list[StripeObject], params: dict[str, Any], url: str) -> StripeObject:
    ids = [entry["id"] for entry in entries]
    after = params.get("starting_after")
    if after is not None and after not in ids:
        raise missing("line_item", after, param="starting_after")
    start = ids.index(after) + 1 if after is not None else 0
    end = start + limit_of(params)
    return {
        "object": "list",
        "data": entries[start:end],
        "has_more": len(entries) > end,
        "url": url,
    }


def _as_preview(
    ledger: Ledger,
    customer: StripeObject,
    lines: list[dict[str, Any]],
    found: StripeObject | None,
) -> StripeObject:
    world = ledger.world
    table = world.tables["invoice"]
    made = blank(table, table.total, world.objects, ledger.now())
    del made["id"]
    total = sum(int(line["amount"]) for line in lines)
    made |= invoices.totals(total, 0)
    made |= {"customer": customer["id"], "currency": lines[0]["currency"], "status": "draft"}
    made |= {"billing_reason": "upcoming", "number": None}
    made |= {"attempted": False, "attempt_count": 0}
    made["status_transitions"] = dict.fromkeys(made["status_transitions"])
    if found is not None:
        details = {"metadata": {}, "subscription": found["id"]}
        made["parent"] = {"subscription_details": details, "type": "subscription_details"}
    return made
