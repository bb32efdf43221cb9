"""`pinstripe simulate`: serves a simulated Stripe account on a local port."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import Literal

from pinstripe.cli.serve import KEY_VARIABLE
from pinstripe.errors import Misconfigured
from pinstripe_simulator.account import Settings
from pinstripe_simulator.auth import DEFAULT_KEY
from pinstripe_simulator.nastiness import default_nastiness, preset
from pinstripe_simulator.server import Running, serve

LimitsName = Literal["live", "test", "off"]
NastinessName = Literal["stripe", "calm"]


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    host: str
    port: int
    scale: int
    seed: int
    until: int
    latency_ms: float
    limits: LimitsName
    nastiness: NastinessName | None
    as_json: bool
    while_stdin: bool
    connected: int
    connected_scale: int


async def simulate(options: SimulateOptions) -> int:
    """Serves until cancelled, or until stdin ends."""
    key = os.environ.get(KEY_VARIABLE, "").strip() or DEFAULT_KEY
    settings = Settings(
        seed=options.seed,
        scale=options.scale,
        until=options.until,
        keys=(key,),
        limits=options.limits,
        connected=options.connected,
        connected_scale=options.connected_scale,
        nastiness=preset(options.nastiness) if options.nastiness else default_nastiness(),
    )

    def ready(running: Running) -> None:
        running.account.latency.fixed_s = options.latency_ms / 1000
        _announce(running.url, key, as_json=options.as_json)

    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(
                serve(settings, host=options.host, port=options.port, ready=ready)
            )
            if options.while_stdin:
                await _stdin_ended()
                task.cancel()
    except* OSError as group_of_errors:
        error = group_of_errors.exceptions[0]
        raise Misconfigured(
            f"Cannot listen on {options.host} port {options.port}: {error}.",
            hint="Choose another --port; 0 picks a free one.",
        ) from error
    return 0


def _announce(url: str, key: str, *, as_json: bool) -> None:
    if as_json:
        line = json.dumps({"url": url, "key": key})
    else:
        line = f"Simulated Stripe account running at {url}\nKey: {key}\n"
        line += f"  export STRIPE_API_BASE={url} STRIPE_API_KEY={key}"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def _stdin_ended() -> None:
    """Return when the parent process has closed stdin."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while await reader.read(1024):
        pass
