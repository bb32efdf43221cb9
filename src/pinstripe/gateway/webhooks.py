"""`POST /webhooks/stripe/{id}`: takes a webhook of Stripe's and requests a sync.

A delivery is checked by its signature and then dropped: the event log is the one source of events, and its
one reader keeps their order. So duplicates, replays and floods do no harm, and no delivery can write. The
response waits for nothing, not even for Postgres.

A Connect webhook endpoint delivers the events of all connected accounts, each with the id of its `account`,
to the id of the platform (https://docs.stripe.com/connect/webhooks): that account is polled.

The rules of the signature are Stripe's (https://docs.stripe.com/webhooks#verify-manually).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pinstripe.client.response import decode
from pinstripe.gateway.http.errors import JSON, HTTPError
from pinstripe.gateway.syncs import OpenSync, PlatformAccounts, Syncs
from pinstripe.gateway.wait.waiter import SyncRequester

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

TOLERANCE_S = 300.0
_MOST_BYTES = 1 << 20
"""The largest delivery. Events of Stripe stay far below."""
_PATIENCE_S = 10.0
"""The longest that a body may take. Stripe waits longer for a response."""
_MOST_SIGNATURES = 32
_SCHEME = "v1"
_NO_SECRET = "no_webhook_secret"  # noqa: S105 (the name of a refusal)
_UNFIT = "No signature fits the payload and a secret of this sync."


class Webhooks:
    """The endpoint of one gateway. `count`: deliveries by outcome, "accepted" or the code of the error."""

    def __init__(
        self,
        syncs: Syncs,
        requester: SyncRequester,
        *,
        tolerance_s: float = TOLERANCE_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.count: Counter[str] = Counter()
        self._syncs = syncs
        self._requester = requester
        self._tolerance_s = tolerance_s
        self._now = now

    async def answer(self, request: Request) -> Response:
        """Respond to one delivery."""
        sync_id = request.path_params["id"]
        named: OpenSync | PlatformAccounts | None = self._syncs.get(sync_id)
        named = named or self._syncs.platforms.get(sync_id)
        try:
            payload = await _body(request)
            check_signature(
                payload,
                request.headers.get("stripe-signature", ""),
                named.webhook_secrets if named is not None else (),
                tolerance_s=self._tolerance_s,
                now=self._now(),
            )
        except HTTPError as no:
            code = "unknown_sync" if named is None and no.code == _NO_SECRET else no.code
            self.count[code] += 1
            if no.code == _NO_SECRET:
                # Told to the log alone: a stranger is not to learn which syncs there are.
                _log.warning("webhook.refused", sync=sync_id[:40], reason=code)
                no = _no("bad_signature", _UNFIT)
            return no.response()
        except ClientDisconnect:
            return Response(status_code=499)  # Nobody is there to read it.
        assert named is not None  # noqa: S101 (what is not there has no secret, and was refused)
        self.count["accepted"] += 1
        if isinstance(named, OpenSync):
            self._requester.request_sync_soon(named)
        else:
            _wake(named, payload)
        return Response(b'{"received":true}', 200, media_type=JSON)


class _Event(msgspec.Struct):
    type: str = ""
    account: str | None = None
    context: str | None = None
    """Of a thin event: the account, perhaps as `org_…/acct_…` (https://docs.stripe.com/event-destinations)."""
    livemode: bool | None = None


def _wake(platform: PlatformAccounts, payload: bytes) -> None:
    """Have the account polled that a signed event names; the platform's own if it names none."""
    try:
        event = msgspec.convert(decode(payload), _Event)
    except msgspec.MsgspecError:
        return  # Signed, and not an event: nothing that is known.
    if event.livemode not in (None, platform.livemode):
        # A Connect endpoint of live mode gets the events of test mode too, of which live mode's list has
        # none (https://docs.stripe.com/connect/webhooks).
        return
    # The last event of an account that leaves is no reason to take it in again.
    is_new = event.type.removeprefix("v1.") != "account.application.deauthorized"
    named = event.account or (event.context or "").rpartition("/")[2]
    account = named if named.startswith("acct_") else platform.account_id
    platform.wake_soon(account, is_new=is_new)


def check_signature(
    payload: bytes, header: str, secrets: Sequence[str], *, tolerance_s: float, now: float
) -> None:
    """Returns if one of the secrets signed the payload lately; raises HTTPError (400) if not."""
    signed_at, signatures = _parts(header)
    if signed_at is None or not signatures:
        raise _no("bad_signature", "There is no Stripe-Signature that can be read.")
    signed = b"%d." % signed_at + payload
    secrets = [secret for secret in secrets if secret.strip()]
    # Without one the time is spent all the same: it would tell which syncs there are.
    tried = secrets or ["whsec_none"]
    ours = [hmac.new(s.encode(), signed, hashlib.sha256).hexdigest().encode() for s in tried]
    # All are compared, and each in constant time.
    fits = [hmac.compare_digest(theirs, own) for theirs in signatures for own in ours]
    if not secrets:
        raise _no(_NO_SECRET, "This sync has no webhook secret.")
    if not any(fits):
        raise _no("bad_signature", _UNFIT)
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


def _no(code: str, message: str) -> HTTPError:
    return HTTPError(
        400,
        code,
        message,
        hint="The address ends with the id of a sync (/webhooks/stripe/default) whose webhook secret "
        "(PINSTRIPE_WEBHOOK_SECRET) is the signing secret of the endpoint, and the clock of this "
        "machine is Stripe's. The log of the gateway says which of these is not so.",
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
        raise HTTPError(408, "too_slow", "The body did not arrive in time.") from None
    return bytes(body)


def _too_large() -> HTTPError:
    return HTTPError(413, "too_large", f"A delivery has at most {_MOST_BYTES:,} bytes.")
