"""The commands of the service: `serve`, and `syncs` for what it runs."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from pinstripe.cli.execute import execute
from pinstripe.cli.flags import ACCOUNT, DATABASE, GATEWAY, LIVE, with_settings
from pinstripe.config import Config

syncs = App(name="syncs", sort_key=2, help="Syncs that are stored, for `pinstripe serve` to run.")

Json = Annotated[bool, Parameter(negative="", help="Print one line of JSON to stdout.")]
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
_STORED = ("database_url", "data_dir", "secret_key")
_STRIPE = ("api_key", "stripe_url", "stripe_account", "webhook_secret")
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
    from pinstripe.cli import worker

    execute(config, worker.worker(), stopped=0)


@syncs.command(name="list", sort_key=1)
@with_settings(*_STORED)
def list_syncs(config: Config, *, json: Json = False) -> None:
    """Show what is stored. No key is among it."""
    from pinstripe.cli import syncs as commands

    execute(config, commands.list_syncs(config, as_json=json), stopped=130)


@syncs.command(sort_key=2)
@with_settings(*_STRIPE, *_STORED)
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

    wish = commands.Wish(sync_id, schema, _pairs(set_), paused=paused)
    execute(config, commands.add(config, wish, as_json=json), stopped=130)


@syncs.command(sort_key=3)
@with_settings(*_STRIPE, *_STORED)
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
