"""The control interface: `/_simulator/...`, JSON in and out; Stripe has nothing there."""

from __future__ import annotations

from pinstripe.simulator.account import Account
from pinstripe.simulator.replies import Reply
from pinstripe.simulator.template import pretty


class Control:
    """Turns the knobs of an account; the same methods in process and over HTTP."""

    def __init__(self, account: Account) -> None:
        self.account = account

    def counts(self) -> dict[str, int]:
        return self.account.world.counts()

    async def answer(self, method: str, path: str, body: bytes) -> Reply:
        return Reply(pretty(self.account.meter.report()) + b"\n")

    async def close(self) -> None:
        """Stop whatever runs in the background."""
