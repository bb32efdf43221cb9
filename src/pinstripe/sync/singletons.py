"""Objects that are one to an account: its own record, its balance, its settings. One GET each."""

from __future__ import annotations

from pinstripe.catalog.endpoints import singleton_paths
from pinstripe.catalog.tables import table_name
from pinstripe.errors import LostLease, PinstripeError, Unwritable, WrongKey
from pinstripe.rows.extract import Found
from pinstripe.source.account import BACKFILL, Source
from pinstripe.source.page import read_object, truth_of
from pinstripe.store.cursors import Checkpoint, ended_by


async def read_singletons(source: Source, only: str = "") -> list[Checkpoint]:
    """Writes them, or the one at the path `only`; gives a cursor for each that cannot be read.

    Refused by an answer of Stripe's; failed by trouble, and to be tried again.
    """
    refused: list[Checkpoint] = []
    for name, path in singleton_paths().items():
        table = table_name(name)
        if table not in source.wanted or only not in ("", path):
            continue
        try:
            reply = await source.stripe.get(path, endpoint=f"GET {path}", priority=BACKFILL)
            found = Found()
            source.mirror.extractor.object(read_object(reply, path), found)
            await source.follow_all(found)
            await source.mirror.put(found, truth_of(reply))
        except (WrongKey, LostLease, Unwritable):
            raise
        except PinstripeError as error:
            refused.append(ended_by(error, path, {"table": table}))
    return refused
