"""Serving the simulator: `serve` for a process, `running` for tests inside this one.

uvicorn with uvloop and httptools; its protocol also hands the app the connection's transport,
without which a connection cannot be reset.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pinstripe_simulator.account import Account, Settings, make_account
from pinstripe_simulator.app import App, create_app
from pinstripe_simulator.auth import DEFAULT_KEY
from pinstripe_simulator.control import Control
from pinstripe_simulator.spoil import TRANSPORT


class _Protocol(HttpToolsProtocol):
    """Leaves the transport in the scope."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope = cast(dict[str, Any], self.scope)
        scope[TRANSPORT] = self.transport


@dataclass(frozen=True)
class Running:
    """A simulator that answers at `url`; `control` and `account` reach into it."""

    url: str
    account: Account
    control: Control
    key: str = DEFAULT_KEY


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        date_header=False,
        server_header=False,
        timeout_keep_alive=60,
        backlog=512,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, the loop sets TCP_NODELAY on what is accepted; without it each answer
    # waits 40 ms for the delayed acknowledgement of its head.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    return sock


@asynccontextmanager
async def running(
    settings: Settings | None = None, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Running]:
    """A simulator in this process and loop, gone at the end of the block."""
    account = make_account(settings or Settings())
    app = create_app(account)
    server = uvicorn.Server(_config(app))
    sock = _listen(host, port)
    # What `uvicorn.Server.serve` does, without its signal handlers and its ticking main loop.
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[sock])
    account.events.heard.append(account.webhooks.hear)
    try:
        url = f"http://{host}:{sock.getsockname()[1]}"
        key = account.settings.keys[0]
        yield Running(url=url, account=account, control=app.control, key=key)
    finally:
        await app.control.close()
        await account.webhooks.close()
        server.force_exit = True
        await server.shutdown(sockets=[sock])


async def serve(
    settings: Settings, *, host: str, port: int, ready: Callable[[Running], None]
) -> None:
    """Serve until cancelled; `ready` is told where."""
    async with running(settings, host=host, port=port) as sim:
        ready(sim)
        await asyncio.Event().wait()
