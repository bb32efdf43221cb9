"""Properties that Stripe refuses to expand: each costs itself, never the request that asked for it.

    request with expand[] -> refused -> without the property -> remembered for its endpoint

Some properties cannot be expanded in an API version or an account (a 400 names them); others need a
permission that the key lacks (a 403 that does not say of what). Then the request is made without any; if
that is answered, each property is tried by itself. What is refused is left out of later requests, and told
to `on_refused`, which may keep it beyond this process.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pinstripe.client.response import Response
from pinstripe.errors import NotEnabled, NotExpandable, NotPermitted, Refused

Params = Sequence[tuple[str, str]]
Ask = Callable[[Params], Awaitable[Response]]
"""Makes the request with these parameters."""


@dataclass(frozen=True, slots=True)
class RefusedExpand:
    """`endpoint` as the budget names it, `value` of `expand[]`, and Stripe's words."""

    endpoint: str
    value: str
    reason: str
    remedy: str = ""


async def _nothing(_: RefusedExpand) -> None:
    """Nobody keeps it."""


@dataclass
class Expands:
    """What is refused, by endpoint. `on_refused` is called once for each that is found out."""

    on_refused: Callable[[RefusedExpand], Awaitable[None]] = _nothing
    refused: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _locks: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    def load(self, known: Iterable[RefusedExpand]) -> None:
        """Takes what an earlier process was refused."""
        for found in known:
            self.refused[found.endpoint].add(found.value)

    def allowed(self, endpoint: str, params: Params) -> Params:
        """`params` without what is known to be refused."""
        known = self.refused.get(endpoint)
        return [p for p in params if not (_is_expand(p) and p[1] in known)] if known else params

    async def ask(self, endpoint: str, params: Params, ask: Ask) -> Response:
        """The answer to a request, without the properties that Stripe refuses to expand in it.

        Raises what `ask` raises where the request itself is refused.
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
                    if self.allowed(endpoint, params) == asked:  # Else another has found out.
                        await self._find_out(endpoint, asked, error, ask)

    async def _find_out(self, endpoint: str, asked: Params, error: Refused, ask: Ask) -> None:
        """Learns which of the properties are refused: at least one, or raises `error`."""
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
        # Refused together, though none alone: then all.
        for value, said in (guilty or dict.fromkeys(expands, error)).items():
            self.refused[endpoint].add(value)
            await self.on_refused(RefusedExpand(endpoint, value, said.message, said.hint))

    async def _one_by_one(
        self, rest: Params, expands: Sequence[str], ask: Ask
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
    """Whether Stripe's words mean this property: it may leave out `data.` of a list.

    >>> _is_named("data.sources", "sources"), _is_named("data.sources", "data.sources")
    (True, True)
    >>> _is_named("data.tax_ids", "tax")
    False
    """
    return value in (name, f"data.{name}") or name == f"data.{value}"
