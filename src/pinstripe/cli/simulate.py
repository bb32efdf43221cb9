"""`pinstripe simulate`: serves a simulated Stripe account on a local port."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Literal

from pinstripe.cli.runtime import show
from pinstripe.cli.serve import KEY_VARIABLE
from pinstripe.concurrency import first_error
from pinstripe.config.config import whole_number
from pinstripe.errors import Misconfigured
from pinstripe_simulator.account import Settings
from pinstripe_simulator.auth import DEFAULT_KEY
from pinstripe_simulator.nastiness import default_nastiness, preset
from pinstripe_simulator.server import Running, serve


async def simulate(
    *,
    host: str,
    port: int,
    latency_ms: float,
    scale: int,
    seed: int,
    until: int,
    limits: Literal["live", "test", "off"],
    nastiness: Literal["stripe", "calm"] | None,
    connected: int,
    connected_scale: int,
    as_json: bool,
    while_stdin: bool,
) -> int:
    """Serve until cancelled, or with `while_stdin` until that ends."""
    whole_number(str(port), "--port", least=0, most=65535)
    whole_number(str(scale), "--scale", least=1, most=10**8)
    whole_number(str(connected), "--connected", least=0, most=10**8)
    whole_number(str(connected_scale), "--connected-scale", least=1, most=10**8)
    key = os.environ.get(KEY_VARIABLE, "").strip() or DEFAULT_KEY
    settings = Settings(
        seed=seed,
        scale=scale,
        until=until,
        keys=(key,),
        limits=limits,
        connected=connected,
        connected_scale=connected_scale,
        nastiness=preset(nastiness) if nastiness else default_nastiness(),
    )

    def ready(running: Running) -> None:
        running.account.latency.fixed_s = latency_ms / 1000
        _announce(running.url, key, as_json=as_json)

    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(serve(settings, host=host, port=port, ready=ready))
            if while_stdin:
                await _stdin_ended()
                task.cancel()
    except* OSError as group_of_errors:
        error = first_error(group_of_errors)
        raise Misconfigured(
            f"Cannot listen on {host}:{port}: {error.strerror}.",
            hint="Another program has the port, or the address is not this machine's: choose others "
            "with --port and --host (0 takes a free port).",
        ) from error
    return 0


def _announce(url: str, key: str, *, as_json: bool) -> None:
    if as_json:
        line = json.dumps({"url": url, "key": key})
    else:
        line = f"Simulated Stripe account running at {url}\nKey: {key}\n"
        line += f"  export STRIPE_API_BASE={url} STRIPE_API_KEY={key}"
    show(line)


async def _stdin_ended() -> None:
    """Return when the parent process has closed stdin."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while await reader.read(1024):
        pass
