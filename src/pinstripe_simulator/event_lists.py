"""`/v1/events`: filters by type, retention of 30 days, events that cannot be seen yet."""

from __future__ import annotations

from fnmatch import fnmatchcase

from pinstripe_simulator.events import EventLog
from pinstripe_simulator.lists import Page, created_range, walk
from pinstripe_simulator.params import Params
from pinstripe_simulator.replies import missing, refused
from pinstripe_simulator.table import Table

_MOST_TYPES = 20


class _Judge:
    """Shows what has the wanted type, is young enough and has become visible."""

    def __init__(self, log: EventLog, table: Table, wanted: tuple[str, ...]) -> None:
        self._log = log
        self._table = table
        self._wanted = wanted

    def shows(self, position: int) -> bool:
        if self._table.gone(position) or not self._log.visible(position):
            return False
        if not self._wanted:
            return True
        name = self._log.type_at(position)
        return any(name == w or ("*" in w and fnmatchcase(name, w)) for w in self._wanted)


def event_page(log: EventLog, table: Table, params: Params) -> Page:
    """A page of the log, newest first."""
    wanted = params.get("types")
    if wanted is not None and params.get("type") is not None:
        raise refused("You may only specify one of these parameters: type, types.")
    if wanted is not None and len(wanted) > _MOST_TYPES:
        raise refused(f"You may only specify up to {_MOST_TYPES} types.", param="types")
    for cursor in ("starting_after", "ending_before"):
        _check_cursor(log, table, params.get(cursor), cursor)
    one = params.get("type")
    judge = _Judge(log, table, tuple(wanted or ((one,) if one else ())))
    low, high = created_range(table, params)
    return walk(table, params, judge, range(max(low, log.oldest()), high))


def _check_cursor(log: EventLog, table: Table, id: str | None, param: str) -> None:
    if id is None:
        return
    position = table.position(id)
    if position is None:
        raise missing("event", id, param=param, status=400)
    if position < log.oldest() or table.gone(position):
        raise refused(
            f"The event {id} has aged out of our retention policy and can no longer be used as a "
            "cursor.",
            param=param,
        )
