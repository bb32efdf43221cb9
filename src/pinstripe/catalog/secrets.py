"""Which fields of Stripe's objects are secrets: a copy for reporting must never hold them.

A secret lets its holder act: confirm a payment, sign a webhook, open a customer's portal, pay with a card.
Readers of the mirror (analysts, dashboards, backups) must not be able to. The columns stay, because tools
expect the shape of the tables, and are always null. Both rules are reviewed by hand, and a test fails if a
field that sounds like a secret is in neither and is not named as harmless:

- `SECRET_NAMES`: secrets in any place, unknown fields included.
- `SECRET_PLACES`: secrets in one type of object only, by the path in it.

Left out on purpose: pages that are made to be passed on (`hosted_invoice_url`, `receipt_url`, the `url` of
a Checkout Session, of a payment link, of a file link), which show or take a payment and change nothing
else; `last4`, fingerprints and the results of checks; ids of tokens, which work with an API key only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SECRET_NAMES = frozenset(
    {
        "access_token",
        "authentication_token",
        # "It should not be stored, logged, or exposed to anyone other than the customer":
        # https://docs.stripe.com/api/payment_intents/object
        "client_secret",
        "client_token",
        "cvc",
        "password",
        "persistent_token",
        "private_key_file_password",
        "refresh_token",
        "secret",
        "signing_secret",
    }
)

SECRET_PLACES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    # What an app has put into the Secret Store: https://docs.stripe.com/api/apps/secret_store
    "apps.secret": (("payload",),),
    # On request, for keys that may see card numbers: https://docs.stripe.com/api/issuing/cards/object
    "issuing.card": (("number",),),
    # On request, for keys with a right of its own: https://docs.stripe.com/identity/access-verification-results
    "identity.verification_report": (("document", "number"), ("id_number", "id_number")),
    # Its `url` is good for one use and "not to be stored":
    # https://docs.stripe.com/api/identity/verification_sessions/object
    "identity.verification_session": (("url",), ("verified_outputs", "id_number")),
    # Opening one of these signs in: as the customer, as the owner of the connected account.
    "billing_portal.session": (("url",),),
    "account_link": (("url",),),
    "login_link": (("url",),),
    "v2.core.account_link": (("url",),),
}


def is_secret(object_name: str, path: Sequence[str]) -> bool:
    """Whether the field at `path` of such an object is a secret.

    >>> is_secret("payment_intent", ["client_secret"]), is_secret("charge", ["number"])
    (True, False)
    """
    if not path:
        return False
    return path[-1] in SECRET_NAMES or tuple(path) in SECRET_PLACES.get(object_name, ())
