"""Which headers are the message's and which only the connection's (RFC 9110, 7.6.1).

Pure. What is left out on the way to Stripe and back is what speaks of one connection, and ours: our
headers, and the cookies of the console, which a browser sends by itself. What a `Connection` header names
is left out too, but never what Stripe reads: a caller must not lose an idempotency key to a header that
says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case."""

OURS = b"pinstripe-"
"""Headers of ours begin so. None of a caller's goes to Stripe, none comes from there."""
_OUR_COOKIES = b"pinstripe"
"""And our cookies."""

_CONNECTION = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NEVER_LOST = (b"authorization", b"idempotency-", b"stripe-", b"content-", b"accept", b"request-")


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers that are passed on, in their order.

    >>> end_to_end([(b"connection", b"close, x-hop"), (b"x-hop", b"1"), (b"date", b"now")])
    [(b'date', b'now')]
    """
    kept = [(n, v) for n, v in headers if n not in _CONNECTION or n == b"connection"]
    named: set[bytes] = set()
    for name, value in kept:
        if name == b"connection":
            named |= {item.strip().lower() for item in value.split(b",")}
    dropped = {name for name in named if not name.startswith(_NEVER_LOST)} | {b"connection"}
    passed = [(n, v) for n, v in kept if n not in dropped and not n.startswith(OURS)]
    if not any(_OUR_COOKIES in value for _, value in passed):
        return passed
    changed = ((header, _without_our_cookies(header)) for header in passed)
    return [after for before, after in changed if after[1] or not before[1]]


def _without_our_cookies(header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """The header, with an empty value if nothing of it is left.

    >>> _without_our_cookies((b"cookie", b"a=b; pinstripe_session=secret; c=d"))
    (b'cookie', b'a=b; c=d')
    """
    name, value = header
    if name == b"cookie":
        pairs = [pair.strip() for pair in value.split(b";")]
        value = b"; ".join(pair for pair in pairs if not pair.startswith(_OUR_COOKIES))
    elif name == b"set-cookie" and value.startswith(_OUR_COOKIES):
        value = b""
    return name, value
