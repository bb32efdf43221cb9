"""Rewrites rows that are stored already, by the rules for what is written: no secrets, personal data.

`forget_secrets` removes what older versions wrote. It runs once for each state of the rule
(`pinstripe.sync.secret_rule`), before any other write. Columns of secrets become null; JSON, texts,
`_extra` and the change feed pass through the function that cleans rows today. A table whose rows a trigger
or constraint of the user protects is skipped and retried at the next start.

`apply_policy` follows the policy on personal data (`rows.personal`). When it becomes stricter, the rows
that are there are rewritten once, at the next start, before any other write; when it becomes looser, or the
key of the hashes is another one, only Stripe has the values, so all lists are read again. What was applied
last stands in `pinstripe.sync.personal`, with a fingerprint of the key.

Both go by pages of the key, each in a transaction of its own, so no row is locked for long; an interrupted
run starts over at the next start. Out of reach: dead rows until VACUUM, the WAL, standbys, backups.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import structlog

from pinstripe.catalog.personal import Action, Policy, review
from pinstripe.catalog.secrets import SECRET_NAMES, SECRET_PLACES
from pinstripe.catalog.tables import Column, Table
from pinstripe.catalog.tables import tables as catalog
from pinstripe.errors import Drifted, Misconfigured, Unwritable
from pinstripe.rows.personal import Personal
from pinstripe.rows.secrets import without_secrets
from pinstripe.store import ddl
from pinstripe.store.pool import Connection, translated
from pinstripe.store.quarantine import forget_streams
from pinstripe.store.session import SCOPES_OF, account_of, relations

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

Value = Any
_PAGE = 5000
_REWRITE = "UPDATE pinstripe.change SET changes = $2::jsonb WHERE position = $1"
_TABLES = """
SELECT c.relname, a.attname, format_type(a.atttypid, NULL) FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind = ANY ($2::"char"[])
"""
_LOOKS = "secret|whsec_|_live_|_test_"
_WORDS = "|".join(sorted(SECRET_NAMES))
_TYPES = "|".join(re.escape(name) for name in sorted(SECRET_PLACES))
# \\m and \\M are Postgres's edges of a word: "cvc", but not "cvc_check".
_SUSPECT = f"{_LOOKS}|{_TYPES}|\\m({_WORDS})\\M"
_TEXTS = ("text", "json", "texts")


def rule() -> str:
    """The state of the rule: another one, and the database is searched again."""
    text = repr((sorted(SECRET_NAMES), sorted(SECRET_PLACES.items()), _LOOKS))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


async def forget_secrets(
    connection: Connection, schema: str, existing: Mapping[str, Table], *, is_new: bool
) -> int:
    """Clean the tables of `schema`; return the number of rows that held a secret.

    `is_new`: nothing has been written there yet.
    """
    with translated():
        done = await connection.fetchval(
            "SELECT secret_rule FROM pinstripe.sync WHERE schema = $1", schema
        )
    if done == rule():
        return 0
    cleaned, is_whole = 0, True
    for table in existing.values() if not is_new else ():
        try:
            cleaned += await _Search(connection, schema, table).run()
        except (Drifted, Unwritable) as error:
            is_whole = False
            _log.warning("secrets.kept", table=table.name, error=error.message)
    if not is_new:
        cleaned += await _clean_feed(connection, schema, existing)
    if is_whole:
        with translated():
            await connection.execute(
                "UPDATE pinstripe.sync SET secret_rule = $2 WHERE schema = $1", schema, rule()
            )
    if cleaned:
        _log.info("secrets.removed", schema=schema, rows=cleaned)
    return cleaned


@dataclass
class _Search:
    """The pages of one table."""

    connection: Connection
    schema: str
    table: Table

    async def run(self) -> int:
        cleaned = 0
        with translated():
            await self._comment()
            async for here in _pages(self.connection, self.schema, self.table):
                async with self.connection.transaction():
                    cleaned += await self._page(here)
        return cleaned

    async def _comment(self) -> None:
        """Tables that are older than the rule say of their columns what is so now."""
        secret = [c.name for c in self.table.columns if c.secret]
        comments = list(ddl.comments(self.schema, self.table, only=secret)) if secret else []
        if comments:
            await self.connection.execute("\n".join(comments))

    @property
    def _name(self) -> str:
        return ddl.qualified(self.schema, self.table.name)

    async def _page(self, here: str) -> int:
        cleaned = await self._empty_columns(here)
        # Where a name is a secret by its place only, no word gives it away: every row is read.
        suspect = "" if self.table.object_type in SECRET_PLACES else _SUSPECT
        rows = await self.connection.fetch(
            f"SELECT to_jsonb(t)::text, {ddl.keys_of(self.table)} FROM {self._name} t "
            f"WHERE {here} AND t::text ~ $1 FOR NO KEY UPDATE",
            suspect,
        )
        for text, *key in rows:
            cleaned += await self._clean_row(key, json.loads(text))
        return cleaned

    async def _empty_columns(self, here: str) -> int:
        secret = [ddl.quote(c.name) for c in self.table.columns if c.secret]
        if not secret:
            return 0
        sets = ", ".join(f"{name} = NULL" for name in secret)
        held = " OR ".join(f"{name} IS NOT NULL" for name in secret)
        text = f"UPDATE {self._name} SET {sets} WHERE {here} AND ({held})"
        return int((await self.connection.execute(text)).rpartition(" ")[2])

    async def _clean_row(self, key: Sequence[str], row: dict[str, Value]) -> int:
        """Write the columns of a row that change without secrets; return 1 if there are any."""
        clean = clean_values(self.table, row)
        changed = {name: value for name, value in clean.items() if value != row[name]}
        if not changed:
            return 0
        await _write_columns(self.connection, self.schema, self.table, key, changed)
        return 1


def clean_values(table: Table, row: Mapping[str, Value]) -> dict[str, Value]:
    """The values of the columns in `row` that may hold secrets, without them.

    The columns are put together to the object that they came from, so that one rule is for all.
    """
    columns = [c for c in table.columns if c.path and c.read in _TEXTS and c.name in row]
    obj: dict[str, Value] = {}
    for column in columns:
        _put(obj, column, row[column.name])
    clean = without_secrets({**obj, "object": table.object_type})
    found = {c.name: _at(clean, c.path) for c in columns if c.path != ("object",)}
    extra = row.get("_extra")
    if isinstance(extra, dict):
        kept = without_secrets({"object": table.object_type, **extra})
        found["_extra"] = {key: kept[key] for key in extra}
    return found


def _put(obj: dict[str, Value], column: Column, value: Value) -> None:
    for step in column.path[:-1]:
        obj = obj.setdefault(step, {})
    obj[column.path[-1]] = value


def _at(value: Value, path: Iterable[str]) -> Value:
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value


async def _clean_feed(connection: Connection, schema: str, existing: Mapping[str, Table]) -> int:
    """The befores and afters of the change feed. A column of a secret goes; the change stays."""
    whole = [t.name for t in existing.values() if any(c.secret for c in t.columns)]
    cleaned, last = 0, 0
    with translated():
        while True:
            async with connection.transaction():
                rows = await connection.fetch(
                    'SELECT position, "table", changes::text FROM pinstripe.change'
                    f" WHERE schema IN {SCOPES_OF}"
                    ' AND position > $2 AND ("table" = ANY($3) OR changes::text ~ $4)'
                    f" ORDER BY position LIMIT {_PAGE}",
                    schema,
                    last,
                    whole,
                    _SUSPECT,
                )
                for position, name, text in rows:
                    changes = json.loads(text)
                    clean = clean_changes(existing[name], changes) if name in existing else changes
                    if clean != changes:
                        cleaned += 1
                        await connection.execute(_REWRITE, position, json.dumps(clean))
            if len(rows) < _PAGE:
                return cleaned
            last = rows[-1][0]


def clean_changes(table: Table, changes: Mapping[str, list[Value]]) -> dict[str, list[Value]]:
    """{column: [before, after]} without secrets."""
    secret = {c.name for c in table.columns if c.secret}
    shown = {name: pair for name, pair in changes.items() if name not in secret}
    return _clean_pairs(shown, partial(clean_values, table))


def _clean_pairs(
    changes: Mapping[str, list[Value]], clean: Callable[[dict[str, Value]], Mapping[str, Value]]
) -> dict[str, list[Value]]:
    """{column: [before, after]}, each side with the columns that `clean` changes."""
    before = clean({name: pair[0] for name, pair in changes.items()})
    after = clean({name: pair[1] for name, pair in changes.items()})
    return {n: [before.get(n, pair[0]), after.get(n, pair[1])] for n, pair in changes.items()}


def known_tables(
    existing: Mapping[str, Mapping[str, str]], catalog: Mapping[str, Table]
) -> Iterator[Table]:
    """The tables of the catalog that stand in the database, with the columns that they have there."""
    for name, table in catalog.items():
        there = existing.get(name, {})
        if {"_as_of", "_extra", *table.key} <= set(there):
            columns = tuple(c for c in table.columns if there.get(c.name) == c.type)
            yield Table(table.name, table.object_type, columns, table.key, table.virtual)


class Applied(msgspec.Struct, frozen=True):
    """The policy that the rows of a schema follow. `places`: "object path" -> action."""

    kinds: dict[str, Action]
    places: dict[str, Action]
    review: str
    key: str

    def policy(self) -> Policy:
        places = {_place(name): action for name, action in self.places.items()}
        return Policy(self.kinds, places)


def _place(name: str) -> tuple[str, tuple[str, ...]]:
    object_name, *path = name.split(" ")
    return object_name, tuple(path)


def applied(personal: Personal | None) -> Applied:
    """What to store once the policy is applied."""
    policy = personal.policy if personal is not None else Policy.everything("keep")
    reviewed = hashlib.sha256(msgspec.json.encode(review())).hexdigest()[:16]
    places = {" ".join((name, *path)): action for (name, path), action in policy.by_place.items()}
    key = personal.fingerprint if personal is not None and policy.hashes else ""
    return Applied(dict(policy.by_kind), places, reviewed, key)


async def apply_policy(
    connection: Connection, schema: str, synced: Mapping[str, Table], personal: Personal | None
) -> int:
    """Make the rows of a schema follow the policy; return the number that were rewritten.

    Before anything is written, by the holder of the lease.
    """
    wanted = applied(personal)
    before = await stored_policy(connection, schema)
    if before == wanted:
        return 0
    if before.key and wanted.key not in ("", before.key):
        raise _other_key(schema)
    count = 0
    if personal is not None:
        for table in (await existing_tables(connection, schema)).values():
            count += await _rewrite_all(connection, schema, table, personal)
    is_looser = wanted.policy().is_looser_than(before.policy())
    with translated():
        async with connection.transaction():
            if is_looser:
                await forget_streams(connection, schema, sorted(synced))
                _log.info("personal.read_again", schema=schema)
            await connection.execute(
                "UPDATE pinstripe.sync SET personal = $2::jsonb WHERE schema = $1",
                schema,
                msgspec.json.encode(wanted).decode(),
            )
    if count:
        _log.info("personal.applied", schema=schema, rows=count)
    return count


async def stored_policy(connection: Connection, schema: str) -> Applied:
    """The policy that the rows follow."""
    with translated():
        text = await connection.fetchval(
            "SELECT personal::text FROM pinstripe.sync WHERE schema = $1", schema
        )
    return applied(None) if text is None else msgspec.json.decode(text, type=Applied)


async def check_policy(connection: Connection, schema: str, personal: Personal | None) -> None:
    """Raises Misconfigured unless the rows follow this policy already: two writers must not differ."""
    stored, mine = await stored_policy(connection, schema), applied(personal)
    if (stored.kinds, stored.places, stored.key) != (mine.kinds, mine.places, mine.key):
        raise Misconfigured(
            f'The rows of the schema "{schema}" follow another policy on personal data.',
            hint="Give every process that serves or syncs it the same --personal-data, --columns and "
            "hash key. It is tried again until then.",
        )


def with_key(policy: Applied, schema: str, key: bytes) -> Personal:
    """What applies a stored policy. Raises Misconfigured if the hashes were made with another key."""
    personal = Personal(policy.policy(), key)
    if policy.key not in ("", personal.fingerprint):
        raise _other_key(schema)
    return personal


def _other_key(schema: str) -> Misconfigured:
    return Misconfigured(
        f'The hashes in the schema "{schema}" were made with another key.',
        hint="Bring it back: hash.key in the data directory, or PINSTRIPE_HASH_KEY. To take a new key on "
        "purpose, start once with --personal-data drop, and then with hash again.",
    )


async def existing_tables(connection: Connection, schema: str) -> dict[str, Table]:
    """The tables of the catalog that stand in the schema, synced or not, with the columns there."""
    with translated():
        kinds = [b"v"] if account_of(schema) else [b"r", b"p"]
        rows = await connection.fetch(_TABLES, relations(schema), kinds)
    there: dict[str, dict[str, str]] = {}
    for table, column, kind in rows:
        short = "timestamptz" if kind == "timestamp with time zone" else kind
        there.setdefault(table, {})[column] = short
    known = dict(catalog())
    if not account_of(schema):
        known = {name: ddl.as_there(table, there.get(name, ())) for name, table in known.items()}
    return {table.name: table for table in known_tables(there, known)}


async def _rewrite_all(
    connection: Connection, schema: str, table: Table, personal: Personal
) -> int:
    count = 0
    with translated():
        async for here in _pages(connection, schema, table):
            async with connection.transaction():
                count += len(await rewrite(connection, schema, table, personal, where=here))
        async with connection.transaction():
            await rewrite_feed(connection, schema, table, personal)
    return count


async def _pages(connection: Connection, schema: str, table: Table) -> AsyncIterator[str]:
    """The pages of a table, each as SQL on the row `t`."""
    last = [""] * len(table.key)
    while (end := await connection.fetchval(ddl.page_end(schema, table, _PAGE), last)) is not None:
        yield ddl.on_page(table, last, end)
        last = end


async def rewrite(
    connection: Connection, schema: str, table: Table, personal: Personal, *, where: str
) -> list[tuple[str, list[str]]]:
    """Clean rows; return (key, changed columns) of those that change. `where` is SQL on the row `t`."""
    name = ddl.qualified(schema, table.name)
    rows = await connection.fetch(
        f"SELECT to_jsonb(t)::text, {ddl.keys_of(table)} FROM {name} t WHERE {where} FOR NO KEY UPDATE"
    )
    done: list[tuple[str, list[str]]] = []
    for text, *key in rows:
        changed = personal.clean_columns(table, json.loads(text))
        if not changed:
            continue
        await _write_columns(connection, schema, table, key, changed, stamp=True)
        done.append(("/".join(key), list(changed)))
    return done


async def _write_columns(
    connection: Connection,
    schema: str,
    table: Table,
    key: Sequence[str],
    changed: Mapping[str, Value],
    *,
    stamp: bool = False,
) -> None:
    """Write these columns of one row. `stamp`: as another version of it."""
    sets = ", ".join(
        f"{ddl.quote(c)} = ${at}{'::jsonb' if _is_json(table, c) else ''}"
        for at, c in enumerate(changed, start=1)
    )
    values = [
        json.dumps(v) if v is not None and _is_json(table, c) else v for c, v in changed.items()
    ]
    await connection.execute(
        f"UPDATE {ddl.qualified(schema, table.name)} SET {sets}"
        f"{', _synced_at = clock_timestamp()' if stamp else ''} WHERE {ddl.has_key(table, key)}",
        *values,
    )


def _is_json(table: Table, column: str) -> bool:
    return column == "_extra" or table.column(column).read == "json"


async def rewrite_feed(
    connection: Connection,
    schema: str,
    table: Table,
    personal: Personal,
    *,
    keys: Sequence[str] | None = None,
) -> int:
    """Clean the befores and afters of the change feed, of some rows or all; return their number."""
    rows = await connection.fetch(
        f"SELECT position, changes::text FROM pinstripe.change WHERE schema IN {SCOPES_OF}"
        ' AND "table" = $2'
        " AND ($3::text[] IS NULL OR id = ANY($3))",
        schema,
        table.name,
        keys,
    )
    count = 0
    for position, text in rows:
        changes: dict[str, list[Value]] = json.loads(text)
        clean = _clean_pairs(changes, partial(personal.clean_columns, table))
        if clean != changes:
            count += 1
            await connection.execute(_REWRITE, position, json.dumps(clean))
    return count
