"""The reviewed rule of what is a secret, held against every field of the catalog."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pinstripe.catalog.model import Field, object_types
from pinstripe.catalog.secrets import SECRET_PLACES, is_secret
from pinstripe.catalog.tables import tables
from pinstripe.errors import cut_secrets

SOUNDS_SECRET = re.compile(
    r"secret|password|passphrase|(^|_)token|(^|_)cvc|(^|_)pin$|private_key|signature|(^|_)otp"
)
# Reviewed: names that sound like a secret and are none.
HARMLESS = {
    "bank_account_token",  # an object; single use, with an API key only
    "confirmation_secret",  # its `client_secret` is one
    "cvc_check",
    "cvc_failure",
    "cvc_token",  # an id: works with an API key only
    "network_token",  # {"used": true}
    "require_cvc_recollection",
    "password_provided",
    "require_signature",
    "customer_signature",  # a file
    "evidence_customer_signature",
    "private_key_file",  # a file: its contents are not in the answer
    "shared_payment_granted_token",  # an id
    "signature",  # a file, or a date of signing
    "token",  # an id, or the object behind it
    "token_currency",
    "token_reference_id",
    "token_requestor_id",
    "token_requestor_name",
    "token_risk_score",
    "tokenization_method",
}
# The columns of the catalog that were in clear before.
COLUMNS = {
    "billing_portal_session.url",
    "checkout_session.client_secret",
    "ephemeral_key.secret",
    "financial_connections_session.client_secret",
    "identity_verification_report.document_number",
    "identity_verification_report.id_number_id_number",
    "identity_verification_session.client_secret",
    "identity_verification_session.url",
    "identity_verification_session.verified_outputs_id_number",
    "invoice.confirmation_secret_client_secret",
    "issuing_card.cvc",
    "issuing_card.number",
    "apps_secret.payload",
    "payment_intent.client_secret",
    "payment_method.link_persistent_token",
    "setup_intent.client_secret",
    "source.client_secret",
    "source.klarna_client_token",
    "upcoming_customer_invoice.confirmation_secret_client_secret",
    "upcoming_subscription_invoice.confirmation_secret_client_secret",
    "v2_billing_meter_event_session.authentication_token",
    "v2_core_event_destination.webhook_endpoint_signing_secret",
    "webhook_endpoint.secret",
}


def fields() -> Iterator[tuple[str, tuple[str, ...]]]:
    """(object name, path) of every field of the catalog, at any depth."""
    for object_type in object_types().values():
        for field in object_type.fields:
            for path in _paths(field, ()):
                yield object_type.name, path


def _paths(field: Field, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    here = (*above, field.name)
    yield here
    for sub in field.fields:
        yield from _paths(sub, here)
    if field.items is not None:
        for sub in field.items.fields:
            yield from _paths(sub, here)


def test_every_field_that_sounds_like_a_secret_has_been_reviewed() -> None:
    unclear = {
        f"{name}.{'.'.join(path)}"
        for name, path in fields()
        if SOUNDS_SECRET.search(path[-1]) and path[-1] not in HARMLESS and not is_secret(name, path)
    }
    assert unclear == set()


def test_the_columns_that_hold_no_secrets_are_these() -> None:
    found = {f"{t.name}.{c.name}" for t in tables().values() for c in t.columns if c.secret}
    assert found == COLUMNS


def test_secret_places_exist_and_no_secret_is_asked_for() -> None:
    known = set(fields())
    for name, paths in SECRET_PLACES.items():
        assert all((name, path) in known for path in paths), name
    columns = [c for t in tables().values() for c in t.columns]
    assert not [c for c in columns if c.secret and (c.on_request or c.references)]


def test_a_client_secret_of_each_type_is_known_by_its_look() -> None:
    """The net knows client secrets by the prefix of the type: one for each in the catalog."""
    prefixes = {
        t.prefix
        for t in object_types().values()
        if t.prefix and any(f.name == "client_secret" for f in t.fields)
    }
    assert len(prefixes) >= 6
    for prefix in prefixes:
        assert cut_secrets(f"{prefix}_1_secret_x9") == f"{prefix}_1_secret_…"
