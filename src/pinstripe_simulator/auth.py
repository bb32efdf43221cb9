"""Who asks: keys, their mode and permissions, and what the account has enabled.

Messages are Stripe's own, keys masked as Stripe masks them. A restricted key is either given a
list of what it may do or a list of what it may not (`charge_read`, `customer_write`).
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field

from pinstripe.catalog.model import Operation
from pinstripe_simulator.replies import StripeError

DEFAULT_KEY = "sk_test_simulator000000000000000"
"""The unrestricted key that every simulated account accepts; a secret of nobody."""
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="Stripe"'}

# Permissions that are not named after the type of the path: recorded 403s name `plan_read` for
# prices. Titles are the dashboard's.
_SLUGS = {"price": "plan", "refund": "charge"}
_TITLES = {"charge": "Charges and Refunds", "plan": "Prices", "line_item": "Invoices"}


@dataclass
class Key:
    """`allowed`: only these permissions; `denied`: all but these. None and empty: everything."""

    secret: str
    allowed: frozenset[str] | None = None
    denied: frozenset[str] = frozenset()

    def may(self, permission: str) -> bool:
        if self.allowed is not None and permission not in self.allowed:
            return False
        return permission not in self.denied


@dataclass
class Doors:
    """The keys of an account and the products that it has not enabled."""

    account_id: str
    livemode: bool = False
    keys: dict[str, Key] = field(default_factory=dict)
    not_enabled: set[str] = field(default_factory=set)
    """First words of paths, such as "issuing" and "treasury"."""

    def key_of(self, authorization: str) -> Key:
        """The key in an Authorization header, or Stripe's 401."""
        secret = _secret(authorization)
        if not secret:
            raise StripeError(
                401,
                "You did not provide an API key. You need to provide your API key in the "
                "Authorization header, using Bearer auth (e.g. 'Authorization: Bearer "
                "YOUR_SECRET_KEY'). See https://stripe.com/docs/api#authentication for details, "
                "or we can help at https://support.stripe.com/.",
                headers=_CHALLENGE,
                anonymous=True,
            )
        key = self.keys.get(secret)
        if key is None:
            raise StripeError(
                401,
                f"Invalid API Key provided: {masked(secret)}",
                headers=_CHALLENGE,
                anonymous=True,
            )
        return key

    def let_in(self, key: Key, operation: Operation, type_name: str, *, old_words: bool) -> None:
        """Raises Stripe's 400 for a product that is not enabled, 403 for a missing permission.

        A retrieve of such a product is the plain 404 of an id that is not there: raised later.
        """
        product = self.disabled_product(operation, type_name)
        if product and operation.kind != "retrieve":
            raise StripeError(
                400,
                f"Your account is not set up to use {product.replace('_', ' ').capitalize()}. "
                "Please visit https://dashboard.stripe.com/overview to get started.",
            )
        slug, own = permission_of(operation, type_name), own_permission_of(operation, type_name)
        if not key.may(slug) or not key.may(own):
            raise StripeError(
                403,
                self._old_refusal(key, own) if old_words else self._refusal(key, slug),
                code="more_permissions_required",
            )

    def disabled_product(self, operation: Operation, type_name: str) -> str:
        """The product (first word of the path) that is not enabled, or ""."""
        words = operation.path.split("/")
        product = words[3] if words[2] == "test_helpers" else words[2]
        off = product in self.not_enabled or type_name in self.not_enabled
        return product if off else ""

    def _old_refusal(self, key: Key, permission: str) -> str:
        """As Stripe said it until January 2025."""
        return (
            f"The provided key '{masked(key.secret)}' does not have the required permissions "
            f"for this endpoint on account '{self.account_id}'. Having the "
            f"'rak_{permission}' permission would allow this request to continue."
        )

    def _refusal(self, key: Key, permission: str) -> str:
        """As Stripe says it since: the dashboard's title, the slug, a link that edits the key."""
        return (
            f"Permission denied. The provided key '{masked(key.secret)}' does not have the "
            f"required permissions for this endpoint on account '{self.account_id}'. Enabling "
            f"\"{title_of(permission)}\" ('{permission}') permissions on this key would allow this "
            "request to continue. You can edit permissions at https://dashboard.stripe.com/b/"
            f"{self.account_id}?destination=%2Fapikeys%2Fmk_1PSimulator%2Fedit"
        )


def title_of(permission: str) -> str:
    """What the dashboard calls a permission.

    >>> title_of("plan_read")
    'Prices Read'
    """
    name, _, verb = permission.rpartition("_")
    title = _TITLES.get(name) or name.replace("_", " ").title() + "s"
    return f"{title} {verb.title()}"


def own_permission_of(operation: Operation, type_name: str) -> str:
    """The permission by the type's own name, such as `price_read`; keys may be given either."""
    verb = "read" if operation.method == "GET" else "write"
    return f"{type_name.replace('.', '_')}_{verb}"


def permission_of(operation: Operation, type_name: str) -> str:
    """As Stripe names it, such as `charge_read`; `plan_read` for prices."""
    name, _, verb = own_permission_of(operation, type_name).rpartition("_")
    return f"{_SLUGS.get(name, name)}_{verb}"


def masked(secret: str) -> str:
    """As Stripe shows a key in messages: the kind, stars, the last four.

    >>> masked("sk_test_abcdefgh1234")
    'sk_test_********1234'
    """
    head = "_".join(secret.split("_")[:2]) + "_" if secret.count("_") >= 2 else ""
    rest = secret[len(head) :]
    return head + "*" * max(0, len(rest) - 4) + rest[-4:]


def _secret(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""
