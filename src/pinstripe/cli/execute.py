"""How a command runs: logs, loop, signals, and the exit code at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from pinstripe.config import Config


class Exit(Exception):
    """The command is over, and not with 0. Raised through cyclopts to `main`."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def execute(config: Config, work: Coroutine[object, object, int], *, stopped: int) -> None:
    """Runs `work` to its end, or until a signal; `stopped` is the exit code then."""
    from pinstripe.cli.footprint import set_allocators
    from pinstripe.cli.logs import configure
    from pinstripe.cli.stop import Stopped, until_told

    configure(config)
    set_allocators()
    try:
        code = _runner()(until_told(work))
    except Stopped:
        code = stopped
    if code:
        raise Exit(code)


def _runner() -> Callable[[Coroutine[object, object, int]], int]:
    try:
        import uvloop
    except ImportError:  # no wheel for this platform: asyncio's own loop does it, slower
        return asyncio.run
    return uvloop.run
