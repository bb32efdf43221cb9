"""The upcoming invoice of a subscription or a customer: computed, never kept."""

from __future__ import annotations

from typing import Any

from pinstripe.simulator.answers import Request
from pinstripe.simulator.behaviours import invoices
from pinstripe.simulator.behaviours.drafts import line_of, pending_items
from pinstripe.simulator.behaviours.subscriptions import lines_of
from pinstripe.simulator.blank import blank
from pinstripe.simulator.ledger import Ledger
from pinstripe.simulator.replies import refused
from pinstripe.simulator.table import StripeObject


def preview(request: Request, ledger: Ledger) -> StripeObject:
    """The upcoming invoice: no id, no event, nothing kept."""
    params = request.params
    found = None
    if params.get("subscription"):
        found = ledger.get("subscription", params["subscription"], param="subscription")
    elif not params.get("customer"):
        raise refused("You must provide a customer, subscription or schedule.")
    customer_id = found["customer"] if found else params["customer"]
    customer = ledger.get("customer", customer_id, param="customer")
    pending = pending_items(ledger, customer["id"])
    ended = found is not None and (
        found["status"] in ("canceled", "incomplete_expired") or found.get("cancel_at_period_end")
    )
    lines = [] if found is None or ended else lines_of(ledger, found)
    lines += [line_of(item) for item in pending]
    if not lines:
        raise invoices.nothing_to_invoice(customer["id"])
    return _as_preview(ledger, request, customer, lines, found)


def _as_preview(
    ledger: Ledger,
    request: Request,
    customer: StripeObject,
    lines: list[dict[str, Any]],
    found: StripeObject | None,
) -> StripeObject:
    world = ledger.world
    table, line_table = world.tables["invoice"], world.tables["line_item"]
    made = blank(table, table.total, world.objects, ledger.now())
    del made["id"]
    total = sum(int(line["amount"]) for line in lines)
    shown = []
    for number, line in enumerate(lines[:10]):
        entry = blank(line_table, line_table.total, world.objects, ledger.now())
        shown.append(entry | line | {"id": f"il_tmp_{number:04}{customer['id'][-8:]}"})
    made |= invoices.totals(total, 0)
    made |= {"customer": customer["id"], "currency": lines[0]["currency"], "status": "draft"}
    made |= {"billing_reason": "upcoming", "number": None}
    if found is not None:
        details = {"metadata": {}, "subscription": found["id"]}
        made["parent"] = {"subscription_details": details, "type": "subscription_details"}
    url = f"/v1/invoices/upcoming/lines?customer={customer['id']}"
    made["lines"] = {"object": "list", "data": shown, "has_more": len(lines) > len(shown)}
    made["lines"] |= {"total_count": len(lines), "url": url}
    return made
