"""`pinstripe erase`: removes the personal data of one customer from the copy."""

from __future__ import annotations

import json
import sys

from pinstripe.cli.status import check_synced, with_data
from pinstripe.config.config import Config
from pinstripe.errors import Misconfigured
from pinstripe.service import open_database
from pinstripe.store import erasures
from pinstripe.store.migrate import ensure_bookkeeping
from pinstripe.store.platforms.stored import get_platform
from pinstripe.store.pool import connect
from pinstripe.store.scopes import scope_of


async def erase(
    config: Config,
    customer: str,
    *,
    of_platform: tuple[str, str] | None = None,
    dry_run: bool,
    scrubs: bool,
    as_json: bool,
) -> int:
    """Erase, or with `dry_run` count; print the rows by table. `of_platform`: its id, and the account's."""
    if not customer.strip() or customer != customer.strip():
        raise Misconfigured(
            "That is no id of a customer.", hint="Give one as Stripe shows it: cus_..."
        )
    config = with_data(config)
    account = of_platform[1] if of_platform else ""
    async with (
        open_database(config) as database,
        connect(database.url, account=account) as connection,
    ):
        await ensure_bookkeeping(connection)
        schema = config.schema
        if of_platform:
            schema = scope_of((await get_platform(connection, of_platform[0])).schema, account)
        await check_synced(connection, schema)
        if dry_run:
            found = await erasures.find_objects(connection, schema, customer)
            rows = {table: len(keys) for table, keys in sorted(found.items())}
        else:
            made = await erasures.erase(connection, schema, customer, reason="requested")
            rows = dict(made.rows)
            if scrubs:
                await erasures.scrub(connection, schema, rows)
    if as_json:
        sys.stdout.write(json.dumps({"customer": customer, "erased": not dry_run, "rows": rows}))
        sys.stdout.write("\n")
        return 0
    verb = "Would look at" if dry_run else "Erased personal data in"
    sys.stdout.write(f"{verb} {sum(rows.values()):,} rows of {customer}\n")
    for table, count in rows.items():
        sys.stdout.write(f"  {table:<40} {count:>8,}\n")
    if not dry_run:
        sys.stdout.write(
            "Backups, standbys and the write-ahead log still hold what they held before.\n"
        )
    return 0
