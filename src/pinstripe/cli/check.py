"""`pinstripe check`: what the key is and may do, and whether the database will do. Writes nothing."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from pinstripe.catalog.load import spec
from pinstripe.catalog.tables import tables
from pinstripe.cli.check_text import as_text
from pinstripe.client.address import proxy_for
from pinstripe.client.retry import Patience
from pinstripe.client.session import Stripe
from pinstripe.config import Config
from pinstripe.doctor.database import examine_database
from pinstripe.doctor.findings import DatabaseReport, Finding, KeyReport, worst
from pinstripe.doctor.key import examine
from pinstripe.errors import PinstripeError
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
    """Gives the exit code: 0 all fine, 2 wrong key or setting, 3 unreachable, 5 the database cannot be
    written to, 4 something cannot be read.
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
                _tell(f"Looking at the database, schema {config.schema}")
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
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        sys.stdout.write(as_text(found.key, found.database, found.findings) + "\n")
    return found.exit_code


async def _examine_key(config: Config, wanted: list[str], *, writes: bool) -> KeyReport:
    key = api_key(config)
    _tell(f"Asking {config.stripe_url} what {key} may read")
    async with Stripe(
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
    """The database's address; None where there is none yet. Looking must not make one."""
    if config.database_url is not None:
        yield config.database_url
    elif (postgres_dir(config) / "cluster").exists():
        async with open_database(config, tell=_tell) as database:
            yield database.url
    else:
        yield None


def _no_database(config: Config) -> Finding:
    return Finding(
        "database",
        "note",
        "There is no DATABASE_URL: a sync will run a Postgres of its own in "
        f"{postgres_dir(config)}.",
        "Set DATABASE_URL to use, and examine, a server of yours.",
    )


def _told(about: str, error: PinstripeError) -> Finding:
    return Finding(about, "problem", error.message, error.hint, error.exit_code)


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
