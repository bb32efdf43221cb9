"""Random histories of whole accounts, in virtual time: one simulator, one database, one sync each.

    python -m tests.flows.harness.random_accounts postgresql://... --seed 1 --accounts 2 --rounds 2

One account lives through its rounds. In each, every type that has events, every kind of set and every place
where an object stands inside another as it is not takes part once, in random order, callers of the proxy
change, read and delete objects, and the sync (the product's own wiring, `open_service`) makes its first
copy, polls, is cut off anywhere and starts anew. Stripe answers from replicas that are behind, with Dates
that are off, events that are late or in an older version, and broken responses. At the end of a round all
must be Stripe's, and nothing owed. Prints one line of JSON an account. Time is virtual (`virtual_time`), so
margins have their full size.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from traceback import format_exception
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog
from tests.flows.harness.virtual_time import POSTGRES_CLOCK, virtual_loop

if TYPE_CHECKING:
    from aiohttp import ClientSession
    from tests.flows.harness.histories import Histories
    from tests.flows.harness.truth import Truth

    from pinstripe.config.config import Config
    from pinstripe_simulator.server import Running

LATE_S = 1.5
"""Late events show up after this time, and within twice as much."""
MARGIN_S = 10.0
"""The longest for which an answer may be doubted: 3 s of a replica, 3 s of clocks either way, a second."""
SETTLE_S = 10.0
"""Issue 8: a contradiction is settled within this time after the margin."""
_MORE, _MORE_S = 4, 30.0
"""So often, and so long, a history with broken responses is looked at again."""
_FAULTS = (
    "error_500",
    "error_503",
    "error_409",
    "rate_limit",
    "reset_before",
    "reset_in_body",
    "cut",
)
_RECREATED = ("plan", "coupon", "product")
_SCALE = 120
_WINDOW_S = 20.0
"""How far back the event log is read again: a wide window is read again and again, at a page in 10 ms."""
_JOURNALS = 0.25
"""Of so many accounts every version of every row is noted: it costs a trigger on each write."""


@dataclass
class Chances:
    """What a run draws from. All of it by default; each can be left out, to see what fails by it."""

    stale: bool = True
    skew: bool = True
    late: bool = True
    versions: bool = True
    cuts: bool = True
    faults: bool = True
    lives: bool = True
    sets: bool = True
    recreated: bool = True
    embedded: bool = True
    proxied: bool = True


@dataclass
class Sync:
    """`pinstripe sync`'s own parts in a task, which may be cut off at any moment and started anew."""

    config: Config
    starts: int = 0
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    troubles: Counter[str] = field(default_factory=Counter)
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._stay())

    async def cut(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def check(self) -> None:
        """Raise what ended it, if anything did."""
        if self._task is not None and self._task.done():
            await self._task

    async def _stay(self) -> None:
        from pinstripe.errors import PinstripeError

        while True:
            try:
                await self._once()
            except* PinstripeError as group:
                self.troubles.update(type(e).__name__ for e in group.exceptions)
                await asyncio.sleep(1.0)

    async def _once(self) -> None:
        from pinstripe.service import open_service

        self.starts += 1
        self.complete.clear()
        async with open_service(self.config) as service:
            follower = await service.follow()
            async with asyncio.TaskGroup() as group:
                group.create_task(follower.run())
                await service.backfilled(followed=True)
                follower.backfilled()
                self.complete.set()


@dataclass
class Proxy:
    """The gateway's proxy over the same database, and a caller of it."""

    url: str
    key: str
    http: ClientSession

    async def ask(self, method: str, path: str, params: Mapping[str, str]) -> None:
        """Whatever the answer is: an object may be gone, or may not be changed any more."""
        headers = {"Authorization": f"Bearer {self.key}"}
        data = params if method == "POST" else None
        async with self.http.request(method, self.url + path, data=data, headers=headers) as answer:
            await answer.read()


@asynccontextmanager
async def _proxy(sim: Running, database: str) -> AsyncIterator[Proxy]:
    from aiohttp import ClientSession
    from tests.flows.harness.gateway_account import serving

    from pinstripe.client.api_key import ApiKey
    from pinstripe.client.rate_limit import RateLimiter
    from pinstripe.gateway.proxy.proxy import open_proxy
    from pinstripe.gateway.proxy.upstream import hosts_at
    from pinstripe.gateway.syncs import Syncs, open_sync
    from pinstripe.store.pool import connect
    from pinstripe.store.syncs import claim

    async with connect(database) as connection:
        await claim(connection, "stripe", account_id=sim.account.id, livemode=False)
    syncs, budget = Syncs(), RateLimiter(account_rate=None, endpoint_rate=None)
    key = ApiKey.parse(sim.key)
    async with open_sync(
        "default", database, "stripe", key, budget=budget, stripe_url=sim.url
    ) as sync:
        syncs.add(sync)
        async with (
            open_proxy(syncs, hosts=hosts_at(sim.url)) as app,
            serving(app) as url,
            ClientSession() as http,
        ):
            yield Proxy(url, sim.key, http)


@dataclass
class RandomAccount:
    """One account and its copy. `dice` draws all that happens."""

    sim: Running
    sync: Sync
    proxy: Proxy
    truth: Truth
    dice: Random
    chances: Chances
    made: Histories
    has_journal: bool = False
    troubled: bool = False

    async def round(self) -> dict[str, str]:
        """One history over everything; what is wrong at its end."""
        from tests.flows.harness.histories import OLD, changeable, lively_types, places_of_others

        chances, dice, made = self.chances, self.dice, self.made
        made.touched.clear()
        made.owners.clear()
        deeds: list[tuple[str, str]] = []
        deeds += [("life", n) for n in lively_types() if chances.lives]
        deeds += [("churn", n) for n in made.set_kinds() if chances.sets]
        deeds += [("recreated", n) for n in _RECREATED if chances.recreated]
        deeds += [("stand_in", p) for p in places_of_others() if chances.embedded]
        deeds += [("proxied", n) for n in changeable() if chances.proxied]
        dice.shuffle(deeds)
        self._vex()
        while deeds:
            # Much happens at the same time, as in any account that is worth a copy.
            count = dice.randrange(4, 16)
            some, deeds = deeds[:count], deeds[count:]
            if chances.versions and dice.random() < 0.15:
                self.sim.account.api_version = OLD
            await asyncio.gather(
                *(self._deed(kind, name, Random(dice.random())) for kind, name in some)
            )
            self.sim.account.api_version = self.sim.account.spec.api_version
            await self._meanwhile()
        return await self._end()

    def _vex(self) -> None:
        """How Stripe answers in this round."""
        chances, dice = self.chances, self.dice
        share = dice.choice((0.02, 0.3, 1.0)) if chances.stale else 0.0
        skew = dice.choice((0.0, 3.0)) if chances.skew else 0.0
        self.sim.control.nastiness("calm", stale_share=share, stale_s=3.0, skew_s=skew)
        late = dice.choice((0.0, 0.3)) if chances.late else 0.0
        self.sim.control.late_events(share=late, delay_s=LATE_S)
        self.sim.control.latency(fixed_s=0.02, jitter_s=0.2)

    async def _deed(self, kind: str, name: str, dice: Random) -> None:
        await asyncio.sleep(dice.uniform(0.0, 0.6))
        if kind == "recreated":
            self.made.recreated(name, dice)
        elif kind == "stand_in":
            self.made.stand_in(name, dice)
        elif kind == "churn":
            await _pausing(self.made.churn(name, dice), dice)
        elif kind == "proxied":
            for call in self.made.calls(name, dice):
                await self.proxy.ask(*call)
                await asyncio.sleep(dice.choice((0.0, 0.3, 1.0)))
        else:
            await _pausing(self.made.life(name, dice, dice.randrange(1, 5)), dice)

    async def _meanwhile(self) -> None:
        if self.dice.random() < 0.5:
            await asyncio.sleep(self.dice.uniform(0.0, 1.5))
        if self.chances.cuts and self.dice.random() < 0.05:
            await self.sync.cut()
            self.sync.start()
        if self.chances.faults and self.dice.random() < 0.2:
            self.troubled = True
            self.sim.control.fault(kind=self.dice.choice(_FAULTS), count=self.dice.randrange(1, 4))

    async def _end(self) -> dict[str, str]:
        """Waits as long as the product may take, and no longer; what is wrong then."""
        self.sim.control.clear_faults()
        async with asyncio.timeout(900.0):
            await self.sync.complete.wait()
        await asyncio.sleep(2 * LATE_S + 0.5 + MARGIN_S + SETTLE_S)
        wrong = await self._wrong()
        # Pauses after a failure, and lists that are resumed.
        for _ in range(_MORE if self.troubled else 0):
            if not wrong:
                break
            await asyncio.sleep(_MORE_S)
            wrong = await self._wrong()
        self.troubled = False
        return wrong

    async def _wrong(self) -> dict[str, str]:
        """What is wrong now."""
        await self.sync.check()
        owed = await self._owed()
        self._forget_orphans()
        wrong = await self.truth.differences(self.made.touched)
        return {**wrong, **await self._sets(), **await self._steps_back(), **owed}

    async def _steps_back(self) -> dict[str, str]:
        """Rows that were once right and then wrong, though right again in the end."""
        from tests.flows.harness.histories import steps_back

        found = await steps_back(self.truth.connection, self.made) if self.has_journal else []
        return {"went back": "; ".join(found[:3])} if found else {}

    async def _owed(self) -> dict[str, str]:
        rows = await self.truth.connection.fetch(
            'SELECT kind, "table", id, attempts, reason FROM pinstripe.pending'
            " WHERE kind NOT LIKE 'upcoming%'"
        )
        return {f"owed {r[0]} {r[1]}": f"{r[2]} after {r[3]} tries: {r[4]}" for r in rows}

    def _forget_orphans(self) -> None:
        """What hung under an object that is gone: nobody can ask for it any more."""
        world = self.sim.account.world
        for name, owners in self.made.owners.items():
            kind = self.sim.control.sets.kinds[name]
            for owner in [o for o in owners if world.get(kind.owner.kind.name, o) is None]:
                owners.discard(owner)
                position = kind.owner.position(owner)
                for at in () if position is None else self.sim.control.sets.of(kind, position):
                    self.made.touched.get(kind.child.kind.name, set()).discard(kind.child.id_at(at))

    async def _sets(self) -> dict[str, str]:
        """Every set that was changed: the rows that live are the members, no more and no fewer."""
        from pinstripe.catalog.tables import table_of_object, tables
        from pinstripe.mirror.orphans import parent_column

        found: dict[str, str] = {}
        sets = self.sim.control.sets
        for name, owners in self.made.owners.items():
            kind = sets.kinds[name]
            child = tables().get(table_of_object().get(kind.child.kind.name, ""))
            parent = table_of_object().get(kind.owner.kind.name, "")
            column = parent_column(child, parent) if child is not None else None
            if child is None or column is None or not owners:
                continue
            alive = "AND deleted IS NOT TRUE" if child.deletable else ""
            rows = await self.truth.connection.fetch(
                f'SELECT "{column}", id FROM stripe."{child.name}"'
                f' WHERE "{column}" = ANY($1) {alive}',
                list(owners),
            )
            mine = {(r[0], r[1]) for r in rows}
            theirs: set[tuple[str, str]] = set()
            unnamed: set[tuple[str, str]] = set()
            field = kind.owner.kind.name
            names = field in self.sim.account.world.routes.fields[kind.child.kind.name]
            for owner in owners:
                position = kind.owner.position(owner)
                assert position is not None
                for at in sets.of(kind, position):
                    shown = self.sim.account.world.objects.load(kind.child, at)
                    named = not names or shown.get(field) is not None
                    (theirs if named else unnamed).add((owner, kind.child.id_at(at)))
            if mine - unnamed != theirs:
                found[f"set {name}"] = (
                    f"surplus {sorted(mine - theirs)[:3]}, missing {sorted(theirs - mine)[:3]}"
                )
        return found


async def _pausing(pauses: Iterator[float], dice: Random) -> None:
    for pause_s in pauses:
        await asyncio.sleep(pause_s * dice.choice((0.2, 1.0)))


async def make_template(url: str) -> None:
    """The database that those of accounts are copied from: all tables, with their indexes, which each first
    copy would make one by one beside its writers; and Postgres on our clock.
    """
    from tests.flows.harness.truth import make_empty

    from pinstripe.catalog.model import spec
    from pinstripe.catalog.tables import tables
    from pinstripe.store.migrate import create_indexes, migrate
    from pinstripe.store.pool import connect

    async with connect(url) as admin:
        await admin.execute("DROP DATABASE IF EXISTS virtual WITH (FORCE)")
        await admin.execute("CREATE DATABASE virtual STRATEGY file_copy")
    async with connect(urlsplit(url)._replace(path="/virtual").geturl()) as connection:
        await connection.execute(POSTGRES_CLOCK)
        await migrate(
            connection,
            "stripe",
            tables(),
            sdk_version=spec().sdk_version,
            api_version=spec().api_version,
        )
        for table in tables().values():
            await create_indexes(connection, "stripe", table)
        await make_empty(connection, "stripe_truth", tables().values())


async def _account(
    url: str, seed: int, rounds: int, chances: Chances, clock: Path
) -> dict[str, Any]:
    """One account from its first copy on."""
    from tests.flows.harness.histories import Histories, keep_journal, lively_types
    from tests.flows.harness.truth import open_truth

    from pinstripe.config.config import Config
    from pinstripe.store.pool import connect
    from pinstripe_simulator.account import Settings
    from pinstripe_simulator.nastiness import CALM
    from pinstripe_simulator.server import running

    name = f"random_{seed}"
    async with connect(url) as admin:
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE virtual STRATEGY file_copy")
        await admin.execute(f"ALTER DATABASE {name} SET virtual.clock = '{clock}'")
        await admin.execute(f"ALTER DATABASE {name} SET plan_cache_mode = force_generic_plan")
    parts = urlsplit(url)
    database = parts._replace(path=f"/{name}").geturl()
    settings = Settings(
        seed=seed, scale=_SCALE, future_fields=False, connected=False, nastiness=CALM
    )
    done = 0
    wrong: dict[str, str] = {}
    async with (
        running(settings) as sim,
        open_truth(database, sim) as truth,
        _proxy(sim, database) as proxy,
    ):
        config = Config(
            api_key=sim.key,
            database_url=database,
            stripe_url=sim.url,
            data_dir=Path("/nonexistent"),
            tables=("-upcoming_*",),
            event_window=_WINDOW_S,
            rate_limit="none",
            endpoint_rate_limit="none",
        )
        sync = Sync(config)
        here = RandomAccount(sim, sync, proxy, truth, Random(seed), chances, Histories(sim))
        if here.dice.random() < _JOURNALS:
            await keep_journal(truth.connection, lively_types())
            here.has_journal = True
        sync.start()
        try:
            while done < rounds and not wrong:
                wrong = await here.round()
                done += not wrong
                sys.stderr.write(f"seed {seed}: round {done} {'wrong' if wrong else 'right'}\n")
        except* Exception as group:
            wrong = {"crash": "".join(format_exception(group))[-1500:]}
        finally:
            await sync.cut()
        told = {
            "seed": seed,
            "rounds": done,
            "wrong": wrong,
            "starts": sync.starts,
            "troubles": dict(sync.troubles),
            "events": sim.control.events(),
            "requests": sum(sim.account.meter.requests.values()),
        }
    if not wrong:  # Else it is left, to be looked at.
        async with connect(url) as admin:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    return told


def _widen_sessions() -> None:
    """A history uses all types at once. A session that has room for those of an account's usual dozen makes
    its stages and statements again and again: half of Postgres's time.
    """
    from pinstripe.mirror import writer

    writer._MOST_STAGES, writer._MOST_STATEMENTS = 256, 4096


async def _run(given: argparse.Namespace, chances: Chances, clock: Path) -> int:
    wrong = 0
    at_once = asyncio.Semaphore(given.at_once)

    async def one(seed: int) -> None:
        nonlocal wrong
        async with at_once:
            told = await _account(given.url, seed, given.rounds, chances, clock)
        wrong += bool(told["wrong"])
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()

    async with asyncio.TaskGroup() as group:
        for number in range(given.accounts):
            group.create_task(one(given.seed + number))
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of a server with a database `virtual`: `make_template`")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--accounts", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--without", default="", help=f"of {', '.join(vars(Chances()))}")
    given = parser.parse_args()
    left_out = {name: False for name in given.without.split(",") if name}
    # A history has faults by the hundred; what counts is its end.
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    gc.set_threshold(50_000, 20, 20)  # As `pinstripe` itself.
    loop, clock = virtual_loop({urlsplit(given.url).port or 5432})
    asyncio.set_event_loop(loop)
    _widen_sessions()
    with TemporaryDirectory(prefix="pinstripe-clock-") as directory:
        path = Path(directory) / "clock"
        clock.tell(path)
        path.parent.chmod(0o755)  # Our own Postgres may run as another user.
        return loop.run_until_complete(_run(given, Chances(**left_out), path))


if __name__ == "__main__":
    sys.exit(main())
