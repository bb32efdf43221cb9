"""A Stripe API key, recognised by its prefix and never printed, and the addresses it may be sent to.

Every key enters through `ApiKey.parse`, so an `ApiKey` always has a form that Stripe accepts. `str` and
`repr` print the prefix and, of a long key, the last four characters, as Stripe's dashboard does. Only
`reveal` returns the secret. `checked_base` keeps a live key from crossing the network unencrypted.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pinstripe.errors import Misconfigured

KeyKind = Literal["standard", "restricted"]

Mode = Literal["live", "test"]

# Stripe's keys have 24 to 99 characters after the prefix; test servers use short ones.
_SHAPE = re.compile(r"(sk|rk)_(live|test)_([A-Za-z0-9_]{3,255})")

_KINDS: dict[str, KeyKind] = {"sk": "standard", "rk": "restricted"}
_MODES: dict[str, Mode] = {"live": "live", "test": "test"}

# The last four characters of a shorter key would be a fair part of the secret.
_SHOW_TAIL_FROM = 16

_WANTED = (
    "Use a secret key (sk_live_, sk_test_) or a restricted key (rk_live_, rk_test_) from "
    "https://dashboard.stripe.com/apikeys."
)

# What people paste instead, by prefix; the longer prefix stands first.
_MISTAKEN: tuple[tuple[str, str], ...] = (
    ("sk_org_", "This is an organisation key: it is not supported yet, one account at a time is."),
    ("rk_org_", "This is an organisation key: it is not supported yet, one account at a time is."),
    ("pk_", "This is a publishable key: it cannot read the account."),
    ("whsec_", "This is the signing secret of a webhook endpoint, not an API key."),
    ("ek_", "This is an ephemeral key: it serves one customer on one device, for an hour."),
    ("acct_", "This is an account id, not an API key."),
    ("bearer ", "Leave the word Bearer out: only the key itself is wanted."),
)


@dataclass(frozen=True, slots=True, repr=False)
class ApiKey:
    """One well-formed key. Hashable and comparable; printing it shows no secret."""

    _secret: str
    kind: KeyKind
    mode: Mode

    @classmethod
    def parse(cls, text: str) -> ApiKey:
        """The key in `text`, outer white space ignored. Raises `Misconfigured` with a remedy."""
        secret = text.strip()
        if not secret:
            raise Misconfigured("The Stripe API key is empty.", hint=_WANTED)
        for prefix, what in _MISTAKEN:
            if secret.lower().startswith(prefix):
                raise Misconfigured(what, hint=_WANTED)
        if any(char.isspace() for char in secret):
            raise Misconfigured(
                "The Stripe API key has white space inside.",
                hint="Copy it again in one piece; a line break in the middle is the usual cause.",
            )
        if secret[0] in "\"'" or secret[-1] in "\"'":
            raise Misconfigured(
                "The Stripe API key is wrapped in quotes.",
                hint="Remove the quotes; Docker's --env-file, for one, passes them on.",
            )
        shape = _SHAPE.fullmatch(secret)
        if shape is None:
            raise Misconfigured("This does not look like a Stripe API key.", hint=_WANTED)
        return cls(secret, _KINDS[shape[1]], _MODES[shape[2]])

    def reveal(self) -> str:
        """The secret, for the Authorization header only."""
        return self._secret

    def __str__(self) -> str:
        prefix = f"{'sk' if self.kind == 'standard' else 'rk'}_{self.mode}_"
        tail = self._secret[-4:] if len(self._secret) - len(prefix) >= _SHOW_TAIL_FROM else ""
        return f"{prefix}…{tail}"

    def __repr__(self) -> str:
        return f"ApiKey({self})"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there.

    >>> [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.com", "")]
    [True, True, True, False, False, False]
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def checked_base(url: str, key: ApiKey) -> str:
    """`url` without a slash at its end. Raises `Misconfigured` if `key` must not be sent there.

    A path is allowed: `http://localhost:4242/api.stripe.com`.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise Misconfigured(
            f"{url!r} is not the address of an API.",
            hint="Give scheme and host, like https://api.stripe.com.",
        )
    if parts.username is not None or parts.password is not None:
        raise Misconfigured(
            "The address of the API holds a user name or password.",
            hint="Leave them out: the API key alone signs the requests.",
        )
    if parts.scheme == "http" and key.mode == "live" and not is_loopback(parts.hostname):
        raise Misconfigured(
            f"A live key would cross the network unencrypted to {parts.hostname}.",
            hint="Use an https:// address, or a test key.",
        )
    return url.rstrip("/")


def proxy_for(url: str) -> str | None:
    """The HTTP proxy that the environment names for `url` (`HTTPS_PROXY`, `NO_PROXY`), or None.

    Read once, at the start. This machine itself is never reached through a proxy.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or proxy_bypass(host):
        return None
    return getproxies().get(parts.scheme)
