"""Time that passes only while nothing else does: hours of waiting in seconds of CPU.

    loop = virtual_loop(postgres_url)       before anything that reads a clock is imported
    loop.run_until_complete(...)

All clocks of the process (`time.time`, `time.monotonic`, `time.perf_counter`, the loop's own) are one,
which stands still while code runs, while Postgres works and while a thread does. When all of them wait,
it jumps to the next timer. So a margin of six seconds is waited for in no time, a busy machine makes
nothing late, and the same seed draws the same history. The simulator must run in the same loop: its
`Date` and `created` come from this clock. Postgres shows it too, in databases that `POSTGRES_CLOCK` was
run in: the product compares moments of Postgres's clock with the margin of a replica.
"""

from __future__ import annotations

import asyncio
import mmap
import selectors
import socket
import time
from asyncio import selector_events
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

_TICK_S = 0.001
"""What one turn of the loop takes, so that no two moments are the same."""

POSTGRES_CLOCK = """
ALTER FUNCTION pg_catalog.clock_timestamp() RENAME TO real_clock_timestamp;
CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE plpgsql AS $$
DECLARE f text := pg_catalog.pg_read_file(current_setting('virtual.clock'), 0, 40);
BEGIN
  RETURN pg_catalog.to_timestamp(split_part(f, ' ', 1)::float8 + least(0.0009, greatest(0,
    extract(epoch FROM pg_catalog.real_clock_timestamp()) - split_part(f, ' ', 2)::float8)));
END $$;
"""
"""Postgres reads the file of the database's setting `virtual.clock`: the moment, and when (really) it was
written; between two turns of the loop it moves on within the tick, so that no two versions are alike. (In
PL/pgSQL: a function in SQL took twice as long, half a millisecond of each statement.)
"""
_MOST_S = 0.2
"""Real seconds between two looks while Postgres works."""
_PATIENCE = 5
"""Looks after which Postgres is taken to wait for a lock that a timer of ours will free."""


class VirtualClock:
    """Seconds since the start; `bend` makes every clock of the process show them."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0
        self._time, self._monotonic = time.time(), time.monotonic()
        self._really = time.time
        self._told: mmap.mmap | None = None

    def tell(self, path: Path) -> None:
        """From now on the file shows the clock, for Postgres."""
        path.write_bytes(b" " * 40)
        with path.open("r+b") as file:
            self._told = mmap.mmap(file.fileno(), 40)
        self.advance(0.0)

    def advance(self, seconds: float) -> None:
        self.elapsed_s += seconds
        if self._told is not None:
            shown = f"{self._time + self.elapsed_s:.6f} {self._really():.6f}"
            self._told[:40] = shown.ljust(40).encode()

    def bend(self) -> None:
        """From now on. Whoever has imported a clock by name before keeps the real one."""
        time.time = lambda: self._time + self.elapsed_s
        time.monotonic = time.perf_counter = lambda: self._monotonic + self.elapsed_s


class _Selector(selectors.EpollSelector):
    """Returns at once, or jumps to the timer that the loop would have waited for."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock
        self.at_work: set[object] = set()
        """Connections to Postgres that owe an answer, and threads."""

    def select(self, timeout: float | None = None) -> list[Any]:
        self._clock.advance(_TICK_S)
        if timeout is not None and timeout <= 0:
            return cast("list[Any]", super().select(0))
        waited = 0
        while True:
            found = super().select(_MOST_S if self.at_work or timeout is None else 0)
            if found:
                return cast("list[Any]", found)
            waited += 1
            if timeout is not None and (not self.at_work or waited >= _PATIENCE):
                self._clock.advance(timeout)
                return []


class _Transport(selector_events._SelectorSocketTransport):  # type: ignore[name-defined,misc]
    """A connection to Postgres: what was sent is answered, and until then time stands still."""

    _at_work: set[object]

    def write(self, data: bytes) -> None:
        self._at_work.add(self)
        super().write(data)

    def writelines(self, data: Any) -> None:
        self._at_work.add(self)
        super().writelines(data)

    def _read_ready(self) -> None:
        self._at_work.discard(self)
        super()._read_ready()

    def _force_close(self, error: BaseException | None) -> None:
        self._at_work.discard(self)
        super()._force_close(error)

    def close(self) -> None:
        self._at_work.discard(self)
        super().close()


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop on a virtual clock. `is_postgres`: whether a socket leads to what is not in this loop."""

    def __init__(self, clock: VirtualClock, is_postgres: Callable[[socket.socket], bool]) -> None:
        self._virtual = _Selector(clock)
        super().__init__(self._virtual)
        self._is_postgres = is_postgres

    def _make_socket_transport(
        self, sock: socket.socket, protocol: Any, *args: Any, **more: Any
    ) -> Any:
        if not self._is_postgres(sock):
            return super()._make_socket_transport(sock, protocol, *args, **more)  # type: ignore[misc]
        made = _Transport.__new__(_Transport)
        made._at_work = self._virtual.at_work
        _Transport.__init__(made, self, sock, protocol, *args, **more)  # type: ignore[call-arg]
        return made

    def run_in_executor(  # type: ignore[override]  # What it takes and gives is what the loop does.
        self, executor: Any, func: Any, *args: Any
    ) -> Any:
        at_work = self._virtual.at_work
        made = super().run_in_executor(executor, func, *args)
        at_work.add(made)
        made.add_done_callback(at_work.discard)
        return made


def virtual_loop(ports: set[int]) -> tuple[VirtualLoop, VirtualClock]:
    """A loop and its clock, which all of the process now goes by. `ports`: of Postgres."""

    def is_postgres(sock: socket.socket) -> bool:
        try:
            peer = sock.getpeername()
        except OSError:
            return False
        return isinstance(peer, str) or peer[1] in ports

    clock = VirtualClock()
    clock.bend()
    return VirtualLoop(clock, is_postgres), clock
