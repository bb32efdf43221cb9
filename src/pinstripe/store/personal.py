"""Makes rows that are stored already follow the policy on personal data.

A policy is applied to what is written (`rows.personal`). When it becomes stricter, the rows that are there
are rewritten once, at the next start, before any other write; when it becomes looser, or the key of the
hashes is another one, only Stripe has the values, so all lists are read again. What was applied last stands
in `pinstripe.sync.personal`, with a fingerprint of the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import structlog

from pinstripe.catalog.personal import Action, Policy, review
from pinstripe.catalog.tables import Table
from pinstripe.catalog.tables import tables as catalog
from pinstripe.errors import Misconfigured
from pinstripe.rows.personal import Personal
from pinstripe.store import ddl
from pinstripe.store.forget_secrets import known_tables
from pinstripe.store.lost_tables import forget_streams
from pinstripe.store.pool import Connection, translated
from pinstripe.store.session import SCOPES_OF, account_of, relations

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

Value = Any
_PAGE = 5000
_TABLES = """
SELECT c.relname, a.attname, format_type(a.atttypid, NULL) FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind = ANY ($2::"char"[])
"""


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
    count, last = 0, [""] * len(table.key)
    with translated():
        while True:
            end = await connection.fetchval(ddl.page_end(schema, table, _PAGE), last)
            if end is None:
                break
            where = ddl.on_page(table, last, end)
            async with connection.transaction():
                count += len(await rewrite(connection, schema, table, personal, where=where))
            last = end
        async with connection.transaction():
            await rewrite_feed(connection, schema, table, personal)
    return count


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
        sets = ", ".join(
            f"{ddl.quote(c)} = ${at}{'::jsonb' if _is_json(table, c) else ''}"
            for at, c in enumerate(changed, start=1)
        )
        values = [
            json.dumps(v) if v is not None and _is_json(table, c) else v for c, v in changed.items()
        ]
        await connection.execute(
            f"UPDATE {name} SET {sets}, _synced_at = clock_timestamp() "
            f"WHERE {ddl.has_key(table, key)}",
            *values,
        )
        done.append(("/".join(key), list(changed)))
    return done


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
        before = personal.clean_columns(table, {name: pair[0] for name, pair in changes.items()})
        after = personal.clean_columns(table, {name: pair[1] for name, pair in changes.items()})
        clean = {
            name: [before.get(name, pair[0]), after.get(name, pair[1])]
            for name, pair in changes.items()
        }
        if clean != changes:
            count += 1
            await connection.execute(
                "UPDATE pinstripe.change SET changes = $2::jsonb WHERE position = $1",
                position,
                json.dumps(clean),
            )
    return count
