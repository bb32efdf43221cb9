"""Every command: its name, its flags, what it starts.

Commands import what they run only when they run, so that `pinstripe version` and `--help` are quick
and a sync never loads the simulator.

The commands about the account at Stripe: its key, its webhook endpoints.

The commands of the service: `serve`, and `syncs` for what it runs.

The commands about the tables: their statements, their list, their diagram, who may read them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from pinstripe.cli.flags import ACCOUNT, DATABASE, GATEWAY, LIVE, with_settings
from pinstripe.cli.runtime import BAD_USAGE, Exit, complain, execute, report
from pinstripe.config.config import Config

webhook = App(
    name="webhook", sort_key=9, help="The webhook endpoint at Stripe that rings the gateway."
)

Json = Annotated[bool, Parameter(negative="", help="Print one line of JSON to stdout.")]

Sync = Annotated[str, Parameter(name="--sync", help="The sync; default is that of the settings.")]

_WRITES = (
    "Try whether webhook endpoints can be written, with a request that Stripe refuses for want of an "
    "address: it changes nothing."
)

_URL = "The whole address of the endpoint, instead of one under the public address of the gateway."

_ENDPOINT = "The endpoint (we_...); not needed where the sync has one only."

_STRIPE = ("api_key", "stripe_url", "stripe_account", "rate_limit", "endpoint_rate_limit")

_STORED = ("database_url", "data_dir", "secret_key")


@with_settings(*ACCOUNT, *DATABASE)
def check(
    config: Config,
    *,
    try_writes: Annotated[bool, Parameter(negative="", help=_WRITES)] = False,
    json: Json = False,
) -> None:
    """Examine the key and the database: what can be read, what is missing, and the remedy.

    Asks about a hundred small questions and writes nothing. Exit code 0: all fine; 2: the key or a setting
    is wrong; 3: Stripe or Postgres cannot be reached; 4: something cannot be read; 5: the database cannot
    be written to.
    """
    from pinstripe.cli import check as commands

    execute(config, commands.check(config, writes=try_writes, as_json=json), stopped=130)


@webhook.command(sort_key=1)
@with_settings(*_STRIPE, *_STORED, "public_url")
def create(
    config: Config,
    *,
    url: Annotated[str | None, Parameter(help=_URL)] = None,
    sync: Sync = "default",
    json: Json = False,
) -> None:
    """Make the endpoint at Stripe for all events, unless it is there.

    Its signing secret is shown once, as the setting that the gateway needs; of a stored sync it is kept,
    encrypted, with the sync.
    """
    from pinstripe.cli import webhook as commands

    execute(config, commands.create(config, sync, url=url, as_json=json), stopped=130)


@webhook.command(name="list", sort_key=2)
@with_settings(*_STRIPE, *_STORED)
def list_endpoints(config: Config, *, sync: Sync = "default", json: Json = False) -> None:
    """List the endpoints of the account, those of Pinstripe first."""
    from pinstripe.cli import webhook as commands

    execute(config, commands.show(config, sync, as_json=json), stopped=130)


@webhook.command(sort_key=3)
@with_settings(*_STRIPE, *_STORED)
def delete(
    config: Config,
    endpoint: Annotated[str | None, Parameter(help=_ENDPOINT)] = None,
    /,
    *,
    sync: Sync = "default",
    json: Json = False,
) -> None:
    """Remove an endpoint at Stripe."""
    from pinstripe.cli import webhook as commands

    execute(config, commands.delete(config, sync, endpoint=endpoint, as_json=json), stopped=130)


syncs = App(name="syncs", sort_key=2, help="Syncs that are stored, for `pinstripe serve` to run.")

Id = Annotated[str, Parameter(help="The sync's name in addresses: small letters, digits, hyphens.")]

Setting = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        negative="",
        help="A setting of this sync, as NAME=VALUE: tables, rate_limit, endpoint_rate_limit, "
        "poll_interval, event_window, hold_poll_rate, changes, change_days. Can be given several times.",
    ),
]

_SYNC_STRIPE = ("api_key", "stripe_url", "stripe_account", "webhook_secret")

_ALONE = "Serve without syncing: `pinstripe sync`, or another service, does that elsewhere."

_SCHEMA = "The schema of its tables; by default the id, with _ for -."

_PAUSED = "Do not sync it yet."

_KEY = "Store another key of the same account; it comes from STRIPE_API_KEY or stdin."

_DROP = "Drop its tables too, once its process has ended."

_WHERE = "Print the address as one line of JSON to stdout, for programs."


@with_settings(*ACCOUNT, *DATABASE, *LIVE, *GATEWAY)
def serve(
    config: Config,
    *,
    gateway_only: Annotated[bool, Parameter(negative="", help=_ALONE)] = False,
    json: Annotated[bool, Parameter(negative="", help=_WHERE)] = False,
) -> None:
    """Sync and answer: the proxy, waits, webhooks, the API and the console, at one port.

    Each sync runs in a process of its own, which is started again if it dies. The sync that flags and
    environment describe is called "default"; `pinstripe syncs` stores more of them.
    """
    from pinstripe.cli import serve as commands

    execute(config, commands.serve(config, gateway_only=gateway_only, as_json=json), stopped=0)


@with_settings()
def sync_worker(config: Config) -> None:
    """Sync for a service, which gives the order on stdin."""
    from pinstripe.cli import sync

    execute(config, sync.worker(), stopped=0)


@syncs.command(name="list", sort_key=1)
@with_settings(*_STORED)
def list_syncs(config: Config, *, json: Json = False) -> None:
    """Show what is stored. No key is among it."""
    from pinstripe.cli import syncs as commands

    execute(config, commands.list_syncs(config, as_json=json), stopped=130)


@syncs.command(sort_key=2)
@with_settings(*_SYNC_STRIPE, *_STORED)
def add(
    config: Config,
    sync_id: Id,
    /,
    *,
    schema: Annotated[str | None, Parameter(help=_SCHEMA)] = None,
    set_: Setting = None,
    paused: Annotated[bool, Parameter(negative="", help=_PAUSED)] = False,
    json: Json = False,
) -> None:
    """Store a sync: an account, or a mode of it, with its key encrypted.

    The key comes from STRIPE_API_KEY, else it is asked for (or read from stdin). Stripe is asked whose it
    is before anything is stored.
    """
    from pinstripe.cli import syncs as commands

    options = commands.SyncOptions(sync_id, schema, _pairs(set_), paused=paused)
    execute(config, commands.add(config, options, as_json=json), stopped=130)


@syncs.command(sort_key=3)
@with_settings(*_SYNC_STRIPE, *_STORED)
def change(
    config: Config,
    sync_id: Id,
    /,
    *,
    key: Annotated[bool, Parameter(negative="", help=_KEY)] = False,
    set_: Setting = None,
    json: Json = False,
) -> None:
    """Store another key, other settings or webhook secrets; the sync starts anew with them."""
    from pinstripe.cli import syncs as commands

    work = commands.change(config, sync_id, _pairs(set_), key=key, as_json=json)
    execute(config, work, stopped=130)


@syncs.command(sort_key=4)
@with_settings(*_STORED, "schema")
def pause(config: Config, sync_id: Id, /, *, json: Json = False) -> None:
    """Let no service sync it until `resume`. Writes through the proxy are still mirrored."""
    from pinstripe.cli import syncs as commands

    execute(config, commands.pause(config, sync_id, as_json=json), stopped=130)


@syncs.command(sort_key=5)
@with_settings(*_STORED, "schema")
def resume(config: Config, sync_id: Id, /, *, json: Json = False) -> None:
    """Go on where it was paused."""
    from pinstripe.cli import syncs as commands

    execute(config, commands.resume(config, sync_id, as_json=json), stopped=130)


@syncs.command(sort_key=6)
@with_settings(*_STORED)
def remove(
    config: Config,
    sync_id: Id,
    /,
    *,
    drop_tables: Annotated[bool, Parameter(negative="", help=_DROP)] = False,
    json: Json = False,
) -> None:
    """Forget a sync and its key. Its tables stay."""
    from pinstripe.cli import syncs as commands

    work = commands.remove(config, sync_id, drop_tables=drop_tables, as_json=json)
    execute(config, work, stopped=130)


@syncs.command(sort_key=7)
@with_settings(*_STORED)
def rekey(config: Config, *, json: Json = False) -> None:
    """Encrypt all stored keys anew: under the first key of PINSTRIPE_SECRET_KEY, else a new one."""
    from pinstripe.cli import syncs as commands

    execute(config, commands.rekey(config, as_json=json), stopped=130)


def _pairs(words: list[str] | None) -> dict[str, str]:
    """NAME=VALUE as a table; what is no name of a setting is refused where it is stored."""
    pairs = (word.partition("=") for word in words or [])
    return {name.strip().replace("-", "_"): value.strip() for name, _, value in pairs}


schema = App(name="schema", sort_key=5, help="The tables that a sync makes; needs no database.")

reader = App(
    name="reader", sort_key=10, help="A Postgres role that reads the tables and nothing else."
)

_DOMAIN = "Show the tables of one domain (core, billing, connect, ...)."

_AROUND = "Show one table, what it refers to and what refers to it."

_DETAIL = (
    "Which columns: key and references (keys), a few important ones too (short), or all (full)."
)

_OUTPUT = "The file to write; without it the diagram goes to stdout."

_FORMAT = "The format; without it the ending of --output decides, and SVG where there is none."


@schema.command(sort_key=1)
@with_settings("schema", "tables")
def ddl(config: Config) -> None:
    """Print the statements that make the tables, as a script."""
    from pinstripe.cli import schema as commands

    commands.print_ddl(config)


@schema.command(name="tables", sort_key=2)
@with_settings("schema", "tables")
def list_tables(
    config: Config,
    table: Annotated[str | None, Parameter(help="The table whose columns to show.")] = None,
    /,
    *,
    json: Json = False,
) -> None:
    """List the tables; with the name of one, its columns."""
    from pinstripe.cli import schema as commands

    if table is None:
        commands.print_tables(config, as_json=json)
    else:
        commands.print_table(config, table, as_json=json)


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
    """Draw the entity-relationship diagram, as SVG or for Mermaid.

    Without flags it shows the domains and how they refer to each other; with --tables, those tables.
    """
    from pinstripe.cli import schema

    options = schema.DiagramOptions(
        domain=domain, table=table, detail=detail, format=format, output=output
    )
    schema.draw(config, options)


@reader.command(name="create", sort_key=1)
@with_settings(*DATABASE)
def create_reader(config: Config, *, json: Json = False) -> None:
    """Make the role, and show once the address to connect to with it.

    It may read every table of the schema, those that come later too, and nothing else. Where the user
    of the database may not make roles, the statements for an administrator are shown.
    """
    from pinstripe.cli import schema as commands
    from pinstripe.store.roles import create_reader

    execute(config, commands.make(config, create_reader, as_json=json), stopped=130)


@reader.command(sort_key=2)
@with_settings(*DATABASE)
def rotate(config: Config, *, json: Json = False) -> None:
    """Give the role a new password, and end the sessions that used the old one."""
    from pinstripe.cli import schema as commands
    from pinstripe.store.roles import rotate_reader

    execute(config, commands.make(config, rotate_reader, as_json=json), stopped=130)


@reader.command(sort_key=3)
@with_settings(*DATABASE)
def drop(config: Config, *, json: Json = False) -> None:
    """Drop the role."""
    from pinstripe.cli import schema as commands

    execute(config, commands.drop(config, as_json=json), stopped=130)


app = App(
    name="pinstripe",
    help="Your Stripe account as tables in Postgres.",
    help_format="plaintext",
    version_flags=(),
)

_ONCE = (
    "End when everything that the key may read is in the database (exit code 0); "
    "exit code 4 tells that some of it is not."
)

_SUMMARY = "Print a summary as one line of JSON to stdout; what is for people goes to stderr."

_REPAIR = "Bring what differs from Stripe again, and look whether that has helped."

_EVERY = "Ask for every row that no list shows one by one, instead of a sample."

_SAMPLE = "Rows of a table that no list shows (only referred to, hidden) to ask for one by one."

_UNTIL = "When the first objects end, in Unix seconds; 0 is the last midnight, UTC."

_SETTLE = "How long Stripe's event list may settle first; the gateway's setting by default."

_LIMITS = "Stripe's rate limits: of live mode, of test mode, or none."

_NASTINESS = (
    "As hard to copy as Stripe is (the default), or calm; PINSTRIPE_SIMULATOR_NASTINESS sets it."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; gives the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    debug = "--debug" in words or bool(os.environ.get("PINSTRIPE_DEBUG"))
    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except Exit as end:
        return end.code
    except CycloptsError as error:
        complain(
            str(error).rstrip(), "`pinstripe --help`, or --help after a command, shows all flags."
        )
        return BAD_USAGE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read us (`| head`) has seen enough. Keep the interpreter from flushing into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, BaseExceptionGroup) as error:
        return report(error, as_json=as_json, debug=debug)
    return 0


@app.command(sort_key=1)
@with_settings(*ACCOUNT, *DATABASE, *LIVE, *GATEWAY, "demo_scale")
def run(config: Config) -> None:
    """Sync the account and serve it; without a key, a demo account.

    With STRIPE_API_KEY set it brings that account into Postgres, shows how to connect, and follows
    what changes until Ctrl-C. Without it, a simulated account is synced instead. It does what `serve`
    does, and shows progress.
    """
    from pinstripe.cli import serve as commands

    execute(config, commands.run(config), stopped=0)


@app.command(sort_key=1)
@with_settings("schema", "data_dir", *LIVE, *GATEWAY, "demo_scale")
def demo(config: Config) -> None:
    """Show a demo account, in a Postgres of its own, whatever key or database the environment names."""
    from pinstripe.cli import serve as commands

    execute(config, commands.demo(config), stopped=0)


@app.command(sort_key=2)
@with_settings(*ACCOUNT, *DATABASE, *LIVE)
def sync(
    config: Config,
    *,
    once: Annotated[bool, Parameter(negative="", help=_ONCE)] = False,
    json: Annotated[bool, Parameter(negative="", help=_SUMMARY)] = False,
) -> None:
    """Bring the account into Postgres, then follow what changes."""
    from pinstripe.cli import sync as commands

    execute(config, commands.sync(config, once=once, as_json=json), stopped=130 if once else 0)


@app.command(sort_key=3)
@with_settings(*DATABASE)
def status(
    config: Config,
    *,
    exact: Annotated[bool, Parameter(negative="", help="Count large tables too.")] = False,
    json: Json = False,
) -> None:
    """Show how each table stands: rows, state, how far it is known to be true.

    Reads the database only. Shows every synced schema, or the one that --schema names.
    """
    from pinstripe.cli import status

    one = any(word.partition("=")[0] == "--schema" for word in sys.argv)
    one = one or bool(os.environ.get("PINSTRIPE_SCHEMA"))
    execute(config, status.status(config, exact=exact, as_json=json, one_schema=one), stopped=130)


@app.command(sort_key=4)
@with_settings(*ACCOUNT, *DATABASE)
def verify(
    config: Config,
    *,
    repair: Annotated[bool, Parameter(negative="", help=_REPAIR)] = False,
    every: Annotated[bool, Parameter(name="--all", negative="", help=_EVERY)] = False,
    sample: Annotated[int, Parameter(help=_SAMPLE)] = 200,
    ids: Annotated[int, Parameter(help="Ids to print for each kind of difference.")] = 10,
    json: Annotated[bool, Parameter(negative="", help=_SUMMARY)] = False,
) -> None:
    """Prove the copy: read every list again and compare it with the rows.

    Says for each table which rows are missing, stale, extra or wrongly deleted. What changes while it
    looks is left out, and counted. Exit code 0: no differences (or all repaired); 6: some remain; 4: none,
    but not everything is proven.
    """
    from pinstripe.cli import verify as commands
    from pinstripe.sync.verify.verify import VerifyOptions

    options = VerifyOptions(repair=repair, unlisted=None if every else sample)
    execute(config, commands.verify(config, options, ids=ids, as_json=json), stopped=130)


@app.command(sort_key=5)
@with_settings("host", "port", "public_url", "wait_token", "api_key")
def wait(
    config: Config,
    *,
    id: Annotated[str, Parameter(help="The id of the sync.")] = "default",
    request: Annotated[
        tuple[str, ...], Parameter(negative="", help="Requests (req_...) whose events to wait for.")
    ] = (),
    object: Annotated[
        tuple[str, ...], Parameter(negative="", help="Objects to fetch now and write, by id.")
    ] = (),
    event: Annotated[
        tuple[str, ...], Parameter(negative="", help="Events (evt_...) to wait for.")
    ] = (),
    type: Annotated[str, Parameter(help="The objects' type, where the id does not tell it.")] = "",
    timeout: Annotated[float, Parameter(help="Seconds to wait at most.")] = 30.0,
    settle: Annotated[float | None, Parameter(help=_SETTLE)] = None,
    url: Annotated[str, Parameter(help="The gateway; by default that of the settings.")] = "",
    json: Json = False,
) -> None:
    """Wait until the database holds what Stripe has now; asks the running gateway.

    Exit code 0: it does; 1: the time was over first, and what was missing is said.
    """
    from pinstripe.cli import wait as commands

    options = commands.WaitOptions(id, request, object, event, type, timeout, settle, url)
    execute(config, commands.wait(config, options, as_json=json), stopped=130)


app.command(check, sort_key=8)

app.command(webhook)

app.command(schema)

app.command(reader)

app.command(serve, sort_key=2)

app.command(syncs)

app.command(sync_worker, name="sync-worker", show=False)


@app.command(sort_key=6)
@with_settings()
def simulate(
    config: Config,
    *,
    host: Annotated[str, Parameter(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="0 takes a free one.")] = 12111,
    scale: Annotated[int, Parameter(help="About how many objects the account has.")] = 2000,
    seed: Annotated[int, Parameter(help="The same seed makes the same account.")] = 1,
    until: Annotated[int, Parameter(help=_UNTIL)] = 0,
    latency_ms: Annotated[float, Parameter(help="How long each answer is held back.")] = 0.0,
    limits: Annotated[Literal["live", "test", "off"], Parameter(help=_LIMITS)] = "off",
    nastiness: Annotated[Literal["stripe", "calm"] | None, Parameter(help=_NASTINESS)] = None,
    json: Json = False,
    while_stdin: Annotated[bool, Parameter(negative="", show=False)] = False,
) -> None:
    """Serve a simulated Stripe account, to try things on and to test against.

    Its key is printed; PINSTRIPE_SIMULATOR_KEY sets it.
    """
    from pinstripe.cli import simulate as commands

    options = commands.SimulateOptions(
        host,
        port,
        scale,
        seed,
        until,
        latency_ms,
        limits,
        nastiness,
        as_json=json,
        while_stdin=while_stdin,
    )
    execute(config, commands.simulate(options), stopped=0)


@app.command(sort_key=7)
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as version_of

    sys.stdout.write(f"pinstripe {version_of('pinstripe')}\n")
