"""`pinstripe status` and `support-bundle`: how every synced schema stands, from the database alone.

A bundle is one archive for a bug report, without secrets and personal data. It is put together from lists
of what may go in, not by cutting out what may not: versions, counts, states, codes, times, names of tables
and settings, and the values of settings that are numbers or switches. Texts of Stripe and Postgres
(`reason`), ids of objects, URLs and rows stay out.
"""

from __future__ import annotations

import io
import json
import platform
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from pinstripe.catalog.model import spec
from pinstripe.cli.runtime import show
from pinstripe.cli.summary import counted, refused_lines
from pinstripe.config.config import Config
from pinstripe.config.settings import SETTINGS
from pinstripe.errors import Misconfigured, PinstripeError, redact
from pinstripe.service import open_database, postgres_dir
from pinstripe.store.platforms.status import PlatformsStatus, read_lacking, read_platforms
from pinstripe.store.pool import Connection, connect
from pinstripe.store.session import account_of
from pinstripe.store.status import ScanProgress, SchemaStatus, TableStatus, read_status
from pinstripe.store.syncs import load_syncs

Lacking = Mapping[str, Sequence[tuple[str, int, str, str]]]
"""By platform: (table, in how many accounts, why, remedy)."""

_NOTHING_HINT = "Sync an account first: pinstripe sync, or pinstripe demo."


async def status(config: Config, *, exact: bool, as_json: bool, one_schema: bool) -> int:
    """Prints every synced schema, or the configured one if `one_schema`."""
    config = with_data(config)
    async with open_database(config) as database, connect(database.url) as connection:
        found = await read_status(
            connection, schema=config.schema if one_schema else None, exact=exact
        )
        platforms = await read_platforms(connection)
        lacking = {p.id: await read_lacking(connection, p.id) for p in platforms.platforms}
    if not found and (one_schema or not platforms.platforms):
        where = f'in the schema "{config.schema}"' if one_schema else "in this database"
        raise Misconfigured(f"Nothing has been synced yet {where}.", hint=_NOTHING_HINT)
    if as_json:
        show(_as_json(found, platforms, lacking))
    else:
        texts = [_as_text(s) for s in found]
        texts += [] if one_schema else platforms_text(platforms, lacking)
        show("\n\n".join(texts))
    return 0


def with_data(config: Config) -> Config:
    """Return a config whose data directory has data: the given one, else the demo's. Creates no
    database.
    """
    if config.database_url is not None:
        return config
    for candidate in (config, replace(config, data_dir=config.data_dir / "demo")):
        if (postgres_dir(candidate) / "cluster").exists():
            return candidate
    raise Misconfigured(f"Nothing has been synced yet in {config.data_dir}.", hint=_NOTHING_HINT)


async def check_synced(connection: Connection, schema: str) -> None:
    """Raises Misconfigured if nothing was synced into this schema: what reads a copy must not make one."""
    scope = schema if account_of(schema) else ""
    if schema not in {sync.schema for sync in await load_syncs(connection, scope)}:
        raise Misconfigured(
            f'Nothing has been synced yet in the schema "{schema}".',
            hint="Sync an account first: pinstripe sync; or name another schema with --schema.",
        )


def _as_json(statuses: list[SchemaStatus], platforms: PlatformsStatus, lacking: Lacking) -> str:
    """Times are UTC and in whole seconds, as in the text."""
    syncs = msgspec.to_builtins(statuses, builtin_types=(datetime,))
    found = {"syncs": syncs}
    if platforms.platforms:
        found |= msgspec.to_builtins(platforms, builtin_types=(datetime,)) | {"lacking": lacking}
    return json.dumps(found, default=_time)


def platforms_text(found: PlatformsStatus, lacking: Lacking) -> list[str]:
    """A paragraph for each platform, with what its accounts lack, and one for the workers of all."""
    texts: list[str] = []
    for one in found.platforms:
        mode = "live mode" if one.livemode else "test mode"
        state = " PAUSED." if one.paused else ""
        counts = one.accounts
        lines = [
            f"Platform {one.id}: {one.account_id} in {mode}, schema {one.schema}.{state}",
            f"  {counts.active:,} accounts, {counts.troubled:,} of them in trouble; {counts.revoked:,} "
            "revoked their authorization",
            f"  {one.looks_per_s:.1f} polls of event lists a second; the oldest poll was "
            f"{timedelta(seconds=round(one.oldest_look_s or 0.0))} ago; {one.late:,} are late",
            *(
                f"  {table} is not whole in {counted(count, 'account')}: {redact(why)} {redact(remedy)}"
                for table, count, why, remedy in lacking[one.id]
            ),
        ]
        texts.append("\n".join(lines))
    if texts:
        tasks = ", ".join(f"{n:,} {name}" for name, n in sorted(found.tasks.items())) or "none"
        line = f"{counted(len(found.workers), 'worker')}; tasks that wait or run: {tasks}"
        if not found.workers:
            line += "\nNO WORKER RUNS. Start `pinstripe worker`."
        texts.append(line)
    return texts


def _as_text(found: SchemaStatus) -> str:
    mode = {True: "live mode", False: "test mode", None: "unknown mode"}[found.livemode]
    lines = [
        f"Schema {found.schema}: {found.account_id or 'unknown account'} in {mode}, "
        f"API version {found.api_version}, {found.rows:,} rows",
        f"Events applied up to {_time(found.followed) or 'none yet'}; "
        f"{found.missing:,} references that Stripe does not have",
        *_live_lines(found),
        *_certificate_lines(found),
        "",
        f"  {'table':<40} {'rows':>13}  {'state':<8} {'up to date as of':<20} by",
    ]
    shown = [t for t in found.tables if t.rows or t.state in ("running", "refused", "failed")]
    lines += [_line(t) for t in sorted(shown, key=lambda t: (-t.rows, t.table))]
    empty = len(found.tables) - len(shown)
    if empty:
        lines.append(f"  {f'{empty} more empty tables':<40}")
    lines += refused_lines(found.refusals)
    return "\n".join(lines)


def _live_lines(found: SchemaStatus) -> list[str]:
    lines: list[str] = []
    other = found.default_api_version
    if other is not None and other != found.api_version:
        lines.append(
            f"The account's own API version is {other}: objects are fetched instead of taken from events"
        )
    told = found.clocks
    if told.writes or told.contradictions:
        lines.append(
            f"Stripe's clocks, last 30 days: Date up to {told.date_ahead_s:g} s ahead of created and "
            f"{told.date_behind_s:g} s behind ({told.writes:,} writes); {told.stale:,} of "
            f"{told.contradictions:,} contradictions were stale reads"
        )
    for held in found.quarantine:
        what = held.id or "the whole table"
        more = f" and {held.count - 1:,} more" if held.count > 1 else ""
        name = f" ({held.name})" if held.name else ""
        lines.append(f"QUARANTINE, {held.table}: {what}{more}: {held.reason}{name}")
        lines += [f"  remedy: {held.remedy} It is retried continuously."]
    for owed in found.owed:
        lines.append(
            f"FAILED REQUESTS, {owed.count:,} for {owed.table} ({owed.example}): {owed.reason}"
            f" Next retry {_time(owed.next_try)}."
        )
        lines += [f"  remedy: {owed.remedy}"] if owed.remedy else []
    if found.to_ask:
        by_class = ", ".join(f"{name} {n:,}" for name, n in found.to_ask_by_class.items())
        lines.append(f"{counted(found.to_ask, 'pending request')} to Stripe: {by_class}")
    lines += scan_lines(found.scan)
    lines += _read_lines(found)
    if found.trouble:
        lines.append(f"NOT SYNCING EVENTS: {found.trouble}")
        lines += [f"  remedy: {found.remedy}"] if found.remedy else []
    return lines


def scan_lines(scan: Sequence[ScanProgress]) -> list[str]:
    """How far the slow scan of lists by parent is; what it owes first."""
    lines: list[str] = []
    for one in sorted(scan, key=lambda s: (-s.owed, s.table)):
        if one.rounds and one.left_s is None:
            continue
        line = f"Scan of {one.table}: {one.done:,} of {one.of:,} {one.parent} rows read"
        if one.left_s is not None:
            line += f", {timedelta(seconds=round(one.left_s))} left at its pace"
        lines.append(f"{line}; round {one.rounds + 1}")
    if scan and not lines:
        oldest = min((s.as_of for s in scan if s.as_of is not None), default=None)
        lines.append(f"All lists by parent are read; the oldest round began {_time(oldest)}")
    return lines


def _read_lines(found: SchemaStatus) -> list[str]:
    """Nothing in test mode, which has no read allowance."""
    use = found.reads
    if use.allowed is None:
        return []
    share = use.used / use.allowed
    line = f"Reads of the last 30 days: {use.used:,} of {use.allowed:,} allowed ({share:.0%})"
    if use.projected is not None:
        line += f"; projected from yesterday: {use.projected:,}"
    if use.used > use.allowed:
        line += ". OVER QUOTA"
    return [line]


def _certificate_lines(found: SchemaStatus) -> list[str]:
    made, due = found.certificate, found.next_verification
    plan = [f"Next verification at {_time(due)}"] if due is not None else []
    plan += (
        [f"No scheduled verification. {found.verification_note}"] if found.verification_note else []
    )
    if made is None:
        return plan
    states = [table.get("state") for table in made.tables.values()]
    unproven = len(states) - states.count("verified")
    return [
        f"Verified at {_time(made.finished_at)}: {counted(made.differences, 'difference')}, "
        f"{made.repaired:,} repaired, {states.count('verified')} tables verified, {unproven} not or only "
        f"partially; digest {made.digest[:16]}",
        *plan,
    ]


def _line(table: TableStatus) -> str:
    rows = f"{'' if table.exact else '~'}{table.rows:,}"
    line = (
        f"  {table.table:<40} {rows:>13}  {table.state:<8} {_time(table.fresh_to) or '':<20} "
        f"{table.fresh_by}".rstrip()
    )
    if table.since is not None:
        line += f"\n      since {table.since:%Y-%m-%d}; older ones only where rows refer to them"
    if table.reason:
        line += f"\n      {table.reason}"
    if table.remedy:
        line += f"\n      remedy: {table.remedy}"
    if table.next_try is not None:
        line += f"\n      next retry: {_time(table.next_try)}"
    return line


def _time(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


_WORDS = frozenset(
    {
        *("reason", "remedy", "trouble", "example", "id", "what", "verification_note"),
        *("account_id", "digest"),
    }
)
"""Fields of a status that may hold texts of Stripe's or ids."""
_UNITS = frozenset(
    {"", "requests/s", "seconds", "days", "objects", "port", "MB", "level", "time", "names"}
)
"""Units of settings whose values are no personal data."""
_PACKAGES = ("pinstripe", "aiohttp", "asyncpg", "msgspec", "starlette", "uvicorn", "uvloop")


async def support_bundle(config: Config, *, output: Path | None) -> int:
    """Write the archive, and say what is in it."""
    path = output or Path(f"pinstripe-support-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    files: dict[str, object] = {
        "versions.json": await _versions(),
        "settings.json": _settings(config),
    }
    try:
        config = with_data(config)
        async with open_database(config) as database, connect(database.url) as connection:
            files["database.json"] = {
                "server": database.version,
                "own": database.server is not None,
            }
            found = msgspec.to_builtins(await read_status(connection), builtin_types=(datetime,))
            files["status.json"] = _without_words(found)
    except PinstripeError as error:
        files["database.json"] = {"error": error.slug}
    try:
        _write(path, files)
    except OSError as error:
        raise Misconfigured(
            f"Cannot write {path}: {error.strerror}.", hint="Name another file with --output."
        ) from error
    show(f"Wrote {path}:")
    for name in files:
        show(f"  {name}")
    show("Look through it before you send it: it is plain JSON.")
    return 0


async def _versions() -> dict[str, object]:
    return {
        "packages": {name: version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "stripe_api": spec().api_version,
    }


def _settings(config: Config) -> dict[str, object]:
    """Values of numbers and switches; of the others only whether they are set."""
    found: dict[str, object] = {}
    for setting in SETTINGS:
        value = getattr(config, setting.name)
        shown = setting.unit in _UNITS and not setting.secret
        found[setting.name] = value if shown else value not in (None, (), "")
    return found


def _without_words(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: bool(v) if k in _WORDS else _without_words(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_words(item) for item in value]
    return value


def _write(path: Path, files: Mapping[str, object]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            text = json.dumps(content, indent=2, default=str).encode()
            entry = tarfile.TarInfo(f"pinstripe-support/{name}")
            entry.size, entry.mtime = len(text), int(time.time())
            archive.addfile(entry, io.BytesIO(text))
