"""The commands about the account at Stripe: its key, its webhook endpoints."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from pinstripe.cli.execute import execute
from pinstripe.cli.flags import ACCOUNT, DATABASE, with_settings
from pinstripe.config import Config

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
