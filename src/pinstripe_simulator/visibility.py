"""Which objects a list shows: Stripe's hidden ones and the documented filters.

Conditions look at an object through `get` alone, so that `judge.py` can decide most cases without
making the object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pinstripe_simulator.params import Params
from pinstripe_simulator.table import Table


class Looked(Protocol):
    """What a condition may ask of an object."""

    def get(self, key: str, /) -> Any: ...


Condition = Callable[[Looked], bool]

_NOT_FILTERS = frozenset(
    [
        "limit",
        "starting_after",
        "ending_before",
        "expand",
        "created",
        "lookup_keys",
        "ids",
        "types",
        "page",
        "include",
    ]
)


# Filters by what stands deeper in the object than the parameter's name says.
_DEEPER: Mapping[tuple[str, str], tuple[str, str]] = {
    ("billing.alert", "meter"): ("usage_threshold", "meter"),
    ("promotion_code", "coupon"): ("promotion", "coupon"),
    ("shipping_rate", "currency"): ("fixed_amount", "currency"),
}


def conditions(table: Table, params: Params, fields: Mapping[str, object]) -> list[Condition]:
    """What an object must fulfil to be in the list."""
    made: list[Condition] = []
    hidden = _HIDDEN.get(table.kind.name)
    skip: frozenset[str] = frozenset()
    if hidden is not None:
        made += hidden(params)
        skip = _RULED.get(table.kind.name, frozenset())
    for name, value in params.items():
        if name in _NOT_FILTERS or name in skip:
            continue
        if name in fields:
            made.append(_equals(name, value))
        elif (deeper := _DEEPER.get((table.kind.name, name))) is not None:
            made.append(_holds(*deeper, value))
    for name, field in (("ids", "id"), ("lookup_keys", "lookup_key"), ("types", "type")):
        if isinstance(params.get(name), list) and field in fields:
            made.append(_one_of(field, params[name]))
    return made


def _equals(name: str, value: object) -> Condition:
    if isinstance(value, dict):
        return _within(name, value)
    return lambda found: _plain(found.get(name)) == value


def _holds(name: str, inner: str, value: object) -> Condition:
    return lambda found: _plain((found.get(name) or {}).get(inner)) == value


def _plain(value: object) -> object:
    """An expanded or embedded object stands for its id."""
    return value["id"] if isinstance(value, dict) and "id" in value else value


def _within(name: str, bounds: Mapping[str, object]) -> Condition:
    limits = {k: v for k, v in bounds.items() if isinstance(v, int)}

    def holds(found: Looked) -> bool:
        value = found.get(name)
        if isinstance(value, dict):
            return all(value.get(k) == v for k, v in bounds.items())
        if not isinstance(value, int):
            return not limits
        low = max(limits.get("gt", -1) + 1, limits.get("gte", 0))
        high = min(limits.get("lt", 1 << 62) - 1, limits.get("lte", 1 << 62))
        return low <= value <= high

    return holds


def _one_of(name: str, values: list[object]) -> Condition:
    return lambda found: found.get(name) in values


def _clocked(params: Params) -> list[Condition]:
    clock = params.get("test_clock")
    if clock is not None:
        return [lambda found: _plain(found.get("test_clock")) == clock]
    return [lambda found: found.get("test_clock") is None]


def _subscriptions(params: Params) -> list[Condition]:
    status = params.get("status")
    made = _clocked(params)
    if status is None:
        made.append(lambda found: found.get("status") != "canceled")
    elif status == "ended":
        made.append(lambda found: found.get("status") in ("canceled", "incomplete_expired"))
    elif status != "all":
        made.append(lambda found: found.get("status") == status)
    for name in ("price", "plan"):
        if name in params:
            made.append(_with_item(_equals(name, params[name])))
    for name in ("current_period_end", "current_period_start"):
        if name in params:
            made.append(_with_item(_equals(name, params[name])))
    return made


def _with_item(condition: Condition) -> Condition:
    """Subscriptions are found by any of the items that they show."""

    def holds(found: Looked) -> bool:
        items = found.get("items")
        return isinstance(items, dict) and any(condition(item) for item in items["data"])

    return holds


def _prices(params: Params) -> list[Condition]:
    active = params.get("active", True)
    return [lambda found: found.get("active") == active]


def _reviews(params: Params) -> list[Condition]:
    return [lambda found: found.get("open") is True]


def _tax_ids(params: Params) -> list[Condition]:
    owner = params.get("owner")
    if isinstance(owner, dict) and owner.get("type") == "customer":
        customer = owner.get("customer")
        return [lambda found: found.get("customer") == customer]
    return [lambda found: found.get("customer") is None]


_HIDDEN: Mapping[str, Callable[[Params], list[Condition]]] = {
    "customer": _clocked,
    "quote": _clocked,
    "subscription": _subscriptions,
    "price": _prices,
    "review": _reviews,
    "tax_id": _tax_ids,
}
_RULED: Mapping[str, frozenset[str]] = {
    "customer": frozenset({"test_clock"}),
    "quote": frozenset({"test_clock"}),
    "subscription": frozenset({"test_clock", "status", "price", "plan"}),
    "price": frozenset({"active"}),
    "tax_id": frozenset({"owner"}),
}
