"""Columns that SQL written for Sequin's Stripe database uses: they must be there, of that type.

By hand, not generated: this list is what a change of the rules is held against.
"""

from __future__ import annotations

import pytest

from pinstripe.catalog.tables import tables

WELL_KNOWN = """
account.customer_id                             absent
charge.id                                       text
charge.amount                                   bigint
charge.amount_refunded                          bigint
charge.application_fee_amount                   bigint
charge.balance_transaction_id                   text -> balance_transaction
charge.billing_details_address                  jsonb
charge.billing_details_email                    text
charge.captured                                 boolean
charge.created                                  timestamptz
charge.customer_id                              text -> customer
charge.destination_id                           text -> account
charge.dispute_id                               text -> dispute
charge.order_id                                 text
charge.fraud_details                            absent
charge.metadata                                 jsonb
charge.outcome_risk_level                       text
charge.payment_intent_id                        text -> payment_intent
charge.payment_method_details_card              jsonb
charge.payment_method_id                        text -> payment_method
charge.refunds                                  absent
charge.shipping_address                         jsonb
charge.shipping_name                            text
charge.transfer_data_destination_id             text -> account
checkout_session.amount_total                   bigint
checkout_session.customer_details_email         text
checkout_session.line_items                     absent
checkout_session.payment_intent_id              text -> payment_intent
checkout_session.subscription_id                text -> subscription
checkout_session.total_details_breakdown        jsonb
coupon.percent_off                              numeric
customer.address_city                           text
customer.balance                                bigint
customer.default_source_id                      text
customer.default_source_object                  text
customer.deleted                                boolean
customer.discount_id                            text -> discount
customer.email                                  text
customer.invoice_settings_custom_fields         jsonb
customer.invoice_settings_default_payment_method_id text -> payment_method
customer.preferred_locales                      text[]
customer.shipping_address                       jsonb
dispute.balance_transaction_id                  text -> balance_transaction
dispute.charge_id                               text -> charge
dispute.evidence_details_due_by                 timestamptz
event.data_object                               jsonb
event.request_id                                text
invoice.amount_due                              bigint
invoice.customer_address_city                   text
invoice.customer_id                             text -> customer
invoice.default_tax_rates                       jsonb
invoice.discounts                               text[]
invoice.due_date                                timestamptz
invoice.lines                                   absent
invoice.period_end                              timestamptz
invoice.status                                  text
invoice.status_transitions_finalized_at         timestamptz
invoice_item.date                               timestamptz
invoice_item.period_end                         timestamptz
issuing_card.cardholder_id                      text -> issuing_cardholder
issuing_transaction.card_id                     text -> issuing_card
line_item.invoice_id                            text -> invoice
line_item.period_start                          timestamptz
payment_intent.customer_id                      text -> customer
payment_intent.last_payment_error_code          text
payment_intent.latest_charge_id                 text -> charge
payment_intent.payment_method_id                text -> payment_method
payment_intent.shared_payment_granted_token     text
payment_intent.payment_method_types             text[]
payment_method.billing_details_email            text
payment_method.card_brand                       text
payment_method.card_last4                       text
payment_method.shared_payment_granted_token     text
payment_method.customer_id                      text -> customer
payout.destination_id                           text
payout.arrival_date                             timestamptz
price.product_id                                text -> product
price.recurring_interval                        text
price.recurring_interval_count                  bigint
price.tiers                                     jsonb
price.unit_amount                               bigint
price.unit_amount_decimal                       numeric
product.attributes                              text[]
product.default_price_id                        text -> price
product.images                                  text[]
refund.charge_id                                text -> charge
refund.payment_intent_id                        text -> payment_intent
setup_intent.latest_attempt_id                  text -> setup_attempt
subscription.automatic_tax_enabled              boolean
subscription.cancel_at_period_end               boolean
subscription.customer_id                        text -> customer
subscription.default_payment_method_id          text -> payment_method
subscription.deleted                            absent
subscription.items                              absent
subscription.latest_invoice_id                  text -> invoice
subscription.pause_collection_resumes_at        timestamptz
subscription.plan_id                            text -> plan
subscription.quantity                           bigint
subscription.trial_end                          timestamptz
subscription_item.current_period_end            timestamptz
subscription_item.price_id                      text -> price
subscription_item.subscription_id               text -> subscription
tax_rate.percentage                             numeric
transfer.destination_id                         text -> account
upcoming_customer_invoice.amount_due            bigint
upcoming_customer_invoice.customer_id           text -> customer
upcoming_subscription_invoice.subscription_id   text -> subscription
"""


@pytest.mark.parametrize("line", WELL_KNOWN.strip().splitlines())
def test_a_well_known_column_is_there(line: str) -> None:
    name, type_, *reference = line.replace("->", " ").split()
    table, _, column = name.partition(".")
    columns = {c.name: c for c in tables()[table].columns}
    if type_ == "absent":
        assert column not in columns
    else:
        assert columns[column].type == type_
        assert not reference or columns[column].references == tuple(reference)


def test_the_list_is_long_enough_to_mean_something() -> None:
    assert len(WELL_KNOWN.split("\n")) > 60
