"""`python -m tools.examples [--proxy]`: run the official package's generated examples on the simulator.

Each of the v1 examples in its three blocking ways, with living ids for placeholders, straight to the
simulator or through Pinstripe's proxy. Prints how many pass, and why each other one does not; ends
with 1 if fewer pass than `WANTED`, or one fails that `left_out` does not name.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter, defaultdict

import stripe

from pinstripe.catalog.model import spec
from pinstripe_simulator.account import Settings
from pinstripe_simulator.nastiness import CALM
from pinstripe_simulator.process import SimulatorProcess
from tools.examples.client import LivingClient
from tools.examples.left_out import LEFT_OUT
from tools.examples.living import Living
from tools.examples.proxy import proxy_to
from tools.examples.source import Example, load
from tools.examples.wire import Wire

WANTED = 1_250
EACH = 60
"""Objects of each type: some examples delete, and there are three ways of writing each."""


def run(examples: list[Example], client: LivingClient) -> dict[str, str]:
    """Name of each example that fails -> why."""
    failed: dict[str, str] = {}
    stripe.api_key = "sk_test_123"
    stripe.default_http_client = client
    for example in examples:
        try:
            example.call(client)
        except Exception as error:
            failed[example.name] = f"{type(error).__name__}: {error} [{client.last}]"
    return failed


def report(examples: list[Example], failed: dict[str, str]) -> int:
    """Prints the result; the exit code."""
    ways = Counter(e.about for e in examples)
    reasons: dict[str, list[str]] = defaultdict(list)
    for example in examples:
        if example.name in failed:
            reasons[example.about].append(failed[example.name])
    unnamed = sorted(reasons.keys() - LEFT_OUT.keys())
    for about, seen in sorted(reasons.items()):
        why = LEFT_OUT.get(about, f"NOT NAMED: {seen[0][:600]}")
        sys.stdout.write(f"{about} ({len(seen)} of {ways[about]} ways): {why}\n")
    for about in sorted(LEFT_OUT.keys() - reasons.keys()):
        sys.stdout.write(f"{about} is named in left_out and passes\n")
    passed = len(examples) - len(failed)
    sys.stdout.write(f"{passed} of {len(examples)} examples pass ({WANTED} wanted)\n")
    return int(passed < WANTED or bool(unnamed))


async def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.examples", description=__doc__)
    parser.add_argument("--proxy", action="store_true", help="through `pinstripe serve`")
    through_proxy = parser.parse_args().proxy
    examples = load()
    mix = {o.name: EACH for o in spec().objects if o.has_id}
    async with (
        SimulatorProcess(Settings(mix=mix, nastiness=CALM)) as simulator,
        proxy_to(simulator.url, simulator.key, wanted=through_proxy) as base,
    ):
        wire = Wire(base, simulator.url, simulator.key)
        client = LivingClient(wire, Living(wire))
        failed = await asyncio.to_thread(run, examples, client)
    return report(examples, failed)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
