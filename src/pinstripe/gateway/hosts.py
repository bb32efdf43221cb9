"""Where a request to the proxy goes: one of Stripe's hosts, or nowhere.

    /api.stripe.com/v1/customers   put before Stripe's own address
    /v1/customers, /v2/...         for SDKs whose base URL is set to ours

Pure. The host is looked up in a table, never taken from what the caller sent, and the path behind it is
passed on byte for byte: nothing that is decoded here is sent. What a server on the way might resolve
into another path (`..`, a backslash) is refused instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

API = "api.stripe.com"
FILES = "files.stripe.com"

STRIPE: Mapping[str, str] = {
    host: f"https://{host}"
    for host in (API, FILES, "connect.stripe.com", "meter-events.stripe.com", "uploads.stripe.com")
}
"""All that can be reached, and where it is."""

MIRRORED = frozenset({API, FILES, "uploads.stripe.com"})
"""Hosts whose answers hold objects that have tables."""

_PLAIN = (b"/v1/", b"/v2/")
# Printable ASCII, as RFC 3986 wants it sent; a fragment is never sent.
_PATH = re.compile(rb"/[\x21\x22\x24-\x3e\x40-\x5b\x5d-\x7e]*")
_QUERY = re.compile(rb"[\x21\x22\x24-\x7e]*")
# A percent sign that begins no escape is read differently by different servers.
_STRAY_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_LONGEST = 16 * 1024
"""Bytes of path and query. Stripe's own limit is about as much."""


@dataclass(frozen=True, slots=True)
class Target:
    """`path` and `query` as the caller wrote them; `url` is all of it."""

    host: str
    path: str
    query: str
    url: str


@dataclass(frozen=True, slots=True)
class Astray:
    """Why a path leads nowhere: an HTTP status, and the reason in words."""

    status: int
    reason: str


def hosts_at(base_url: str) -> dict[str, str]:
    """The table with `base_url` as the API (a simulator has all hosts at one address).

    >>> hosts_at("https://api.stripe.com")["files.stripe.com"]
    'https://files.stripe.com'
    >>> hosts_at("http://127.0.0.1:4242/")["files.stripe.com"]
    'http://127.0.0.1:4242'
    """
    base = base_url.rstrip("/")
    return dict(STRIPE) if base == STRIPE[API] else dict.fromkeys(STRIPE, base)


def is_for_proxy(path: str) -> bool:
    """Whether a path (raw, or as ASGI decodes it) is the proxy's.

    >>> is_for_proxy("/v1/customers"), is_for_proxy("/api.stripe.com/x"), is_for_proxy("/api/syncs")
    (True, True, False)
    """
    first = path[1:].partition("/")[0]
    return first in ("v1", "v2") or first.endswith(".stripe.com")


def target_of(raw_path: bytes, query: bytes, hosts: Mapping[str, str]) -> Target | Astray:
    """Where a request goes, by its path as it came.

    >>> target_of(b"/v1/plans/a%2Fb", b"expand[]=product", STRIPE).url
    'https://api.stripe.com/v1/plans/a%2Fb?expand[]=product'
    >>> target_of(b"/api.stripe.com/../evil", b"", STRIPE)
    Astray(status=400, reason='The path has a segment . or .. in it.')
    """
    if raw_path.startswith(_PLAIN):
        host, path = API, raw_path
    else:
        first, slash, rest = raw_path[1:].partition(b"/")
        host, path = first.decode("latin-1"), slash + rest
    base = hosts.get(host)
    if base is None or raw_path[:1] != b"/":
        return Astray(404, f"Only Stripe's hosts can be reached here: {', '.join(hosts)}.")
    wrong = _wrong(path, query)
    if wrong is not None:
        return wrong
    told = path.decode("ascii")
    asked = query.decode("ascii")
    return Target(host, told, asked, f"{base}{told}?{asked}" if asked else base + told)


def _wrong(path: bytes, query: bytes) -> Astray | None:
    if len(path) + len(query) > _LONGEST:
        return Astray(414, f"Path and query are longer than {_LONGEST} bytes.")
    if not _PATH.fullmatch(path) or not _QUERY.fullmatch(query):
        return Astray(400, "The path or query has characters that must be percent-encoded.")
    if _STRAY_PERCENT.search(path):
        return Astray(400, "The path has a % that begins no escape.")
    if b"." in path or b"%2" in path:
        # Decoded twice: a server in between may do so once before Stripe does.
        once = unquote_to_bytes(path)
        for seen in (path, once, unquote_to_bytes(once)):
            if {b".", b".."} & set(seen.replace(b"\\", b"/").split(b"/")):
                return Astray(400, "The path has a segment . or .. in it.")
    return None
