"""What the API and the console do with syncs (`gateway.control.SyncControl`), done.

Each change is stored first and then carried out; this service does so before it answers, others as soon
as they hear of it.
"""

from __future__ import annotations

import builtins

from pinstripe.errors import Misconfigured
from pinstripe.gateway.control import NewSync, StoredSync, SyncChange
from pinstripe.serving.roster import Roster
from pinstripe.store.stored_syncs import DEFAULT_ID, unknown


class Control:
    """The syncs of a running service."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._vault = roster.vault

    async def list(self) -> builtins.list[StoredSync]:
        return self._roster.all()

    async def get(self, sync_id: str) -> StoredSync:
        found = self._roster.get(sync_id)
        if found is None:
            raise unknown(sync_id)
        return found

    async def add(self, wish: NewSync) -> StoredSync:
        schema = wish.schema or wish.id.replace("-", "_")
        if self._vault.base.api_key is not None and schema == self._vault.base.schema:
            raise Misconfigured(
                f'The schema "{schema}" is that of the sync "{DEFAULT_ID}".',
                hint="Choose another schema for this one.",
            )
        sync = await self._vault.add(wish)
        return await self._carried_out(sync.id)

    async def change(self, sync_id: str, change: SyncChange) -> StoredSync:
        if sync_id == DEFAULT_ID:
            raise _not_stored()
        await self._vault.change(sync_id, change)
        return await self._carried_out(sync_id)

    async def pause(self, sync_id: str) -> StoredSync:
        await self._existing(sync_id)
        await self._vault.pause(sync_id)
        return await self._carried_out(sync_id)

    async def resume(self, sync_id: str) -> StoredSync:
        await self._existing(sync_id)
        await self._vault.resume(sync_id)
        return await self._carried_out(sync_id)

    async def remove(self, sync_id: str, *, drop_tables: bool) -> None:
        if sync_id == DEFAULT_ID:
            raise _not_stored()
        # Its process ends on the notice, which comes before the tables are dropped.
        await self._vault.remove(sync_id, drop_tables=drop_tables)
        await self._roster.read()

    async def _existing(self, sync_id: str) -> None:
        if sync_id == DEFAULT_ID:
            await self.get(sync_id)  # Without a key there is no default.

    async def _carried_out(self, sync_id: str) -> StoredSync:
        await self._roster.read()
        return await self.get(sync_id)


def _not_stored() -> Misconfigured:
    return Misconfigured(
        f'The sync "{DEFAULT_ID}" is described by flags and environment, not stored.',
        hint="Change STRIPE_API_KEY and the other settings of the service, and start it again.",
    )
