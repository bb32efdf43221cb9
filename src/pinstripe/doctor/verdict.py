"""What the answers about a key mean: each as a finding with its remedy.

A product that the account does not use is no problem; a permission that the key lacks is one, because a
table stays empty.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from pinstripe.catalog.load import spec
from pinstripe.client.key import ApiKey
from pinstripe.doctor.abilities import EVENTS
from pinstripe.doctor.clock import ClockDifference
from pinstripe.doctor.findings import Ability, Finding, Resource

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
    """In the order in which they are told."""
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
            "This is a secret key: it may do everything, and Pinstripe only reads.",
            "Use a restricted key with read permissions: see the recipe.",
        )


def _of_version(default: str | None) -> Iterator[Finding]:
    if default is None:
        yield Finding(
            "version", "note", "The account's own API version could not be asked for.", ""
        )
    elif default != spec().api_version:
        yield Finding(
            "version",
            "note",
            f"The account's own API version is {default}, ours {spec().api_version}: its events are "
            "taken as hints, and the objects are fetched.",
            "Nothing to do; following costs one more request for each changed object.",
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
            "webhooks will look too old.",
            "Set the clock, best by NTP.",
        )


def _of_resources(resources: Sequence[Resource]) -> Iterator[Finding]:
    for resource in resources:
        if resource.path == EVENTS and resource.state != "failed":
            continue  # Told with what it means: nothing can be followed.
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
            "Nothing to do unless you use them.",
        )


def _of_abilities(abilities: Iterable[Ability], wanted: Collection[str]) -> Iterator[Finding]:
    for ability in abilities:
        if ability.state != "no":
            continue
        if ability.name == "events":
            words = f"Changes cannot be followed: {ability.how}"
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
            "Stripe allows 500 reads for each transaction over 30 days, and 10,000 a month at least; "
            "Pinstripe counts its own and looks less often before they run out.",
            "See the how-to on rate limits.",
        )
