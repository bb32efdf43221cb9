"""Where Stripe is: the base URL that a key may be sent to, and the proxy on the way there."""

from __future__ import annotations

from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pinstripe.client.key import ApiKey
from pinstripe.errors import Misconfigured

_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})


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
    if parts.scheme == "http" and key.mode == "live" and parts.hostname not in _THIS_MACHINE:
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
    if host in _THIS_MACHINE or proxy_bypass(host):
        return None
    return getproxies().get(parts.scheme)
