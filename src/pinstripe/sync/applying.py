"""What a handful of events comes to: the rows that they leave, and what they make us ask of Stripe.

    events -> changes (order) -> parts for the mirror, to-dos

Each state is written as true in the second of its event. Where the events do not tell the newest state
for sure, or tell it in another API version than ours, nothing is written: it is fetched. Which types
there are, and what has a table, is the catalog's word; nothing here knows an event by its name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import structlog

from pinstripe.catalog.tables import table_of_object
from pinstripe.errors import PinstripeError
from pinstripe.mirror import Part, Truth
from pinstripe.rows.decode import StripeObject
from pinstripe.rows.extract import Found
from pinstripe.rows.keys import key_of
from pinstripe.source.account import Source, parent_of
from pinstripe.source.settle import can_be_asked, has_address
from pinstripe.store.changes import Cause
from pinstripe.store.todo import Todo
from pinstripe.sync.order import Change, changes, created_of, payload, request_of
from pinstripe.sync.related import related, summarised

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

More = Callable[[Sequence[StripeObject]], Awaitable[list[Todo]]]
"""Events -> the to-dos of previews that they ask for."""


class Planner:
    """Plans for one account. Writes nothing."""

    def __init__(self, source: Source, more: More | None = None) -> None:
        self._source = source
        self._more = more
        self._table_of = table_of_object()

    async def plan(
        self, events: Sequence[StripeObject], truth: Truth
    ) -> tuple[list[Part], list[Todo]]:
        """What to write, and what to ask. `events` newest first; `truth`: when the list said so."""
        extractor, wanted = self._source.mirror.extractor, self._source.wanted
        log = Found()
        for event in events:
            extractor.object(event, log)
        parts: list[Part] = [(log, truth)]
        todos: list[Todo] = []
        for change in changes(events, self._source.mirror.api_version):
            found = Found()
            written, asked = self._state(change, found)
            todos += self._mentioned(change, found)
            if written:
                cause = Cause(change.event_id, change.request_id)
                truth_then = Truth(float(change.created), change.created + 1.0, cause=cause)
                parts.append((found, truth_then))
            todos += asked
            todos += related(change, wanted)
        for event in events:
            obj = payload(event) or {}
            if (
                key_of(str(obj.get("object")), obj) is None
                and obj.get("object") not in self._table_of
            ):
                # No row of its own (an alert that was triggered), but what it holds has one.
                found, second = Found(), created_of(event)
                extractor.object(obj, found)
                cause = Cause(str(event.get("id")), request_of(event))
                parts.append((found, Truth(float(second), second + 1.0, cause=cause)))
                todos += summarised(event, wanted)
        if self._more is not None and events:
            try:
                todos += await self._more(events)
            except PinstripeError as error:
                if error.fault is None or error.fault.scope != "table":
                    raise
                # A table that the previews are found through is gone; the next refill asks for all.
                _log.warning("applying.no_previews", error=error.message)
        return parts, todos

    def _mentioned(self, change: Change, found: Found) -> list[Todo]:
        """Fetches, if they are no rows yet, what the change names and shows as it was at another time."""
        return [
            change.todo("relate", table, key)
            for table, key in sorted(found.elsewhere)
            if table in self._source.wanted and has_address(table)
        ]

    def _state(self, change: Change, found: Found) -> tuple[bool, list[Todo]]:
        """The rows that one change leaves, or the request that will tell them."""
        table = self._table_of.get(change.name)
        extractor, wanted = self._source.mirror.extractor, self._source.wanted
        parent = parent_of(change.object)
        fetch = [change.todo("fetch", table or "", change.key, parent=parent)]
        if table is None:
            # Of a type to come, or one without a table: what it holds may have one.
            extractor.object(change.object, found)
            return True, []
        if table not in wanted:
            return False, []
        if (change.hint or not change.sure) and can_be_asked(table):
            return False, fetch
        if change.deleted and wanted[table].deletable:
            # In another version the payload says for sure only which object is gone.
            stub = {"id": change.key, "object": change.name}
            extractor.object({**(stub if change.hint else change.object), "deleted": True}, found)
            return True, []
        extractor.object(change.object, found)
        return True, fetch if found.lists else []
