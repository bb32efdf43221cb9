"""Every command: its name, its flags, what it starts.

Commands import what they run only when they run, so that `pinstripe version` and `--help` are quick
and a sync never loads the simulator.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from pinstripe.cli.account_commands import check, webhook
from pinstripe.cli.execute import Exit, execute
from pinstripe.cli.failure import BAD_USAGE, complain, report
from pinstripe.cli.flags import ACCOUNT, DATABASE, GATEWAY, LIVE, with_settings
from pinstripe.cli.schema_commands import reader, schema
from pinstripe.cli.service_commands import serve, sync_worker, syncs
from pinstripe.config import Config

app = App(
    name="pinstripe",
    help="Your Stripe account as tables in Postgres.",
    help_format="plaintext",
    version_flags=(),
)

Json = Annotated[bool, Parameter(negative="", help="Print one line of JSON to stdout.")]
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
    from pinstripe.cli import run as commands

    execute(config, commands.run(config), stopped=0)


@app.command(sort_key=1)
@with_settings("schema", "data_dir", *LIVE, *GATEWAY, "demo_scale")
def demo(config: Config) -> None:
    """Show a demo account, in a Postgres of its own, whatever key or database the environment names."""
    from pinstripe.cli import run as commands

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
    from pinstripe.cli import standing

    one = any(word.partition("=")[0] == "--schema" for word in sys.argv)
    one = one or bool(os.environ.get("PINSTRIPE_SCHEMA"))
    execute(config, standing.status(config, exact=exact, as_json=json, one_schema=one), stopped=130)


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
    from pinstripe.sync.verify import Wish

    wish = Wish(repair=repair, unlisted=None if every else sample)
    execute(config, commands.verify(config, wish, ids=ids, as_json=json), stopped=130)


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

    wish = commands.Wish(id, request, object, event, type, timeout, settle, url)
    execute(config, commands.wait(config, wish, as_json=json), stopped=130)


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

    wish = commands.Wish(
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
    execute(config, commands.simulate(wish), stopped=0)


@app.command(sort_key=7)
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as version_of

    sys.stdout.write(f"pinstripe {version_of('pinstripe')}\n")
