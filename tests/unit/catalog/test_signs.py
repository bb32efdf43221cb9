"""Every list by parent has its signs, and they stand in columns that there are."""

from __future__ import annotations

import re

import pytest

from pinstripe.catalog.endpoints import ListEndpoint, by_parent, list_endpoints, signs_of
from pinstripe.catalog.tables import table_name, tables

_ALL = [
    e
    for endpoint in list_endpoints()
    for e in (endpoint, by_parent(endpoint))
    if e is not None and e.parent
]
_SQL = {"or", "and", "not", "in", "is", "null", "true", "any", "text", "t", "type"}
_OTHERS = {"exists", "select", "from", "join", "on", "where", "schema", "i", "p", "f"}
"""What a condition on other tables has besides: their aliases too."""


@pytest.mark.parametrize("endpoint", _ALL, ids=lambda e: f"{e.path} by {e.parent}")
def test_each_list_by_parent_has_signs_in_columns_that_there_are(endpoint: ListEndpoint) -> None:
    signs = signs_of(endpoint)
    assert signs
    for sign in signs:
        columns = {column.name for column in tables()[sign.table].columns}
        assert sign.column in columns
        words = re.findall(r"[a-z_][a-z_0-9]*", re.sub(r"'[^']*'", "", sign.when).lower())
        known = columns.union(*({c.name for c in tables()[name].columns} for name in sign.needs))
        assert set(words) - _SQL - (_OTHERS if sign.needs else set()) <= known | set(sign.needs)
        # What a sign names is a parent.
        target = tables()[sign.table].columns
        named = next(column for column in target if column.name == sign.column)
        assert sign.column == "id" or table_name(endpoint.parent) in named.references
        assert sign.column != "id" or sign.table == table_name(endpoint.parent)
