"""The rule alone: snapshots of an object in any order end in its newest state, or in a question.

Each object changes at known moments of Stripe's clock. Every change has its event, with whole seconds;
between them are reads, answered by replicas that are up to three seconds behind, whose `Date` is up to
three seconds off either way. Which moment a snapshot shows is hidden from the rule: it sees intervals that
the product's own `Response` makes of the headers. Many objects are written side by side, one snapshot of
each a batch, so that a hundred thousand orders are a matter of minutes (ORDERS, ORDERS_SEED).
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.utils import formatdate
from math import floor
from random import Random

import pytest
from tests.postgres.writing import T0, Snapshot, Writing, make_schema, writing

from pinstripe.client.response import Response

ORDERS = int(os.environ.get("ORDERS", "1000"))
SEED = int(os.environ.get("ORDERS_SEED", "1"))
AT_ONCE = 2000
LAG_S, SKEW_S = 3.0, 3.0
"""What Stripe does here, whatever the product's margins are."""
_TABLE = "tax_code"


@pytest.fixture
async def w(database: str) -> AsyncIterator[Writing]:
    await make_schema(database, (_TABLE,))
    async with writing(database, _TABLE) as made:
        yield made


def read_at(moment: float, dice: Random) -> tuple[float, float, float]:
    """(lo, hi, which moment it shows) of a read answered at `moment`; half of them at the edge."""
    at_edge = dice.random() < 0.5
    age_s = dice.choice((0.0, LAG_S)) if at_edge else dice.uniform(0.0, LAG_S)
    skew_s = dice.choice((-SKEW_S, SKEW_S)) if at_edge else dice.uniform(-SKEW_S, SKEW_S)
    said = formatdate(floor(T0 + moment + skew_s), usegmt=True)
    took_s = dice.choice((0.0, 0.05, 1.0))
    response = Response(200, {"date": said}, b"{}", took_s, T0 + moment)
    lo, hi = response.read_interval()
    return lo - T0, hi - T0, moment - age_s - dice.uniform(0.0, took_s)


@dataclass
class Order:
    """One object, and its snapshots in the order in which they arrive."""

    key: str
    dice: Random
    changes: list[float] = field(init=False)
    states: int = field(init=False)
    snapshots: list[tuple[int, float, float]] = field(default_factory=list)
    """(state, lo, hi)"""

    def __post_init__(self) -> None:
        dice = self.dice
        long_s = dice.choice((2.0, 8.0, 40.0))
        self.changes = sorted(dice.uniform(0.0, long_s) for _ in range(dice.randint(1, 5)))
        # It often changes back to what it was.
        self.states = dice.choice((2, 2, 3, 99))
        for change in self.changes:
            second = float(floor(change))
            self.snapshots.append((self.state(change), second, second + 1.0))
        for _ in range(dice.randint(1, 6)):
            lo, hi, moment = read_at(dice.uniform(0.0, long_s + 4.0), dice)
            self.snapshots.append((self.state(moment), lo, hi))
        dice.shuffle(self.snapshots)

    def state(self, moment: float) -> int:
        return sum(change <= moment for change in self.changes) % self.states

    @property
    def newest(self) -> int:
        return len(self.changes) % self.states

    def snapshot(self, state: int, lo: float, hi: float) -> Snapshot:
        return {"id": self.key, "object": _TABLE, "name": str(state)}, lo, hi

    def asked_again(self) -> Snapshot:
        """A read when all of it is over, answered by a replica as far behind as any."""
        lo, hi, moment = read_at(self.changes[-1] + 4.0 + 20.0, self.dice)
        return self.snapshot(self.state(moment), lo, hi)


async def _wrong(w: Writing, orders: list[Order]) -> list[str]:
    rows = await w.pg.fetch(f"SELECT id, name FROM stripe.{_TABLE}")
    mine = {row[0]: row[1] for row in rows}
    return [o.key for o in orders if mine[o.key] != str(o.newest)]


async def test_any_order_of_events_and_reads_ends_in_the_newest_state_or_is_asked_again(
    w: Writing,
) -> None:
    done = asked = 0
    while done < ORDERS:
        count = min(AT_ONCE, ORDERS - done)
        orders = [Order(f"o{SEED}_{done + n}", Random(f"{SEED}/{done + n}")) for n in range(count)]
        contested: set[str] = set()
        waiting = [list(order.snapshots) for order in orders]
        while any(waiting):
            batch = [
                o.snapshot(*left.pop()) for o, left in zip(orders, waiting, strict=True) if left
            ]
            contested.update(c.key for c in await w.put(*batch))
        decided = [o for o in orders if o.key not in contested]
        assert await _wrong(w, decided) == [], "neither the newest state nor asked again"
        # Once asked after the margin, the answer is sure: nothing is asked for ever.
        late = [o.asked_again() for o in orders if o.key in contested]
        assert await w.put(*late) == [], "asked again for ever"
        assert await _wrong(w, orders) == []
        done, asked = done + count, asked + len(contested)
        sys.stdout.write(f"\n{done} orders, {asked} of them asked again")
        sys.stdout.flush()
        await w.pg.execute(f"TRUNCATE stripe.{_TABLE}, pinstripe.pending, pinstripe.confirmation")
    assert asked < done  # Most events decide by themselves.
