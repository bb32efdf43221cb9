"""`POST /webhooks/stripe/{id}`: Stripe says that something happened, and the reader is rung.

A delivery proves itself by its signature and is then forgotten: what happened is read from the event
list, by the one reader there is, in the one order. So copies, replays and floods do no harm, and no
delivery can write. The answer waits for nothing, not even for Postgres.

The rules of the signature are Stripe's (https://docs.stripe.com/webhooks#verify-manually).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import Counter
from collections.abc import Callable, Sequence

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pinstripe.gateway.bell import Bell
from pinstripe.gateway.failures import JSON, Rejected
from pinstripe.gateway.syncs import OpenSync, Syncs

TOLERANCE_S = 300.0
_MOST_BYTES = 1 << 20
"""Of a delivery. Events of Stripe stay far below."""
_PATIENCE_S = 10.0
"""For the body to arrive: Stripe's own limit for an answer is longer."""
_MOST_SIGNATURES = 32
_SCHEME = "v1"


class Webhooks:
    """The endpoint of one gateway. `count`: deliveries by outcome, "accepted" or the code of the no."""

    def __init__(
        self,
        syncs: Syncs,
        bell: Bell,
        *,
        tolerance_s: float = TOLERANCE_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.count: Counter[str] = Counter()
        self._syncs = syncs
        self._bell = bell
        self._tolerance_s = tolerance_s
        self._now = now

    async def answer(self, request: Request) -> Response:
        """The answer to one delivery."""
        try:
            sync = self._sync_of(request)
            payload = await _body(request)
            check_signature(
                payload,
                request.headers.get("stripe-signature", ""),
                sync.webhook_secrets,
                tolerance_s=self._tolerance_s,
                now=self._now(),
            )
        except Rejected as no:
            self.count[no.code] += 1
            return no.response()
        except ClientDisconnect:
            return Response(status_code=499)  # Nobody is there to read it.
        self.count["accepted"] += 1
        self._bell.ring_soon(sync)
        return Response(b'{"received":true}', 200, media_type=JSON)

    def _sync_of(self, request: Request) -> OpenSync:
        sync_id = request.path_params["id"]
        sync = self._syncs.get(sync_id)
        if sync is None or request.path_params.get("kind", "stripe") != "stripe":
            raise Rejected(
                404,
                "not_found",
                f"No sync {sync_id[:40]!r} is served here.",
                hint="The address of a webhook ends with the id of its sync: /webhooks/stripe/default.",
            )
        return sync


def check_signature(
    payload: bytes, header: str, secrets: Sequence[str], *, tolerance_s: float, now: float
) -> None:
    """Returns if one of the secrets signed the payload lately; raises Rejected (400) if not."""
    secrets = [secret for secret in secrets if secret.strip()]
    if not secrets:
        raise Rejected(
            400,
            "no_webhook_secret",
            "This sync has no webhook secret.",
            hint="Set PINSTRIPE_WEBHOOK_SECRET to the signing secret (whsec_...) of the endpoint.",
        )
    signed_at, signatures = _parts(header)
    if signed_at is None or not signatures:
        raise _no("bad_signature", "There is no Stripe-Signature that can be read.")
    signed = b"%d." % signed_at + payload
    ours = [hmac.new(s.encode(), signed, hashlib.sha256).hexdigest().encode() for s in secrets]
    # All are compared, and each in constant time.
    fits = [hmac.compare_digest(theirs, own) for theirs in signatures for own in ours]
    if not any(fits):
        raise _no("bad_signature", "No signature fits the payload and a secret of this sync.")
    if tolerance_s > 0 and signed_at < now - tolerance_s:
        raise _no("old_signature", f"It was signed more than {tolerance_s:g} s ago.")


def _parts(header: str) -> tuple[int | None, list[bytes]]:
    """(when it was signed, signatures of the scheme that we know). Other schemes are ignored."""
    signed_at: int | None = None
    signatures: list[bytes] = []
    for part in header.split(",")[:_MOST_SIGNATURES]:
        name, _, value = part.strip().partition("=")
        if name == "t" and signed_at is None and value.isascii() and value.isdecimal():
            signed_at = int(value[:20])
        elif name == _SCHEME:
            signatures.append(value.encode())
    return signed_at, signatures


def _no(code: str, message: str) -> Rejected:
    return Rejected(
        400,
        code,
        message,
        hint="Compare the signing secret of the endpoint with the webhook secret of the sync, and "
        "the clock of this machine with Stripe's.",
    )


async def _body(request: Request) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > _MOST_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(_PATIENCE_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MOST_BYTES:
                    raise _too_large()
    except TimeoutError:
        raise Rejected(408, "too_slow", "The body did not arrive in time.") from None
    return bytes(body)


def _too_large() -> Rejected:
    return Rejected(413, "too_large", f"A delivery has at most {_MOST_BYTES:,} bytes.")
