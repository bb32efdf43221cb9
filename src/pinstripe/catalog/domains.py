"""The domain of each table: Stripe's products, as Stripe's API reference groups them.

Every table is in exactly one. Object types with a dot go by the part before it (`issuing.card`), the others
by name. A table without a domain raises, so that a new type of Stripe's is noticed; the house tests check
all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from pinstripe.catalog.tables import Table, tables


@dataclass(frozen=True, slots=True)
class Domain:
    """A product of Stripe's. `about` is one line of ours.

    `prefixes` are beginnings of dotted object names, `names` are tables.
    """

    name: str
    title: str
    about: str
    prefixes: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()


def _domain(name: str, title: str, about: str, prefixes: str = "", names: str = "") -> Domain:
    return Domain(name, title, about, tuple(prefixes.split()), frozenset(names.split()))


DOMAINS: Mapping[str, Domain] = {
    d.name: d
    for d in (
        _domain(
            "core",
            "Core",
            "Customers, the balance and what moves it, events and files.",
            "reserve v2.core.event v2.core.event_destination",
            """
            customer balance balance_settings balance_transaction payout
            payout_balance_transaction exchange_rate
            reserve_transaction event webhook_endpoint file file_link ephemeral_key
            """,
        ),
        _domain(
            "payments",
            "Payments",
            "From the intent to pay to the charge, and back: refunds and disputes.",
            "",
            """
            charge payment_intent payment_intent_amount_details_line_item setup_intent setup_attempt
            refund dispute mandate confirmation_token payment_record payment_attempt_record
            """,
        ),
        _domain(
            "payment_methods",
            "Payment methods",
            "How customers pay: cards, bank accounts, sources, and which methods are offered.",
            "three_d_secure forwarding",
            """
            payment_method payment_method_configuration payment_method_domain apple_pay_domain
            bank_account card token source source_transaction source_mandate_notification
            cash_balance customer_cash_balance_transaction
            """,
        ),
        _domain(
            "products",
            "Products and prices",
            "What is sold, for how much, and with which discount, tax or shipping.",
            "product_catalog v2.commerce",
            """
            product product_feature price plan coupon promotion_code discount shipping_rate tax_code
            tax_rate
            """,
        ),
        _domain(
            "checkout",
            "Checkout and payment links",
            "Payment pages that Stripe hosts.",
            "checkout",
            "payment_link item",
        ),
        _domain(
            "billing",
            "Billing",
            "Subscriptions, invoices, credit, meters, and what customers are entitled to.",
            "billing billing_portal entitlements test_helpers v2.billing",
            """
            subscription subscription_item subscription_schedule invoice line_item invoice_item
            invoice_payment invoice_rendering_template credit_note credit_note_line_item quote
            customer_balance_transaction tax_id upcoming_customer_invoice
            upcoming_subscription_invoice upcoming_invoice_line_item
            """,
        ),
        _domain(
            "connect",
            "Connect",
            "Accounts of a platform, the people behind them, and money moved between them.",
            "apps v2.core",
            """
            account person capability country_spec application application_fee fee_refund topup
            transfer transfer_reversal connect_collection_transfer tax_deducted_at_source
            """,
        ),
        _domain(
            "radar", "Radar", "Fraud: warnings, reviews and lists for rules.", "radar", "review"
        ),
        _domain(
            "issuing",
            "Issuing",
            "Cards that the account issues, and what is paid with them.",
            "issuing",
        ),
        _domain("treasury", "Treasury", "Accounts that hold money, and its flows.", "treasury"),
        _domain(
            "money_management",
            "Money management",
            "Storing and sending money with version 2 of the API.",
            "v2.money_management v2.core.vault",
        ),
        _domain("terminal", "Terminal", "Card readers and where they stand.", "terminal"),
        _domain("tax", "Tax", "Tax calculated, where, and for which sale.", "tax"),
        _domain("identity", "Identity", "Checks of identity documents.", "identity"),
        _domain(
            "financial_connections",
            "Financial Connections",
            "Bank accounts that customers have linked, with owners and transactions.",
            "financial_connections",
        ),
        _domain(
            "reporting",
            "Reporting and Sigma",
            "Reports and queries that Stripe runs.",
            "reporting",
            "scheduled_query_run",
        ),
        _domain("climate", "Climate", "Carbon removal that was bought.", "climate"),
    )
}
"""By name, in the order in which people look for them."""


def domain_of(table: Table) -> Domain:
    """The one domain of `table`; the longest beginning of its object's name decides.

    >>> domain_of(tables()["checkout_session"]).title
    'Checkout and payment links'
    >>> domain_of(tables()["v2_core_event"]).name, domain_of(tables()["v2_core_account"]).name
    ('core', 'connect')
    """
    by_prefix: dict[str, Domain] = {p: d for d in DOMAINS.values() for p in d.prefixes}
    for domain in DOMAINS.values():
        if table.name in domain.names:
            return domain
    parts = table.object_type.split(".")
    for length in range(len(parts), 0, -1):
        found = by_prefix.get(".".join(parts[:length]))
        if found is not None and len(parts) > 1:
            return found
    raise ValueError(f"{table.name}: in which domain? Add it to pinstripe/catalog/domains.py")


@cache
def domains() -> Mapping[str, tuple[Table, ...]]:
    """The tables of every domain, by its name."""
    found: dict[str, list[Table]] = {name: [] for name in DOMAINS}
    for table in tables().values():
        found[domain_of(table).name].append(table)
    return {name: tuple(group) for name, group in found.items()}


@cache
def domain_by_table() -> Mapping[str, Domain]:
    return {t.name: DOMAINS[name] for name, group in domains().items() for t in group}


def only_filled(names: Iterable[str], filled: frozenset[str] | None) -> tuple[str, ...]:
    """The `names` that are in `filled`; all of them if it is None."""
    return tuple(n for n in names if filled is None or n in filled)
