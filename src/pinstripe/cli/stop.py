"""Ctrl-C and SIGTERM: the first ends the work in order, the second at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from typing import TypeVar

_T = TypeVar("_T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAME_S = 0.5
"""A signal to the whole process group and one to us alone are one wish, not two."""


class Stopped(Exception):
    """The user told us to stop. `number` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number


async def until_told(work: Coroutine[object, object, _T]) -> _T:
    """What `work` gives. Raises Stopped when it was cut short by a signal, after it has cleaned up."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    told: list[int] = []
    told_at = 0.0

    def tell(number: int) -> None:
        nonlocal told_at
        if told and loop.time() - told_at < _SAME_S:
            return
        if told:
            # What runs beside us (Postgres, the simulator) sees us go and ends by itself.
            os._exit(128 + number)
        told.append(number)
        told_at = loop.time()
        sys.stderr.write("Stopping (once more to stop at once) ...\n")
        sys.stderr.flush()
        task.cancel()

    for number in _SIGNALS:
        # nohup ignores SIGHUP, and means it; a shell ignores SIGINT for `&` without being asked.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, tell, number)
    try:
        return await task
    except BaseException:
        if told:
            raise Stopped(told[0]) from None
        raise
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
