"""Paths, queries and form bodies as Stripe reads them.

Everything that leaves here is quoted for good: `transport` sends it byte for byte, so nothing is
quoted twice. Stripe nests parameters by brackets in the name (`created[gte]`, `expand[]`).
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

Params = Sequence[tuple[str, str]]


def quote_id(object_id: str) -> str:
    """`object_id` as one path segment. Users choose the ids of products, plans and coupons.

    An empty id raises `ValueError`: it would turn the path of one object into that of the list.

    >>> quote_id("50% off/été")
    '50%25%20off%2F%C3%A9t%C3%A9'
    >>> quote_id("..")
    '%2E%2E'
    """
    if not object_id:
        raise ValueError("an empty id has no path")
    if object_id in (".", ".."):
        # Unquoted, any proxy on the way may resolve them as steps in the path.
        return object_id.replace(".", "%2E")
    return quote(object_id, safe="")


def encode_params(params: Params) -> str:
    """`params` as a query string or a form body, in the order given; a name may repeat.

    >>> encode_params([("created[gte]", "17"), ("expand[]", "data.a b"), ("expand[]", "x")])
    'created[gte]=17&expand[]=data.a%20b&expand[]=x'
    """
    return "&".join(f"{quote(name, safe='[]')}={quote(value, safe='')}" for name, value in params)
