"""`pinstripe check`: checks the key and the database, and prints facts, findings and permissions.

Writes nothing. For people the output is facts first, then problems with their remedies, then the
permissions that a restricted key needs.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import tables
from pinstripe.cli.runtime import show, tell
from pinstripe.client.api_key import proxy_for
from pinstripe.client.client import StripeClient
from pinstripe.client.retry import Patience
from pinstripe.config.config import Config
from pinstripe.doctor.database import examine_database
from pinstripe.doctor.key import examine
from pinstripe.doctor.report import (
    Ability,
    DatabaseReport,
    Finding,
    KeyReport,
    Recipe,
    Resource,
    worst,
)
from pinstripe.errors import PinstripeError, redact
from pinstripe.service import api_key, budget_for, open_database, postgres_dir

_TRIES = 3
"""Somebody waits: what answers at the fourth try only is in trouble, and is told so."""


class Check(msgspec.Struct, frozen=True):
    """All of it. `findings` are of what could not be examined at all."""

    exit_code: int
    key: KeyReport | None
    database: DatabaseReport | None
    findings: tuple[Finding, ...]


async def check(config: Config, *, writes: bool, as_json: bool) -> int:
    """Return the exit code: 0 all checks passed, 2 wrong key or setting, 3 unreachable, 5 the database
    cannot be written to, 4 something cannot be read.
    """
    wanted = config.choose_tables(tables())
    findings: list[Finding] = []
    key = database = None
    try:
        key = await _examine_key(config, wanted, writes=writes)
    except PinstripeError as error:
        findings.append(_told("key", error))
    owner = (key.account_id, key.mode == "live") if key is not None else None
    try:
        async with _url(config) as url:
            if url is None:
                findings.append(_no_database(config))
            else:
                tell(f"Checking the database, schema {config.schema}")
                database = await examine_database(url, config.schema, owner=owner)
    except PinstripeError as error:
        findings.append(_told("database", error))
    all_findings = [
        *findings,
        *(key.findings if key else ()),
        *(database.findings if database else ()),
    ]
    found = Check(worst(all_findings), key, database, tuple(findings))
    if as_json:
        show(msgspec.json.encode(found).decode())
    else:
        show(as_text(key, database, all_findings))
    return found.exit_code


async def _examine_key(config: Config, wanted: list[str], *, writes: bool) -> KeyReport:
    key = api_key(config)
    tell(f"Checking what {key} can read at {config.stripe_url}")
    async with StripeClient(
        key,
        api_version=spec().api_version,
        budget=budget_for(config, key),
        base_url=config.stripe_url,
        account=config.stripe_account,
        proxy=proxy_for(config.stripe_url),
        patience=Patience(attempts=_TRIES),
    ) as stripe:
        return await examine(stripe, wanted, try_writes=writes, tell=_Progress().tell)


class _Progress:
    """A line that grows, on a terminal; elsewhere one at the end is enough."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def tell(self, done: int, total: int) -> None:
        if self._terminal:
            sys.stderr.write(f"\r{done} of {total} requests" + ("\n" if done == total else ""))
            sys.stderr.flush()


@asynccontextmanager
async def _url(config: Config) -> AsyncIterator[str | None]:
    """Return the database URL; None if there is no database yet. A check must not create one."""
    if config.database_url is not None:
        yield config.database_url
    elif (postgres_dir(config) / "cluster").exists():
        async with open_database(config, tell=tell) as database:
            yield database.url
    else:
        yield None


def _no_database(config: Config) -> Finding:
    return Finding(
        "database",
        "note",
        f"DATABASE_URL is not set: a sync will run its own Postgres in {postgres_dir(config)}.",
        "Set DATABASE_URL to use and check your own server.",
    )


def _told(about: str, error: PinstripeError) -> Finding:
    return Finding(about, "problem", error.message, error.hint, error.exit_code)


_WIDTH = 100

_NAMES = {
    "events": "follow events",
    "previews": "preview invoices",
    "webhooks_read": "list webhooks",
    "webhooks_write": "manage webhooks",
}

_WORDS = {"yes": "yes", "no": "NO", "unknown": "unknown"}
_MARKS = {"ok": "ok", "note": "note", "warning": "warn", "problem": "BAD"}


def as_text(
    key: KeyReport | None, database: DatabaseReport | None, findings: Sequence[Finding]
) -> str:
    """One page, without its last line break. `findings`: those of the reports among them."""
    lines: list[str] = []
    if key is not None:
        lines += [*_key(key), "", *_resources(key.resources), ""]
    if database is not None:
        lines += [*_database(database), ""]
    lines += _said("Problems", (f for f in findings if f.state == "problem"))
    lines += _said("Warnings", (f for f in findings if f.state == "warning"))
    lines += _said("Notes", (f for f in findings if f.state == "note"))
    if key is not None:
        lines += [*_recipe(key.recipe), ""]
    bad = sum(f.state == "problem" for f in findings)
    lines.append(f"{bad} to fix." if bad else "All checks passed.")
    return harmless(redact("\n".join(lines)))


def harmless(text: str) -> str:
    """`text` without what would steer a terminal: names and addresses are other people's words."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _key(key: KeyReport) -> Iterator[str]:
    yield f"{key.key}: a {_kind(key)} key in {key.mode} mode"
    name = f" ({key.account_name})" if key.account_name else ""
    yield _fact("account", f"{key.account_id or 'unknown'}{name}")
    own = key.default_api_version
    yield _fact("API version", f"{key.api_version}; the account's own: {own or 'unknown'}")
    if key.clock_ahead_s is None:
        yield _fact("Stripe's clock", "unknown")
    else:
        way = "ahead of" if key.clock_ahead_s >= 0 else "behind"
        within = f"accurate to {key.clock_within_s:.1f} s"
        yield _fact("Stripe's clock", f"{abs(key.clock_ahead_s):.1f} s {way} ours, {within}")
    way_there = [key.network.base_url]
    way_there += [f"through the proxy {key.network.proxy}"] if key.network.proxy else []
    way_there += [key.network.tls] if key.network.tls else []
    if key.network.certificate_issuer:
        way_there.append(f"certificate issued by {key.network.certificate_issuer}")
    yield _fact("network", ", ".join(way_there))
    yield _fact("this check", f"{key.requests} requests")
    for ability in key.abilities:
        yield _fact(_NAMES[ability.name], _able(ability))


def _kind(key: KeyReport) -> str:
    return "secret" if key.kind == "standard" else "restricted"


def _able(ability: Ability) -> str:
    if ability.permission:
        lacking = _named(ability.permission, ability.permission_title)
        return f"{_WORDS[ability.state]}: missing {lacking}"
    return f"{_WORDS[ability.state]}: {ability.how}"


def _resources(resources: Sequence[Resource]) -> Iterator[str]:
    """A line for each product, and one for each resource that cannot be read."""
    readable = sum(r.state == "readable" for r in resources)
    yield f"Resources: {readable} of {len(resources)} are readable"
    by_product: dict[str, list[Resource]] = {}
    for resource in resources:
        by_product.setdefault(resource.product, []).append(resource)
    for product, group in by_product.items():
        counts: dict[str, int] = {}
        for resource in group:
            counts[resource.state] = counts.get(resource.state, 0) + 1
        told = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in counts.items())
        yield f"  {product:<28} {told}"
        for resource in group:
            if resource.state not in ("readable", "not_enabled"):
                yield f"      {resource.path}: {_why(resource)}"


def _why(resource: Resource) -> str:
    if resource.state == "not_permitted":
        if not resource.permission:
            return "missing a permission that Stripe does not name"
        return f"missing {_named(resource.permission, resource.permission_title)}"
    return resource.message


def _named(permission: str, title: str) -> str:
    """Both names of a permission: the dashboard's and Stripe's own."""
    return f"{title} ({permission})" if title and title != permission else permission


def _database(database: DatabaseReport) -> Iterator[str]:
    yield f"Database: {database.place}, schema {database.schema}"
    if database.clock_ahead_s is not None:
        way = "ahead of" if database.clock_ahead_s >= 0 else "behind"
        yield _fact("its clock", f"{abs(database.clock_ahead_s):.3f} s {way} ours")
    for finding in database.findings:
        yield f"  {_MARKS[finding.state]:<5} {finding.message}"


def _said(title: str, findings: Iterable[Finding]) -> list[str]:
    """Merge findings with the same message and remedy."""
    by_words: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        by_words.setdefault((finding.message, finding.remedy), []).append(finding.about)
    if not by_words:
        return []
    lines = [f"{title}:"]
    for (message, remedy), abouts in by_words.items():
        lines.append(f"  {', '.join(abouts)}: {message}")
        lines += [f"    remedy: {remedy}"] if remedy else []
    return [*lines, ""]


def _recipe(recipe: Recipe) -> Iterator[str]:
    yield f"Minimum permissions for a restricted key (create one at {recipe.create_at}):"
    yield from _permissions("Read", recipe.read)
    yield from _permissions("Write, for `pinstripe webhook` only", recipe.write)
    if recipe.lacking:
        yield from _wrapped(f"  This key is missing: {', '.join(recipe.lacking)}", "    ")
    if recipe.lacking_unnamed:
        yield from _wrapped(f"  It also cannot read: {', '.join(recipe.lacking_unnamed)}", "    ")
    if recipe.lacking or recipe.lacking_unnamed:
        yield f"  Add missing permissions at {recipe.edit_at}"


def _permissions(verb: str, by_product: dict[str, tuple[str, ...]]) -> Iterator[str]:
    yield f"  {verb}:"
    for product, names in by_product.items():
        yield from _wrapped(f"    {product}: {', '.join(names)}", "      ")


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _fact(name: str, value: str) -> str:
    return f"  {name:<18} {value}"
