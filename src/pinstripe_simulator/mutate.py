"""Life in the account: random but repeatable changes over many types, singly or in bursts.

A burst falls into one second, where only the order of the log tells what came last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

from pinstripe_simulator.account import Account
from pinstripe_simulator.deeds import Deeds
from pinstripe_simulator.replies import StripeError


class Mutator:
    """Changes `account`, the same way for the same seed."""

    def __init__(self, account: Account, seed: int) -> None:
        self._dice = Random(f"{seed}/mutate")  # noqa: S311 - a dice, not a secret
        deeds = self.deeds = Deeds(account, self._dice)
        self.done: dict[str, int] = {}
        self._deeds: tuple[tuple[int, str, Callable[[], object]], ...] = (
            (10, "create customer", deeds.create_customer),
            (14, "update customer", deeds.update_customer),
            (1, "delete customer", lambda: deeds.act("DELETE", "customer", "")),
            (4, "attach card", deeds.attach),
            (12, "pay", deeds.pay),
            (4, "refund", deeds.refund),
            (6, "subscribe", deeds.subscribe),
            (5, "change subscription", deeds.change_subscription),
            (2, "cancel subscription", lambda: deeds.act("DELETE", "subscription", "")),
            (4, "bill", deeds.bill),
            (3, "product and price", deeds.product),
            (3, "deactivate price", lambda: deeds.act("POST", "price", "", active=False)),
            (1, "delete product", lambda: deeds.act("DELETE", "product", "")),
            (2, "coupon", deeds.coupon),
            (1, "delete coupon", lambda: deeds.act("DELETE", "coupon", "")),
            (1, "dispute", deeds.dispute),
            (2, "complete session", deeds.complete),
            (2, "balance", deeds.balance),
            (3, "renew subscription", deeds.renew),
            (2, "announce invoice", deeds.announce),
            (1, "payout", deeds.payout),
            (1, "pay out", deeds.pay_out),
            (2, "transfer", deeds.transfer),
            (2, "set up card", deeds.set_up),
            (8, "edit any object", deeds.edit),
            (3, "create any object", deeds.create_any),
        )

    def burst(self, count: int) -> int:
        """`count` mutations at once; how many took effect."""
        return sum(self.one() for _ in range(count))

    async def run(self, count: int, per_second: float) -> int:
        """`count` mutations at a steady rate; 0: as fast as the loop allows."""
        effective = 0
        for _ in range(count):
            effective += self.one()
            await asyncio.sleep(1 / per_second if per_second else 0)
        return effective

    def one(self) -> bool:
        """One random mutation; False if Stripe would have refused it."""
        weights = [w for w, _, _ in self._deeds]
        _, name, deed = self._dice.choices(self._deeds, weights)[0]
        try:
            deed()
        except StripeError:
            return False
        self.done[name] = self.done.get(name, 0) + 1
        return True
