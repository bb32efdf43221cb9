"""The way to Stripe: through which proxy, under which TLS.

The client checks certificates and says when one is not trusted; here is only told what was agreed on.
Nothing is sent but the handshake.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import cast
from urllib.parse import urlsplit

from pinstripe.client.address import proxy_for
from pinstripe.doctor.findings import Network
from pinstripe.errors import redact

_HANDSHAKE_S = 5.0


async def look_at(base_url: str) -> Network:
    """Of a way through a proxy only the proxy is told: the handshake is behind it."""
    parts = urlsplit(base_url)
    proxy = redact(proxy_for(base_url) or "")
    if parts.scheme != "https" or proxy or parts.hostname is None:
        return Network(base_url, proxy)
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_HANDSHAKE_S):
            _, writer = await asyncio.open_connection(
                parts.hostname, parts.port or 443, ssl=ssl.create_default_context()
            )
        try:
            tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
            return Network(base_url, "", tls.version() or "", _issuer(tls))
        finally:
            writer.transport.abort()
    return Network(base_url)


def _issuer(tls: ssl.SSLObject) -> str:
    """The organisation that signed the certificate: a company's inspection shows here."""
    certificate = tls.getpeercert() or {}
    # Tuples of tuples of pairs: (((name, value),), ((name, value),), ...).
    parts = cast("tuple[tuple[tuple[str, str], ...], ...]", certificate.get("issuer", ()))
    found = dict(pair for part in parts for pair in part)
    return found.get("organizationName", found.get("commonName", ""))
