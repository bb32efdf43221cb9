"""Answers that are only a hint: their objects are asked for again, in our version, as they are now.

A GET is repeated as the caller made it, with the caller's key: one request, for a list as well. After
a write the objects are retrieved with the sync's key, within its budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pinstripe.errors import NotFound, Refused
from pinstripe.gateway.answers import Place, Unreadable, parents_of, read, unpack
from pinstripe.gateway.answers_truth import truth_of_exchange
from pinstripe.gateway.hosts import Target
from pinstripe.gateway.syncs import OpenSync
from pinstripe.gateway.upstream import Unanswered, Upstream
from pinstripe.mirror import Truth
from pinstripe.rows.extract import Found
from pinstripe.source.account import LIVE, retrieve_endpoint
from pinstripe.source.page import read_object, truth_of
from pinstripe.source.settle import bury, has_address
from pinstripe.store.batch import Effect
from pinstripe.store.pool import Connection
from pinstripe.store.todo import Todo, add_todos

ANSWER_BYTES = 32 * 2**20
"""The largest answer that is read whole. Stripe's pages of 100 objects have up to a few MB."""

_FETCHED_AT_ONCE = 12
"""Objects of one answer that are fetched before it is passed on; the others are noted to be."""
# Would change what is answered, or are about the first answer.
_NOT_REPEATED = frozenset(
    {"stripe-version", "accept-encoding", "if-none-match", "if-modified-since", "range"}
)


async def ask_again(
    upstream: Upstream, sync: OpenSync, target: Target, headers: Sequence[tuple[str, str]]
) -> tuple[Found, Truth] | None:
    """A GET of the caller's in our version; None where Stripe does not answer that with objects."""
    asked = [(n, v) for n, v in headers if n not in _NOT_REPEATED]
    asked += [("stripe-version", sync.mirror.api_version), ("accept-encoding", "gzip")]
    try:
        came = await upstream.send("GET", target.url, asked)
        body, whole = await came.read(ANSWER_BYTES)
        if not whole:
            came.close()
            return None
        if came.status != 200:
            return None
        unpacked = await unpack(body, came.header(b"content-encoding"))
        reading = read(unpacked, sync.mirror.extractor, parents_of(target.path, target.query))
    except (Unanswered, Unreadable):
        return None
    return reading.found, truth_of_exchange(came)


async def fetch_again(sync: OpenSync, places: Iterable[Place]) -> bool:
    """Retrieves the objects, those that hold others first; False if some are only noted.

    Raises what `Stripe.get` and `Mirror.put` raise.
    """
    covered: set[Place] = set()
    left: list[Place] = []
    for place in places:
        table = place[0]
        if place in covered or table not in sync.mirror.tables:
            continue
        if retrieve_endpoint(table) is None:
            continue
        if len(covered) >= _FETCHED_AT_ONCE:
            left.append(place)
            continue
        covered |= await fetch_one(sync, place)
        covered.add(place)
    if left:
        async with sync.source.transaction() as connection:
            now = sync.source.now()
            todos = [Todo("fetch", table, key, since=now) for table, key in left]
            await add_todos(connection, sync.schema, todos)
    return not left


def follow_up(sync: OpenSync, found: Found, truth: Truth) -> Effect | None:
    """Notes what a write's answer shows in part, in the transaction that writes the rest.

    Objects whose lists it cut at ten, and those that it names as they were at another time.
    """
    owners = {(cut.parent_table, cut.parent_id) for cut in found.lists}
    wanted = [p for p in sorted(owners) if p[0] and retrieve_endpoint(p[0]) is not None]
    named = [p for p in sorted(found.elsewhere) if p[0] in sync.mirror.tables and has_address(p[0])]
    if not wanted and not named:
        return None
    todos = [Todo("fetch", table, key, since=truth.hi) for table, key in wanted]
    todos += [Todo("relate", table, key, since=truth.hi) for table, key in named]

    async def note(connection: Connection) -> None:
        await add_todos(connection, sync.schema, todos)

    return note


async def fetch_one(sync: OpenSync, place: Place) -> set[Place]:
    """Retrieves one object and mirrors it; gives the rows that it held. One that is gone is flagged."""
    table, key = place
    where = retrieve_endpoint(table)
    if where is None or where.parent_parameter:
        return set()
    source = sync.source
    version = await source.version(table, key)
    try:
        reply = await source.get_object(where, key, "", LIVE)
    except NotFound:
        await bury(source, table, key, over=version)
        return set()
    except Refused:
        # Readable to the caller and not to the sync: no table of ours then.
        return set()
    found = Found()
    sync.mirror.extractor.object(read_object(reply, where.path), found)
    over = {place: version} if version is not None else None
    await sync.mirror.put(found, truth_of(reply), over=over)
    return {(name, each) for name, group in found.rows.items() for each in group}
