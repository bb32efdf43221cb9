"""Creates, finds and deletes the webhook endpoints at Stripe that call our gateway.

    made = await create_endpoint(stripe, "https://a.example/webhooks/stripe/default", sync_id="default")

An endpoint is found again by its address; ours also carry the id of their sync in their metadata. Stripe
sends the signing secret only in the response that creates an endpoint.
"""

from __future__ import annotations

import secrets
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

import msgspec

from pinstripe.catalog.model import spec
from pinstripe.client.api_key import ApiKey
from pinstripe.client.client import StripeClient, iter_pages, list_at, quote_id
from pinstripe.client.response import Response, decode
from pinstripe.errors import Drifted, Misconfigured, Refused

_PATH = "/v1/webhook_endpoints"
_ONE = f"{_PATH}/{{webhook_endpoint}}"
_MARK = "pinstripe_sync"
_ALL = "*"
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})
_MOST = 16
"""Endpoints that Stripe lets an account have, about."""


_Body = TypeVar("_Body", bound=msgspec.Struct)


class WebhookEndpoint(msgspec.Struct, frozen=True):
    """One endpoint as Stripe shows it. `api_version` None: it follows the account's own."""

    id: str
    url: str
    status: str = ""
    api_version: str | None = None
    enabled_events: tuple[str, ...] = ()
    livemode: bool = False
    created: int = 0
    metadata: dict[str, str] | None = None

    @property
    def sync_id(self) -> str:
        """The sync that it was created for; "" if it was not created by Pinstripe."""
        return (self.metadata or {}).get(_MARK, "")


class Created(msgspec.Struct, frozen=True):
    """What `create_endpoint` did. `secret` is there only where the endpoint is new.

    `changed`: what was set right on one that was there. `others`: of the same sync, elsewhere.
    """

    endpoint: WebhookEndpoint
    existed: bool
    changed: tuple[str, ...] = ()
    others: tuple[WebhookEndpoint, ...] = ()
    secret: str = ""

    def __repr__(self) -> str:
        return f"Created({self.endpoint.id}, existed={self.existed})"


class _Page(msgspec.Struct):
    data: list[WebhookEndpoint]


class _Secret(msgspec.Struct):
    secret: str = ""


def check_url(url: str, key: ApiKey) -> str:
    """`url` again. Raises Misconfigured where Stripe would refuse it, or could not use it safely."""
    parts = _split(url)
    if parts is None:
        raise Misconfigured(
            "This is not the address of a webhook endpoint.",
            hint="Give the whole address, like https://hooks.example.com/webhooks/stripe/default.",
        )
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise Misconfigured(
            "The address of a webhook endpoint has no user name, password or fragment.",
            hint="Leave them out: Stripe signs what it sends.",
        )
    if key.mode == "live" and parts.scheme != "https":
        raise Misconfigured(
            "In live mode Stripe sends webhooks over https only.",
            hint="Put the gateway behind a proxy that speaks TLS, and give its https:// address.",
        )
    return url


def _split(url: str) -> SplitResult | None:
    """None where it is no address on the web."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError:
        return None
    printable = url.isprintable() and " " not in url
    web = parts.scheme in ("http", "https") and bool(parts.hostname)
    return parts if web and printable else None


def is_local(url: str) -> bool:
    """Whether the address is this machine's own, which Stripe cannot reach."""
    return urlsplit(url).hostname in _THIS_MACHINE


async def list_endpoints(stripe: StripeClient) -> list[WebhookEndpoint]:
    """All endpoints of the account, ours and others'. Raises what `StripeClient.get` raises."""
    found: list[WebhookEndpoint] = []
    async for page in iter_pages(list_at(stripe, _PATH, endpoint=f"GET {_PATH}")):
        found += _read(page.response, _Page).data
    return found


async def create_endpoint(
    stripe: StripeClient, url: str, *, sync_id: str, connect: bool = False
) -> Created:
    """An endpoint for all events at `url`, in our API version; one that is there is kept.

    `connect`: for the events of all connected accounts, instead of the account's own
    (https://docs.stripe.com/api/webhook_endpoints/create); Stripe does not show which an endpoint is for.
    One that is there is switched on and given all events, if it was not so.
    """
    known = await list_endpoints(stripe)
    others = tuple(e for e in known if e.sync_id == sync_id and e.url != url)
    same = [e for e in known if e.url == url]
    if same:
        best = max(same, key=lambda e: (e.status == "enabled", e.created))
        endpoint, changed = await _set_right(stripe, best, sync_id)
        return Created(endpoint, True, changed, others)
    params = [
        ("url", url),
        ("enabled_events[]", _ALL),
        ("api_version", spec().api_version),
        ("description", f"Pinstripe, sync {sync_id}"),
        (f"metadata[{_MARK}]", sync_id),
        *([("connect", "true")] if connect else []),
    ]
    try:
        # For this call alone: create, delete and create again must give a new endpoint.
        once = f"pinstripe-{secrets.token_hex(16)}"
        response = await stripe.post(_PATH, params, endpoint=f"POST {_PATH}", idempotency_key=once)
    except Refused as error:
        if type(error) is Refused and len(known) >= _MOST:
            error.hint = "An account may have about 16: remove one with pinstripe webhook delete."
        raise
    return Created(
        _read(response, WebhookEndpoint), False, (), others, _read(response, _Secret).secret
    )


async def delete_endpoint(stripe: StripeClient, endpoint_id: str) -> None:
    """Removes it at Stripe. Raises NotFound where there is none."""
    await stripe.delete(f"{_PATH}/{quote_id(endpoint_id)}", endpoint=f"DELETE {_ONE}")


async def _set_right(
    stripe: StripeClient, endpoint: WebhookEndpoint, sync_id: str
) -> tuple[WebhookEndpoint, tuple[str, ...]]:
    params: list[tuple[str, str]] = []
    changed: list[str] = []
    if endpoint.status != "enabled":
        params.append(("disabled", "false"))
        changed.append("switched on")
    if _ALL not in endpoint.enabled_events:
        params.append(("enabled_events[]", _ALL))
        changed.append("gets all events")
    if not params:
        return endpoint, ()
    if not endpoint.sync_id:
        params.append((f"metadata[{_MARK}]", sync_id))
    path = f"{_PATH}/{quote_id(endpoint.id)}"
    response = await stripe.post(path, params, endpoint=f"POST {_ONE}", repeatable=True)
    return _read(response, WebhookEndpoint), tuple(changed)


def _read(response: Response, kind: type[_Body]) -> _Body:
    try:
        return msgspec.convert(decode(response.body), kind)
    except msgspec.MsgspecError as error:
        raise Drifted(
            f"The answer about webhook endpoints is not as expected: {error} (request "
            f"{response.request_id or 'unknown'}).",
            hint="Report it with the request id.",
        ) from error
