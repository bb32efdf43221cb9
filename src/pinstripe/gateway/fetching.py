"""Fetches an object now and writes it; callers of the same moment share one GET.

Who comes while a GET is under way gets the next one: the answer he is given began after he came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from pinstripe.errors import Misconfigured, NotFound
from pinstripe.gateway.syncs import OpenSync
from pinstripe.source.settle import ask_anew
from pinstripe.source.together import Together

_Place = tuple[str, str, str]
"""(id of the sync, table, id of the object)"""


class Fetching:
    """What is being fetched for callers of the gateway."""

    def __init__(self) -> None:
        self._places: dict[_Place, Together[None, None]] = {}

    async def fetch(self, sync: OpenSync, table: str, key: str) -> None:
        """Returns when the object, as Stripe has it after this call, is written; a row of an object
        that is gone there is flagged.

        Raises NotFound where neither Stripe nor the table has it, Misconfigured where Stripe shows no
        object of this type by its id alone.
        """
        place = (sync.id, table, key)
        questions = self._places.get(place)
        if questions is None:

            async def ask(_: Collection[None]) -> Mapping[None, None]:
                await _fetch(sync, table, key)
                return {None: None}

            questions = self._places[place] = Together(ask)
        try:
            await questions.ask(None)
        finally:
            if questions.is_idle and self._places.get(place) is questions:
                del self._places[place]

    async def close(self) -> None:
        """Ends what is under way."""
        await asyncio.gather(*(questions.close() for questions in self._places.values()))


async def _fetch(sync: OpenSync, table: str, key: str) -> None:
    version = await sync.source.version(table, key)
    if not await ask_anew(sync.source, table, key, over=version):
        raise Misconfigured(
            f"Stripe shows no {sync.source.wanted[table].object_type} by its id alone.",
            hint="Wait for the request or the event that changed it, or without parameters.",
        )
    if version is None and await sync.source.version(table, key) is None:
        raise NotFound(
            f"Stripe has no {sync.source.wanted[table].object_type} {key!r}, nor has the table.",
            status=404,
            code="resource_missing",
            hint="Does it belong to the account and the mode of this sync?",
        )
