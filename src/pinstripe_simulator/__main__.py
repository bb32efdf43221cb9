"""`python -m pinstripe_simulator`: a Stripe of one's own on a port of this machine."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import sys
from dataclasses import replace

import uvloop

from pinstripe_simulator.account import Settings
from pinstripe_simulator.limits import PRESETS
from pinstripe_simulator.mix import FEW
from pinstripe_simulator.nastiness import from_json
from pinstripe_simulator.server import Running, serve


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pinstripe_simulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one and prints it")
    parser.add_argument("--scale", type=int, default=2_000, help="about how many objects")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mix", default="", help='counts by type as JSON: {"charge": 1000000}')
    parser.add_argument("--until", type=int, default=0, help="end of the first objects, Unix s")
    parser.add_argument("--limits", choices=sorted(PRESETS), default="off")
    parser.add_argument("--key", action="append", default=[], help="an API key to accept")
    parser.add_argument(
        "--nastiness", default="", help="every value as JSON; Stripe's own if empty"
    )
    parser.add_argument("--connected", type=int, default=FEW, help="how many connected accounts")
    parser.add_argument("--connected-scale", type=int, default=300, help="objects of each")
    parser.add_argument("--connected-few", type=int, default=0, help="at least, of each type")
    parser.add_argument("--connected-ids", choices=("chosen", "all"), default="chosen")
    parser.add_argument("--not-enabled", action="append", default=[], help="such as issuing")
    return parser.parse_args()


def _announce(sim: Running) -> None:
    sys.stdout.write(f"{sim.url}\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until interrupted."""
    given = _arguments()
    settings = Settings(
        seed=given.seed,
        scale=given.scale,
        until=given.until,
        mix=json.loads(given.mix) if given.mix else None,
        limits=given.limits,
        not_enabled=tuple(given.not_enabled),
        connected=given.connected,
        connected_scale=given.connected_scale,
        connected_few=given.connected_few,
        connected_ids=given.connected_ids,
    )
    if given.key:
        settings = replace(settings, keys=tuple(given.key))
    if given.nastiness:
        settings = replace(settings, nastiness=from_json(json.loads(given.nastiness)))
    logging.basicConfig(level=logging.WARNING)
    uvloop.run(_until_told(settings, given.host, given.port))


async def _until_told(settings: Settings, host: str, port: int) -> None:
    task = asyncio.create_task(serve(settings, host=host, port=port, ready=_announce))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    main()
