"""`python -m benchmarks [name ...] [--quick] [--full] [--save]`: prints figures beside their targets.

Ends with 1 when a target is missed. `--quick` takes a tenth of the objects, for a look (the targets
are meant for the whole), `--full` adds the memory of 2,000,000 objects, which takes minutes, and
`--save` writes benchmarks/results.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import structlog

from benchmarks import (
    backfill,
    catch_up,
    console,
    gateway,
    gateway_waits,
    live,
    naive,
    platform,
    proportion,
    shapes,
)
from benchmarks.figures import Figure, table
from pinstripe.errors import PinstripeError

_RESULTS = Path(__file__).with_name("results.json")
_OBJECTS = 200_000
_MANY = 2_000_000

Bench = Callable[[], AsyncIterator[Figure]]


def _benches(objects: int, share: float = 1.0) -> Mapping[str, Bench]:
    return {
        "limits": lambda: backfill.limits(objects, share),
        "throughput": lambda: backfill.throughput(objects),
        "memory": lambda: backfill.memory(objects),
        "naive": lambda: naive.naive(objects),
        "live": lambda: live.live(objects // 10),
        "catch-up": lambda: catch_up.catch_up(objects * 10),
        "many": lambda: catch_up.many(objects * 5),
        "gateway": lambda: gateway.gateway(objects // 10),
        "waits": lambda: gateway_waits.waits(objects // 10),
        "console": lambda: console.console(objects * 10),
        "platform": platform.platform,
        "restart": lambda: proportion.restart(objects // 10),
        "changes": lambda: proportion.changes(objects // 20),
        "shapes": lambda: shapes.shapes(objects // 10),
    }


def main() -> int:
    """Runs what is asked for; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*_benches(0), []], metavar="name")
    parser.add_argument("--quick", action="store_true", help="a tenth of the objects")
    parser.add_argument("--objects", type=int, default=_OBJECTS, help="of the account")
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="limits: a part of the account at a part of the rates",
    )
    parser.add_argument("--full", action="store_true", help="memory at 2,000,000 objects too")
    parser.add_argument("--save", action="store_true", help=f"write {_RESULTS.name}")
    given = parser.parse_args()
    level = logging.ERROR
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
    objects = given.objects // 10 if given.quick else given.objects
    benches = _benches(objects, given.share)
    chosen = [benches[name] for name in (given.names or benches)]
    if given.full:
        chosen.append(lambda: backfill.memory(_MANY))
    try:
        figures = asyncio.run(_run(chosen))
    except (PinstripeError, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write("\n" + table(figures) + "\n")
    if given.save:
        made = {"cores": os.cpu_count(), "figures": [figure.as_json() for figure in figures]}
        _RESULTS.write_text(json.dumps(made, indent=2) + "\n")
    return 0 if all(figure.met for figure in figures) else 1


async def _run(chosen: list[Bench]) -> list[Figure]:
    figures: list[Figure] = []
    for bench in chosen:
        async for figure in bench():
            figures.append(figure)
            sys.stderr.write(f"{figure.bench}: {figure.what}: {figure.value:,.3f} {figure.unit}\n")
    return figures


if __name__ == "__main__":
    sys.exit(main())
