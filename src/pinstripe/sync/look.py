"""Reads lists and objects once more, by the code of the backfill, into whatever mirror it is given.

With the mirror of a `Comparer` it compares, with the real one it repairs. Cursors play no part: every
list is read from its top, and nothing is saved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from pinstripe.catalog.endpoints import ListEndpoint, list_endpoints, singleton_paths
from pinstripe.catalog.model import ObjectType
from pinstripe.catalog.load import object_types
from pinstripe.catalog.tables import table_name, tables
from pinstripe.client.limits import Budget
from pinstripe.errors import NotEnabled, NotPermitted, Refused
from pinstripe.store.cursors import Checkpoint
from pinstripe.store.compare import Place
from pinstripe.sync.dispatch import Dispatcher
from pinstripe.sync.listing import Listing
from pinstripe.sync.page import read_object, truth_of
from pinstripe.sync.pager import Pager
from pinstripe.sync.singletons import read_singletons
from pinstripe.sync.source import BACKFILL, Source, retrieve_endpoint
from pinstripe.sync.under_parents import UnderParents

Work = Pager | UnderParents


@dataclass(slots=True)
class Walk:
    """Lists that were read, and those that could not be."""

    works: list[Work] = field(default_factory=list)
    singletons: list[Checkpoint] = field(default_factory=list)

    def requests(self) -> Counter[str]:
        """By table."""
        found: Counter[str] = Counter()
        for work in self.works:
            found[table_of(work)] += work.requests if isinstance(work, UnderParents) else work.listing.requests
        return found

    def ends(self) -> Iterator[tuple[ListEndpoint, Checkpoint]]:
        """How each list ended."""
        for work in self.works:
            end = work.final() if isinstance(work, UnderParents) else work.listing.final()
            yield work.endpoint, end


def table_of(work: Work) -> str:
    return work.table if isinstance(work, UnderParents) else work.listing.table


def endpoints_of(source: Source, only: Collection[str] | None = None) -> list[ListEndpoint]:
    """The lists that show rows of these tables, of all wanted ones by default."""
    names = source.wanted if only is None else only
    return [e for e in list_endpoints() if any(table_name(o) in names for o in e.objects)]


async def walk(
    source: Source,
    budget: Budget,
    *,
    now: float,
    birth: int,
    only: Collection[str] | None = None,
    found: Walk | None = None,
) -> Walk:
    """Reads every list of these tables to its end. Fills `found` as it goes, for who looks on."""
    found = found if found is not None else Walk()
    for endpoint in endpoints_of(source, only):
        names = [table_name(o) for o in endpoint.objects]
        table = next(n for n in names if n in source.wanted)
        if not endpoint.parent:
            listing = Listing.fresh(endpoint, table, ceiling=int(now), birth=birth)
            found.works.append(Pager(listing, source))
            continue
        work = UnderParents(endpoint, table, source, source.pool)
        if table_name(endpoint.parent) not in source.wanted:
            work.state, work.reason = "refused", f"{work.parent_table} is not synced"
        found.works.append(work)
    if only is None or set(only) & {table_name(o) for o in singleton_paths()}:
        found.singletons = await read_singletons(source)
    await Dispatcher(budget).run(found.works, more=lambda: ())
    return found


@dataclass(slots=True)
class Retrieval:
    """Fetches single objects; remembers the types that the key may not retrieve."""

    refused: dict[str, Refused] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)

    async def get(
        self, source: Source, place: Place, parents: Collection[Place], versions: Mapping[Place, object]
    ) -> bool:
        """Reads the object into the source's mirror; False where it cannot be read by itself.

        Raises NotFound if Stripe does not have it (any more).
        """
        ...


@dataclass(frozen=True, slots=True)
class Way:
    """How one row is read again: by a GET of `table`/`key` (under `parent`), which is the row's own
    object or one whose lists hold it."""

    table: str
    key: str
    parent: str = ""
    own: bool = True
