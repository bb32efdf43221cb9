"""What Stripe's answers show and the official SDK's types do not say.

`EXTRA`: keys that Stripe always sends. `ALWAYS_THERE`: inner objects that come with nulls inside and
are never null themselves. `ONLY_EXPANDED`: properties that are absent, not null, unless an `expand`
names them. All three were seen in recorded answers of 2025 and 2026. `EACH_KEY`: types that have all their
keys in Stripe's published examples (https://github.com/stripe/openapi).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from pinstripe.catalog.model import Field, ObjectType

EXTRA: Mapping[str, Mapping[str, object]] = {
    "charge": {"destination": None, "dispute": None, "order": None},
    "dispute": {"balance_transaction": None},
    "payment_intent": {"shared_payment_granted_token": None},
    "payment_method": {"shared_payment_granted_token": None},
    "product": {"attributes": []},
    "subscription": {"plan": None, "quantity": None},
}
"""Type -> key -> what it is where nothing else is known."""

ALWAYS_THERE = frozenset(
    {
        "account.business_profile",
        "account.settings",
        "account.tos_acceptance",
        "balance_settings.payments.payouts.automatic_transfer_rules_by_currency",
        "charge.billing_details.address",
        "charge.fraud_details",
        "checkout.session.phone_number_collection",
        "customer.invoice_settings",
        "event.request",
        "payment_intent.amount_details",
        "payment_method.billing_details.address",
        "payment_method.card.checks",
        "payment_method.card.networks",
        "payment_method.card.three_d_secure_usage",
        "promotion_code.restrictions",
        "subscription.cancellation_details",
        "subscription.payment_settings",
        "subscription.trial_settings",
    }
)

EACH_KEY = frozenset({"checkout.session", "payment_intent"})
"""Their many inner objects are null where they are not set. Of others with as many only one is there."""

_ONLY_EXPANDED = frozenset(
    {
        # Null here stops the official Python SDK: it reads each value of the map as an object.
        "promotion_code.restrictions.currency_options",
        "quote.computed.recurring.total_details.breakdown",
        "quote.computed.upfront.total_details.breakdown",
    }
)


def corrected(kind: ObjectType) -> ObjectType:
    """The type with `_ONLY_EXPANDED` marked as on request."""
    return msgspec.structs.replace(kind, fields=_marked(kind.fields, kind.name))


def _marked(fields: tuple[Field, ...], path: str) -> tuple[Field, ...]:
    inside = f"{path}."
    if not any(p.startswith(inside) for p in _ONLY_EXPANDED):
        return fields
    return tuple(
        msgspec.structs.replace(
            f,
            on_request=f.on_request or inside + f.name in _ONLY_EXPANDED,
            fields=_marked(f.fields, inside + f.name),
        )
        for f in fields
    )
