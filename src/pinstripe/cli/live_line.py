"""What a person sees while the account is followed: one line, renewed; and troubles as they come and go."""

from __future__ import annotations

import asyncio
import sys
import time

from pinstripe.cli.failure import complain
from pinstripe.sync.follow import Follower

_LOOK_S = 1.0
_PLAIN_S = 30.0
"""Between two lines where there is no terminal; none if nothing happened."""


async def show_following(follower: Follower) -> None:
    """Until cancelled, on stderr."""
    told, shown, plain_at = "", follower.live.seen.events, time.monotonic()
    on_terminal = sys.stderr.isatty()
    while True:
        before = follower.live.seen.events
        await asyncio.sleep(_LOOK_S)
        trouble = follower.trouble
        if trouble and not told:
            complain(f"What changes now is not seen yet. {trouble}", follower.remedy)
        elif told and not trouble:
            _write("Following again.\n")
        told = trouble
        if trouble:
            continue
        events = follower.live.seen.events
        if on_terminal:
            _write(f"\r\x1b[2K{line(follower, events - before)}")
        elif events != shown and time.monotonic() - plain_at >= _PLAIN_S:
            _write(line(follower, events - before) + "\n")
            shown, plain_at = events, time.monotonic()


def line(follower: Follower, per_second: int) -> str:
    """How far the database is true, and what came lately."""
    seen = follower.live.seen
    behind_s = max(follower.live.now() - seen.as_of, 0.0)
    asking = f", {len(follower.todos)} to ask" if len(follower.todos) else ""
    return (
        f"following: {seen.events:,} events applied ({per_second}/s), "
        f"true up to {behind_s:.1f} s ago{asking}"
    )


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
