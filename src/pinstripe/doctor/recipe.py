"""The least that a restricted key needs: read on what the tables come from, write on webhooks for those
who let Pinstripe manage them.

Permissions are named only where Stripe has named them, in a refusal: their names do not follow from the
paths.
"""

from __future__ import annotations

from collections.abc import Iterable

from pinstripe.catalog.domains import DOMAINS, domain_by_table
from pinstripe.client.key import ApiKey
from pinstripe.doctor.findings import Ability, Recipe, Resource

_DASHBOARD = "https://dashboard.stripe.com"


def recipe_for(key: ApiKey, resources: Iterable[Resource], abilities: Iterable[Ability]) -> Recipe:
    """What a key for these resources needs. What the account has not enabled is left out."""
    abilities = tuple(abilities)
    needed = [r for r in resources if r.state != "not_enabled"]
    lacking = {r.permission for r in needed if r.state == "not_permitted"}
    lacking |= {a.permission for a in abilities if a.state == "no"}
    read: dict[str, set[str]] = {}
    for resource in needed:
        read.setdefault(resource.product, set()).add(label(resource.path))
    links = {r.edit_url for r in needed if r.edit_url} | {
        a.edit_url for a in abilities if a.edit_url
    }
    mode = "/test" if key.mode == "test" else ""
    return Recipe(
        create_at=f"{_DASHBOARD}{mode}/apikeys/create",
        # Stripe's own link opens this very key; those of several permissions may differ in a query.
        edit_at=min(links, default=f"{_DASHBOARD}{mode}/apikeys"),
        read={d.title: tuple(sorted(read[d.title])) for d in DOMAINS.values() if d.title in read},
        write={domain_by_table()["webhook_endpoint"].title: ("webhook endpoints",)},
        lacking=tuple(sorted(lacking - {""})),
        lacking_unnamed=tuple(
            r.path for r in needed if r.state == "not_permitted" and not r.permission
        ),
    )


def label(path: str) -> str:
    """A resource as people say it.

    >>> label("/v1/issuing/cards"), label("/v1/customers/{customer}/balance_transactions")
    ('issuing cards', 'customers: balance transactions')
    """
    words = [w for w in path.split("/")[2:] if w]
    if words[-1].startswith("{"):
        words.pop()
    text = " ".join(": " if w.startswith("{") else w.replace("_", " ") for w in words)
    return text.replace(" :  ", ": ")
