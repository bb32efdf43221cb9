"""One page of a list: newest first, by cursor, inside a range of `created`, filtered.

Positions are walked downwards (upwards for `ending_before`); a filter by reference walks only what
the relation names. `has_more` comes from looking one further. Pages are text from end to end.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from pinstripe_simulator.judge import Judge
from pinstripe_simulator.objects import Objects
from pinstripe_simulator.params import Params
from pinstripe_simulator.relations import Even
from pinstripe_simulator.replies import missing, refused
from pinstripe_simulator.table import Table
from pinstripe_simulator.visibility import conditions

_INDENT = 4
"""Spaces before an entry of a list, as Stripe prints it."""
# Types whose list wants an owner that the objects themselves do not name: the parameter, and its type.
_OWNERS = {"entitlements.active_entitlement": "customer"}
# Types whose list takes an owner that only what they refer to names: the field that refers to it.
_THROUGH = {"billing.credit_balance_transaction": "credit_grant"}
_WHOSE = ("customer", "customer_account")
_DEFAULT_LIMIT, _LARGEST_LIMIT = 10, 100
WHOLE = "(whole)"
"""Among the parameters of a list that takes no limit: it shows all. No caller can name it."""


@dataclass(frozen=True)
class Page:
    """Positions in `table`, in the order of the list."""

    table: Table
    positions: Sequence[int]
    has_more: bool


class Shows(Protocol):
    """Decides whether the list shows what is at a position."""

    def shows(self, position: int) -> bool: ...


def limit_of(params: Params) -> int:
    """The page size asked for; Stripe takes what lies outside 1 to 100 as the nearest of both."""
    if params.get(WHOLE):
        return sys.maxsize
    limit = params.get("limit", _DEFAULT_LIMIT)
    return min(max(int(limit), 1), _LARGEST_LIMIT)


def page_of(
    objects: Objects, table: Table, params: Params, fields: Sequence[str], *, hide: bool = True
) -> Page:
    """A page of the whole table. `hide=False` where Stripe's hidden ones are shown too."""
    low, high = created_range(table, params)
    candidates = by_reference(objects, table, params)
    wanted = conditions(table, params, dict.fromkeys(fields)) if hide else []
    judge = Judge(objects, table, wanted)
    return walk(table, params, judge, range(low, high), candidates)


def page_of_children(
    objects: Objects, table: Table, positions: Sequence[int], params: Params, judge: Judge
) -> Page:
    """A page of a nested list; `positions` newest first."""
    low, high = created_range(table, params)
    return walk(table, params, judge, range(low, high), positions)


def walk(
    table: Table,
    params: Params,
    judge: Shows,
    inside: range,
    candidates: Sequence[int] | None = None,
) -> Page:
    """The page among the positions `inside` (or among those of `candidates`, newest first)."""
    low, high = inside.start, inside.stop
    limit = limit_of(params)
    after, before = params.get("starting_after"), params.get("ending_before")
    if after is not None and before is not None:
        raise refused(
            "Received both starting_after and ending_before parameters. Please pass in only one."
        )
    if after is not None:
        high = min(high, _cursor(table, after, "starting_after"))
    if before is not None:
        low = max(low, _cursor(table, before, "ending_before") + 1)
    upwards = before is not None
    order: Iterable[int]
    if candidates is None:
        order = range(low, high) if upwards else range(high - 1, low - 1, -1)
    else:
        within = [p for p in candidates if low <= p < high]
        order = reversed(within) if upwards else within
    found: list[int] = []
    for position in order:
        if judge.shows(position):
            found.append(position)
            if len(found) > limit:
                break
    more = len(found) > limit
    found = found[:limit]
    return Page(table, found[::-1] if upwards else found, more)


def created_range(table: Table, params: Params) -> tuple[int, int]:
    """First position inside and first position after the range that `created` asks for."""
    created = params.get("created")
    if isinstance(created, int):
        return table.rank(created), table.rank(created + 1)
    if not isinstance(created, dict):
        return 0, table.total
    low = max(created.get("gt", -2) + 1, created.get("gte", -1))
    high = min(created.get("lt", 1 << 60), created.get("lte", 1 << 60) + 1)
    return (
        table.rank(low) if low > 0 else 0,
        table.rank(high) if high < 1 << 60 else table.total,
    )


def _cursor(table: Table, id: str, param: str) -> int:
    position = table.position(id)
    # A deleted customer still serves, both ways (seen in recorded answers).
    gone = position is not None and table.gone(position) and table.kind.name != "customer"
    if position is None or gone:
        raise missing(table.kind.name, id, param=param, status=400)
    return position


def by_reference(objects: Objects, table: Table, params: Params) -> list[int] | None:
    """What a filter such as `customer=` leaves, newest first; None: no such filter."""
    if table.name == "balance_transaction":
        return _entries(objects, table, params)
    if table.name in _THROUGH and (asked := {k: params[k] for k in _WHOSE if k in params}):
        return _through(objects, table, _THROUGH[table.name], asked)
    for field, (relation, target) in table.links.items():
        value = params.get(field)
        if not isinstance(value, str):
            continue
        there = objects.table(target)
        owner = there.position(value)
        if owner is None:
            if field == "customer":
                raise missing(there.kind.name, value, param=field, status=400)
            return []
        base = relation.back(owner) if owner < there.base else range(0)
        return sorted({*base, *table.by_value.get((field, value), ())}, reverse=True)
    return _unnamed(objects, table, params)


def _through(objects: Objects, table: Table, field: str, asked: Params) -> list[int]:
    """What refers to any of those that belong to the owner asked for."""
    there = objects.table(table.links[field][1])
    judge = Judge(objects, there, conditions(there, asked, there.sample(0)))
    candidates = by_reference(objects, there, asked)
    owned = filter(judge.shows, range(there.total) if candidates is None else candidates)
    found = (by_reference(objects, table, {field: there.id_at(p)}) or () for p in owned)
    return sorted({position for positions in found for position in positions}, reverse=True)


def _unnamed(objects: Objects, table: Table, params: Params) -> list[int] | None:
    """Entries that belong to an owner whom they do not name: shared out evenly among the owners."""
    field = _OWNERS.get(table.name)
    value = params.get(field) if field else None
    if field is None or not isinstance(value, str):
        return None
    there = objects.table(field)
    owner = there.position(value)
    if owner is None:
        raise missing(there.kind.name, value, param=field, status=400)
    return shared_out(table, there, owner)


def shared_out(table: Table, there: Table, owner: int) -> list[int]:
    """Positions in `table`, newest first, of what the owner at a position of `there` has."""
    mine = Even(table.base, there.base).back(owner) if owner < there.base else range(0)
    return sorted({*mine, *table.by_value.get(("", there.id_at(owner)), ())}, reverse=True)


def _entries(objects: Objects, table: Table, params: Params) -> list[int] | None:
    """Balance transactions of one source, or of one automatic payout."""
    if isinstance(payout := params.get("payout"), str):
        return _paid_out(objects, table, payout)
    source = params.get("source")
    if not isinstance(source, str):
        return None
    found = set(table.by_value.get(("source", source), ()))
    entry = objects.entries.of(source)
    if entry is not None:
        found.add(entry)
    return sorted(found, reverse=True)


def _paid_out(objects: Objects, table: Table, payout: str) -> list[int]:
    """What the payout paid out, and its own balance transaction."""
    payouts = objects.table("payout")
    at = payouts.position(payout)
    if at is None:
        raise missing("payout", payout, param="payout", status=400)
    if not objects.load(payouts, at)["automatic"]:
        # Stripe's words, as quoted in https://github.com/proudcity/wp-proudcity/issues/993.
        raise refused(
            "Balance transaction history can only be filtered on automatic transfers, not manual."
        )
    if at < payouts.base:
        return sorted(objects.entries.lines(at), reverse=True)
    ids = [line for line, by in objects.entries.paid_out.items() if by == payout]
    return sorted((p for p in map(table.position, ids) if p is not None), reverse=True)


def page_text(objects: Objects, page: Page, url: str) -> bytes:
    """The page as Stripe prints it."""
    text, table = objects.text, page.table
    entries = b",\n    ".join([text(table, p, _INDENT) for p in page.positions])
    return list_text(entries, more=page.has_more, url=url)


def list_text(entries: bytes, *, more: bool, url: str) -> bytes:
    """The frame of a list around its entries (already printed, four spaces deep)."""
    inner = b"[\n    %b\n  ]" % entries if entries else b"[]"
    return b'{\n  "object": "list",\n  "data": %b,\n  "has_more": %b,\n  "url": %b\n}' % (
        inner,
        b"true" if more else b"false",
        msgspec.json.encode(url),
    )
