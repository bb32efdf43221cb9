"""Every command: its name, its flags, and the function it calls.

Commands import their code only when they run, so `pinstripe version` and `--help` are fast and a sync
never loads the simulator.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from pinstripe.cli.runtime import (
    ACCOUNT,
    BAD_USAGE,
    DATABASE,
    GATEWAY,
    LIVE,
    PERSONAL,
    Exit,
    execute,
    report,
    with_settings,
)
from pinstripe.config.config import OFF, Config, whole_number
from pinstripe.config.settings import PLATFORM_SETTINGS, SETTINGS, SYNC_SETTINGS
from pinstripe.errors import Misconfigured

webhook = App(
    name="webhook",
    sort_key=9,
    help="Manage the webhook endpoint at Stripe that notifies the gateway.",
)

JsonFlag = Annotated[bool, Parameter(negative="", help="Print one line of JSON to stdout.")]

SyncOption = Annotated[
    str,
    Parameter(
        name="--sync", help='The sync\'s ID; "default" is the one described by the settings.'
    ),
]

_WRITES = (
    "Also test whether webhook endpoints can be created, with a request that Stripe rejects because "
    "it has no URL. Changes nothing."
)

_URL = "Full URL of the endpoint, instead of one under the gateway's public URL."
_ENDPOINT = "The endpoint's ID (we_...); optional if the sync has only one."
_STRIPE = ("api_key", "stripe_url", "stripe_account", "rate_limit", "endpoint_rate_limit")
_STORED = ("database_url", "data_dir", "secret_key")


@with_settings(*ACCOUNT, *DATABASE)
def check(
    config: Config,
    *,
    try_writes: Annotated[bool, Parameter(negative="", help=_WRITES)] = False,
    json: JsonFlag = False,
) -> None:
    """Check the key and the database: what can be read, what is missing, and how to fix it.

    Sends about 120 small requests to Stripe and writes nothing. Exit code 0: all checks passed; 2: the key
    or a setting is wrong; 3: Stripe or Postgres cannot be reached; 4: something cannot be read; 5: the
    database cannot be written to.
    """
    from pinstripe.cli import check as commands

    execute(config, commands.check(config, writes=try_writes, as_json=json))


@webhook.command(sort_key=1)
@with_settings(*_STRIPE, *_STORED, "public_url")
def create(
    config: Config,
    *,
    url: Annotated[str | None, Parameter(help=_URL)] = None,
    sync: SyncOption = "default",
    json: JsonFlag = False,
) -> None:
    """Create the endpoint at Stripe for all events, unless it exists.

    Prints its signing secret once, as the setting that the gateway needs. For a stored sync, the secret is
    stored with the sync, encrypted, and not printed. A platform gets a Connect endpoint, which delivers the
    events of all connected accounts.
    """
    from pinstripe.cli import webhook as commands

    execute(config, commands.create(config, sync, url=url, as_json=json))


@webhook.command(name="list", sort_key=2)
@with_settings(*_STRIPE, *_STORED)
def list_endpoints(config: Config, *, sync: SyncOption = "default", json: JsonFlag = False) -> None:
    """List the account's webhook endpoints, Pinstripe's first."""
    from pinstripe.cli import webhook as commands

    execute(config, commands.show_endpoints(config, sync, as_json=json))


@webhook.command(sort_key=3)
@with_settings(*_STRIPE, *_STORED)
def delete(
    config: Config,
    endpoint: Annotated[str | None, Parameter(help=_ENDPOINT)] = None,
    /,
    *,
    sync: SyncOption = "default",
    json: JsonFlag = False,
) -> None:
    """Delete an endpoint at Stripe."""
    from pinstripe.cli import webhook as commands

    execute(config, commands.delete(config, sync, endpoint=endpoint, as_json=json))


syncs = App(name="syncs", sort_key=2, help="Manage stored syncs, which `pinstripe serve` runs.")

IdArgument = Annotated[
    str, Parameter(help="The sync's ID, used in URLs: lowercase letters, digits, hyphens.")
]

_STORED_SETTING = "A setting for this {}, as NAME=VALUE: {}. Repeatable."

SettingOption = Annotated[
    list[str] | None,
    Parameter(
        name="--set", negative="", help=_STORED_SETTING.format("sync", ", ".join(SYNC_SETTINGS))
    ),
]

_SYNC_STRIPE = ("api_key", "stripe_url", "stripe_account", "webhook_secret")
_ALONE = "Serve without syncing, while `pinstripe sync` or another service syncs elsewhere."
_SCHEMA = "Postgres schema for its tables. Defaults to the ID with - replaced by _."
_PAUSED = "Store it paused."
_KEY = "Replace the key with another one of the same account, read from STRIPE_API_KEY or stdin."
_DROP = "Also drop its tables, once its worker has stopped."
_DROP_PLATFORM = "Also drop its tables and views."
_WHERE = "Print the gateway's URL as one line of JSON to stdout."


@with_settings(*ACCOUNT, *PERSONAL, *DATABASE, *LIVE, *GATEWAY)
def serve(
    config: Config,
    *,
    gateway_only: Annotated[bool, Parameter(negative="", help=_ALONE)] = False,
    json: Annotated[bool, Parameter(negative="", help=_WHERE)] = False,
) -> None:
    """Sync, and serve the proxy, waits, webhooks, the API and the console on one port.

    Each sync runs in its own worker process, which is restarted if it dies. The sync configured by flags
    and environment is called "default"; add more with `pinstripe syncs`.
    """
    from pinstripe.cli import serve as commands

    execute(config, commands.serve(config, gateway_only=gateway_only, as_json=json), stopped=0)


@with_settings()
def sync_worker(config: Config) -> None:
    """Run one sync for a service, which sends the start message on stdin."""
    from pinstripe.cli import sync

    execute(config, sync.worker(), stopped=0)


@syncs.command(name="list", sort_key=1)
@with_settings(*_STORED)
def list_syncs(config: Config, *, json: JsonFlag = False) -> None:
    """List stored syncs. Keys are not shown."""
    from pinstripe.cli import syncs as commands

    execute(config, commands.list_syncs(config, as_json=json))


@syncs.command(sort_key=2)
@with_settings(*_SYNC_STRIPE, *_STORED)
def add(
    config: Config,
    sync_id: IdArgument,
    /,
    *,
    schema: Annotated[str | None, Parameter(help=_SCHEMA)] = None,
    set_: SettingOption = None,
    paused: Annotated[bool, Parameter(negative="", help=_PAUSED)] = False,
    json: JsonFlag = False,
) -> None:
    """Add a sync: an account in one mode. Its key is stored encrypted.

    The key is read from STRIPE_API_KEY, a prompt, or stdin, and verified with Stripe before anything is
    stored.
    """
    from pinstripe.cli import syncs as commands

    work = commands.add(
        config, sync_id, schema=schema, settings=_pairs(set_), paused=paused, as_json=json
    )
    execute(config, work)


@syncs.command(sort_key=3)
@with_settings(*_SYNC_STRIPE, *_STORED)
def change(
    config: Config,
    sync_id: IdArgument,
    /,
    *,
    key: Annotated[bool, Parameter(negative="", help=_KEY)] = False,
    set_: SettingOption = None,
    json: JsonFlag = False,
) -> None:
    """Change the key, settings or webhook secrets of a sync, and restart it."""
    from pinstripe.cli import syncs as commands

    execute(config, commands.change(config, sync_id, _pairs(set_), key=key, as_json=json))


@syncs.command(sort_key=4)
@with_settings(*_STORED, "schema")
def pause(config: Config, sync_id: IdArgument, /, *, json: JsonFlag = False) -> None:
    """Pause a sync until `resume`. Writes through the proxy are still mirrored."""
    from pinstripe.cli import syncs as commands

    execute(config, commands.pause(config, sync_id, paused=True, as_json=json))


@syncs.command(sort_key=5)
@with_settings(*_STORED, "schema")
def resume(config: Config, sync_id: IdArgument, /, *, json: JsonFlag = False) -> None:
    """Resume a paused sync where it stopped."""
    from pinstripe.cli import syncs as commands

    execute(config, commands.pause(config, sync_id, paused=False, as_json=json))


@syncs.command(sort_key=6)
@with_settings(*_STORED)
def remove(
    config: Config,
    sync_id: IdArgument,
    /,
    *,
    drop_tables: Annotated[bool, Parameter(negative="", help=_DROP)] = False,
    json: JsonFlag = False,
) -> None:
    """Remove a sync and its key. Its tables are kept unless --drop-tables is given."""
    from pinstripe.cli import syncs as commands

    execute(config, commands.remove(config, sync_id, drop_tables=drop_tables, as_json=json))


@syncs.command(sort_key=7)
@with_settings(*_STORED)
def rekey(config: Config, *, json: JsonFlag = False) -> None:
    """Re-encrypt all stored keys with the first key in PINSTRIPE_SECRET_KEY, or else a new key."""
    from pinstripe.cli import syncs as commands

    execute(config, commands.rekey(config, as_json=json))


def _pairs(words: list[str] | None) -> dict[str, str]:
    """Return NAME=VALUE pairs as a dict. Unknown names are rejected when they are stored."""
    pairs = [word.partition("=") for word in words or []]
    for name in (name for name, equals, _ in pairs if not equals):
        hint = f"Write --set {name}=VALUE; --set {name}= goes back to the default."
        raise Misconfigured(f"--set {name!r} has no value.", hint=hint)
    return {name.strip().replace("-", "_"): value.strip() for name, _, value in pairs}


schema = App(
    name="schema", sort_key=5, help="Show the tables that a sync creates. Needs no database."
)

reader = App(name="reader", sort_key=10, help="Manage the read-only Postgres role for the tables.")

_DOMAIN = "Show the tables of one domain (core, billing, connect, ...)."
_AROUND = "Show one table, the tables it references and the tables that reference it."
_DETAIL = "Columns to show: key and references (keys), key columns (short), or all (full)."
_OUTPUT = "Output file; stdout by default."
_BY_ACCOUNT = "Print the tables of a platform, which hold many accounts."
_PARTITIONED = "With --by-account: the number of hash partitions of each table."
_FORMAT = "Output format; by default taken from the --output extension, else SVG."


@schema.command(sort_key=1)
@with_settings("schema", "tables")
def ddl(
    config: Config,
    *,
    by_account: Annotated[bool, Parameter(help=_BY_ACCOUNT, negative="")] = False,
    partitions: Annotated[int, Parameter(help=_PARTITIONED)] = 0,
) -> None:
    """Print the DDL that creates the tables, as an SQL script."""
    from pinstripe.cli import schema as commands

    whole_number(str(partitions), "--partitions", least=0, most=1024)
    commands.print_ddl(config, by_account=by_account, partitions=partitions)


@schema.command(name="tables", sort_key=2)
@with_settings("schema", "tables")
def list_tables(
    config: Config,
    table: Annotated[str | None, Parameter(help="A table, to list its columns.")] = None,
    /,
    *,
    json: JsonFlag = False,
) -> None:
    """List the tables, or the columns of one table."""
    from pinstripe.cli import schema as commands

    if table is None:
        commands.print_tables(config, as_json=json)
    else:
        commands.print_table(config, table, as_json=json)


@schema.command(sort_key=4)
@with_settings("schema", "tables")
def models(
    config: Config,
    *,
    for_: Annotated[
        Literal["sqlalchemy", "pydantic", "drizzle", "prisma"],
        Parameter(name="--for", help="The tool that is to read them."),
    ],
) -> None:
    """Print the tables as models of an ORM, with relations and descriptions, as one file."""
    from pinstripe.cli import schema as commands

    commands.print_models(config, for_)


@schema.command(sort_key=3)
@with_settings("tables")
def erd(
    config: Config,
    *,
    domain: Annotated[str | None, Parameter(help=_DOMAIN)] = None,
    table: Annotated[str | None, Parameter(help=_AROUND)] = None,
    detail: Annotated[Literal["keys", "short", "full"], Parameter(help=_DETAIL)] = "short",
    format: Annotated[Literal["svg", "mermaid"] | None, Parameter(help=_FORMAT)] = None,
    output: Annotated[Path | None, Parameter(help=_OUTPUT)] = None,
) -> None:
    """Draw the entity-relationship diagram as SVG or Mermaid.

    Without flags it shows the domains and the references between them; with --tables, those tables.
    """
    from pinstripe.cli import schema

    options = schema.DiagramOptions(
        domain=domain, table=table, detail=detail, format=format, output=output
    )
    schema.draw(config, options)


@reader.command(name="create", sort_key=1)
@with_settings(*DATABASE)
def create_reader(config: Config, *, json: JsonFlag = False) -> None:
    """Create the read-only role, and print its connection URL once.

    It can read every table in the schema, including future ones, and nothing else. If the database user
    cannot create roles, the statements for an administrator are printed.
    """
    from pinstripe.cli import schema as commands

    execute(config, commands.make(config, expect=False, as_json=json))


@reader.command(sort_key=2)
@with_settings(*DATABASE)
def rotate(config: Config, *, json: JsonFlag = False) -> None:
    """Reset the role's password, and close the sessions that used the old one."""
    from pinstripe.cli import schema as commands

    execute(config, commands.make(config, expect=True, as_json=json))


@reader.command(sort_key=3)
@with_settings(*DATABASE)
def drop(config: Config, *, json: JsonFlag = False) -> None:
    """Drop the role."""
    from pinstripe.cli import schema as commands

    execute(config, commands.drop(config, as_json=json))


platform = App(
    name="platform",
    sort_key=3,
    help="Manage platforms: connected accounts in one schema, copied by `pinstripe worker`.",
)

PlatformArgument = Annotated[
    str, Parameter(help="The platform's ID, used in URLs: lowercase letters, digits, hyphens.")
]

PlatformSetting = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        negative="",
        help=_STORED_SETTING.format("platform", ", ".join(PLATFORM_SETTINGS)),
    ),
]

_PLATFORM_STRIPE = ("api_key", "stripe_url", "webhook_secret")

_PARTITIONS = (
    "Divide each table into so many by account (PARTITION BY HASH). It cannot be changed later."
)


@platform.command(name="add", sort_key=1)
@with_settings(*_PLATFORM_STRIPE, *_STORED)
def add_platform(
    config: Config,
    platform_id: PlatformArgument,
    /,
    *,
    schema: Annotated[str | None, Parameter(help=_SCHEMA)] = None,
    partitions: Annotated[int, Parameter(help=_PARTITIONS)] = 0,
    set_: PlatformSetting = None,
    paused: Annotated[bool, Parameter(negative="", help=_PAUSED)] = False,
    json: JsonFlag = False,
) -> None:
    """Add a platform: its own account and all that are connected to it. Its key is stored encrypted.

    The key is read from STRIPE_API_KEY, a prompt, or stdin, and verified with Stripe before anything is
    stored.

    Given an ID that is stored already, it replaces its key and settings; all rows stay.
    """
    from pinstripe.cli import syncs as commands

    work = commands.add_platform(
        config,
        platform_id,
        schema=schema,
        settings=_pairs(set_),
        partitions=partitions,
        paused=paused,
        as_json=json,
    )
    execute(config, work)


@platform.command(name="list", sort_key=2)
@with_settings(*_STORED)
def list_platforms(config: Config, *, json: JsonFlag = False) -> None:
    """List platforms, how many accounts each has, and the workers. Keys are not shown."""
    from pinstripe.cli import syncs as commands

    execute(config, commands.list_platforms(config, as_json=json))


@platform.command(name="pause", sort_key=3)
@with_settings(*_STORED)
def pause_platform(
    config: Config, platform_id: PlatformArgument, /, *, json: JsonFlag = False
) -> None:
    """Pause a platform: its accounts are not polled until it is resumed."""
    from pinstripe.cli import syncs as commands

    execute(config, commands.pause_platform(config, platform_id, paused=True, as_json=json))


@platform.command(name="resume", sort_key=4)
@with_settings(*_STORED)
def resume_platform(
    config: Config, platform_id: PlatformArgument, /, *, json: JsonFlag = False
) -> None:
    """Resume a paused platform."""
    from pinstripe.cli import syncs as commands

    execute(config, commands.pause_platform(config, platform_id, paused=False, as_json=json))


@platform.command(name="remove", sort_key=5)
@with_settings(*_STORED)
def remove_platform(
    config: Config,
    platform_id: PlatformArgument,
    /,
    *,
    drop_tables: Annotated[bool, Parameter(negative="", help=_DROP_PLATFORM)] = False,
    json: JsonFlag = False,
) -> None:
    """Remove a platform and its key. Its tables stay unless you drop them."""
    from pinstripe.cli import syncs as commands

    done = commands.remove_platform(config, platform_id, drop_tables=drop_tables, as_json=json)
    execute(config, done)


@platform.command(name="views", sort_key=6)
@with_settings(*_STORED)
def tenant_views(
    config: Config,
    platform_id: PlatformArgument,
    account_id: Annotated[str, Parameter(help="The account (acct_...) whose rows they show.")],
    target: Annotated[str, Parameter(help="The schema of the views; it is made.")],
    /,
    *,
    json: JsonFlag = False,
) -> None:
    """Make a schema with a view of each table that shows one account's rows, for a tenant of yours."""
    from pinstripe.cli import syncs as commands

    execute(config, commands.make_views(config, platform_id, account_id, target, as_json=json))


@with_settings(*_STORED, "hash_key")
def worker(config: Config) -> None:
    """Copy and follow the accounts of all platforms, beside any number of other workers.

    Workers share the platforms' rate limits and need nothing but the same database and the same
    PINSTRIPE_SECRET_KEY. At SIGTERM one finishes what it has begun, for some seconds, and leaves.
    """
    from pinstripe.cli import syncs as commands

    execute(config, commands.work(config), stopped=0)


def _version() -> str:
    from importlib.metadata import version

    return f"pinstripe {version('pinstripe')}"


app = App(
    name="pinstripe",
    help="Your Stripe account as tables in Postgres.",
    help_format="plaintext",
    version=_version,
    version_flags=("--version",),
)

_ONCE = (
    "Exit once everything the key can read is in the database (exit code 0). "
    "Exit code 4: some of it is not."
)
_DEMO_PLATFORM = "A platform of 50 connected accounts, with two workers."
_SUMMARY = "Print a summary as one line of JSON to stdout; messages go to stderr."
_REPAIR = "Fetch what differs again, and check the result."
_EVERY = "Check every row that appears in no list, instead of a sample."
_VERIFY_PLATFORM = "Verify an account of this platform, with its stored key; see --account."
_ERASE_PLATFORM = "Erase in an account of this platform; see --account."
_VERIFY_ACCOUNT = "The account of the platform (acct_...), its own or a connected one."
_DRY_RUN = "Only count the rows that belong to the customer."
_SCRUB = (
    "Afterwards rewrite the files of the tables (VACUUM FULL, which locks each table meanwhile), so that "
    "no old version of a row remains in them."
)
_SAMPLE = "Rows per table that appear in no list (referenced only, or hidden) to check one by one."
_UNTIL = "Creation time of the newest initial object, in Unix seconds; 0 means last midnight, UTC."
_SETTLE = "Seconds to let Stripe's event list settle first; the gateway's setting by default."
_LIMITS = "Rate limits to apply: Stripe's for live mode, for test mode, or off."
_NASTINESS = (
    "Behave as awkwardly as Stripe (default), or calm. [env: PINSTRIPE_SIMULATOR_NASTINESS]"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    debug = "--debug" in words or os.environ.get("PINSTRIPE_DEBUG", "").strip().lower() not in OFF
    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except Exit as end:
        return end.code
    except CycloptsError as error:
        command = " ".join(("pinstripe", *(error.command_chain or ())))
        hint = f"`{command} --help` shows what it takes."
        report(Misconfigured(str(error).rstrip(), hint=hint), as_json=as_json, debug=False)
        return BAD_USAGE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (`| head`) closed the pipe. Keep the interpreter from flushing into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, BaseExceptionGroup) as error:
        return report(error, as_json=as_json, debug=debug)
    return 0


@app.command(sort_key=1)
@with_settings(*ACCOUNT, *PERSONAL, *DATABASE, *LIVE, *GATEWAY, "demo_scale")
def run(config: Config) -> None:
    """Sync the account and serve it; without a key, a demo account.

    With STRIPE_API_KEY set, it syncs that account into Postgres, shows how to connect, and keeps syncing
    until Ctrl-C. Without a key, it syncs a simulated account instead. Does what `serve` does, and shows
    progress.
    """
    from pinstripe.cli import serve as commands

    execute(config, commands.run(config), stopped=0)


@app.command(sort_key=1)
@with_settings("schema", "data_dir", *PERSONAL, *LIVE, *GATEWAY, "demo_scale")
def demo(
    config: Config,
    *,
    platform: Annotated[bool, Parameter(negative="", help=_DEMO_PLATFORM)] = False,
) -> None:
    """Run the demo account in its own Postgres, ignoring any key or database in the environment."""
    from pinstripe.cli import serve

    running = serve.demo_platform(config) if platform else serve.run(replace(config, api_key=None))
    execute(config, running, stopped=0)


@app.command(sort_key=2)
@with_settings(*ACCOUNT, *PERSONAL, *DATABASE, *LIVE)
def sync(
    config: Config,
    *,
    once: Annotated[bool, Parameter(negative="", help=_ONCE)] = False,
    json: Annotated[bool, Parameter(negative="", help=_SUMMARY)] = False,
) -> None:
    """Sync the account into Postgres, then keep it up to date."""
    from pinstripe.cli import sync as commands

    execute(config, commands.sync(config, once=once, as_json=json), stopped=130 if once else 0)


@app.command(sort_key=3)
@with_settings(*DATABASE)
def status(
    config: Config,
    *,
    exact: Annotated[bool, Parameter(negative="", help="Count large tables exactly too.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show the status of each table: rows, state, and how up to date it is.

    Reads the database only. Shows every synced schema, or the one given by --schema.
    """
    from pinstripe.cli import status

    one = any(word.partition("=")[0] == "--schema" for word in sys.argv)
    one = one or bool(os.environ.get("PINSTRIPE_SCHEMA"))
    execute(config, status.status(config, exact=exact, as_json=json, one_schema=one))


@app.command(sort_key=4)
@with_settings(*ACCOUNT, "hash_key", *DATABASE, "secret_key")
def verify(
    config: Config,
    *,
    platform: Annotated[str | None, Parameter(help=_VERIFY_PLATFORM)] = None,
    account: Annotated[str | None, Parameter(help=_VERIFY_ACCOUNT)] = None,
    repair: Annotated[bool, Parameter(negative="", help=_REPAIR)] = False,
    every: Annotated[bool, Parameter(name="--all", negative="", help=_EVERY)] = False,
    sample: Annotated[int, Parameter(help=_SAMPLE)] = 200,
    ids: Annotated[int, Parameter(help="IDs to print for each kind of difference.")] = 10,
    json: Annotated[bool, Parameter(negative="", help=_SUMMARY)] = False,
) -> None:
    """Verify the copy: read every list again and compare it with the rows.

    Reports missing, stale, extra and wrongly deleted rows for each table. Rows that change during the run
    are left out and counted. Exit code 0: no differences (or all repaired); 6: some remain; 4: none, but
    not everything could be verified.
    """
    from pinstripe.cli import verify as commands
    from pinstripe.sync.verify.verify import VerifyOptions

    for name, number in (("--sample", sample), ("--ids", ids)):
        whole_number(str(number), name, least=0, most=10**9)
    options = VerifyOptions(repair=repair, unlisted=None if every else sample)
    of_platform = _account_of_platform(platform, account)
    if of_platform is None:
        execute(config, commands.verify(config, options, ids=ids, as_json=json))
        return
    execute(config, commands.verify_account(config, *of_platform, options, ids=ids, as_json=json))


def _account_of_platform(platform: str | None, account: str | None) -> tuple[str, str] | None:
    if platform is None and account is None:
        return None
    if platform is None or account is None:
        hint = "Give the platform's ID and acct_..."
        raise Misconfigured("--platform and --account go together.", hint=hint)
    return platform, account


@app.command(sort_key=4)
@with_settings(*DATABASE)
def erase(
    config: Config,
    customer: Annotated[str, Parameter(help="The customer's ID (cus_...).")],
    /,
    *,
    platform: Annotated[str | None, Parameter(help=_ERASE_PLATFORM)] = None,
    account: Annotated[str | None, Parameter(help=_VERIFY_ACCOUNT)] = None,
    dry_run: Annotated[bool, Parameter(negative="", help=_DRY_RUN)] = False,
    scrub: Annotated[bool, Parameter(negative="", help=_SCRUB)] = False,
    json: JsonFlag = False,
) -> None:
    """Erase the personal data of a customer from the copy, for good. Changes nothing at Stripe.

    Empties names, addresses, texts and numbers in every row of the customer, in events and in the change
    feed. Amounts, dates, states and ids stay. What Stripe shows of the customer later is not stored again.
    """
    from pinstripe.cli import schema as commands

    of_platform = _account_of_platform(platform, account)
    work = commands.erase(
        config, customer, of_platform=of_platform, dry_run=dry_run, scrubs=scrub, as_json=json
    )
    execute(config, work)


@app.command(name="support-bundle", sort_key=9)
@with_settings(*(s.name for s in SETTINGS))
def support_bundle(
    config: Config,
    *,
    output: Annotated[Path | None, Parameter(help="Output file (.tar.gz).")] = None,
) -> None:
    """Write one archive for a bug report: versions, settings, states and counts.

    It holds no key, no URL, no row, no text of Stripe's and no id of an object.
    """
    from pinstripe.cli import status as commands

    execute(config, commands.support_bundle(config, output=output))


@app.command(sort_key=5)
@with_settings("host", "port", "public_url", "wait_token", "api_key")
def wait(
    config: Config,
    *,
    id: Annotated[str, Parameter(help="The sync's ID, or the platform's.")] = "default",
    account: Annotated[
        str, Parameter(help="Of a platform: the account (acct_...); its own by default.")
    ] = "",
    request: Annotated[
        tuple[str, ...],
        Parameter(negative="", help="Request IDs (req_...) whose events to wait for."),
    ] = (),
    object: Annotated[
        tuple[str, ...], Parameter(negative="", help="Object IDs to fetch and write now.")
    ] = (),
    event: Annotated[
        tuple[str, ...], Parameter(negative="", help="Event IDs (evt_...) to wait for.")
    ] = (),
    type: Annotated[str, Parameter(help="The objects' type, if the IDs do not imply it.")] = "",
    timeout: Annotated[float, Parameter(help="Maximum seconds to wait.")] = 30.0,
    settle: Annotated[float | None, Parameter(help=_SETTLE)] = None,
    url: Annotated[
        str, Parameter(help="The gateway's URL; taken from the settings by default.")
    ] = "",
    json: JsonFlag = False,
) -> None:
    """Wait until the database holds what Stripe has now, using the running gateway.

    Exit code 0: it does; 1: timed out, and what is missing is printed.
    """
    from pinstripe.cli import wait as commands

    options = commands.WaitOptions(
        id, request, object, event, type, timeout, settle, url, account=account
    )
    execute(config, commands.wait(config, options, as_json=json))


app.command(check, sort_key=8)
app.command(webhook)
app.command(schema)
app.command(reader)
app.command(serve, sort_key=2)
app.command(syncs)
app.command(platform)
app.command(worker, sort_key=3)
app.command(sync_worker, name="sync-worker", show=False)


@app.command(sort_key=6)
@with_settings()
def simulate(
    config: Config,
    *,
    host: Annotated[str, Parameter(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port to listen on; 0 picks a free one.")] = 12111,
    scale: Annotated[int, Parameter(help="Approximate number of objects in the account.")] = 2000,
    seed: Annotated[
        int, Parameter(help="Random seed; the same seed creates the same account.")
    ] = 1,
    until: Annotated[int, Parameter(help=_UNTIL)] = 0,
    latency_ms: Annotated[float, Parameter(help="Delay of each response, in milliseconds.")] = 0.0,
    limits: Annotated[Literal["live", "test", "off"], Parameter(help=_LIMITS)] = "off",
    nastiness: Annotated[Literal["stripe", "calm"] | None, Parameter(help=_NASTINESS)] = None,
    connected: Annotated[int, Parameter(help="Number of connected accounts.")] = 6,
    connected_scale: Annotated[int, Parameter(help="Objects in each of them.")] = 300,
    json: JsonFlag = False,
    while_stdin: Annotated[bool, Parameter(negative="", show=False)] = False,
) -> None:
    """Serve a simulated Stripe account, for trying things out and for tests.

    Prints its key. Set PINSTRIPE_SIMULATOR_KEY to choose it.
    """
    from pinstripe.cli import simulate as commands

    running = commands.simulate(
        host=host,
        port=port,
        scale=scale,
        seed=seed,
        until=until,
        latency_ms=latency_ms,
        limits=limits,
        nastiness=nastiness,
        connected=connected,
        connected_scale=connected_scale,
        as_json=json,
        while_stdin=while_stdin,
    )
    execute(config, running, stopped=0)


@app.command(sort_key=7)
def version() -> None:
    """Print the version."""
    sys.stdout.write(_version() + "\n")
