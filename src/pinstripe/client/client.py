"""The Stripe client: one call, one good response, or an error that names the remedy.

    StripeClient.get -> RateLimiter -> Wire -> retry.judge -> Response | wait and retry | PinstripeError

Each request waits for a permit of the account's rate limiter, is counted, and is retried by the rules of
`retry`. A returned `Response` arrived whole, is a JSON object, and has the interval in which it was true.
What the objects mean is left to `rows`. Paths and parameters are quoted here for good: `transport` sends
them byte for byte. Stripe nests parameters by brackets in the name (`created[gte]`, `expand[]`).

    request(cursor) -> page -> request(cursor of the page) -> page ... -> the end, or Drifted

`iter_pages` is the only page loop of the product; `list_at` and `list_of` make its request function. v1
goes on after the last id, v2 names the address of its next page. The event log reader and the backfill
request pages in an order of their own.

`meet` is the first request, which proves address and key, and finds out whose key it is. A sync needs the
account, its mode and Stripe's clock before it writes anything. A restricted key may lack any permission, so
three reads are tried; what remains unknown is replaced by a safe guess.
"""

from __future__ import annotations

import asyncio
import base64
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Literal, Self
from urllib.parse import quote

import structlog

from pinstripe.catalog.endpoints import PAGE, ListEndpoint, Param, list_request
from pinstripe.client import retry
from pinstripe.client.api_errors import account_named, read_error, refusal
from pinstripe.client.api_key import ApiKey, checked_base
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.client.response import (
    ListPage,
    Margins,
    Response,
    decode,
    is_whole_object,
    read_list,
)
from pinstripe.client.retry import Expands
from pinstripe.client.transport import Broken, Timeouts, Wire
from pinstripe.errors import Drifted, NotFound, NotPermitted, Oversized, PinstripeError, Unreachable

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_ACCOUNT = "/v1/account"
_STRIPE_BEGAN = 1_262_304_000
"""1 January 2010. No account is older, even if it does not give its age."""
_SKEW_S = 300.0
"""How far a machine's clock may be off, where Stripe's cannot be had."""
_PROBES = (_ACCOUNT, "/v1/balance", "/v1/events")
"""Each of these proves the key and gives Stripe's time. A restricted key may lack some."""

_FORM = "application/x-www-form-urlencoded"
_LIMIT = re.compile(r"(?<=[?&]limit=)\d+")

Method = Literal["GET", "POST", "DELETE"]


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a method below, however many requests it takes."""

    method: Method
    base: str
    path: str
    body: bytes | None
    headers: dict[str, str]
    endpoint: str
    priority: int
    repeatable: bool

    @property
    def is_read(self) -> bool:
        """Whether it changes nothing at Stripe: a GET, or a preview."""
        is_preview = self.method == "POST" and self.repeatable
        return self.method == "GET" or (is_preview and "Idempotency-Key" not in self.headers)

    @property
    def url(self) -> str:
        return self.base + self.path

    def shorter(self, by: int) -> _Call:
        """The same page with fewer entries, down to one. A later page of v2 has the limit of the first."""
        fewer = _LIMIT.sub(lambda limit: str(int(limit[0]) // by or 1), self.path)
        return self if "page=" in self.path else replace(self, path=fewer)


class StripeClient:
    """One account, one key, one API version. An async context manager.

    `account`: a connected account to act for, instead of the key's own. `requests`, `retries` and
    `rate_limited` count by endpoint: HTTP requests sent, how many of them were retries, and responses 429.
    """

    def __init__(
        self,
        key: ApiKey,
        *,
        api_version: str,
        budget: RateLimiter,
        base_url: str = "https://api.stripe.com",
        account: str | None = None,
        timeouts: Timeouts | None = None,
        proxy: str | None = None,
        patience: retry.Patience | None = None,
        margins: Margins = Margins(),  # noqa: B008 (frozen)
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        luck: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.requests: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()
        self.rate_limited: Counter[str] = Counter()
        self.expands = Expands()
        self.api_version = api_version
        self.account = account
        self.margins = margins
        self._headers: dict[str, str] = {}
        self._version = {"Stripe-Version": api_version}
        self.key = key
        self.base_url = checked_base(base_url, key)
        self._budget = budget
        self._patience = patience or retry.Patience()
        self._sleep = sleep
        self._luck = luck
        self._wall_clock = wall_clock
        self._met = False
        self._wire = Wire(
            headers=_headers(key, account),
            timeouts=timeouts or Timeouts(),
            proxy=proxy,
            clock=clock,
            wall_clock=wall_clock,
            margins=margins,
        )

    def __repr__(self) -> str:
        return f"Stripe({self.key}, {self.base_url})"

    async def __aenter__(self) -> Self:
        await self._wire.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._wire.close()

    def for_account(self, account: str, budget: RateLimiter | None = None) -> StripeClient:
        """Return a client that acts for a connected account, on the connections of this one, and on its
        budget unless another is given.

        It counts its own requests, and knows its own refused expansions. It needs no opening.
        https://docs.stripe.com/connect/authentication
        """
        other = copy(self)
        other._budget = budget or self._budget
        other.account = account
        other.requests, other.retries, other.rate_limited = Counter(), Counter(), Counter()
        other.expands = Expands()
        other._headers = {"Stripe-Account": account}
        other._version = {**self._version, **other._headers}
        return other

    async def get(
        self, path: str, params: Params = (), *, endpoint: str, priority: int = 0
    ) -> Response:
        """GETs `path` (ids in it quoted by `quote_id`). `endpoint` is the rate limiter's name for it.

        Properties that Stripe refuses to expand are left out (`Expands`). A page that is too large, or that
        fails twice, is requested with fewer entries: only one that does so by itself stops its list.

        Raises `NotPermitted`, `NotEnabled`, `NotFound`, `BadParameter`, which are definite answers;
        `WrongKey`; `Refused` for a 4xx that is not understood; `Unreachable` when the tries are used up, or
        at a 5xx that is not to be retried. The last two say nothing about the requested object. `Oversized`
        if the answer is too large.
        """

        async def ask(params: Params) -> Response:
            asked = f"{path}?{encode_params(params)}" if params else path
            version = self._version
            call = self._repeatable("GET", asked, version, endpoint=endpoint, priority=priority)
            return await self._ask(call)

        return await self.expands.ask(endpoint, params, ask)

    async def get_unpinned(self, path: str, *, endpoint: str, priority: int = 0) -> Response:
        """GETs `path` without naming an API version: the response names the account's own.

        Do not read its body as an object: fields move between versions. Raises what `get` raises.
        """
        call = self._repeatable("GET", path, self._headers, endpoint=endpoint, priority=priority)
        return await self._ask(call)

    async def post(
        self,
        path: str,
        params: Params = (),
        *,
        endpoint: str,
        idempotency_key: str | None = None,
        repeatable: bool = False,
        priority: int = 0,
    ) -> Response:
        """POSTs `params` as a form. Raises what `get` raises.

        Retried after a failure only with an `idempotency_key`, or if the caller knows that the request
        changes nothing (`repeatable`: a preview). Otherwise an `Unreachable` says that Stripe may have run
        it.
        """
        headers = {**self._version, "Content-Type": _FORM}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        body = encode_params(params).encode()
        safe = repeatable or idempotency_key is not None
        base = self.base_url
        return await self._ask(_Call("POST", base, path, body, headers, endpoint, priority, safe))

    async def delete(self, path: str, *, endpoint: str, priority: int = 0) -> Response:
        """DELETEs `path`, retried like a GET: `NotFound` after a retry may mean that the first worked."""
        call = self._repeatable("DELETE", path, self._version, endpoint=endpoint, priority=priority)
        return await self._ask(call)

    def _repeatable(
        self, method: Method, path: str, headers: dict[str, str], *, endpoint: str, priority: int
    ) -> _Call:
        if not path.startswith("/"):
            # Behind the base it would name another host (`@host/x`, `.host/x`), and the key would go there.
            raise Drifted(
                f"An answer names an address that is not one of Stripe's API: {path[:80]}.",
                hint="Report it to Stripe with the object's id.",
            )
        return _Call(
            method, self.base_url, path, None, headers, endpoint, priority, repeatable=True
        )

    async def _ask(self, call: _Call) -> Response:
        failures = refusals = 0
        while True:
            response = await self._send(call)
            is_large = isinstance(response, Broken) and response.too_large
            if is_large and (fewer := call.shorter(10)) != call:
                limit = _LIMIT.findall(fewer.path)[0]
                _log.info("client.oversized", path=fewer.path.partition("?")[0], limit=limit)
                call = fewer
                continue
            verdict, reason = self._judge(call, response)
            if isinstance(response, Broken):
                asked_s = None
            elif verdict == "taken":
                return response
            else:
                asked_s = retry.retry_after_s(response.headers, self._wall_clock())
            if verdict == "limited" and isinstance(response, Response):
                refusals += 1
                delay_s = self._limited(call, response, refusals, asked_s)
                most = self._patience.limited_attempts
                if most is not None and refusals >= most:
                    raise self._gave_up(call, reason, refusals, ran=False)
            else:
                failures += 1
                safe = call.repeatable or (isinstance(response, Broken) and not response.sent)
                if verdict == "final" or not safe or failures >= self._tries():
                    raise self._error(call, response, verdict, reason, failures)
                # Long pages can fail each time where short ones do not (seen: cut bodies, 500s).
                call = call.shorter(2) if failures > 1 else call
                delay_s = max(self._patience.backoff_s(failures, self._luck()), asked_s or 0.0)
            _log.debug("client.retry", endpoint=call.endpoint, reason=reason, delay_s=delay_s)
            await self._sleep(delay_s)
            self.retries[call.endpoint] += 1

    async def _send(self, call: _Call) -> Response | Broken:
        with await self._budget.acquire(call.endpoint, priority=call.priority):
            self.requests[call.endpoint] += 1
            return await self._wire.send(
                call.method, call.url, body=call.body, headers=call.headers
            )

    def _tries(self) -> int:
        return self._patience.attempts if self._met else self._patience.first_contact

    def _judge(self, call: _Call, response: Response | Broken) -> tuple[retry.Verdict, str]:
        """The verdict, and the reason in a few words if it is not `taken`."""
        if isinstance(response, Broken):
            return "final" if response.too_large else "again", response.reason
        if 200 <= response.status < 300:
            genuine = is_whole_object(response.body)
            reason = "the answer is not whole JSON"
        else:
            error = read_error(response.body)
            genuine = error is not None
            reason = f"status {response.status}"
            if error is not None:
                reason = f"{reason}: {error.message or error.type}"
        self._met = self._met or genuine
        verdict = retry.judge(
            response.status, response.headers, genuine=genuine, is_read=call.is_read
        )
        # Of one object, and not of how many requests there are: its others need not wait.
        if verdict == "limited" and _limit(response) in ("lock_timeout", "resource-specific"):
            verdict = "again"
        return verdict, reason

    def _limited(
        self, call: _Call, response: Response, refusals: int, asked_s: float | None
    ) -> float:
        """Reports a 429 to the rate limiter; the seconds to wait before the next try."""
        self.rate_limited[call.endpoint] += 1
        self._budget.on_rate_limited(call.endpoint, _limit(response), asked_s)
        return self._patience.limited_s(refusals, self._luck(), asked_s)

    def _error(
        self,
        call: _Call,
        response: Response | Broken,
        verdict: retry.Verdict,
        reason: str,
        failures: int,
    ) -> PinstripeError:
        if isinstance(response, Broken) and response.too_large:
            where = call.url.partition("?")[0]
            return Oversized(
                f"{call.method} {where} cannot be read: {reason}.",
                hint="Make the object smaller at Stripe, then sync again.",
            )
        if isinstance(response, Broken):
            return self._gave_up(call, reason, failures, ran=response.sent)
        error = read_error(response.body)
        if verdict != "final" or response.status >= 500 or error is None:
            return self._gave_up(call, reason, failures, ran=True)
        # What Stripe says of the accounts that this one has as a platform is not about the header.
        is_below = call.path.startswith("/v1/accounts")
        return refusal(
            response.status,
            error,
            request_id=response.request_id,
            key=self.key,
            account=None if is_below else self.account,
            said_at=response.read_interval(),
        )

    def _gave_up(self, call: _Call, reason: str, tries: int, *, ran: bool) -> Unreachable:
        address = call.url.partition("?")[0]
        times = "once" if tries == 1 else f"{tries} times"
        if ran and not call.repeatable:
            hint = "It may or may not have been done: look before asking again."
        elif not self._met:
            hint = f"Nothing at {call.base} has answered as Stripe does: check the address "
            hint += "(base URL), the network, and any proxy or captive portal between."
        else:
            hint = "Stripe or the network is in trouble; see https://status.stripe.com."
        return Unreachable(f"{call.method} {address} failed, tried {times}: {reason}.", hint=hint)


def _headers(key: ApiKey, account: str | None) -> dict[str, str]:
    token = base64.b64encode(f"{key.reveal()}:".encode()).decode()
    headers = {"Authorization": f"Basic {token}", "User-Agent": f"Pinstripe/{version('pinstripe')}"}
    if account is not None:
        headers["Stripe-Account"] = account
    return headers


Params = Sequence[tuple[str, str]]


def quote_id(object_id: str) -> str:
    """`object_id` as one path segment. Users choose the ids of products, plans and coupons.

    An empty id raises `ValueError`: it would turn the path of one object into that of the list.

    >>> quote_id("50% off/été")
    '50%25%20off%2F%C3%A9t%C3%A9'
    >>> quote_id("..")
    '%2E%2E'
    """
    if not object_id:
        raise ValueError("an empty id has no path")
    if object_id in (".", ".."):
        # Unquoted, any proxy on the way may resolve them as steps in the path.
        return object_id.replace(".", "%2E")
    return quote(object_id, safe="")


def encode_params(params: Params) -> str:
    """`params` as a query string or a form body, in the order given; a name may repeat.

    >>> encode_params([("created[gte]", "17"), ("expand[]", "data.a b"), ("expand[]", "x")])
    'created[gte]=17&expand[]=data.a%20b&expand[]=x'
    """
    return "&".join(f"{quote(name, safe='[]')}={quote(value, safe='')}" for name, value in params)


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
            account_id = account_id or account_named(error.message)
            continue
        return _account(response, path, account_id, key)
    # The key is valid but may read nothing here. Stripe's clock is unknown, and ours may be fast.
    return Account(account_id, key.mode == "live", time.time() - _SKEW_S, _STRIPE_BEGAN)


def _account(response: Response, path: str, account_id: str | None, key: ApiKey) -> Account:
    birth = _STRIPE_BEGAN
    body = decode(response.body)
    if path == _ACCOUNT and isinstance(body, dict):
        account_id = str(body["id"]) if isinstance(body.get("id"), str) else None
        created = body.get("created")
        birth = created if isinstance(created, int) else birth
    return Account(account_id, key.mode == "live", response.not_before, birth)


_MAX_RESTARTS = 3


RequestPage = Callable[[str | None], Awaitable[ListPage]]
"""Requests the page after a cursor; None is the first page."""


async def iter_pages(
    request: RequestPage,
    *,
    after: str | None = None,
    on_lost_cursor: Literal["raise", "restart"] = "raise",
) -> AsyncIterator[ListPage]:
    """The pages of a list from `after` on (exclusive), in Stripe's order.

    A cursor object that was deleted meanwhile raises `NotFound` with `param="starting_after"`, or starts
    the list again from its first page, up to three times. Raises `Drifted` where the list does not come to
    an end, and what `request` raises.
    """
    cursor, passed, restarts = after, {after}, 0
    while True:
        try:
            page = await request(cursor)
        except NotFound as error:
            is_lost = cursor is not None and error.param == "starting_after"
            if not is_lost or on_lost_cursor == "raise":
                raise
            restarts += 1
            if restarts > _MAX_RESTARTS:
                raise Drifted(
                    f"A list lost its cursor {restarts} times: {error.message}"
                ) from error
            cursor, passed = None, {None}
            continue
        yield replace(page, is_first=cursor is None)
        if not page.has_more:
            return
        cursor = page.after
        if cursor is None or cursor in passed:
            raise Drifted(
                f"The list {page.path} says that it goes on, but not from where (request "
                f"{page.response.request_id or 'unknown'}).",
                hint="Its pages cannot be followed; report it with the request id.",
            )
        passed.add(cursor)


def list_at(
    stripe: StripeClient, path: str, params: Params = (), *, endpoint: str, priority: int = 0
) -> RequestPage:
    """Requests pages of the v1 list at a path. `endpoint` is the rate limiter's name for it."""

    async def request(after: str | None) -> ListPage:
        query = [*params, ("limit", str(PAGE))]
        if after is not None:
            query.append(("starting_after", after))
        return read_list(await stripe.get(path, query, endpoint=endpoint, priority=priority), path)

    return request


def list_of(
    stripe: StripeClient,
    endpoint: ListEndpoint,
    path: str,
    params: Sequence[Param],
    *,
    priority: int,
) -> RequestPage:
    """Requests pages of one list of an endpoint, with what is to be expanded in it."""

    async def request(after: str | None) -> ListPage:
        where, query = list_request(endpoint, path, params, after=after, expand=endpoint.expand)
        response = await stripe.get(where, query, endpoint=endpoint.name, priority=priority)
        return read_list(response, path)

    return request


def _limit(response: Response) -> str:
    """What a 429 says that was exceeded; "" if nothing."""
    error = read_error(response.body)
    code = (error.code if error else None) or ""
    return response.headers.get("stripe-rate-limited-reason", code)


def split_url(url: str) -> tuple[str, list[Param]]:
    """(path, parameters) of an address that Stripe gives, such as a nested list's `url`.

    >>> split_url("/v1/invoices/upcoming/lines?customer=cus_1")
    ('/v1/invoices/upcoming/lines', [('customer', 'cus_1')])
    """
    path, _, query = url.partition("?")
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    return path, [(name, value) for name, _, value in pairs]
