"""The official SDK against the simulator: what users' own billing code would do."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator

import pytest
import stripe

from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

NOON = 1_790_000_000


@pytest.fixture(scope="module")
def sim() -> Iterator[Running]:
    """The SDK blocks, so the simulator has a thread and a loop of its own."""
    started: list[Running] = []
    ready, done = threading.Event(), threading.Event()

    async def main() -> None:
        async with running(Settings(scale=2_000, until=NOON)) as sim:
            started.append(sim)
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    ready.wait(10)
    yield started[0]
    done.set()
    thread.join(10)


@pytest.fixture
def client(sim: Running) -> stripe.StripeClient:
    return stripe.StripeClient(sim.key, base_addresses={"api": sim.url, "files": sim.url})


@pytest.fixture
def payer(client: stripe.StripeClient) -> stripe.Customer:
    """A customer whose card pays."""
    made = client.v1.customers.create({"email": "ada@example.com", "name": 'Ada "O\'"'})
    card = client.v1.payment_methods.attach("pm_card_visa", {"customer": made.id})
    return client.v1.customers.update(
        made.id, {"invoice_settings": {"default_payment_method": card.id}}
    )


@pytest.fixture
def price(client: stripe.StripeClient) -> stripe.Price:
    product = client.v1.products.create({"name": "Gold", "id": ""})
    return client.v1.prices.create(
        {
            "product": product.id,
            "unit_amount": 2_000,
            "currency": "usd",
            "recurring": {"interval": "month"},
        }
    )


def types_of(client: stripe.StripeClient, request_id: str) -> list[str]:
    """Types of the events that a request caused, oldest first."""
    found = client.v1.events.list({"limit": 100}).data
    return [e.type for e in reversed(found) if e.request and e.request.id == request_id]


def test_a_subscription_is_paid_and_every_step_makes_its_event(
    client: stripe.StripeClient, payer: stripe.Customer, price: stripe.Price
) -> None:
    made = client.v1.subscriptions.create(
        {
            "customer": payer.id,
            "items": [{"price": price.id, "quantity": 3}],
            "expand": ["latest_invoice.payments"],
        }
    )
    assert made.status == "active"
    invoice = made.latest_invoice
    assert isinstance(invoice, stripe.Invoice)
    assert (invoice.status, invoice.amount_paid) == ("paid", 6_000)
    assert invoice.lines.data[0].amount == 6_000
    assert invoice.payments is not None
    intent_id = invoice.payments.data[0].payment.payment_intent
    intent = client.v1.payment_intents.retrieve(str(intent_id), {"expand": ["latest_charge"]})
    charge = intent.latest_charge
    assert isinstance(charge, stripe.Charge)
    assert charge.paid
    entry = client.v1.balance_transactions.retrieve(str(charge.balance_transaction))
    assert (entry.amount, entry.source, entry.status) == (6_000, charge.id, "pending")
    told = types_of(client, str(made.last_response.request_id))  # type: ignore[union-attr]
    assert told == [
        "invoice.created",
        "customer.subscription.created",
        "invoice.finalized",
        "payment_intent.created",
        "charge.succeeded",
        "payment_intent.succeeded",
        "invoice_payment.paid",
        "invoice.updated",
        "invoice.paid",
        "invoice.payment_succeeded",
        "customer.subscription.updated",
    ]


def test_canceling_keeps_the_subscription_and_hides_it_from_the_plain_list(
    client: stripe.StripeClient, payer: stripe.Customer, price: stripe.Price
) -> None:
    made = client.v1.subscriptions.create({"customer": payer.id, "items": [{"price": price.id}]})
    canceled = client.v1.subscriptions.cancel(made.id)
    assert canceled.status == "canceled"
    plain = client.v1.subscriptions.list({"customer": payer.id})
    every = client.v1.subscriptions.list({"customer": payer.id, "status": "all"})
    assert [s.id for s in plain.data] == []
    assert [s.id for s in every.data] == [made.id]
    last = client.v1.events.list({"limit": 1}).data[0]
    assert last.type == "customer.subscription.deleted"
    assert last.data.object["status"] == "canceled"


def test_error_if_incomplete_leaves_nothing_behind(
    client: stripe.StripeClient, price: stripe.Price
) -> None:
    customer = client.v1.customers.create({"email": "b@example.com"})
    card = client.v1.payment_methods.attach("pm_card_chargeDeclined", {"customer": customer.id})
    with pytest.raises(stripe.CardError):
        client.v1.subscriptions.create(
            {
                "customer": customer.id,
                "items": [{"price": price.id}],
                "default_payment_method": card.id,
                "payment_behavior": "error_if_incomplete",
            }
        )
    found = client.v1.subscriptions.list({"customer": customer.id, "status": "all"})
    assert found.data == []


def test_default_incomplete_waits_for_the_buyer(
    client: stripe.StripeClient, payer: stripe.Customer, price: stripe.Price
) -> None:
    made = client.v1.subscriptions.create(
        {
            "customer": payer.id,
            "items": [{"price": price.id}],
            "payment_behavior": "default_incomplete",
        }
    )
    assert made.status == "incomplete"
    invoice = client.v1.invoices.retrieve(str(made.latest_invoice))
    assert invoice.status == "open"


def test_a_partial_refund_changes_the_charge_and_the_balance(
    client: stripe.StripeClient, payer: stripe.Customer
) -> None:
    intent = client.v1.payment_intents.create(
        {
            "amount": 1_000,
            "currency": "usd",
            "customer": payer.id,
            "payment_method": "pm_card_visa",
            "confirm": True,
        }
    )
    assert intent.status == "succeeded"
    refund = client.v1.refunds.create({"payment_intent": intent.id, "amount": 400})
    charge = client.v1.charges.retrieve(str(intent.latest_charge), {"expand": ["refunds"]})
    assert (charge.amount_refunded, charge.refunded) == (400, False)
    assert charge.refunds is not None
    assert [r.id for r in charge.refunds.data] == [refund.id]
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.refunds.create({"payment_intent": intent.id, "amount": 601})


def test_a_declined_card_is_a_402_and_leaves_a_failed_charge(
    client: stripe.StripeClient,
) -> None:
    with pytest.raises(stripe.CardError) as raised:
        client.v1.payment_intents.create(
            {
                "amount": 1_000,
                "currency": "usd",
                "payment_method": "pm_card_chargeDeclined",
                "confirm": True,
            }
        )
    assert raised.value.code == "card_declined"
    assert client.v1.charges.list({"limit": 1}).data[0].status == "failed"


def test_upcoming_invoices_have_no_id_and_end_with_the_subscription(
    client: stripe.StripeClient, payer: stripe.Customer, price: stripe.Price
) -> None:
    made = client.v1.subscriptions.create({"customer": payer.id, "items": [{"price": price.id}]})
    upcoming = client.v1.invoices.create_preview({"subscription": made.id})
    assert upcoming.total == 2_000
    assert "id" not in upcoming.to_dict()
    client.v1.subscriptions.cancel(made.id)
    with pytest.raises(stripe.InvalidRequestError) as raised:
        client.v1.invoices.create_preview({"subscription": made.id})
    assert (raised.value.http_status, raised.value.code) == (404, "invoice_upcoming_none")


def test_auto_paging_walks_a_whole_list(sim: Running, client: stripe.StripeClient) -> None:
    found = [c.id for c in client.v1.invoices.list({"limit": 100}).auto_paging_iter()]
    assert found == [i["id"] for i in sim.account.world.truth("invoice")][::-1]


def test_ids_with_slashes_and_spaces_can_be_made_and_found(client: stripe.StripeClient) -> None:
    made = client.v1.products.create({"id": "Größe 1/2 + 50% 料", "name": "odd"})
    assert client.v1.products.retrieve(made.id).name == "odd"
    with pytest.raises(stripe.InvalidRequestError) as raised:
        client.v1.products.create({"id": made.id, "name": "again"})
    assert raised.value.code == "resource_already_exists"


def test_deleted_customers_are_stubs_and_deleted_products_are_404(
    client: stripe.StripeClient,
) -> None:
    customer = client.v1.customers.create({})
    product = client.v1.products.create({"name": "gone"})
    client.v1.customers.delete(customer.id)
    client.v1.products.delete(product.id)
    assert client.v1.customers.retrieve(customer.id).to_dict() == {
        "id": customer.id,
        "object": "customer",
        "deleted": True,
    }
    with pytest.raises(stripe.InvalidRequestError) as raised:
        client.v1.products.retrieve(product.id)
    assert (raised.value.http_status, raised.value.code) == (404, "resource_missing")


def test_metadata_merges_and_the_event_says_what_it_was(client: stripe.StripeClient) -> None:
    made = client.v1.customers.create({"metadata": {"a": "1", "b": "2"}})
    changed = client.v1.customers.update(made.id, {"metadata": {"a": "", "c": "3"}})
    assert changed.to_dict()["metadata"] == {"b": "2", "c": "3"}
    event = client.v1.events.list({"limit": 1, "type": "customer.updated"}).data[0]
    assert event.data.to_dict()["previous_attributes"] == {"metadata": {"a": "1", "c": None}}


def test_the_same_idempotency_key_gives_the_same_answer(client: stripe.StripeClient) -> None:
    options: stripe.RequestOptions = {"idempotency_key": "once"}
    first = client.v1.customers.create({"name": "x"}, options)
    again = client.v1.customers.create({"name": "x"}, options)
    assert first.id == again.id
    with pytest.raises(stripe.IdempotencyError):
        client.v1.customers.create({"name": "y"}, options)


def test_files_can_be_uploaded(client: stripe.StripeClient) -> None:
    made = client.v1.files.create(
        {"purpose": "dispute_evidence", "file": io.BytesIO(b"%PDF-1.4 hello")}
    )
    assert made.size == 14
    assert client.v1.files.retrieve(made.id).purpose == "dispute_evidence"


def test_checkout_sessions_keep_their_line_items(
    client: stripe.StripeClient, price: stripe.Price
) -> None:
    made = client.v1.checkout.sessions.create(
        {
            "mode": "subscription",
            "line_items": [{"price": price.id, "quantity": 2}],
            "success_url": "https://example.com/ok",
            "expand": ["line_items"],
        }
    )
    assert made.amount_total == 4_000
    assert made.line_items is not None
    items = client.v1.checkout.sessions.line_items.list(made.id)
    assert [i.id for i in items.data] == [i.id for i in made.line_items.data]
    assert client.v1.checkout.sessions.expire(made.id).status == "expired"


def test_connected_accounts_are_separate(sim: Running, client: stripe.StripeClient) -> None:
    other = next(iter(sim.account.connected))
    here = client.v1.charges.list({"limit": 1}).data[0]
    there = client.v1.charges.list({"limit": 1}, {"stripe_account": other}).data[0]
    assert here.id != there.id
    with pytest.raises(stripe.PermissionError):
        client.v1.charges.list({}, {"stripe_account": "acct_nobody"})
