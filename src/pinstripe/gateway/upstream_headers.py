"""Which headers are the message's and which only the connection's (RFC 9110, 7.6.1).

Pure. What is left out on the way to Stripe and back is what speaks of one connection, and ours; what a
`Connection` header names is left out too, but never what Stripe reads: a caller must not lose an
idempotency key to a header that says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case."""

OURS = b"pinstripe-"
"""Headers of ours begin so. None of a caller's goes to Stripe, none comes from there."""

_CONNECTION = frozenset(
    {
        b"connection",
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
    return [(n, v) for n, v in kept if n not in dropped and not n.startswith(OURS)]
