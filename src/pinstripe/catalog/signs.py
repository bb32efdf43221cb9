"""Lists by parent: which parents are read first, by what their rows and others show.

Stripe has lists with one request for each parent: the balance transactions of each customer, the attempts
of each setup intent. Most of them are empty, and an account of a million customers has a million. So the
first copy reads a list only where a row shows a sign that it holds something. All other parents are left
to an endless slow scan (`sync.scan`) and to the events that name them.

Each list by parent of the catalog has an entry here, and a test holds it. A sign is a row of a table that
names the parent; its reason and source stand beside it. A wrong sign costs requests or time, never rows:
the scan leaves no parent out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pinstripe.catalog.endpoints import ListEndpoint


@dataclass(frozen=True, slots=True)
class Sign:
    """Rows of `table` that meet the SQL condition `when` name, in `column`, parents to read first.

    In the condition `t` is the row, and `{schema}` the schema of the other tables that it reads: `needs`.
    """

    table: str
    column: str
    when: str = "true"
    needs: tuple[str, ...] = ()


def _on(table: str, when: str) -> Sign:
    """A sign on the parent's own row."""
    return Sign(table, "id", when)


_ACCOUNTS = (_on("account", "true"),)

_CLOCKS = (_on("test_helpers_test_clock", "true"),)

_TREASURY = (
    _on(
        "treasury_financial_account",
        "balance_cash::text ~ '[1-9]' OR balance_inbound_pending::text ~ '[1-9]'"
        " OR balance_outbound_pending::text ~ '[1-9]'",
    ),
)

_SIGNS: Mapping[tuple[str, str], tuple[Sign, ...]] = {
    # Always: an account that was onboarded has capabilities and persons, and of one that was not nothing on
    # its row tells for certain: persons can be there before `business_type` is set
    # (https://docs.stripe.com/api/persons/create).
    ("/v1/accounts/{account}/capabilities", "account"): _ACCOUNTS,
    ("/v1/accounts/{account}/persons", "account"): _ACCOUNTS,
    # Always: the plain lists leave out what belongs to a clock, so nothing else shows it
    # (https://docs.stripe.com/api/customers/list#list_customers-test_clock). Clocks are few.
    ("/v1/customers", "test_helpers.test_clock"): _CLOCKS,
    ("/v1/quotes", "test_helpers.test_clock"): _CLOCKS,
    ("/v1/subscriptions", "test_helpers.test_clock"): _CLOCKS,
    # A transaction changes the balance, an invoice that is finalised takes from it and gives to it, and a
    # credit note may go to it (https://docs.stripe.com/billing/customer/balance). What is balanced out
    # without an invoice shows no sign. `invoice_credit_balance` is the balance in each currency.
    ("/v1/customers/{customer}/balance_transactions", "customer"): (
        _on("customer", "balance <> 0 OR invoice_credit_balance::text ~ '[1-9]'"),
        Sign("invoice", "customer_id", "starting_balance <> 0 OR ending_balance <> 0"),
        Sign("credit_note", "customer_id", "customer_balance_transaction_id IS NOT NULL"),
    ),
    # Money that a customer sends by bank transfer stays in the cash balance until payments take it
    # (https://docs.stripe.com/payments/customer-balance): the balance comes by `expand` with the customer,
    # the payment is a charge of this type. Where Stripe refuses the `expand`, only charges are signs.
    ("/v1/customers/{customer}/cash_balance_transactions", "customer"): (
        _on("customer", "cash_balance_available::text ~ '[1-9]'"),
        Sign("charge", "customer_id", "payment_method_details_type = 'customer_balance'"),
    ),
    # Always, of the automatic payouts that `only_when` leaves: each is the sum of its balance transactions
    # (https://docs.stripe.com/api/balance_transactions/list#balance_transaction_list-payout).
    ("/v1/balance_transactions", "payout"): (_on("payout", "true"),),
    # A customer is entitled to the features of the products of active subscriptions
    # (https://docs.stripe.com/billing/entitlements).
    ("/v1/entitlements/active_entitlements", "customer"): (
        Sign(
            "subscription",
            "customer_id",
            "status NOT IN ('canceled', 'incomplete', 'incomplete_expired') AND EXISTS (SELECT"
            " FROM {schema}.subscription_item i JOIN {schema}.price p ON p.id = i.price_id"
            " JOIN {schema}.product_feature f ON f.product_id = p.product_id"
            " WHERE i.subscription_id = t.id)",
            needs=("subscription_item", "price", "product_feature"),
        ),
    ),
    # Transactions come only after a refresh or a subscription of them
    # (https://docs.stripe.com/financial-connections/transactions).
    ("/v1/financial_connections/transactions", "financial_connections.account"): (
        _on(
            "financial_connections_account",
            "transaction_refresh_status IS NOT NULL OR 'transactions' = ANY (subscriptions)",
        ),
    ),
    # A token is made when a card is put into a wallet, and payments with it name it
    # (https://docs.stripe.com/api/issuing/tokens).
    ("/v1/issuing/tokens", "issuing.card"): (
        Sign("issuing_authorization", "card_id", "token_id IS NOT NULL"),
        Sign("issuing_transaction", "card_id", "token_id IS NOT NULL"),
    ),
    # The record names its latest attempt (https://docs.stripe.com/api/payment-record/object).
    ("/v1/payment_attempt_records", "payment_record"): (
        _on("payment_record", "latest_payment_attempt_record IS NOT NULL"),
    ),
    # Features are there to be given to customers who subscribe to the product
    # (https://docs.stripe.com/billing/entitlements); the product's row does not name them.
    ("/v1/products/{product}/features", "product"): (
        Sign("price", "product_id", "active AND type = 'recurring'"),
    ),
    # https://docs.stripe.com/api/setup_intents/object#setup_intent_object-latest_attempt
    ("/v1/setup_attempts", "setup_intent"): (_on("setup_intent", "latest_attempt_id IS NOT NULL"),),
    # Always, of the receivers that `only_when` leaves; a source of that kind is made to be paid into
    # (https://docs.stripe.com/sources). Sources are deprecated, and few.
    ("/v1/sources/{source}/source_transactions", "source"): (_on("source", "true"),),
    # Always: each calculation and each transaction has line items
    # (https://docs.stripe.com/api/tax/calculations/line_items), and no list brings calculations.
    ("/v1/tax/calculations/{calculation}/line_items", "tax.calculation"): (
        _on("tax_calculation", "true"),
    ),
    ("/v1/tax/transactions/{transaction}/line_items", "tax.transaction"): (
        _on("tax_transaction", "true"),
    ),
    # Money that came, or is on its way in or out, shows in the balance
    # (https://docs.stripe.com/api/treasury/financial_accounts/object#financial_account_object-balance).
    ("/v1/treasury/credit_reversals", "treasury.financial_account"): _TREASURY,
    ("/v1/treasury/debit_reversals", "treasury.financial_account"): _TREASURY,
    ("/v1/treasury/inbound_transfers", "treasury.financial_account"): _TREASURY,
    ("/v1/treasury/outbound_payments", "treasury.financial_account"): _TREASURY,
    ("/v1/treasury/outbound_transfers", "treasury.financial_account"): _TREASURY,
    ("/v1/treasury/received_credits", "treasury.financial_account"): _TREASURY,
    ("/v1/treasury/received_debits", "treasury.financial_account"): _TREASURY,
    ("/v1/treasury/transaction_entries", "treasury.financial_account"): _TREASURY,
    ("/v1/treasury/transactions", "treasury.financial_account"): _TREASURY,
    # Persons are asked for where an account is paid out to or takes payments, not of mere customers
    # (https://docs.stripe.com/connect/accounts-v2).
    ("/v2/core/accounts/{account_id}/persons", "v2.core.account"): (
        _on("v2_core_account", "applied_configurations && '{merchant,recipient}'"),
    ),
    # The lists that Stripe may refuse without a customer (`endpoints.by_parent`).
    # Credit is granted first (https://docs.stripe.com/api/billing/credit-balance-transaction).
    ("/v1/billing/credit_balance_transactions", "customer"): (
        Sign("billing_credit_grant", "customer_id"),
    ),
    # Always: whoever pays has a payment method, and nothing on other rows tells of one that is merely saved
    # (https://docs.stripe.com/payments/save-and-reuse).
    ("/v1/payment_methods", "customer"): (_on("customer", "true"),),
}


def signs_of(endpoint: ListEndpoint) -> tuple[Sign, ...]:
    """The signs of a list by parent. Raises KeyError if nobody has decided what they are."""
    return _SIGNS[endpoint.path, endpoint.parent]
