"""The primary key of an object: its id, or what stands for one."""

from __future__ import annotations

from pinstripe.catalog.tables import SINGLETONS
from pinstripe.rows.decode import StripeObject


def key_of(name: str, obj: StripeObject) -> str | None:
    """The primary key of an object; None where it has none (a line item in an event payload)."""
    key = obj.get("id")
    if isinstance(key, str):
        return key
    if name in SINGLETONS:
        owner = SINGLETONS[name]
        named = obj.get(owner) if owner else name
        return named if isinstance(named, str) else None
    return None
