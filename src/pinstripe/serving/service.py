"""The service: gateway and syncs, from one socket that listens to an orderly end.

    async with open_serving(config, Manner(), heard, tell) as serving:
        print(serving.url)

In this order: the port (taken: an error before anything else is touched), Postgres if it is our own,
the processes that sync, the gateway. A Postgres of the user's may be away: the gateway answers all the same
and opens each sync when it can. The end goes the other way round, in some seconds.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from pinstripe.client.key import ApiKey
from pinstripe.config import Config
from pinstripe.errors import Misconfigured, PinstripeError
from pinstripe.gateway.access import refuse_public
from pinstripe.gateway.syncs import Syncs
from pinstripe.secrecy import FILE, Secrecy
from pinstripe.service import Database, open_database
from pinstripe.serving import process
from pinstripe.serving.assembly import gateway
from pinstripe.serving.control import Control
from pinstripe.serving.http import address_of, answering, listen
from pinstripe.serving.roster import Roster
from pinstripe.serving.stored import Vault
from pinstripe.serving.supervisor import Supervisor
from pinstripe.serving.wire import Report
from pinstripe.store.pool import check_server, check_sessions, connect

_FILES = 16_384
_UNFIT_S = 3.0
"""How long the start may take to look at a Postgres of the user's, which may be away."""

Heard = Callable[[str, Report], None]
"""Gets what the process of a sync reports, with the sync's id."""


@dataclass(frozen=True, slots=True)
class Manner:
    """`syncs`: runs the syncs too, not the gateway alone. `shown`: the default's process shows what it
    does. `other_port`: takes a free one if the configured one is taken.
    """

    syncs: bool = True
    shown: bool = False
    other_port: bool = False


@dataclass(frozen=True, slots=True)
class Serving:
    """What answers at `url`."""

    url: str
    database: Database
    control: Control
    syncs: Syncs


@asynccontextmanager
async def open_serving(
    config: Config, manner: Manner, heard: Heard, tell: Callable[[str], None]
) -> AsyncIterator[Serving]:
    """The service for the block. A part of it that dies takes the block down."""
    if config.api_key is not None:
        ApiKey.parse(config.api_key)
    refuse_public(config.host, config.admin_token)
    _allow_many_connections()
    sock = _listening(config, tell, other_port=manner.other_port)
    async with AsyncExitStack() as stack:
        stack.callback(sock.close)
        database = await stack.enter_async_context(_database(config, tell))
        config = replace(config, database_url=database.url)
        syncs = Syncs()
        vault = Vault(database.url, Secrecy(config.secret_key, config.data_dir / FILE), config)

        def stirred(sync_id: str, report: Report) -> None:
            if report.activity == "backfilling":
                roster.stir()
            heard(sync_id, report)

        supervisor = Supervisor(process.start, heard=stirred) if manner.syncs else None
        roster = Roster(vault, syncs, supervisor, talks=manner.shown)
        stack.push_async_callback(roster.close)
        await roster.begin()
        control = Control(roster)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        running = group.create_task(roster.run(), name="roster")
        stack.callback(running.cancel)
        url = address_of(sock)
        app = await stack.enter_async_context(gateway(config, syncs, control, url))
        await stack.enter_async_context(answering(app, sock))
        # Streams have no end of their own: without this the server would wait for their readers.
        stack.callback(app.state.gateway.close)
        yield Serving(url, database, control, syncs)


@asynccontextmanager
async def _database(config: Config, tell: Callable[[str], None]) -> AsyncIterator[Database]:
    """Our own Postgres, started; the user's as it is, which may be away."""
    if config.database_url is not None:
        await _refuse_unfit(config.database_url)
        yield Database(config.database_url, None, "")
        return
    async with open_database(config, tell=tell) as database:
        yield database


async def _refuse_unfit(url: str) -> None:
    """Raises Misconfigured where the address, a pooler or the encoding can never do; all else may pass."""
    try:
        async with asyncio.timeout(_UNFIT_S):
            await check_sessions(url)
            async with connect(url) as connection:
                await check_server(connection)
    except Misconfigured as error:
        if error.fault is None:  # a password or a database may come to be right
            raise
    except (PinstripeError, TimeoutError):
        return  # away, for now


def _allow_many_connections() -> None:
    """A thousand callers that wait are a thousand files; many systems allow 1,024 unless asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _listening(config: Config, tell: Callable[[str], None], *, other_port: bool) -> socket.socket:
    try:
        return listen(config.host, config.port)
    except Misconfigured:
        if not other_port:
            raise
    sock = listen(config.host, 0)
    tell(f"Port {config.port} is taken; the gateway answers at {address_of(sock)}.")
    return sock
