"""What the SDK's types cannot say. Each entry has its reason; each is checked to still match."""

from __future__ import annotations

from pinstripe.catalog.model import Field


def _id_of(name: str, *targets: str) -> Field:
    return Field(name=name, kind="expandable", nullable=True, targets=targets)


def _text(name: str) -> Field:
    return Field(name=name, kind="string", nullable=True)


# Keys that Stripe sends with every object of a type and that the SDK's types leave out. All were seen
# in recorded answers of the newest API versions; nested objects stand there with nulls inside.
ALWAYS_SENT: dict[str, tuple[Field, ...]] = {
    # Typed by the SDK up to 4.x: the account that was paid, the dispute, and the order of the Orders API,
    # which is gone, so that its ids lead nowhere.
    "charge": (_id_of("destination", "account"), _id_of("dispute", "dispute"), _id_of("order")),
    # Beside the list `balance_transactions`: the first of them.
    "dispute": (_id_of("balance_transaction", "balance_transaction"),),
    # A plain id (PaymentMethod in SDKs that know the shared payment tokens).
    "payment_intent": (_text("shared_payment_granted_token"),),
    "payment_method": (_text("shared_payment_granted_token"),),
    # Names of the attributes by which SKUs differed (Product in the SDK up to 4.x).
    "product": (
        Field(name="attributes", kind="array", nullable=True, items=Field(name="", kind="string")),
    ),
    # Those of the only item; null where there are several (Subscription in the SDK up to 4.x).
    "subscription": (
        Field(name="plan", kind="resource", nullable=True, targets=("plan",)),
        Field(name="quantity", kind="integer", nullable=True),
    ),
}

# Left out of answers unless `expand[]` names them. The SDK types them `Optional`, like nullables.
# Source: the API reference marks each "expandable" on a property that is not an id.
ON_REQUEST = frozenset(
    """
    charge.refunds
    checkout.session.line_items
    checkout.session.total_details.breakdown
    coupon.applies_to
    coupon.currency_options
    customer.cash_balance
    customer.invoice_credit_balance
    customer.sources
    customer.subscriptions
    customer.tax
    customer.tax_ids
    identity.verification_report.document.dob
    identity.verification_report.document.expiration_date
    identity.verification_report.document.number
    identity.verification_report.id_number.dob
    identity.verification_report.id_number.id_number
    identity.verification_session.provided_details
    identity.verification_session.verified_outputs
    apps.secret.payload
    invoice.confirmation_secret
    invoice.payments
    issuing.card.cvc
    issuing.card.number
    issuing.transaction.purchase_details
    payment_intent.amount_details.line_items
    payment_link.line_items
    plan.tiers
    price.currency_options
    price.tiers
    quote.computed.upfront.line_items
    quote.line_items
    quote.total_details.breakdown
    shipping_rate.fixed_amount.currency_options
    tax.calculation.line_items
    tax.transaction.line_items
    treasury.financial_account.features
    treasury.transaction.entries
    """.split()  # noqa: SIM905 - reads better as a block
)

# Plain strings that hold the id of something else than their name says. They keep their name in
# the table; the reference is recorded for joins and the diagram. (A top-level string that bears the
# name of an object type is found by rule and needs no entry.)
REFERENCES: dict[str, tuple[str, ...]] = {
    "financial_connections.transaction.account": ("financial_connections.account",),
    "radar.value_list_item.value_list": ("radar.value_list",),
    "v2.core.account_person.account": ("v2.core.account",),
    "treasury.credit_reversal.financial_account": ("treasury.financial_account",),
    "treasury.debit_reversal.financial_account": ("treasury.financial_account",),
    "treasury.inbound_transfer.financial_account": ("treasury.financial_account",),
    "treasury.outbound_payment.financial_account": ("treasury.financial_account",),
    "treasury.outbound_transfer.financial_account": ("treasury.financial_account",),
    "treasury.received_credit.financial_account": ("treasury.financial_account",),
    "treasury.received_debit.financial_account": ("treasury.financial_account",),
    "treasury.transaction.financial_account": ("treasury.financial_account",),
    "treasury.transaction_entry.financial_account": ("treasury.financial_account",),
}

# Deleted for good by an event or a DELETE, though the SDK has no deleted variant ...
DELETABLE = frozenset(
    {"apps.install", "source", "v2.core.account_person", "v2.core.event_destination"}
)
# ... and the one that only looks so: DELETE cancels it, it lives on with `status: canceled`.
NOT_DELETABLE = frozenset({"subscription"})

# Event types that end in `.deleted`, and what they tell. Those with which Stripe deletes the object for
# good; each other one that is not in `NO_DELETIONS` is a hint to ask for the object.
# Source: https://docs.stripe.com/api/events/types, and https://docs.stripe.com/api for each DELETE.
DELETIONS = frozenset(
    """
    account.external_account.deleted
    coupon.deleted
    customer.deleted
    customer.discount.deleted
    customer.source.deleted
    customer.tax_id.deleted
    invoice.deleted
    invoiceitem.deleted
    person.deleted
    plan.deleted
    price.deleted
    product.deleted
    test_helpers.test_clock.deleted
    """.split()  # noqa: SIM905 - reads better as a block
)
# A cancellation: the subscription lives on with `status: canceled`, and can change again in that second.
NO_DELETIONS = frozenset({"customer.subscription.deleted"})

# Id prefixes as Stripe's published examples show them; "" where users choose the id or none is known.
PREFIXES: dict[str, str] = {
    "account": "acct",
    "apple_pay_domain": "apwc",
    "application": "ca",
    "application_fee": "fee",
    "apps.secret": "appsecret",
    "balance_transaction": "txn",
    "bank_account": "ba",
    "billing.alert": "alrt",
    "billing.credit_balance_transaction": "cbtxn",
    "billing.credit_grant": "credgr",
    "billing.meter": "mtr",
    "billing.meter_event_summary": "mtrusg",
    "billing_portal.configuration": "bpc",
    "billing_portal.session": "bps",
    "card": "card",
    "charge": "ch",
    "checkout.session": "cs",
    "climate.order": "climorder",
    "climate.product": "climsku",
    "climate.supplier": "climsup",
    "confirmation_token": "ctoken",
    "connect_collection_transfer": "connct",
    "credit_note": "cn",
    "credit_note_line_item": "cnli",
    "customer": "cus",
    "customer_balance_transaction": "cbtxn",
    "customer_cash_balance_transaction": "ccsbtxn",
    "discount": "di",
    "dispute": "dp",
    "entitlements.active_entitlement": "ent",
    "entitlements.feature": "feat",
    "ephemeral_key": "ephkey",
    "event": "evt",
    "fee_refund": "fr",
    "file": "file",
    "file_link": "link",
    "financial_connections.account": "fca",
    "financial_connections.account_owner": "fcaown",
    "financial_connections.session": "fcsess",
    "financial_connections.transaction": "fctxn",
    "forwarding.request": "fwdreq",
    "identity.verification_report": "vr",
    "identity.verification_session": "vs",
    "invoice": "in",
    "invoice_payment": "inpay",
    "invoice_rendering_template": "inrtem",
    "invoiceitem": "ii",
    "issuing.authorization": "iauth",
    "issuing.card": "ic",
    "issuing.cardholder": "ich",
    "issuing.dispute": "idp",
    "issuing.personalization_design": "ipd",
    "issuing.physical_bundle": "ics",
    "issuing.token": "intok",
    "issuing.transaction": "ipi",
    "item": "li",
    "line_item": "il",
    "mandate": "mandate",
    "payment_intent": "pi",
    "payment_link": "plink",
    "payment_method": "pm",
    "payment_method_configuration": "pmc",
    "payment_method_domain": "pmd",
    "payout": "po",
    "person": "person",
    "price": "price",
    "product": "prod",
    "product_feature": "prodft",
    "promotion_code": "promo",
    "quote": "qt",
    "radar.early_fraud_warning": "issfr",
    "radar.value_list": "rsl",
    "radar.value_list_item": "rsli",
    "refund": "re",
    "reporting.report_run": "frr",
    "review": "prv",
    "scheduled_query_run": "sqr",
    "setup_attempt": "setatt",
    "setup_intent": "seti",
    "shipping_rate": "shr",
    "source": "src",
    "source_mandate_notification": "srcmn",
    "source_transaction": "srctxn",
    "subscription": "sub",
    "subscription_item": "si",
    "subscription_schedule": "sub_sched",
    "tax.calculation": "taxcalc",
    "tax.calculation_line_item": "tax_li",
    "tax.registration": "taxreg",
    "tax.transaction": "tax",
    "tax.transaction_line_item": "tax_li",
    "tax_code": "txcd",
    "tax_id": "txi",
    "tax_rate": "txr",
    "terminal.configuration": "tmc",
    "terminal.location": "tml",
    "terminal.reader": "tmr",
    "test_helpers.test_clock": "clock",
    "token": "tok",
    "topup": "tu",
    "transfer": "tr",
    "transfer_reversal": "trr",
    "treasury.credit_reversal": "credrev",
    "treasury.debit_reversal": "debrev",
    "treasury.financial_account": "fa",
    "treasury.inbound_transfer": "ibt",
    "treasury.outbound_payment": "obp",
    "treasury.outbound_transfer": "obt",
    "treasury.received_credit": "rc",
    "treasury.received_debit": "rd",
    "treasury.transaction": "trxn",
    "treasury.transaction_entry": "trxne",
    "webhook_endpoint": "we",
}

# Event types whose name does not begin with the name of what they carry (the thin twin, where
# there is one, and the API reference say what it is). Longest prefix first.
EVENT_CARRIES: dict[str, tuple[str, ...]] = {
    "account.application.": ("application",),
    "account.external_account.": ("bank_account", "card"),
    "application_fee.refund.": ("fee_refund",),
    "billing.alert.triggered": ("billing.alert_triggered",),
    "charge.dispute.": ("dispute",),
    "charge.refund.": ("refund",),
    "customer.discount.": ("discount",),
    "customer.source.": ("card", "bank_account", "source"),
    "customer.subscription.": ("subscription",),
    "customer.tax_id.": ("tax_id",),
    "issuing_": ("issuing.",),  # "issuing_card.created" carries "issuing.card".
    "sigma.scheduled_query_run.": ("scheduled_query_run",),
    "source.mandate_notification": ("source_mandate_notification",),
    "source.transaction.": ("source_transaction",),
}
