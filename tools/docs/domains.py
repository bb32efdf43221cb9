"""Which page of the reference a table stands on: Stripe's products, as its own documentation cuts them.

Object types with a dot in their name go by what stands before it. The others are told here, and one
that is not stops the generator, so that a new type cannot end up nowhere.
"""

from __future__ import annotations

from pinstripe.catalog.tables import Table

# Page -> (title, beginnings of dotted object names, tables without a dot).
DOMAINS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "payments": (
        "Payments",
        ("three_d_secure",),
        """
        charge payment_intent payment_intent_amount_details_line_item setup_intent setup_attempt
        refund dispute mandate confirmation_token payment_record payment_attempt_record
        payment_method payment_method_configuration payment_method_domain apple_pay_domain
        bank_account card source source_transaction source_mandate_notification token ephemeral_key
        """,
    ),
    "balance": (
        "Balance and payouts",
        ("reserve",),
        """
        balance balance_settings balance_transaction payout topup transfer transfer_reversal
        exchange_rate reserve_transaction connect_collection_transfer tax_deducted_at_source
        """,
    ),
    "customers": (
        "Customers",
        (),
        """
        customer customer_balance_transaction customer_cash_balance_transaction cash_balance
        discount tax_id
        """,
    ),
    "products": (
        "Products and prices",
        ("product_catalog",),
        """
        product product_feature price plan coupon promotion_code shipping_rate tax_code tax_rate
        """,
    ),
    "billing": (
        "Billing",
        ("billing", "billing_portal", "entitlements", "test_helpers"),
        """
        subscription subscription_item subscription_schedule invoice line_item invoice_item
        invoice_payment invoice_rendering_template credit_note credit_note_line_item quote
        upcoming_customer_invoice upcoming_subscription_invoice upcoming_invoice_line_item
        """,
    ),
    "checkout": ("Checkout and payment links", ("checkout",), "payment_link item"),
    "connect": (
        "Connect",
        ("apps",),
        """
        account person capability country_spec application application_fee fee_refund
        """,
    ),
    "radar": ("Radar", ("radar",), "review"),
    "issuing": ("Issuing", ("issuing",), ""),
    "terminal": ("Terminal", ("terminal",), ""),
    "treasury": ("Treasury", ("treasury",), ""),
    "tax": ("Tax", ("tax",), ""),
    "identity": ("Identity", ("identity",), ""),
    "financial_connections": ("Financial Connections", ("financial_connections",), ""),
    "climate": ("Climate", ("climate",), ""),
    "reporting": ("Reporting", ("reporting",), "scheduled_query_run"),
    "v2": ("API v2", ("v2",), ""),
    "other": (
        "Events, files and the rest",
        ("forwarding",),
        "event webhook_endpoint file file_link",
    ),
}


def domain_of(table: Table) -> str:
    """The page of a table.

    >>> from pinstripe.catalog.tables import tables
    >>> domain_of(tables()["checkout_session"])
    'checkout'
    """
    beginning = table.object_type.partition(".")[0] if "." in table.object_type else None
    for page, (_, beginnings, names) in DOMAINS.items():
        if beginning in beginnings or table.name in names.split():
            return page
    raise ValueError(f"{table.name}: on which page? Add it to tools/docs/domains.py")
