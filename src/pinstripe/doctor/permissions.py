"""What a key can do: read each list that the tables need, and use events, previews and webhooks.

Each list is requested with a limit of one object. A list under a parent is requested for one parent, if
an earlier list returned one. Writing webhook endpoints is tested only on request, although the test
changes nothing: Stripe checks the permission first and then rejects an endpoint without a URL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from pinstripe.catalog.domains import DOMAINS, domain_by_table
from pinstripe.catalog.endpoints import ListEndpoint, by_parent, list_endpoints, singleton_paths
from pinstripe.catalog.tables import table_name, table_of_object
from pinstripe.client.api_key import ApiKey
from pinstripe.client.client import quote_id
from pinstripe.client.response import StripeObject, read_list
from pinstripe.doctor.probe import Prober, ProbeResult
from pinstripe.doctor.report import Ability, AbilityName, AbilityState, Resource, ResourceState
from pinstripe.errors import Drifted, MissingParent, WrongKey
from pinstripe.rows.event import EVENTS

ACCOUNT = "/v1/account"
_ONE = ("limit", "1")


@dataclass(frozen=True, slots=True)
class Tried:
    """A resource and, for what hangs under it, the first object that its list showed."""

    resource: Resource
    first: StripeObject | None = None


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """The requests to send: each path once."""

    singletons: tuple[tuple[str, str], ...]
    """(table, path)."""
    lists: tuple[ListEndpoint, ...]
    under_parents: tuple[ListEndpoint, ...]
    tables: Collection[str]

    @property
    def requests(self) -> int:
        """The maximum; a list without a parent costs none."""
        return len(self.singletons) + len(self.lists) + len(self.under_parents)


def plan_for(tables: Collection[str]) -> ProbePlan:
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
    return ProbePlan(
        singletons=tuple(
            (table_name(name), path)
            for name, path in singleton_paths().items()
            if table_name(name) in tables and path != ACCOUNT
        ),
        lists=tuple(e for e in chosen.values() if not e.parent),
        under_parents=tuple(e for e in chosen.values() if e.parent),
        tables=tables,
    )


async def try_resources(asker: Prober, plan: ProbePlan, account: Tried) -> list[Tried]:
    """Request everything in `plan`; `account` was requested before."""
    async with asyncio.TaskGroup() as group:
        alone = [group.create_task(_single(asker, *each)) for each in plan.singletons]
        lists = [group.create_task(_list(asker, endpoint, plan)) for endpoint in plan.lists]
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


def resource_of(path: str, tables: tuple[str, ...], said: ProbeResult) -> Resource:
    """Return Stripe's result for `path`."""
    product = domain_by_table()[tables[0]].title
    return resource_in(product, path, tables, said)


def resource_in(product: str, path: str, tables: tuple[str, ...], said: ProbeResult) -> Resource:
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


async def _single(asker: Prober, table: str, path: str) -> Tried:
    return Tried(resource_of(path, (table,), await asker.get(path, endpoint=f"GET {path}")))


async def _list(asker: Prober, endpoint: ListEndpoint, plan: ProbePlan) -> Tried:
    said = await asker.get(endpoint.path, _params(endpoint), endpoint=endpoint.name)
    other = by_parent(endpoint)
    if other is not None and isinstance(said.error, MissingParent):
        words = f"Read under each {other.parent} instead: {said.message}"
        if (parent := other.parent_table) in plan.tables:
            said = replace(said, state="readable", message=words, remedy="")
        else:
            said = replace(said, remedy=f"Add {parent} to --tables: it is read under each of them.")
    return _tried(endpoint, said)


async def _under(asker: Prober, endpoint: ListEndpoint, parent: Tried | None) -> Tried:
    parent_id = parent.first.get("id") if parent is not None and parent.first else None
    if not isinstance(parent_id, str) or not parent_id:
        if parent is not None and parent.resource.state == "not_enabled":
            why = parent.resource
            return _tried(
                endpoint, ProbeResult("not_enabled", message=why.message, remedy=why.remedy)
            )
        return _tried(endpoint, ProbeResult("not_tried", message=_why_not(endpoint, parent)))
    path, params = endpoint.url(parent_id, quote_id(parent_id))
    said = await asker.get(path, [*_limit(endpoint), *params], endpoint=endpoint.name)
    if said.state == "refused" and not isinstance(said.error, WrongKey):
        # Permission granted, but this parent was rejected: deleted meanwhile, or of another type.
        words = f"Probably readable; for {parent_id}: {said.message}"
        return _tried(endpoint, replace(said, state="readable", message=words, remedy=""))
    return _tried(endpoint, said)


def _why_not(endpoint: ListEndpoint, parent: Tried | None) -> str:
    what = endpoint.parent
    if parent is None:
        return f"not checked: it needs the id of a {what}, and no list contains one"
    if parent.resource.state == "readable":
        return f"not checked: there is no {what} yet"
    return f"not checked: its parent {parent.resource.path} cannot be read"


def _tried(endpoint: ListEndpoint, said: ProbeResult) -> Tried:
    first: StripeObject | None = None
    if said.response is not None:
        try:
            first = next(iter(read_list(said.response, endpoint.path).objects), None)
        except Drifted as error:
            said = ProbeResult("failed", message=error.message, remedy=error.hint)
    return Tried(resource_of(endpoint.path, _tables(endpoint), said), first)


def _tables(endpoint: ListEndpoint) -> tuple[str, ...]:
    known = table_of_object()
    return tuple(known[name] for name in endpoint.objects if name in known)


def _params(endpoint: ListEndpoint) -> list[tuple[str, str]]:
    return [*_limit(endpoint), *endpoint.params]


def _limit(endpoint: ListEndpoint) -> list[tuple[str, str]]:
    return [_ONE] if endpoint.takes_limit else []


WEBHOOKS = "/v1/webhook_endpoints"
_PREVIEW = "/v1/invoices/create_preview"


@dataclass(frozen=True, slots=True)
class _Lists:
    """Results of the lists, by path."""

    tried: dict[str, Tried]

    def resource(self, path: str) -> Resource | None:
        found = self.tried.get(path)
        return found.resource if found else None

    def first_id(self, path: str) -> str:
        found = self.tried.get(path)
        first = found.first.get("id") if found and found.first else None
        return first if isinstance(first, str) else ""


async def try_abilities(
    asker: Prober, key: ApiKey, tried: Sequence[Tried], *, writes: bool
) -> tuple[Ability, ...]:
    """All four. With `writes` webhooks are tried with a request that Stripe cannot fulfil."""
    lists = _Lists({t.resource.path: t for t in tried})
    return (
        await _reading(asker, lists, EVENTS, "events"),
        await _previews(asker, lists),
        await _reading(asker, lists, WEBHOOKS, "webhooks_read"),
        await _try_write(asker) if writes else _write_untried(key),
    )


async def _reading(asker: Prober, lists: _Lists, path: str, name: AbilityName) -> Ability:
    known = lists.resource(path)
    if known is None:  # The tables that were chosen do not need this list.
        said = await asker.get(path, [("limit", "1")], endpoint=f"GET {path}")
        known = resource_in("", path, (), said)
    if known.state == "readable":
        return Ability(name, "yes", f"GET {path} succeeded")
    return _lacking(name, known)


async def _previews(asker: Prober, lists: _Lists) -> Ability:
    """Preview with a subscription if there is one. "Nothing is due" counts as permission granted."""
    subscription = lists.first_id("/v1/subscriptions")
    params = [("subscription", subscription)] if subscription else []
    said = await asker.post(_PREVIEW, params, endpoint=f"POST {_PREVIEW}")
    of = f"of {subscription}" if subscription else "without a subscription, as there is none"
    return _judged("previews", said, f"a preview {of}, which changes nothing")


async def _try_write(asker: Prober) -> Ability:
    said = await asker.post(WEBHOOKS, [], endpoint=f"POST {WEBHOOKS}")
    return _judged("webhooks_write", said, "an endpoint without a URL, which Stripe rejects")


def _judged(name: AbilityName, said: ProbeResult, tried: str) -> Ability:
    """A refusal for the parameters means that the key was let in."""
    if said.state in ("readable", "refused"):
        return Ability(name, "yes", f"tried {tried}: permission granted")
    return _lacking(name, resource_in("", "", (), said))


def _lacking(name: AbilityName, known: Resource) -> Ability:
    return Ability(
        name,
        _no(known.state),
        known.message,
        known.permission,
        known.remedy,
        known.permission_title,
        known.edit_url,
    )


def _no(state: ResourceState) -> AbilityState:
    """A failed request proves nothing about the key."""
    return "unknown" if state == "failed" else "no"


def _write_untried(key: ApiKey) -> Ability:
    if key.kind == "standard":
        return Ability("webhooks_write", "yes", "not checked: a secret key has full access")
    return Ability(
        "webhooks_write",
        "unknown",
        "not checked: use --try-writes, which sends a request that changes nothing",
    )
