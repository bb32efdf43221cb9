"""Finds out which account a key belongs to: the first request, which proves address and key.

A sync needs the account, its mode and Stripe's clock before it writes anything. A restricted key may lack
any permission, so three reads are tried; what remains unknown is replaced by a safe guess.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import msgspec

from pinstripe.client.api_key import ApiKey
from pinstripe.client.client import StripeClient
from pinstripe.client.response import Response
from pinstripe.errors import NotPermitted, Refused

_STRIPE_BEGAN = 1_262_304_000
"""1 January 2010. No account is older, even if it does not give its age."""
_SKEW_S = 300.0
"""How far a machine's clock may be off, where Stripe's cannot be had."""
_PROBES = ("/v1/account", "/v1/balance", "/v1/events")
"""Each of these proves the key and gives Stripe's time. A restricted key may lack some."""


@dataclass(frozen=True, slots=True)
class Account:
    """The account of a key. `now` is on Stripe's clock; the account is not older than `birth`."""

    id: str | None
    livemode: bool
    now: float
    birth: int


async def meet(stripe: StripeClient, key: ApiKey) -> Account:
    """Returns the account of the key. Raises what `StripeClient.get` raises."""
    account_id: str | None = None
    for path in _PROBES:
        params = [("limit", "1")] if path == "/v1/events" else []
        try:
            response = await stripe.get(path, params, endpoint=f"GET {path}")
        except NotPermitted as error:
            account_id = account_id or _account_in(error)
            continue
        return _account(response, path, account_id, key)
    # The key is valid but may read nothing here. Stripe's clock is unknown, and ours may be fast.
    return Account(account_id, key.mode == "live", time.time() - _SKEW_S, _STRIPE_BEGAN)


def _account(response: Response, path: str, account_id: str | None, key: ApiKey) -> Account:
    birth = _STRIPE_BEGAN
    if path == "/v1/account":
        body = msgspec.json.decode(response.body, type=dict[str, object])
        account_id = str(body["id"]) if isinstance(body.get("id"), str) else None
        created = body.get("created")
        birth = created if isinstance(created, int) else birth
    return Account(account_id, key.mode == "live", response.not_before, birth)


def _account_in(error: Refused) -> str | None:
    """Stripe's 403 names the account: "... for this endpoint on account 'acct_...'"."""
    found = re.search(r"acct_\w+", error.message)
    return found[0] if found else None
