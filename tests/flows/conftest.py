"""Fixtures of the flows."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from pinstripe_simulator.server import Running


@pytest.fixture
async def http(sim: Running) -> AsyncIterator[aiohttp.ClientSession]:
    """A caller of the module's own simulator, `sim`."""
    headers = {"Authorization": f"Bearer {sim.key}"}
    async with aiohttp.ClientSession(sim.url, headers=headers) as session:
        yield session
