"""The first copy in numbers: each table as the sum over its lists, and how long the rest may take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pinstripe.client.limits import Budget
from pinstripe.sync.pager import Pager
from pinstripe.sync.under_parents import UnderParents

Works = Sequence[Pager | UnderParents]


@dataclass(slots=True)
class TableTally:
    """One table. `remaining`: about how many requests are left."""

    table: str
    rows: int = 0
    remaining: float = 0.0
    running: bool = False
    refused: str = ""
    remedy: str = ""
    failed: bool = False


def tally(works: Iterable[Pager | UnderParents]) -> list[TableTally]:
    """The tables in the order of their first list."""
    found: dict[str, TableTally] = {}
    for work in works:
        state = work.listing if isinstance(work, Pager) else work
        line = found.setdefault(state.table, TableTally(state.table))
        line.rows += state.rows
        if not work.finished:
            line.running = True
            line.remaining += work.remaining()
        if state.state == "refused":
            line.refused, line.remedy = state.reason, state.remedy
        line.failed = line.failed or state.state == "failed"
    return list(found.values())


def left_s(works: Works, budget: Budget, requests_per_s: float) -> float:
    """All that is left at the present rate, in seconds; no list faster than its endpoint allows."""
    unfinished = [work for work in works if not work.finished]
    longest = max(
        (w.remaining() / (budget.rate(w.endpoint.name) or requests_per_s) for w in unfinished),
        default=0.0,
    )
    return max(sum(w.remaining() for w in unfinished) / requests_per_s, longest)
