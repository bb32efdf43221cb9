"""What the columns that Stripe has moved add to the writing of a row: `catalog.moved` with and without.

The same responses go into two schemas, one with these columns and one without, in turns, through the
extractor and a writer as in a sync: the first copy of a page, and changes of one object as an event brings
them, with the indexes that a sync has then. CPU of Python and of the Postgres session, medians of pairs.
"""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import cast

import aiohttp

from benchmarks.account import mix
from benchmarks.figures import Figure
from benchmarks.stage import Stage, stage
from pinstripe.catalog.endpoints import list_endpoints
from pinstripe.catalog.tables import Table, tables
from pinstripe.client.response import AsOf, StripeObject, decode
from pinstripe.mirror.batch import Batch
from pinstripe.mirror.writer import Writer
from pinstripe.rows.extract import Extractor, RowSet
from pinstripe.store.ddl import qualified
from pinstripe.store.migrate import create_indexes, migrate
from pinstripe.store.pool import connect

_VERSION = "2026-10-28.endive"
_PAGES = 40
_CHANGES = 150
_OBJECTS = 4
"""So many are changed: the simulator's are of many shapes, each with plans that its first writes make, and
objects of one version of Stripe's have all the same fields."""
_MOST = 1.05
_LISTS = (
    "/v1/charges",
    "/v1/invoices",
    "/v1/invoiceitems",
    "/v1/payment_intents",
    "/v1/subscriptions",
)


@dataclass(slots=True)
class _Side:
    """One of the two schemas, with what writes to it."""

    schema: str
    known: Mapping[str, Table]
    extractor: Extractor
    writer: Writer
    _at: float = 1_790_000_000.0

    async def write(self, objects: Sequence[StripeObject], loading: Collection[str] = ()) -> float:
        """Microseconds of CPU of the write."""
        self._at += 10
        gc.collect()
        before, started = self._postgres_us(), time.process_time_ns()
        batch = Batch(_VERSION, self.known, loading=loading)
        found = RowSet()
        for obj in objects:
            self.extractor.object(obj, found)
            if not loading:
                # As an event brings it, which is a row too.
                self.extractor.object(_event(obj, self._at), found)
        batch.add(found, AsOf(self._at, self._at + 1))
        await self.writer.write(batch)
        return (time.process_time_ns() - started) / 1000 + self._postgres_us() - before

    def _postgres_us(self) -> float:
        pid = self.writer._sessions._idle[-1].pid if self.writer._sessions._idle else 0
        # Time on the CPU in nanoseconds: /proc/<pid>/stat counts in hundredths of a second.
        text = Path(f"/proc/{pid}/schedstat").read_text() if pid else "0"
        return int(text.split()[0]) / 1000

    async def empty(self) -> None:
        """Empty all tables, outside of what is measured."""
        async with connect(self.writer._url) as connection:
            names = ", ".join(qualified(self.schema, name) for name in self.known)
            await connection.execute(f"TRUNCATE {names}")


async def shapes(objects: int) -> AsyncIterator[Figure]:
    """CPU of each write with the columns, as a share of that without."""
    async with stage(mix(objects)) as at, AsyncExitStack() as stack:
        pages = {path: await _page(at, path) for path in _LISTS}
        url = await at.database()
        chosen = {name: t for name, t in tables().items() if not t.virtual}
        plain = {name: _plain(t) for name, t in chosen.items()}
        without = await _side(stack, url, "without", plain)
        both = await _side(stack, url, "with", chosen)
        sums = [[0.0, 0.0], [0.0, 0.0]]
        for path, page in pages.items():
            turns = await _in_turns(
                without, both, [page] * _PAGES, loading=set(chosen), afresh=True
            )
            yield _figure(f"{path}, a page of the first copy", turns, sums[0])
        for side in (without, both):
            await side.empty()
            async with connect(url) as connection:
                for table in side.known.values():
                    await create_indexes(connection, side.schema, table)
        for path, page in pages.items():
            for side in (without, both):
                await side.write(page)
            ones = [[_changed(page[n % _OBJECTS], n)] for n in range(_CHANGES)]
            yield _figure(f"{path}, an event", await _in_turns(without, both, ones), sums[1])
        for what, (before, added) in zip(("a page", "an event"), sums, strict=True):
            yield Figure("shapes", f"{what}, of all", 1 + added / before, "x", _MOST)


def _figure(what: str, turns: Sequence[tuple[float, float]], sums: list[float]) -> Figure:
    """The median of what the columns add, each write beside the same one without them."""
    sums[0] += median(without for without, _ in turns)
    sums[1] += median(both - without for without, both in turns)
    added = median(both / without for without, both in turns)
    return Figure("shapes", what, added, "x")


async def _in_turns(
    without: _Side,
    both: _Side,
    writes: Sequence[Sequence[StripeObject]],
    *,
    loading: Collection[str] = (),
    afresh: bool = False,
) -> list[tuple[float, float]]:
    """CPU of each write on both sides, without the first ones, in which plans are made."""
    found: list[tuple[float, float]] = []
    for number, write in enumerate(writes):
        turn: dict[str, float] = {}
        for side in (without, both) if number % 2 else (both, without):
            if afresh:
                await side.empty()
            turn[side.schema] = await side.write(write, loading)
        found.append((turn[without.schema], turn[both.schema]))
    return found[len(found) // 5 :]


def _event(obj: StripeObject, at: float) -> StripeObject:
    key = f"evt_{obj['id']}_{at:.0f}"
    head = {"id": key, "object": "event", "type": f"{obj['object']}.updated", "created": int(at)}
    request = {"id": "req_1", "idempotency_key": None}
    return {**head, "api_version": _VERSION, "request": request, "data": {"object": obj}}


def _changed(obj: StripeObject, number: int) -> StripeObject:
    return {**obj, "metadata": {"number": str(number)}}


def _plain(table: Table) -> Table:
    """The table without what the catalog knows of moved fields."""
    columns = tuple(replace(c, moved=None) for c in table.columns if not c.is_derived)
    return replace(table, columns=columns, linked=())


async def _side(stack: AsyncExitStack, url: str, schema: str, known: Mapping[str, Table]) -> _Side:
    async with connect(url) as connection:
        await migrate(
            connection, schema, known, sdk_version="", api_version=_VERSION, metrics=False
        )
    extractor = Extractor(known)
    writer = await stack.enter_async_context(Writer(url, schema, known, extractor.shapes))
    return _Side(schema, known, extractor, writer)


async def _page(at: Stage, path: str) -> list[StripeObject]:
    endpoint = next(e for e in list_endpoints() if e.path == path and not e.parent)
    wanted = [("limit", "100"), *(("expand[]", f"data.{name}") for name in endpoint.expand)]
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {at.simulator.key}"}) as client,
        client.get(at.simulator.url + path, params=wanted) as response,
    ):
        page = cast("dict[str, list[StripeObject]]", decode(await response.read()))
    return page["data"]
