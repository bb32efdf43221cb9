"""Which type of object an id names: by its prefix, where Stripe has given it one.

Ids that users choose (products, plans, coupons) may have none; then the caller has to name the type.
"""

from __future__ import annotations

from functools import cache

from pinstripe.catalog.load import spec

# Beside the one of the catalog: payments that are no cards, their refunds, and disputes of today.
_OTHERS = {"charge": "py", "refund": "pyr", "dispute": "du"}


@cache
def prefixes() -> dict[str, tuple[str, ...]]:
    """Prefix -> the types of object whose ids begin with it and an underscore."""
    found: dict[str, list[str]] = {}
    for kind in spec().objects:
        named = {kind.prefix, _OTHERS.get(kind.name, "")} - {""}
        for prefix in named:
            found.setdefault(prefix, []).append(kind.name)
    return {prefix: tuple(sorted(names)) for prefix, names in found.items()}


def types_of(key: str) -> tuple[str, ...]:
    """The types that an id may be of; none where its prefix says nothing.

    >>> types_of("cus_NffrFeUfNV2Hib"), types_of("sub_sched_1Mr"), types_of("cs_test_a1b2")
    (('customer',), ('subscription_schedule',), ('checkout.session',))
    >>> types_of("gold"), types_of("gold_plan")
    ((), ())
    """
    known = prefixes()
    parts = key.split("_")
    for count in range(min(len(parts) - 1, 2), 0, -1):
        names = known.get("_".join(parts[:count]))
        if names is not None:
            return names
    return ()
