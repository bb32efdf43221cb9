"""The examination of a key: what it is, whose, and what it may do.

    report = await examine(stripe, tables())

About a hundred small requests within the budget of `stripe`; nothing is written, at Stripe or anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

from pinstripe.catalog.load import spec
from pinstripe.client.session import Stripe
from pinstripe.doctor.abilities import try_abilities
from pinstripe.doctor.asking import PRIORITY, Asker, Said
from pinstripe.doctor.findings import KeyReport, Resource
from pinstripe.doctor.network import look_at
from pinstripe.doctor.recipe import recipe_for
from pinstripe.doctor.resources import (
    ACCOUNT,
    Tried,
    in_order,
    plan_for,
    resource_of,
    try_resources,
)
from pinstripe.doctor.verdict import key_findings
from pinstripe.errors import Drifted, Refused, Unreachable, WrongAccount, WrongKey
from pinstripe.rows.decode import StripeObject
from pinstripe.source.page import read_object

_ACCOUNT_ID = re.compile(r"acct_\w+")
_BEYOND = 4
"""Requests beside the resources: the account, a preview, the version, a write perhaps."""

Tell = Callable[[int, int], None]
"""Is told how many requests are answered, and of how many."""


def silent(done: int, total: int) -> None:
    """For who does not want to be told."""


async def examine(
    stripe: Stripe, tables: Collection[str], *, try_writes: bool = False, tell: Tell = silent
) -> KeyReport:
    """What the key of `stripe` may read of what `tables` are filled from.

    `try_writes`: also try whether webhook endpoints can be written. Raises WrongKey where Stripe does not
    know the key, WrongAccount where it does not reach the account, Unreachable where nothing answers as
    Stripe does.
    """
    plan = plan_for(tables)
    total = plan.requests + _BEYOND
    done = 0

    def heard() -> None:
        nonlocal done
        done += 1
        tell(min(done, total), total)

    key = stripe.key
    before = stripe.requests.total()
    asker = Asker(stripe, heard)
    account = await _meet(asker)
    tried = await try_resources(asker, plan, account)
    abilities = await try_abilities(asker, key, tried, writes=try_writes)
    resources = tuple(
        sorted((t.resource for t in tried if set(t.resource.tables) & set(tables)), key=in_order)
    )
    default_version = await _default_version(asker, tried)
    network = await look_at(stripe.base_url)
    tell(total, total)
    clock = asker.clock
    return KeyReport(
        key=str(key),
        kind=key.kind,
        mode=key.mode,
        account_id=stripe.account or _account_id(account, tried),
        account_name=_name(account.first),
        api_version=spec().api_version,
        default_api_version=default_version,
        clock_ahead_s=round(clock.ahead_s, 2) if clock.known else None,
        clock_within_s=round(clock.within_s, 2) if clock.known else None,
        network=network,
        requests=stripe.requests.total() - before,
        resources=resources,
        abilities=abilities,
        findings=key_findings(
            key, resources, abilities, wanted=tables, default_version=default_version, clock=clock
        ),
        recipe=recipe_for(key, resources, abilities),
    )


async def _meet(asker: Asker) -> Tried:
    """The first request: it shows whether address and key are good."""
    said = await asker.get(ACCOUNT, endpoint=f"GET {ACCOUNT}")
    if isinstance(said.error, WrongKey | WrongAccount | Unreachable):
        raise said.error
    first: StripeObject | None = None
    if said.reply is not None:
        try:
            first = read_object(said.reply, ACCOUNT)
        except Drifted as error:
            said = Said("failed", message=error.message, remedy=error.hint)
    return Tried(resource_of(ACCOUNT, ("account",), said), first)


async def _default_version(asker: Asker, tried: Sequence[Tried]) -> str | None:
    """The account's own API version: of an answer to a request that names none."""
    readable = [t.resource for t in tried if _is_plain(t.resource)]
    if not readable:
        return None
    path = readable[0].path
    try:
        reply = await asker.stripe.get_unpinned(path, endpoint=f"GET {path}", priority=PRIORITY)
    except (Refused, Unreachable):
        return None
    finally:
        asker.heard()
    return reply.api_version or None


def _is_plain(resource: Resource) -> bool:
    """Whether it can be asked for without parameters, and in v1: v2 knows no default version."""
    return resource.state == "readable" and resource.path in _PLAIN


_PLAIN = (ACCOUNT, "/v1/balance", "/v1/events", "/v1/customers", "/v1/charges", "/v1/products")


def _account_id(account: Tried, tried: Sequence[Tried]) -> str | None:
    """From the account itself, or from a refusal: "... on account 'acct_...'"."""
    known = account.first.get("id") if account.first else None
    if isinstance(known, str):
        return known
    for each in (account, *tried):
        if each.resource.state == "not_permitted":
            found = _ACCOUNT_ID.search(each.resource.message)
            if found is not None:
                return found[0]
    return None


def _name(account: StripeObject | None) -> str | None:
    """What the dashboard calls it, or the business's name."""
    settings = account.get("settings") if account else None
    dashboard = settings.get("dashboard") if isinstance(settings, dict) else None
    business = account.get("business_profile") if account else None
    for holder, word in ((dashboard, "display_name"), (business, "name")):
        name = holder.get(word) if isinstance(holder, dict) else None
        if isinstance(name, str) and name:
            return name
    return None
