"""Objects that are one to an account: its own record, its balance, its settings. One GET each."""

from __future__ import annotations

from pinstripe.catalog.endpoints import singleton_paths
from pinstripe.catalog.tables import table_name
from pinstripe.errors import NotEnabled, NotFound, NotPermitted
from pinstripe.rows.extract import Found
from pinstripe.source.account import BACKFILL, Source
from pinstripe.source.page import read_object, truth_of
from pinstripe.store.cursors import Checkpoint


async def read_singletons(source: Source) -> list[Checkpoint]:
    """Writes them; gives a cursor for each that cannot be read."""
    refused: list[Checkpoint] = []
    for name, path in singleton_paths().items():
        table = table_name(name)
        if table not in source.wanted:
            continue
        try:
            reply = await source.stripe.get(path, endpoint=f"GET {path}", priority=BACKFILL)
        except (NotPermitted, NotEnabled, NotFound) as error:
            position = {"table": table}
            refused.append(
                Checkpoint(
                    path, "refused", position=position, reason=error.message, remedy=error.hint
                )
            )
            continue
        found = Found()
        source.mirror.extractor.object(read_object(reply, path), found)
        await source.follow_all(found)
        await source.mirror.put(found, truth_of(reply))
    return refused
