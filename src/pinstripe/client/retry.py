"""Decides whether and how a request is repeated: after trouble, and without what Stripe refuses to expand.

The rules of `judge` are Stripe's; it is pure. A 429 asks for patience and is counted apart; 409, 5xx and
broken connections are retried a few times. `Stripe-Should-Retry` overrides the status of a write: it
concerns a caller that would repeat the request immediately with the same idempotency key. It says nothing
about a read: most 500s carry `false` (a comment in `_should_retry` of Stripe's SDKs), which is no verdict
on the object. A write is retried only with an idempotency key, or if it certainly never ran.

    request with expand[] -> refused -> without the property -> remembered for its endpoint

Some properties cannot be expanded in an API version or an account: a 400 names them. Others need a
permission that the key lacks: a 403 that names none. Then the request is made without any, and each
property is tried alone. Later requests leave out what was refused; `Expands.on_refused` may store it beyond
this process.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pinstripe.client.response import Response, http_time
from pinstripe.errors import NotEnabled, NotExpandable, NotPermitted, Refused

Verdict = Literal["taken", "limited", "again", "final"]
"""`taken`: a good response. `limited`: wait as long as it takes. `again`: a few more tries.
`final`: no more tries; a 4xx in Stripe's shape is its answer, anything else is trouble."""

_TOO_MANY = 429
_CONFLICT = 409
_RETRY_AFTER_CAP_S = 60.0
# 2**16 times the base is far over every cap; without a bound the power itself would overflow.
_LARGEST_EXPONENT = 16


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to retry. The counts are tries in all, the first one included.

    `first_contact` holds until Stripe has answered once: with a wrong address it is better to say
    so soon. `limited_attempts` counts 429s; None is without end.
    """

    attempts: int = 8
    first_contact: int = 3
    limited_attempts: int | None = None
    base_s: float = 0.5
    cap_s: float = 30.0
    limited_cap_s: float = 8.0

    def backoff_s(self, failures: int, luck: float) -> float:
        """Seconds to wait after so many failures: exponential, full jitter. `luck` is in [0, 1)."""
        return luck * min(self.cap_s, self._ceiling_s(failures))

    def limited_s(self, refusals: int, luck: float, retry_after_s: float | None) -> float:
        """Seconds to wait after so many 429s. Never less than Stripe asks for.

        The rate itself is lowered by the budget; this only keeps the repetitions apart.
        """
        jitter_s = luck * min(self.limited_cap_s, self._ceiling_s(refusals))
        return jitter_s if retry_after_s is None else retry_after_s + min(jitter_s, self.base_s)

    def _ceiling_s(self, count: int) -> float:
        return self.base_s * 2.0 ** min(count - 1, _LARGEST_EXPONENT)


def judge(
    status: int, headers: Mapping[str, str], *, genuine: bool, is_read: bool = False
) -> Verdict:
    """Classifies a response. Names of `headers` in lower case.

    `genuine`: the body is Stripe's, that is one whole JSON object, and on an error one in the shape
    of Stripe's errors. Anything else comes from a captive portal, a proxy or a wrong address, and
    must not be believed: a 404 from there would delete objects. `is_read`: the request changes nothing.
    """
    advice = headers.get("stripe-should-retry", "").strip().lower()
    if status == _TOO_MANY:
        # A named limit refused the request unprocessed; our own rate is the remedy, so not even
        # "false" ends it. Contention on an object (`lock_timeout`) has no such header.
        named = "stripe-rate-limited-reason" in headers
        return "final" if advice == "false" and not named and not is_read else "limited"
    if 200 <= status < 300 and genuine:
        return "taken"
    is_trouble = status >= 500 or not genuine
    if advice == "false" and not (is_read and is_trouble):
        return "final"
    if advice == "true" or is_trouble:
        return "again"
    return "again" if status == _CONFLICT else "final"


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """`Retry-After` in seconds, between 0 and 60; None if absent or unreadable.

    It may be a date. That is on Stripe's clock, so it counts from the answer's own `Date`; `now`
    (Unix seconds) stands in where that is missing.
    """
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        until = http_time(text)
        if until is None:
            return None
        said_at = http_time(headers.get("date"))
        seconds = until - (now if said_at is None else said_at)
    if math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), _RETRY_AFTER_CAP_S)


ExpandParams = Sequence[tuple[str, str]]
Ask = Callable[[ExpandParams], Awaitable[Response]]
"""Makes the request with the given parameters."""


@dataclass(frozen=True, slots=True)
class RefusedExpand:
    """`endpoint` by the rate limiter's name, the `value` of `expand[]`, and Stripe's words."""

    endpoint: str
    value: str
    reason: str
    remedy: str = ""


async def _nothing(_: RefusedExpand) -> None:
    """The default: nothing is stored."""


@dataclass
class Expands:
    """The refused properties, by endpoint. `on_refused` is called once for each new one."""

    on_refused: Callable[[RefusedExpand], Awaitable[None]] = _nothing
    refused: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _locks: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    def load(self, known: Iterable[RefusedExpand]) -> None:
        """Adds what earlier processes were refused."""
        for found in known:
            self.refused[found.endpoint].add(found.value)

    def allowed(self, endpoint: str, params: ExpandParams) -> ExpandParams:
        """`params` without the properties that are known to be refused."""
        known = self.refused.get(endpoint)
        return [p for p in params if not (_is_expand(p) and p[1] in known)] if known else params

    async def ask(self, endpoint: str, params: ExpandParams, ask: Ask) -> Response:
        """Makes the request, without the properties that Stripe refuses to expand.

        Raises what `ask` raises if the request itself is refused.
        """
        while True:
            asked = self.allowed(endpoint, params)
            try:
                return await ask(asked)
            except (NotExpandable, NotPermitted, NotEnabled) as error:
                expands = [value for _, value in filter(_is_expand, asked)]
                if not expands:
                    raise
                async with self._locks[endpoint]:
                    if self.allowed(endpoint, params) == asked:  # Else another call did.
                        await self._find_out(endpoint, asked, error, ask)

    async def _find_out(self, endpoint: str, asked: ExpandParams, error: Refused, ask: Ask) -> None:
        """Finds the refused properties: at least one, or raises `error`."""
        expands = [value for _, value in filter(_is_expand, asked)]
        named = error.properties if isinstance(error, NotExpandable) else ()
        guilty = {v: error for v in expands if any(_is_named(v, name) for name in named)}
        if not guilty:
            rest = [p for p in asked if not _is_expand(p)]
            try:
                await ask(rest)
            except Refused:
                raise error from None
            guilty = await self._one_by_one(rest, expands, ask)
        # Refused together, though none alone: leave out all.
        for value, said in (guilty or dict.fromkeys(expands, error)).items():
            self.refused[endpoint].add(value)
            await self.on_refused(RefusedExpand(endpoint, value, said.message, said.hint))

    async def _one_by_one(
        self, rest: ExpandParams, expands: Sequence[str], ask: Ask
    ) -> dict[str, Refused]:
        guilty: dict[str, Refused] = {}
        for value in expands:
            try:
                await ask([*rest, ("expand[]", value)])
            except (NotExpandable, NotPermitted, NotEnabled) as error:
                guilty[value] = error
        return guilty


def _is_expand(param: tuple[str, str]) -> bool:
    return param[0] == "expand[]"


def _is_named(value: str, name: str) -> bool:
    """Whether Stripe's `name` means this property: Stripe may omit the `data.` of a list.

    >>> _is_named("data.sources", "sources"), _is_named("data.sources", "data.sources")
    (True, True)
    >>> _is_named("data.tax_ids", "tax")
    False
    """
    return value in (name, f"data.{name}") or name == f"data.{value}"
