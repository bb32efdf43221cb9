"""Leaves out the properties that Stripe refuses to expand, so that they never fail the request.

    request with expand[] -> refused -> without the property -> remembered for its endpoint

Some properties cannot be expanded in an API version or an account: a 400 names them. Others need a
permission that the key lacks: a 403 that names none. Then the request is made without any, and each
property is tried alone. Later requests leave out what was refused; `on_refused` may store it beyond this
process.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pinstripe.client.response import Response
from pinstripe.errors import NotEnabled, NotExpandable, NotPermitted, Refused

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
