"""Which resources a key may read: one object asked of each list that the tables need.

Lists that hang under a parent are asked under one parent, where a list before them has shown one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, replace

from pinstripe.catalog.domains import DOMAINS, domain_by_table
from pinstripe.catalog.endpoints import ListEndpoint, list_endpoints, singleton_paths
from pinstripe.catalog.tables import table_name, table_of_object
from pinstripe.client.paths import quote_id
from pinstripe.doctor.asking import Asker, Said
from pinstripe.doctor.findings import Resource
from pinstripe.errors import Drifted, WrongKey
from pinstripe.rows.decode import StripeObject
from pinstripe.source.page import read_list

ACCOUNT = "/v1/account"
_ONE = ("limit", "1")


@dataclass(frozen=True, slots=True)
class Tried:
    """A resource and, for what hangs under it, the first object that its list showed."""

    resource: Resource
    first: StripeObject | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What there is to ask: each path once."""

    singletons: tuple[tuple[str, str], ...]
    """(table, path)."""
    lists: tuple[ListEndpoint, ...]
    under_parents: tuple[ListEndpoint, ...]

    @property
    def requests(self) -> int:
        """At most; a list without a parent to ask for costs none."""
        return len(self.singletons) + len(self.lists) + len(self.under_parents)


def plan_for(tables: Collection[str]) -> Plan:
    """The lists that `tables` are filled from, and those that show their parents."""
    paths: dict[str, ListEndpoint] = {}
    for endpoint in list_endpoints():
        if endpoint.parent and endpoint.path in paths:
            continue  # The same list, of one test clock: the permission is the same.
        paths.setdefault(endpoint.path, endpoint)
    wanted = {
        path: endpoint for path, endpoint in paths.items() if set(_tables(endpoint)) & set(tables)
    }
    parents = {e.parent for e in wanted.values() if e.parent}
    showing = {
        path: endpoint
        for path, endpoint in paths.items()
        if not endpoint.parent and parents & set(endpoint.objects)
    }
    chosen = {**wanted, **showing}
    return Plan(
        singletons=tuple(
            (table_name(name), path)
            for name, path in singleton_paths().items()
            if table_name(name) in tables and path != ACCOUNT
        ),
        lists=tuple(e for e in chosen.values() if not e.parent),
        under_parents=tuple(e for e in chosen.values() if e.parent),
    )


async def try_resources(asker: Asker, plan: Plan, account: Tried) -> list[Tried]:
    """Asks for all of `plan`; `account` was asked before."""
    async with asyncio.TaskGroup() as group:
        alone = [group.create_task(_single(asker, *each)) for each in plan.singletons]
        lists = [group.create_task(_list(asker, endpoint)) for endpoint in plan.lists]
    found = [account, *(task.result() for task in (*alone, *lists))]
    firsts: dict[str, Tried] = {}
    for endpoint, task in zip(plan.lists, lists, strict=True):
        for name in endpoint.objects:
            firsts.setdefault(name, task.result())
    if "account" not in firsts or firsts["account"].first is None:
        firsts["account"] = account
    async with asyncio.TaskGroup() as group:
        nested = [
            group.create_task(_under(asker, endpoint, firsts.get(endpoint.parent)))
            for endpoint in plan.under_parents
        ]
    return [*found, *(task.result() for task in nested)]


def resource_of(path: str, tables: tuple[str, ...], said: Said) -> Resource:
    """What Stripe said of `path`."""
    product = domain_by_table()[tables[0]].title
    return resource_in(product, path, tables, said)


def resource_in(product: str, path: str, tables: tuple[str, ...], said: Said) -> Resource:
    """As `resource_of`, of a product that is known."""
    lacking = said.lacking
    return Resource(
        path,
        product,
        tables,
        said.state,
        lacking.slug or lacking.title,
        said.message,
        said.remedy,
        lacking.title,
        lacking.edit_url,
    )


def in_order(resource: Resource) -> tuple[int, str]:
    """Product after product, as the reference has them."""
    titles = [d.title for d in DOMAINS.values()]
    return titles.index(resource.product), resource.path


async def _single(asker: Asker, table: str, path: str) -> Tried:
    return Tried(resource_of(path, (table,), await asker.get(path, endpoint=f"GET {path}")))


async def _list(asker: Asker, endpoint: ListEndpoint) -> Tried:
    said = await asker.get(endpoint.path, _params(endpoint), endpoint=endpoint.name)
    return _tried(endpoint, said)


async def _under(asker: Asker, endpoint: ListEndpoint, parent: Tried | None) -> Tried:
    parent_id = parent.first.get("id") if parent is not None and parent.first else None
    if not isinstance(parent_id, str) or not parent_id:
        if parent is not None and parent.resource.state == "not_enabled":
            why = parent.resource
            return _tried(endpoint, Said("not_enabled", message=why.message, remedy=why.remedy))
        return _tried(endpoint, Said("not_tried", message=_why_not(endpoint, parent)))
    path, params = endpoint.url(parent_id, quote_id(parent_id))
    said = await asker.get(path, [*_limit(endpoint), *params], endpoint=endpoint.name)
    if said.state == "refused" and not isinstance(said.error, WrongKey):
        # Stripe let the key in and minds this one parent: gone meanwhile, or of another kind.
        words = f"Readable as far as one can tell: of {parent_id} {said.message}"
        return _tried(endpoint, replace(said, state="readable", message=words, remedy=""))
    return _tried(endpoint, said)


def _why_not(endpoint: ListEndpoint, parent: Tried | None) -> str:
    what = endpoint.parent
    if parent is None:
        return f"not tried: it takes the id of a {what}, and no list shows any"
    if parent.resource.state == "readable":
        return f"not tried: there is no {what} yet"
    return f"not tried: {parent.resource.path}, which it hangs under, cannot be read"


def _tried(endpoint: ListEndpoint, said: Said) -> Tried:
    first: StripeObject | None = None
    if said.reply is not None:
        try:
            first = next(iter(read_list(said.reply, endpoint.path).objects), None)
        except Drifted as error:
            said = Said("failed", message=error.message, remedy=error.hint)
    return Tried(resource_of(endpoint.path, _tables(endpoint), said), first)


def _tables(endpoint: ListEndpoint) -> tuple[str, ...]:
    known = table_of_object()
    return tuple(known[name] for name in endpoint.objects if name in known)


def _params(endpoint: ListEndpoint) -> list[tuple[str, str]]:
    return [*_limit(endpoint), *endpoint.params]


def _limit(endpoint: ListEndpoint) -> list[tuple[str, str]]:
    return [_ONE] if endpoint.takes_limit else []
