"""Stripe's search language, as far as its reference defines it.

Clauses `field:"value"`, `field~"part"`, `amount>999` and `-field:null`, joined by `AND` or by `OR` (never
both). Each becomes a condition on an object. What is no such clause is Stripe's 400.
Source: https://docs.stripe.com/search#search-query-language
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

from pinstripe_simulator.replies import StripeError, refused
from pinstripe_simulator.visibility import Condition, Looked

_CLAUSE = re.compile(
    r"""\s*(?P<not>-)?(?P<field>[a-z_][a-z0-9_.]*)(?:\[(?P<q>["'])(?P<key>.*?)(?P=q)\])?
        \s*(?P<how>>=|<=|:|~|>|<)\s*
        (?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)'|(?P<bare>[^\s"']+))\s*""",
    re.VERBOSE,
)
_JOIN = re.compile(r"(AND|OR)\b", re.IGNORECASE)
_ESCAPED = re.compile(r"\\(.)")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ":": lambda a, b: a == b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
}


def search_condition(query: str, fields: Collection[str]) -> Condition:
    """What an object must fulfil to be found; `fields` are those that its type has."""
    clauses: list[Condition] = []
    joins: set[str] = set()
    at = 0
    while True:
        found = _CLAUSE.match(query, at)
        if found is None:
            raise _unreadable(query)
        clauses.append(_condition(found, fields, query))
        at = found.end()
        if at == len(query):
            break
        join = _JOIN.match(query, at)
        if join is None:
            raise _unreadable(query)
        joins.add(join[1].upper())
        at = join.end()
    if len(joins) > 1:
        raise refused(
            "Combining AND and OR within one search query is not supported.", param="query"
        )
    every = all if "OR" not in joins else any
    return lambda found: every(clause(found) for clause in clauses)


def _condition(found: re.Match[str], fields: Collection[str], query: str) -> Condition:
    name, key, how = found["field"], found["key"], found["how"]
    if name.partition(".")[0] not in fields:
        raise refused(f"Field `{name}` is an unsupported search field.", param="query")
    quoted = found["double"] if found["double"] is not None else found["single"]
    wanted = found["bare"] if quoted is None else _ESCAPED.sub(r"\1", quoted)
    holds = _holds(how, wanted, bare=quoted is None, query=query)
    steps = [*name.split("."), *([key] if key is not None else [])]
    negative = found["not"] is not None
    return lambda looked: holds(_value(looked, steps)) is not negative


def _holds(how: str, wanted: str, *, bare: bool, query: str) -> Callable[[object], bool]:
    if bare and wanted.lower() == "null" and how == ":":
        return lambda value: value is None or value == ""
    if how == "~":
        part = wanted.lower()
        return lambda value: isinstance(value, str) and part in value.lower()
    number = _number(wanted)
    if how != ":" and number is None:
        raise _unreadable(query)
    compare = _COMPARE[how]

    def holds(value: object) -> bool:
        if isinstance(value, bool) or value is None:
            return how == ":" and wanted.lower() == str(value).lower()
        if isinstance(value, int | float):
            return number is not None and compare(float(value), number)
        return how == ":" and isinstance(value, str) and value.lower() == wanted.lower()

    return holds


def _value(looked: Looked, steps: list[str]) -> object:
    value: Any = looked.get(steps[0])
    for step in steps[1:]:
        value = value.get(step) if isinstance(value, dict) else None
    if isinstance(value, dict) and "id" in value:
        return value["id"]
    return value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _unreadable(query: str) -> StripeError:
    return refused(f"We were unable to parse your search query: {query}", param="query")
