"""Checks a Stripe key: whose it is, what it can do, and which permissions it lacks.

    report = await examine(stripe, tables())

Sends about 120 small requests within the rate limit of `stripe` and writes nothing.

Each result becomes a finding with a remedy. A product that the account does not use is no problem. A
missing permission is one, because a table stays empty. Permissions are named only if Stripe named them
in a refusal: their names do not follow from the paths.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from pinstripe.catalog.domains import DOMAINS, domain_by_table
from pinstripe.catalog.model import spec
from pinstripe.client.api_errors import account_named
from pinstripe.client.api_key import ApiKey
from pinstripe.client.client import StripeClient
from pinstripe.client.response import StripeObject, read_object
from pinstripe.doctor.permissions import (
    ACCOUNT,
    Tried,
    in_order,
    plan_for,
    resource_of,
    try_abilities,
    try_resources,
)
from pinstripe.doctor.probe import PRIORITY, ClockDifference, Prober, ProbeResult, look_at
from pinstripe.doctor.report import Ability, Finding, KeyReport, Recipe, Resource
from pinstripe.errors import Drifted, Refused, Unreachable, WrongAccount, WrongKey
from pinstripe.rows.event import EVENTS

_BEYOND = 4
"""Requests beside the resources: the account, a preview, the version, a write perhaps."""

Tell = Callable[[int, int], None]
"""Is told how many requests are answered, and of how many."""


def silent(done: int, total: int) -> None:
    """Ignore progress."""


async def examine(
    stripe: StripeClient, tables: Collection[str], *, try_writes: bool = False, tell: Tell = silent
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
    asker = Prober(stripe, heard)
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


async def _meet(asker: Prober) -> Tried:
    """The first request: it shows whether address and key are good."""
    said = await asker.get(ACCOUNT, endpoint=f"GET {ACCOUNT}")
    if isinstance(said.error, WrongKey | WrongAccount | Unreachable):
        raise said.error
    first: StripeObject | None = None
    if said.response is not None:
        try:
            first = read_object(said.response, ACCOUNT)
        except Drifted as error:
            said = ProbeResult("failed", message=error.message, remedy=error.hint)
    return Tried(resource_of(ACCOUNT, ("account",), said), first)


async def _default_version(asker: Prober, tried: Sequence[Tried]) -> str | None:
    """The account's own API version: of an answer to a request that names none."""
    readable = [t.resource for t in tried if _is_plain(t.resource)]
    if not readable:
        return None
    path = readable[0].path
    try:
        response = await asker.stripe.get_unpinned(path, endpoint=f"GET {path}", priority=PRIORITY)
    except (Refused, Unreachable):
        return None
    finally:
        asker.heard()
    return response.api_version or None


def _is_plain(resource: Resource) -> bool:
    """Whether it can be asked for without parameters, and in v1: v2 knows no default version."""
    return resource.state == "readable" and resource.path in _PLAIN


_PLAIN = (ACCOUNT, "/v1/balance", EVENTS, "/v1/customers", "/v1/charges", "/v1/products")


def _account_id(account: Tried, tried: Sequence[Tried]) -> str | None:
    """From the account itself, or from a refusal: "... on account 'acct_...'"."""
    known = account.first.get("id") if account.first else None
    if isinstance(known, str):
        return known
    for each in (account, *tried):
        if each.resource.state == "not_permitted" and (
            found := account_named(each.resource.message)
        ):
            return found
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


_CLOCK_S = 30.0
"""A tenth of what Stripe accepts in the signature of a webhook."""

_UNREADABLE = 4


def key_findings(
    key: ApiKey,
    resources: Sequence[Resource],
    abilities: Iterable[Ability],
    *,
    wanted: Collection[str],
    default_version: str | None,
    clock: ClockDifference,
) -> tuple[Finding, ...]:
    """Return the findings in the order in which they are printed."""
    return (
        *_of_key(key),
        *_of_version(default_version),
        *_of_clock(clock),
        *_of_resources(resources),
        *_of_abilities(abilities, wanted),
        *_of_allowance(key),
    )


def _of_key(key: ApiKey) -> Iterator[Finding]:
    if key.kind == "standard":
        yield Finding(
            "key",
            "note",
            "This is a secret key with full access, but Pinstripe only reads.",
            "Use a restricted key with read permissions, as listed below.",
        )


def _of_version(default: str | None) -> Iterator[Finding]:
    if default is None:
        yield Finding(
            "version", "note", "The account's own API version could not be determined.", ""
        )
    elif default != spec().api_version:
        yield Finding(
            "version",
            "note",
            f"The account's own API version is {default}, Pinstripe's is {spec().api_version}: its events "
            "are used as hints only, and the objects are fetched.",
            "No action needed; syncing costs one more request for each changed object.",
        )


def _of_clock(clock: ClockDifference) -> Iterator[Finding]:
    if not clock.known:
        yield Finding("clock", "note", "Stripe's clock could not be read.", "")
    elif abs(clock.ahead_s) > _CLOCK_S:
        way = "behind" if clock.ahead_s > 0 else "ahead of"
        yield Finding(
            "clock",
            "warning",
            f"This machine's clock is {abs(clock.ahead_s):,.0f} s {way} Stripe's: signatures of "
            "webhooks will appear too old.",
            "Synchronize the clock, preferably with NTP.",
        )


def _of_resources(resources: Sequence[Resource]) -> Iterator[Finding]:
    for resource in resources:
        if resource.path == EVENTS and resource.state != "failed":
            continue  # Reported with its consequence: changes cannot be synced.
        if resource.state in ("not_permitted", "refused", "failed"):
            yield Finding(
                resource.path,
                "problem",
                f"{', '.join(resource.tables)}: {resource.message}",
                resource.remedy,
                _UNREADABLE,
            )
    unused = [r for r in resources if r.state == "not_enabled"]
    if unused:
        yield Finding(
            "products",
            "note",
            f"{len(unused)} resources belong to products that the account has not enabled; their "
            "tables stay empty.",
            "No action needed unless you use them.",
        )


def _of_abilities(abilities: Iterable[Ability], wanted: Collection[str]) -> Iterator[Finding]:
    for ability in abilities:
        if ability.state != "no":
            continue
        if ability.name == "events":
            words = f"Changes cannot be synced: {ability.how}"
            yield Finding("events", "problem", words, ability.remedy, _UNREADABLE)
        elif ability.name == "previews" and any(t.startswith("upcoming_") for t in wanted):
            words = f"The tables of upcoming invoices stay empty: {ability.how}"
            yield Finding("previews", "problem", words, ability.remedy, _UNREADABLE)
        elif ability.name == "webhooks_write":
            words = f"`pinstripe webhook` cannot manage endpoints with this key: {ability.how}"
            yield Finding("webhooks", "note", words, ability.remedy)


def _of_allowance(key: ApiKey) -> Iterator[Finding]:
    if key.mode == "live":
        yield Finding(
            "allowance",
            "note",
            "Stripe allows 500 reads for each transaction over 30 days, and 10,000 a month at "
            "least; "
            "Pinstripe counts its own and polls less often before they run out.",
            "See the how-to on rate limits.",
        )


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
    """Return the readable name of a resource.

    >>> label("/v1/issuing/cards"), label("/v1/customers/{customer}/balance_transactions")
    ('issuing cards', 'customers: balance transactions')
    """
    words = [w for w in path.split("/")[2:] if w]
    if words[-1].startswith("{"):
        words.pop()
    text = " ".join(": " if w.startswith("{") else w.replace("_", " ") for w in words)
    return text.replace(" :  ", ": ")
