"""The endpoints that a mirror lists and retrieves, and how. Pure, from the catalog's operations.

The tables at the top hold what the types cannot say (lists that hide rows, what is worth expanding), each
entry with its reason.

Stripe has lists with one request for each parent: the balance transactions of each customer, the attempts
of each setup intent. Most of them are empty, and an account of a million customers has a million. So the
first copy reads a list only where a row shows a sign that it holds something (`signs_of`). All others are
left to an endless slow scan (`sync.scan`) and to the events that name them. Each list by parent has an
entry in `_SIGNS`, and a test holds it. A wrong sign costs requests or time, never rows: the scan leaves no
parent out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from pinstripe.catalog.model import Field, Operation, Spec, object_types, spec
from pinstripe.catalog.relations import NOT_LISTS, parent_of, parent_parameter
from pinstripe.catalog.tables import NOT_EXPANDED, PAYOUT_LINES, has_table, table_name, tables

Param = tuple[str, str]

PAGE = 100
"""Objects of a page: the most that Stripe gives (https://docs.stripe.com/api/pagination)."""

# Lists that hide rows unless a parameter requests them; each variant is one more pass over the endpoint.
# Source: the API reference of each list.
_VARIANTS: dict[str, tuple[tuple[Param, ...], ...]] = {
    "/v1/subscriptions": ((("status", "all"),),),  # Canceled ones only so.
    "/v1/prices": ((), (("active", "false"),)),  # Inactive ones only so.
    "/v1/apps/secrets": (
        (("scope[type]", "account"),),
    ),  # The account's own; users' are not listable.
}

# Lists that Stripe may refuse without a parent, though the SDK types them as free: until 2025 their
# `customer` was required (https://docs.stripe.com/api/payment_methods/list speaks of Treasury flows, the
# SDKs of 2024 require it of credit balance transactions). If Stripe refuses, they are read by parent.
_BY_PARENT = {
    "/v1/billing/credit_balance_transactions": "customer",
    "/v1/payment_methods": "customer",
}

# These lists return objects of a test clock only if the request names the clock.
_TEST_CLOCK = ("/v1/customers", "/v1/subscriptions", "/v1/quotes")

# Never listed: constants of Stripe's own under a parameter that cannot be enumerated, or
# time series that are computed on demand and have no end.
_NOT_LISTED = NOT_LISTS | {
    "/v1/billing/meters/{id}/event_summaries",  # Aggregates for a customer and a time span.
    "/v2/core/events",  # The thin twin of /v1/events.
}

# Expanded although other fields keep the id: no other request returns these objects. A discount has no
# address and no list (https://docs.stripe.com/api/discounts); `expand` reaches four levels deep, so those
# of lines and items come with their owner (https://docs.stripe.com/expand).
_EXPANDED_TOO = {
    "financial_connections.account": ("ownership",),
    "invoice": ("discounts", "lines.data.discounts"),
    "invoiceitem": ("discounts",),
    "line_item": ("discounts",),
    "quote": ("discounts",),
    "subscription": ("discounts", "items.data.discounts"),
    "subscription_item": ("discounts",),
}

EXPANDED_IN_LISTS: Mapping[str, tuple[str, ...]] = {
    "payment_intent": ("payment_method",),
    "setup_intent": ("mandate", "payment_method"),
}
"""What lists expand although the objects have an address, each named as its table: a guest's payment method
is no customer's, and no list has it, nor a mandate. Each would be a request of its own
(https://docs.stripe.com/api/payment_methods/list, https://docs.stripe.com/api/mandates)."""
EXPANDED_TABLES = frozenset(table for paths in EXPANDED_IN_LISTS.values() for table in paths)

# Nested lists whose entries always come inside their parent (embedded or by _EXPAND) and are
# followed from there where there are more than ten: no request per parent.
_EMBEDDED = frozenset(
    {
        "/v1/accounts/{account}/external_accounts",
        "/v1/application_fees/{id}/refunds",
        "/v1/checkout/sessions/{session}/line_items",
        "/v1/credit_notes/{credit_note}/lines",
        "/v1/customers/{customer}/sources",
        "/v1/customers/{customer}/tax_ids",
        "/v1/financial_connections/accounts/{account}/owners",
        "/v1/invoices/{invoice}/lines",
        "/v1/payment_intents/{intent}/amount_details_line_items",
        "/v1/payment_links/{payment_link}/line_items",
        "/v1/quotes/{quote}/computed_upfront_line_items",
        "/v1/quotes/{quote}/line_items",
        "/v1/radar/value_list_items",
        "/v1/subscription_items",
        "/v1/transfers/{id}/reversals",
    }
)

# The lists of parents that have no children by this column are not requested.
_ONLY_WHEN: dict[str, str] = {
    "/v1/sources/{source}/source_transactions": "type IN ('ach_credit_transfer', 'sepa_credit_transfer',"
    " 'multibanco')"  # Only receivers have transactions.
}

# Stripe refuses the list of a manual payout. Of a payout that was reconciled and has lain in the bank for a
# month nothing changes any more (https://docs.stripe.com/payouts/reconciliation): one copy is enough.
_PAYOUT_HAS_LINES = (
    "automatic AND NOT (reconciliation_status = 'completed' AND status = 'paid'"
    " AND arrival_date < pg_catalog.now() - interval '31 days' AND EXISTS (SELECT FROM"
    " {schema}.payout_balance_transaction AS line WHERE line.payout_id = p.id))"
)

# Lists that can have entries only if this other table has rows.
_ONLY_IF_ANY: dict[str, str] = {
    "/v1/entitlements/active_entitlements": "entitlements_feature",
    "/v1/products/{product}/features": "entitlements_feature",
}


@dataclass(frozen=True, slots=True)
class ListEndpoint:
    """One way to list objects. `name` (method and path template) is Stripe's unit of rate limiting.

    `parent` is the parent's `object` name where the list hangs under one, `parameter` the path or
    query parameter that takes its id, `only_when` a SQL condition on the parent's row `p` (`{schema}`
    stands for the schema of the tables) and `only_if_any` a table that must have rows for the children to
    exist at all.
    """

    path: str
    objects: tuple[str, ...]
    version: int
    created: bool
    takes_limit: bool
    params: tuple[Param, ...] = ()
    expand: tuple[str, ...] = ()
    parent: str = ""
    parameter: str = ""
    only_when: str = ""
    only_if_any: str = ""

    @property
    def name(self) -> str:
        return f"GET {self.path}"

    @property
    def stream(self) -> str:
        """The name of its cursor: path, variant and parent. Stable over releases."""
        variant = "".join(f"&{k}={v}" for k, v in self.params)
        return self.path + variant + (f" by {self.parent}" if self.parent else "")

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables of what it lists."""
        return tuple(map(table_name, self.objects))

    @property
    def parent_table(self) -> str:
        """The table of the parents; "" without one."""
        return table_name(self.parent)

    def url(self, parent_id: str, quoted: str) -> tuple[str, tuple[Param, ...]]:
        """(path, parameters) of the list under one parent; `quoted` is the id, path-quoted."""
        if "{" in self.path:
            return re.sub(r"{\w+}", lambda _: quoted, self.path), self.params
        return self.path, ((self.parameter, parent_id), *self.params)


@dataclass(frozen=True, slots=True)
class RetrieveEndpoint:
    """How one object is fetched by id. `parent_column` is the column with the id of its parent."""

    path: str
    object_type: str
    parent_parameter: str = ""
    expand: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"GET {self.path}"


_LINES_OF_A_PAYOUT = ListEndpoint(
    path="/v1/balance_transactions",
    objects=(PAYOUT_LINES,),
    version=1,
    created=False,
    takes_limit=True,
    parent="payout",
    parameter="payout",
    only_when=_PAYOUT_HAS_LINES,
)


def by_parent(endpoint: ListEndpoint) -> ListEndpoint | None:
    """The variant by parent of a list that Stripe refuses without one; None if there is none."""
    parent = _BY_PARENT.get(endpoint.path)
    if parent is None or endpoint.parent:
        return None
    return replace(endpoint, created=False, parent=parent, parameter=parent)


@cache
def list_endpoints() -> tuple[ListEndpoint, ...]:
    """Every list that a full backfill reads, variants and test clocks included."""
    return build_list_endpoints(spec())


def build_list_endpoints(catalog: Spec) -> tuple[ListEndpoint, ...]:
    with_table = {t.name for t in catalog.objects if has_table(t)}
    found: list[ListEndpoint] = []
    for operation in catalog.operations:
        listed = operation.kind == "list" and operation.base == "api"
        if not listed or operation.path in _NOT_LISTED | _EMBEDDED:
            continue
        if not set(operation.returns) & with_table:
            continue
        found += _endpoints(operation, with_table)
        if operation.path == "/v1/balance_transactions":
            found.append(_LINES_OF_A_PAYOUT)
    return tuple(found)


def _endpoints(operation: Operation, with_table: set[str]) -> list[ListEndpoint]:
    names = {p.name for p in operation.params}
    parent = parent_of(operation, with_table) or ""
    plain = {
        "path": operation.path,
        "objects": operation.returns,
        "version": 2 if operation.path.startswith("/v2/") else 1,
        "created": "created" in names and all(map(_is_dated, operation.returns)),
        "takes_limit": "limit" in names,
        "expand": expand_of(operation.returns)
        + tuple(p for name in operation.returns for p in EXPANDED_IN_LISTS.get(name, ())),
        "only_when": _ONLY_WHEN.get(operation.path, ""),
        "only_if_any": _ONLY_IF_ANY.get(operation.path, ""),
    }
    variants = _VARIANTS.get(operation.path) or _required_enum(operation) or ((),)
    found = [
        ListEndpoint(
            **plain,  # type: ignore[arg-type]
            params=variant,
            parent=parent,
            parameter=(parent_parameter(operation) or "") if parent else "",
        )
        for variant in variants
    ]
    if operation.path in _TEST_CLOCK:
        found += [
            ListEndpoint(
                **{**plain, "created": False},  # type: ignore[arg-type]
                params=variant,
                parent="test_helpers.test_clock",
                parameter="test_clock",
            )
            for variant in variants
        ]
    return found


def _is_dated(name: str) -> bool:
    """Whether objects of this type have `created` in Unix seconds, so that their list can be sliced."""
    return any(
        f.name in ("created", "date") and f.kind == "time" for f in object_types()[name].fields
    )


def _required_enum(operation: Operation) -> tuple[tuple[Param, ...], ...]:
    """A list that requires one of a closed set of values is read once for each."""
    wanted = [p for p in operation.params if not p.nullable and p.kind == "string" and p.enum]
    return tuple(((p.name, value),) for p in wanted for value in p.enum)


def expand_of(objects: tuple[str, ...]) -> tuple[str, ...]:
    """The paths to `expand[]` on objects of these types, which Stripe leaves out otherwise."""
    found: list[str] = []
    for name in objects:
        found += _EXPANDED_TOO.get(name, ())
        found += [
            p for p in _on_request(object_types()[name].fields) if f"{name}.{p}" not in NOT_EXPANDED
        ]
    return tuple(found)


def _on_request(fields: tuple[Field, ...], prefix: str = "") -> list[str]:
    found: list[str] = []
    for field in fields:
        if field.on_request:
            found.append(prefix + field.name)
        elif field.kind == "object":
            found += _on_request(field.fields, f"{prefix}{field.name}.")
    return found


@cache
def retrieve_endpoints() -> Mapping[str, RetrieveEndpoint]:
    """Object name -> how to fetch one. Types that Stripe cannot retrieve are absent."""
    found: dict[str, RetrieveEndpoint] = {}
    for operation in spec().operations:
        if operation.kind != "retrieve" or operation.base != "api" or len(operation.returns) != 1:
            continue
        names = re.findall(r"{(\w+)}", operation.path)
        if not names or not operation.path.endswith("}") or len(names) > 2:
            continue
        if any(not p.nullable for p in operation.params):
            continue
        name, parent = operation.returns[0], names[0] if len(names) == 2 else ""
        if name not in found or (found[name].parent_parameter and not parent):
            found[name] = RetrieveEndpoint(operation.path, name, parent, expand_of((name,)))
    return found


@cache
def singleton_paths() -> Mapping[str, str]:
    """Object name -> path, of the types of which an account has exactly one object."""
    return {
        "account": "/v1/account",
        "balance": "/v1/balance",
        "balance_settings": "/v1/balance_settings",
        "tax.settings": "/v1/tax/settings",
    }


def retrieve_endpoint(table: str) -> RetrieveEndpoint | None:
    """How the objects of a table are fetched; None if they cannot be, as previews."""
    known = tables()[table]
    return None if known.virtual else retrieve_endpoints().get(known.object_type)


def can_be_fetched(table: str) -> bool:
    """Whether single objects of this table can be requested from Stripe (events apart)."""
    return retrieve_endpoint(table) is not None or singleton_path(table) != ""


def has_address(table: str) -> bool:
    """Whether an object of this table can be requested by its id alone."""
    where = retrieve_endpoint(table)
    return where is not None and not where.parent_parameter


def singleton_path(table: str) -> str:
    """The path of an object that an account has one of; "" for others. The account itself has an id."""
    known = tables()[table]
    if known.virtual or retrieve_endpoint(table) is not None:
        return ""
    return singleton_paths().get(known.object_type, "")


def child_list(table: str, parent: str) -> ListEndpoint | None:
    """Return the list of a table's objects under one object of the type `parent`; None if there is none."""
    return next((e for e in list_endpoints() if e.parent == parent and table in e.tables), None)


def list_request(
    endpoint: ListEndpoint,
    path: str,
    params: Sequence[Param],
    *,
    after: str | None,
    expand: Sequence[str],
) -> tuple[str, list[Param]]:
    """(path, parameters) of one page of a list, `after` the page before."""
    if endpoint.version == 2 and after is not None:
        return after, []  # A v2 list names its next page itself; `after` holds that address.
    query: list[Param] = [("limit", str(PAGE))] if endpoint.takes_limit else []
    query += params
    if after is not None:
        query.append(("starting_after", after))
    query += [("expand[]", f"data.{item}") for item in expand]
    return path, query


@cache
def _templates() -> list[tuple[re.Pattern[str], str]]:
    paths = {o.path for o in spec().operations if o.method == "GET"}
    return [(re.compile(re.sub(r"{\w+}", "[^/]+", path) + "$"), path) for path in sorted(paths)]


def endpoint_of(path: str) -> str:
    """The operation behind a path, by the rate limiter's name.

    >>> endpoint_of("/v1/invoices/in_1/lines")
    'GET /v1/invoices/{invoice}/lines'
    """
    for pattern, template in _templates():
        if pattern.match(path):
            return f"GET {template}"
    return f"GET {path}"


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
