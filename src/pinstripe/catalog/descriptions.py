"""What a table and a column hold, for people: derived from the catalog, or in our own words.

Stripe's sentences are not copied; they are on the page that `docs_url` returns. The words for each table
are at the end of this file, and a test fails if one is missing.
"""

from __future__ import annotations

from functools import cache

from pinstripe.catalog.model import field_at, spec
from pinstripe.catalog.moved import Moved
from pinstripe.catalog.tables import Column, Table, object_type_of

DOCS = "https://docs.stripe.com/api"

# Pages of Stripe's that are not named like the path of the endpoint.
_PAGES = {
    "billing_portal.configuration": "customer_portal/configurations",
    "billing_portal.session": "customer_portal/sessions",
    "capability": "capabilities",
    "cash_balance": "cash_balance",
    "credit_note_line_item": "",
    "customer_balance_transaction": "customer_balance_transactions",
    "fee_refund": "fee_refunds",
    "line_item": "invoice-line-item",
    "person": "persons",
    "tax.association": "",
    "tax_id": "tax_ids",
    "transfer_reversal": "transfer_reversals",
}

_MONEY = {"amount", "balance", "fee", "net", "subtotal", "total", "tax", "unit_amount"}
_MONEY_ENDS = ("_amount", "_balance", "_excluding_tax")

_MOST_VALUES = 12


def describe_table(table: Table) -> str:
    """One sentence; for a type that is new in the catalog, its name at least.

    >>> from pinstripe.catalog.tables import tables
    >>> describe_table(tables()["charge"])
    'One attempt to move money from a payment method to the account.'
    """
    return WORDS.get(table.name, f"Objects of type {table.object_type}.")


def describe_column(table: Table, column: Column) -> str:
    """One line: what it refers to, its unit, its values, or where it stands in Stripe's object.

    >>> from pinstripe.catalog.tables import tables
    >>> charge = tables()["charge"]
    >>> describe_column(charge, charge.column("customer_id"))
    'Refers to customer.'
    >>> describe_column(charge, charge.column("amount"))
    'In the smallest unit of `currency`.'
    >>> describe_column(charge, charge.column("status"))
    'One of: failed, pending, succeeded.'
    """
    parts = [_reference(column), *column_facts(table, column)]
    if len(column.path) > 1 and column.read != "json":
        parts.append(f"`{'.'.join(column.path)}` of the object.")
    return " ".join(p for p in parts if p)


def column_facts(table: Table, column: Column) -> tuple[str, ...]:
    """The facts about a column beside its place in the object and its references."""
    facts = [_role(column), _unit(table, column), _values(table, column)]
    if column.read == "json":
        facts.append(f"JSON of `{'.'.join(column.path)}`, as Stripe sends it.")
    if column.secret:
        facts.append("A secret: always null.")
    if column.moved is not None:
        facts += (f"{part}." for part in derivation(column.moved))
    if column.on_request:
        facts.append("Stripe gives it on request only.")
    return tuple(f for f in facts if f)


def derivation(moved: Moved) -> list[str]:
    """Where the value of a column stands today and stood before, without full stops.

    >>> from pinstripe.catalog.tables import tables
    >>> moved = tables()["subscription"].column("discount_id").moved
    >>> derivation(moved) if moved else []
    ['From discounts[0]', 'Of several values it is the first', 'Earlier: discount']
    """
    places = " or ".join(_written(place) for place in moved.places)
    parts = []
    if moved.sum:
        parts.append(f"The sum of {places}")
    elif places and moved.equals:
        parts.append(f"Whether {places} is {moved.equals}")
    elif places:
        parts.append(f"From {places}")
    if moved.takes_first:
        parts.append("Of several values it is the first")
    if moved.words:
        parts.append(", ".join(f"{today} is {before}" for today, before in moved.words))
    for rows in moved.rows:
        then = f", then {rows.then.table}.{rows.then.take}" if rows.then else ""
        by = ", ".join(n.lstrip("-") + " descending" * (n[0] == "-") for n in rows.order)
        parts.append(f"From {rows.table}.{rows.take}{then}, the first by {by}")
    if moved.was:
        parts.append(f"Earlier: {', '.join(_written(place) for place in moved.was)}")
    return parts


def _written(place: str) -> str:
    return "".join(f"[{s}]" if s.isdigit() else f".{s}" for s in place.split(".")).lstrip(".")


def is_money(column: Column) -> bool:
    """Whether the column is an amount in the smallest unit of a currency."""
    places = column.moved.places if column.moved is not None else ()
    if column.type != "bigint" or not (column.path or places):
        return False
    last = column.path[-1] if column.path else places[0].rpartition(".")[2]
    return last in _MONEY or last.startswith("amount_") or last.endswith(_MONEY_ENDS)


def enum_values(table: Table, column: Column) -> tuple[str, ...]:
    """The values that Stripe documents for the column; empty where any text may stand."""
    field = field_at(object_type_of(table).fields, column.path)
    if field is None:
        return ()
    return field.enum or (field.items.enum if field.items else ())


def docs_url(table: Table) -> str:
    """The page of Stripe's reference on the type; the start page if none is known.

    >>> from pinstripe.catalog.tables import tables
    >>> docs_url(tables()["issuing_card"])
    'https://docs.stripe.com/api/issuing/cards'
    """
    page = _PAGES.get(table.object_type, _pages().get(table.object_type, ""))
    return f"{DOCS}/{page}" if page else DOCS


@cache
def _pages() -> dict[str, str]:
    """Object name -> path of the list or, failing that, of any endpoint without a parent."""
    found: dict[str, str] = {}
    for operation in sorted(spec().operations, key=lambda o: (o.kind != "list", len(o.path))):
        base = operation.path.split("/{", 1)[0]
        own = operation.path == base or (
            operation.kind == "retrieve" and operation.path.endswith("}")
        )
        if len(operation.returns) == 1 and own and operation.kind in ("list", "retrieve"):
            found.setdefault(operation.returns[0], base.removeprefix("/v1/").lstrip("/"))
    return found


def _reference(column: Column) -> str:
    if not column.references:
        return ""
    *some, last = column.references
    targets = f"{', '.join(some)} or {last}" if some else last
    found = "The object in whose list this one was found. " if column.read == "parent" else ""
    return f"{found}Refers to {targets}."


def _role(column: Column) -> str:
    if column.name == "id":
        return "Unique identifier."
    return {
        "deleted": "True when Stripe has deleted the object; the row stays.",
        "object": "The type of the object that the id beside it names.",
    }.get(column.read, "")


def _unit(table: Table, column: Column) -> str:
    if is_money(column):
        own = any(c.name == "currency" for c in table.columns)
        return f"In the smallest unit of {'`currency`' if own else 'its currency'}."
    return {
        "time": "Time, to the second.",
        "time_ms": "Time, to the millisecond.",
        "time_iso": "Time.",
    }.get(column.read, "")


def _values(table: Table, column: Column) -> str:
    values = enum_values(table, column) if column.read in ("text", "texts") else ()
    if not values:
        return ""
    rest = len(values) - _MOST_VALUES
    return f"One of: {', '.join(values[:_MOST_VALUES])}{f' and {rest} more' if rest > 0 else ''}."


WORDS: dict[str, str] = {
    "account": "An account at Stripe: our own, or one connected to the platform.",
    "apple_pay_domain": "A web domain registered for Apple Pay.",
    "application": "A platform or app that acts on an account.",
    "application_fee": "What a platform keeps of a connected account's charge.",
    "apps_install": "A Stripe app installed on the account.",
    "apps_secret": "A secret kept for a Stripe app; its payload is never copied.",
    "balance": "The money on the account now, by currency: available and pending.",
    "balance_settings": "When and how the balance is paid out.",
    "balance_transaction": "One movement of the balance, with its fee and net amount.",
    "bank_account": "A bank account, to pay with or to be paid to.",
    "billing_alert": "A threshold of usage and what happens there.",
    "billing_credit_balance_transaction": "A credit or debit of a customer's billing credits.",
    "billing_credit_grant": "Billing credits given to a customer.",
    "billing_feedback_option": "An answer that customers can give when they cancel.",
    "billing_meter": "What usage is counted, and how it is added up.",
    "billing_meter_event_summary": "A customer's usage on a meter within a window of time.",
    "billing_portal_configuration": "What customers may do in the customer portal.",
    "billing_portal_session": "One visit to the customer portal.",
    "capability": "Whether an account may do one thing, such as take card payments.",
    "card": "A card of a customer or for payouts, stored the older way.",
    "cash_balance": "Money that a customer has sent ahead by bank transfer.",
    "charge": "One attempt to move money from a payment method to the account.",
    "checkout_session": "One visit to a hosted payment page.",
    "climate_order": "Carbon removal that was ordered.",
    "climate_product": "A kind of carbon removal that can be ordered.",
    "climate_supplier": "Who removes the carbon.",
    "confirmation_token": "Payment details collected in a browser, before the payment is confirmed.",
    "connect_collection_transfer": "Money taken from a connected account to cover its negative balance.",
    "country_spec": "What Stripe needs and offers in one country.",
    "coupon": "A discount that can be given: a share or an amount, once or for a time.",
    "credit_note": "A correction that lowers what an invoice asks for.",
    "credit_note_line_item": "One line of a credit note.",
    "customer": "A person or company that buys from the account.",
    "customer_balance_transaction": "A change of what a customer has in credit or owes on coming invoices.",
    "customer_cash_balance_transaction": "A movement of a customer's cash balance.",
    "discount": "A coupon as applied to a customer, subscription or invoice.",
    "dispute": "A charge that the cardholder has contested, with the evidence.",
    "entitlements_active_entitlement": "A feature that a customer has a right to now.",
    "entitlements_feature": "A feature that products can include.",
    "ephemeral_key": "A short-lived key for a customer's device.",
    "event": "Something that happened at Stripe, with the object as it was then.",
    "exchange_rate": "What one currency is worth in others.",
    "fee_refund": "An application fee given back, whole or in part.",
    "file": "A file at Stripe: evidence, a logo, a report.",
    "file_link": "A public address of a file.",
    "financial_connections_account": "A bank account that a customer has linked.",
    "financial_connections_account_owner": "An owner of a linked bank account.",
    "financial_connections_account_ownership": "The owners of a linked bank account at one time.",
    "financial_connections_authorization": "A customer's consent to read accounts at one institution.",
    "financial_connections_session": "One visit in which a customer links accounts.",
    "financial_connections_transaction": "A transaction of a linked bank account.",
    "forwarding_request": "Card details passed on to another party's API.",
    "identity_verification_report": "What a check of identity found.",
    "identity_verification_session": "One check of somebody's identity, with its attempts.",
    "invoice": "What a customer is asked to pay, with totals and state.",
    "invoice_item": "An amount that waits for the customer's next invoice.",
    "invoice_payment": "A payment as it counts towards an invoice.",
    "invoice_rendering_template": "How invoices look as PDF and page.",
    "issuing_authorization": "A request to pay with an issued card, approved or declined.",
    "issuing_card": "A card that the account has issued; its number is never copied.",
    "issuing_cardholder": "A person or company that holds issued cards.",
    "issuing_dispute": "A purchase with an issued card that is contested.",
    "issuing_personalization_design": "How issued cards look.",
    "issuing_physical_bundle": "The kind of card and envelope that designs are printed on.",
    "issuing_token": "An issued card in somebody's digital wallet.",
    "issuing_transaction": "A purchase or refund on an issued card that has moved money.",
    "item": "One line of a checkout session or payment link.",
    "line_item": "One line of an invoice.",
    "mandate": "A customer's permission to debit a payment method.",
    "payment_attempt_record": "One attempt of a payment that was processed anywhere.",
    "payment_intent": "The intent to collect one payment, from first try to success.",
    "payment_intent_amount_details_line_item": "One line of what a payment is for.",
    "payment_link": "An address that leads to a hosted payment page, again and again.",
    "payment_method": "What a customer pays with: a card, a bank debit, a wallet.",
    "payment_method_configuration": "Which payment methods are offered.",
    "payment_method_domain": "A web domain on which wallets may be shown.",
    "payment_record": "A payment that was processed anywhere, with its outcome.",
    "payout": "Money sent from the balance to a bank account or card.",
    "payout_balance_transaction": "Which balance transactions each automatic payout has paid out.",
    "person": "A person behind an account: owner, director, representative.",
    "plan": "A recurring price in its older form.",
    "price": "How much a product costs, once or for each period.",
    "product": "What is sold.",
    "product_catalog_trial_offer": "A trial that a price can be offered with.",
    "product_feature": "A feature as part of a product.",
    "promotion_code": "A code that customers type in to get a coupon.",
    "quote": "An offer to a customer that can become a subscription or invoice.",
    "radar_early_fraud_warning": "A card network's word that a charge may be fraud.",
    "radar_payment_evaluation": "How risky a payment is judged to be.",
    "radar_value_list": "A list that fraud rules look into.",
    "radar_value_list_item": "One entry of such a list.",
    "refund": "Money given back on a charge.",
    "reporting_report_run": "One run of a report, with its file.",
    "reporting_report_type": "A kind of report and the time for which it has data.",
    "reserve_hold": "Money held back from the balance.",
    "reserve_plan": "The plan by which money is held back.",
    "reserve_release": "Money held back that was set free.",
    "reserve_transaction": "A movement of the reserve.",
    "review": "A payment that somebody should look at.",
    "scheduled_query_run": "One run of a scheduled Sigma query.",
    "setup_attempt": "One attempt to set up a payment method.",
    "setup_intent": "The intent to set up a payment method for later.",
    "shipping_rate": "What shipping costs and how long it takes.",
    "source": "A payment method in its older form.",
    "source_mandate_notification": "A notice to a payer that a debit is coming.",
    "source_transaction": "Money that came in on a source.",
    "subscription": "What a customer pays for again and again.",
    "subscription_item": "One price of a subscription, with its quantity.",
    "subscription_schedule": "How a subscription will change over time.",
    "tax_association": "Which tax transaction belongs to a payment.",
    "tax_calculation": "The tax on one sale, as calculated.",
    "tax_calculation_line_item": "One line of such a calculation.",
    "tax_code": "A kind of goods, as tax law sorts them.",
    "tax_deducted_at_source": "Tax withheld from a connected account.",
    "tax_id": "A customer's or an account's tax number.",
    "tax_location": "A place that tax depends on.",
    "tax_rate": "A rate of tax that is set by hand.",
    "tax_registration": "Where the account is registered for tax.",
    "tax_settings": "The account's settings for tax.",
    "tax_transaction": "Tax as recorded for a sale or its reversal.",
    "tax_transaction_line_item": "One line of such a record.",
    "terminal_configuration": "How card readers behave.",
    "terminal_location": "A place where card readers stand.",
    "terminal_reader": "A card reader.",
    "test_helpers_test_clock": "A clock of test mode that can be set forward.",
    "three_d_secure_authentication": "A cardholder's authentication with 3-D Secure.",
    "token": "Card, bank or personal details in exchange for a one-time token.",
    "topup": "Money that the account has added to its own balance.",
    "transfer": "Money moved from the platform to a connected account.",
    "transfer_reversal": "A transfer taken back, whole or in part.",
    "treasury_credit_reversal": "A received credit that was sent back.",
    "treasury_debit_reversal": "A received debit that was taken back.",
    "treasury_financial_account": "An account that holds money.",
    "treasury_inbound_transfer": "Money pulled in from a bank account of one's own.",
    "treasury_outbound_payment": "Money sent to somebody else.",
    "treasury_outbound_transfer": "Money sent to a bank account of one's own.",
    "treasury_received_credit": "Money that somebody has sent to a financial account.",
    "treasury_received_debit": "Money that somebody has pulled from a financial account.",
    "treasury_transaction": "Something that moves the money of a financial account.",
    "treasury_transaction_entry": "One step of such a transaction.",
    "upcoming_customer_invoice": "What Stripe would invoice next for a customer; no object yet.",
    "upcoming_invoice_line_item": "One line of an upcoming invoice.",
    "upcoming_subscription_invoice": "What Stripe would invoice next for a subscription; no object yet.",
    "v2_billing_meter_event_adjustment": "A correction of usage that was reported.",
    "v2_billing_meter_event_session": "A session in which usage is reported in bulk.",
    "v2_commerce_product_catalog_import": "A catalog of products that was uploaded.",
    "v2_core_account": "An account in version 2 of the API: customer, merchant and recipient in one.",
    "v2_core_account_person": "A person behind such an account.",
    "v2_core_account_person_token": "Details of a person in exchange for a token.",
    "v2_core_account_token": "Details of an account in exchange for a token.",
    "v2_core_event": "Something that happened, in version 2 of the API.",
    "v2_core_event_destination": "Where events are sent.",
    "v2_core_vault_gb_bank_account": "A British bank account to pay out to.",
    "v2_core_vault_us_bank_account": "An American bank account to pay out to.",
    "v2_money_management_adjustment": "A correction of a financial account's balance.",
    "v2_money_management_financial_account": "An account that holds money, in version 2 of the API.",
    "v2_money_management_financial_address": "An account number that leads to a financial account.",
    "v2_money_management_inbound_transfer": "Money pulled in to a financial account.",
    "v2_money_management_outbound_payment": "Money sent to somebody else.",
    "v2_money_management_outbound_setup_intent": "The intent to set up a way to pay somebody.",
    "v2_money_management_payout_intent": "The intent to pay something out.",
    "v2_money_management_payout_method": "Where a recipient is paid: bank account or card.",
    "v2_money_management_received_credit": "Money that somebody has sent to a financial account.",
    "v2_money_management_recipient_verification": "Whether a recipient's name and account belong together.",
    "v2_money_management_transaction": "Something that moves the money of a financial account.",
    "v2_money_management_transaction_entry": "One step of such a transaction.",
    "webhook_endpoint": "An address to which Stripe sends events.",
}
