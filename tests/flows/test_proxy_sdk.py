"""Stripe's own SDKs through the proxy: what comes back to them is in Postgres when it does.

The Node SDK runs where `node` is and PINSTRIPE_NODE_MODULES names a directory with `stripe` in it.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import stripe
from tests.flows.harness.gateway_account import GatewayAccount
from tests.flows.test_proxy import Front, front

from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import running

pytestmark = pytest.mark.migrated

ACCOUNT = Settings(scale=60, future_fields=False)
NODE_MODULES = os.environ.get("PINSTRIPE_NODE_MODULES", "")


class Shop:
    """Billing code as users write it; it notes what it was given. Blocking: run it in a thread."""

    def __init__(self, client: stripe.StripeClient) -> None:
        self.v1 = client.v1
        self.seen: list[tuple[str, str]] = []

    def note(self, obj: Any) -> Any:
        self.seen.append((str(obj.object), str(obj.id)))
        return obj

    def sells(self) -> None:
        """A subscription that is paid, and one payment that is given back in part."""
        note, v1 = self.note, self.v1
        product = note(v1.products.create({"name": "Gold", "id": "gold / 50%"}))
        assert v1.products.retrieve("gold / 50%").id == product.id
        price = note(
            v1.prices.create(
                {
                    "product": product.id,
                    "unit_amount": 2_000,
                    "currency": "usd",
                    "recurring": {"interval": "month"},
                }
            )
        )
        payer = note(v1.customers.create({"email": "ada@example.com", "name": "Ada Lovelace"}))
        card = note(v1.payment_methods.attach("pm_card_visa", {"customer": payer.id}))
        v1.customers.update(payer.id, {"invoice_settings": {"default_payment_method": card.id}})
        made = note(
            v1.subscriptions.create(
                {
                    "customer": payer.id,
                    "items": [{"price": price.id, "quantity": 3}],
                    "expand": ["latest_invoice.payments", "customer"],
                }
            )
        )
        note(made["items"].data[0])
        note(made.latest_invoice)
        intent = note(
            v1.payment_intents.create(
                {
                    "amount": 900,
                    "currency": "usd",
                    "customer": payer.id,
                    "payment_method": card.id,
                    "confirm": True,
                    "off_session": True,
                    "expand": ["latest_charge"],
                }
            )
        )
        note(intent.latest_charge)
        note(v1.refunds.create({"payment_intent": intent.id, "amount": 100}))
        v1.subscriptions.update(made.id, {"metadata": {"plan": "gold"}})

    def reads(self) -> None:
        """Pages, expanded, to the end."""
        pages = self.v1.customers.list({"limit": 7})
        for number, customer in enumerate(pages.auto_paging_iter()):
            self.note(customer)
            if number == 20:
                break
        for invoice in self.v1.invoices.list({"limit": 3, "expand": ["data.customer"]}).data:
            self.note(invoice)
            self.note(invoice.customer)

    def errs(self) -> None:
        """Errors are Stripe's, with all that the SDK makes of them."""
        with pytest.raises(stripe.InvalidRequestError) as missing:
            self.v1.customers.retrieve("cus_nobody")
        assert missing.value.code == "resource_missing"
        assert missing.value.request_id
        with pytest.raises(stripe.InvalidRequestError):
            self.v1.customers.create(cast(Any, {"nonsense": "x"}))
        once: stripe.RequestOptions = {"idempotency_key": "only-once"}
        first = self.note(self.v1.customers.create({"name": "Once"}, once))
        assert self.v1.customers.create({"name": "Once"}, once).id == first.id

    def uploads(self) -> None:
        upload = io.BytesIO(b"\x89PNG" + bytes(range(256)) * 2000)
        upload.name = "receipt.png"
        self.note(self.v1.files.create({"purpose": "dispute_evidence", "file": upload}))

    def deletes(self) -> None:
        gone = self.v1.customers.create({"name": "Gone"})
        assert self.v1.customers.delete(gone.id).deleted is True
        self.note(gone)


async def all_there(account: GatewayAccount, seen: list[tuple[str, str]]) -> list[str]:
    """What is not in Postgres of what was seen."""
    missing = []
    for name, key in seen:
        if await account.row(name.replace(".", "_"), key) is None:
            missing.append(f"{name} {key}")
    return missing


def prefixed(it: Front) -> stripe.StripeClient:
    """Our address put before Stripe's."""
    addresses = {"api": f"{it.url}/api.stripe.com", "files": f"{it.url}/files.stripe.com"}
    return stripe.StripeClient(it.account.key, base_addresses=addresses)  # type: ignore[arg-type]


def plain(it: Front) -> stripe.StripeClient:
    """Our address as the base."""
    return stripe.StripeClient(it.account.key, base_addresses={"api": it.url, "files": it.url})


@pytest.mark.parametrize("client", [prefixed, plain])
async def test_the_python_sdk_works_and_finds_its_objects_in_postgres(
    client: Callable[[Front], stripe.StripeClient], database: str
) -> None:
    async with running(ACCOUNT) as sim, front(sim, database) as it:
        shop = Shop(client(it))
        for deed in (shop.sells, shop.reads, shop.errs, shop.uploads, shop.deletes):
            shop.seen.clear()
            await asyncio.to_thread(deed)
            assert shop.seen
            assert await all_there(it.account, shop.seen) == [], deed.__name__


NODE = """
const Stripe = require('stripe');
const [host, port, key] = process.argv.slice(2);
const stripe = new Stripe(key, {host, port, protocol: 'http', maxNetworkRetries: 0});
const seen = [];
const note = (o) => { seen.push([o.object, o.id]); return o; };
(async () => {
  const product = note(await stripe.products.create({name: 'Silver'}));
  const price = note(await stripe.prices.create({product: product.id, unit_amount: 500,
    currency: 'eur', recurring: {interval: 'month'}}));
  const payer = note(await stripe.customers.create({email: 'bob@example.com', name: 'Bob'}));
  const card = note(await stripe.paymentMethods.attach('pm_card_visa', {customer: payer.id}));
  await stripe.customers.update(payer.id, {invoice_settings: {default_payment_method: card.id}});
  const sub = note(await stripe.subscriptions.create({customer: payer.id,
    items: [{price: price.id}], expand: ['latest_invoice']}));
  note(sub.items.data[0]); note(sub.latest_invoice);
  const intent = note(await stripe.paymentIntents.create({amount: 700, currency: 'eur',
    customer: payer.id, payment_method: card.id, confirm: true, off_session: true}));
  note(await stripe.refunds.create({payment_intent: intent.id}));
  let count = 0;
  for await (const c of stripe.customers.list({limit: 5})) { note(c); if (++count >= 12) break; }
  const once = {idempotencyKey: 'node-once'};
  const a = note(await stripe.customers.create({name: 'Once'}, once));
  const b = await stripe.customers.create({name: 'Once'}, once);
  if (a.id !== b.id) throw new Error('not idempotent');
  const file = note(await stripe.files.create({purpose: 'dispute_evidence',
    file: {data: Buffer.alloc(400000, 7), name: 'a.png', type: 'image/png'}}));
  await stripe.customers.search({query: "name:'Bob'"});
  let code = '';
  try { await stripe.customers.retrieve('cus_nobody'); } catch (e) { code = e.code; }
  const gone = await stripe.customers.del(a.id);
  console.log(JSON.stringify({seen, code, deleted: gone.deleted, size: file.size}));
})().catch((e) => { console.error(e); process.exit(1); });
"""


@pytest.mark.skipif(
    not NODE_MODULES or shutil.which("node") is None,
    reason="needs node, and PINSTRIPE_NODE_MODULES with stripe in it",
)
async def test_the_node_sdk_works_and_finds_its_objects_in_postgres(
    database: str, tmp_path: Path
) -> None:
    script = tmp_path / "shop.js"
    script.write_text(NODE)
    async with running(ACCOUNT) as sim, front(sim, database) as it:
        host, _, port = it.url.removeprefix("http://").partition(":")
        process = await asyncio.create_subprocess_exec(
            *("node", str(script), host, port, it.account.key),
            env={**os.environ, "NODE_PATH": NODE_MODULES},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        told = json.loads(out)
        assert (told["code"], told["deleted"], told["size"]) == ("resource_missing", True, 400000)
        assert await all_there(it.account, [tuple(each) for each in told["seen"]]) == []
