"""Writes: what a POST or DELETE does to the account."""

from __future__ import annotations

from pinstripe.simulator.answers import Request
from pinstripe.simulator.replies import refused


def write(request: Request) -> object:
    raise refused("writes come soon")
