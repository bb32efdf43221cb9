"""One simulated Stripe account: its objects, doors, limits, faults and clock, and its settings.

Everything that answers a request hangs here; the app picks the account (the platform's, or a
connected one by `Stripe-Account`), the control interface turns its knobs.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from pinstripe.catalog.model import spec
from pinstripe_simulator.auth import DEFAULT_KEY, Doors, Key
from pinstripe_simulator.build import Plan
from pinstripe_simulator.clock import Clock
from pinstripe_simulator.events import EventLog
from pinstripe_simulator.expand import Expander
from pinstripe_simulator.faults import Faults
from pinstripe_simulator.limits import PRESETS, Meter
from pinstripe_simulator.nastiness import Nastiness, default_nastiness
from pinstripe_simulator.replies import Reply
from pinstripe_simulator.singletons import Singletons
from pinstripe_simulator.table import StripeObject
from pinstripe_simulator.webhooks import Webhooks
from pinstripe_simulator.world import World

_DAY_S = 86_400
_REPLAYS = 20_000
"""Idempotency keys remembered; more than a day of a test's writes."""


@dataclass(frozen=True)
class Settings:
    """How the account is made. The same settings make the same account, down to the byte.

    `until`: when the objects from the start end (Unix seconds); 0 is the last midnight, UTC.
    `mix`: type -> count, instead of `scale`'s own mix.
    """

    seed: int = 1
    scale: int = 2_000
    until: int = 0
    years: float = 3.0
    mix: Mapping[str, int] | None = None
    keys: tuple[str, ...] = (DEFAULT_KEY,)
    limits: str = "off"
    not_enabled: tuple[str, ...] = ()
    api_version: str = ""
    """The account's default; "" is the catalog's."""
    future_fields: bool = True
    livemode: bool = False
    connected: bool = True
    """Whether there is a small connected account for `Stripe-Account`."""
    nastiness: Nastiness = field(default_factory=default_nastiness)

    def end(self) -> int:
        return self.until or int(time.time()) // _DAY_S * _DAY_S


@dataclass
class Latency:
    """Seconds added to each answer: `fixed_s` plus up to `jitter_s`."""

    fixed_s: float = 0.0
    jitter_s: float = 0.0


@dataclass
class Account:
    """All state of one account."""

    settings: Settings
    id: str = "acct_1PSimulator0001"
    clock: Clock = field(default_factory=Clock)
    latency: Latency = field(default_factory=Latency)

    def __post_init__(self) -> None:
        made = self.settings
        end = made.end()
        self.spec = spec()
        self.api_version = made.api_version or self.spec.api_version
        plan = Plan(
            seed=made.seed,
            scale=made.scale,
            start=end - int(made.years * 365 * _DAY_S),
            end=end,
            mix=made.mix,
            future_fields=made.future_fields,
            livemode=made.livemode,
            api_version=self.api_version,
        )
        self.world = World(self.spec, plan, self.clock)
        self.expander = Expander(self.world, refused=lambda: self.nastiness.refused_expands)
        self.doors = Doors(
            self.id,
            livemode=made.livemode,
            keys={secret: Key(secret) for secret in made.keys},
            not_enabled=set(made.not_enabled),
        )
        self.meter = Meter()
        self.meter.limits = PRESETS[made.limits]
        self.faults = Faults(made.seed)
        self.dice = Random(f"{made.seed}/dice")  # noqa: S311 - a dice, not a secret
        self.replays: OrderedDict[str, tuple[int, Reply]] = OrderedDict()
        self.previews: dict[str, list[StripeObject]] = {}
        """Lines of upcoming invoices, by the id of the moment."""
        self.singletons = Singletons(self.world.routes, livemode=made.livemode)
        self.events = EventLog(
            self.world,
            self.spec.events,
            version=lambda: self.api_version,
            clock=self.clock.now,
            seed=made.seed,
        )
        self.webhook_secrets: dict[str, str] = {}
        """Webhook endpoint -> the secret that its deliveries are signed with."""
        self.webhooks = Webhooks(
            self.world, self.webhook_secrets, now=self.clock.seconds, seed=made.seed
        )
        self.behave(made.nastiness)
        self.search_lag_s = 60
        """Stripe's index is usually under a minute behind; tests must not build on it."""
        self.connected: dict[str, Account] = {}
        self._requests = 0

    def behave(self, nastiness: Nastiness) -> None:
        """Be this nasty from now on."""
        self.nastiness = nastiness
        self.world.history.keep_s = nastiness.stale_s if nastiness.stale_share else 0.0
        self.world.settle_s = nastiness.settle_s

    def request_id(self) -> str:
        self._requests += 1
        return f"req_{self.settings.seed:04x}{self._requests:010x}"

    def remember(self, key: str, fingerprint: int, reply: Reply) -> None:
        """Keep a write's answer for the next request with the same idempotency key."""
        self.replays[key] = (fingerprint, reply)
        while len(self.replays) > _REPLAYS:
            self.replays.popitem(last=False)


def make_account(settings: Settings) -> Account:
    """The platform account, with its connected account if the settings ask for one."""
    account = Account(settings)
    if settings.connected:
        small = Settings(
            seed=settings.seed + 1,
            scale=300,
            until=settings.end(),
            years=settings.years,
            keys=settings.keys,
            connected=False,
            nastiness=settings.nastiness,
        )
        first = account.world.tables["account"].id_at(0)
        account.connected[first] = Account(small, id=first, clock=account.clock)
    return account
