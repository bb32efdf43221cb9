"""One simulated Stripe account: its objects, doors, limits, faults and clock, and its settings.

Everything that answers a request hangs here; the app picks the account (the platform's, or a
connected one by `Stripe-Account`), the control interface turns its knobs. Connected accounts are
made alike, each when it is first needed, so that thousands of them cost little.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache, partial
from random import Random
from typing import Literal

from pinstripe.catalog.model import spec
from pinstripe_simulator import coherence
from pinstripe_simulator.auth import DEFAULT_KEY, Doors, Key
from pinstripe_simulator.build import Plan
from pinstripe_simulator.clock import Clock
from pinstripe_simulator.events import EventLog
from pinstripe_simulator.expand import Expander
from pinstripe_simulator.faults import Faults
from pinstripe_simulator.limits import PRESETS, Meter
from pinstripe_simulator.mix import FEW
from pinstripe_simulator.nastiness import Nastiness, default_nastiness
from pinstripe_simulator.replies import Reply
from pinstripe_simulator.singletons import Singletons
from pinstripe_simulator.table import StripeObject
from pinstripe_simulator.webhooks import Webhooks
from pinstripe_simulator.world import World

SameIds = Literal["chosen", "all"]
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
    few: int = FEW
    """Objects of a type that has no share of `scale`."""
    connected: int = FEW
    """How many accounts `/v1/accounts` lists, each with a world of its own for `Stripe-Account`. With
    0 the list shows a few whose authorizations were all revoked.
    """
    connected_scale: int = 300
    """About how many objects each of them has."""
    connected_few: int = 0
    connected_ids: SameIds = "chosen"
    """Which ids are the same in all connected accounts: those that users choose (products, plans, coupons:
    a script that sets up each account gives each the same), or "all", which is more than Stripe does.
    """
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
    platform: Account | None = None
    """Whose connected account it is."""
    made: World | None = None
    """Its world, where that was made like another's."""

    def __post_init__(self) -> None:
        made = self.settings
        self.spec = spec()
        self.api_version = made.api_version or self.spec.api_version
        self.world = self.made or _world(made, self.clock)
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
        self.replays: OrderedDict[str, tuple[str, int, Reply]] = OrderedDict()
        self.previews: dict[str, list[StripeObject]] = {}
        """Lines of upcoming invoices, by the id of the moment."""
        self.singletons = Singletons(self.world.routes, livemode=made.livemode)
        self.events = EventLog(
            self.world,
            _event_types(),
            version=lambda: self.api_version,
            clock=self.clock.now,
            seed=made.seed,
        )
        self.webhook_secrets: dict[str, str] = {}
        """Webhook endpoint -> the secret that its deliveries are signed with."""
        self.connect_endpoints: set[str] = set()
        """Webhook endpoints that receive the events of connected accounts."""
        self.behave(made.nastiness)
        self.search_lag_s = 60
        """Stripe's index is usually under a minute behind; tests must not build on it."""
        self.connected = Connected(self)
        self._requests = 0

    @cached_property
    def dice(self) -> Random:
        return Random(f"{self.settings.seed}/dice")  # noqa: S311 - a dice, not a secret

    @cached_property
    def webhooks(self) -> Webhooks:
        return Webhooks(
            self.world,
            self.webhook_secrets,
            self.connect_endpoints,
            now=self.clock.seconds,
            seed=self.settings.seed,
        )

    def behave(self, nastiness: Nastiness) -> None:
        """Be this nasty from now on."""
        self.nastiness = nastiness
        self.world.history.keep_s = nastiness.stale_s if nastiness.stale_share else 0.0
        self.world.settle_s = nastiness.settle_s

    def request_id(self) -> str:
        self._requests += 1
        return f"req_{self.settings.seed:04x}{self._requests:010x}"

    def remember(self, key: str, path: str, fingerprint: int, reply: Reply) -> None:
        """Keep a write's answer for the next request with the same idempotency key."""
        self.replays[key] = (path, fingerprint, reply)
        while len(self.replays) > _REPLAYS:
            self.replays.popitem(last=False)


class Connected(Mapping[str, Account]):
    """The connected accounts of a platform that have authorized it, by id, in the order of their making."""

    def __init__(self, platform: Account) -> None:
        self._platform = platform
        self.made: dict[str, Account] = {}
        """Those that were needed so far."""
        self.limits = PRESETS[platform.settings.limits]
        """Of each that is made from now on."""

    def __iter__(self) -> Iterator[str]:
        accounts = self._platform.world.tables["account"]
        if self._platform.settings.connected:
            for position in range(accounts.total):
                if not accounts.gone(position):
                    yield accounts.id_at(position)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, id: object) -> bool:
        return self._platform.settings.connected > 0 and self._position(str(id), gone=False) >= 0

    def __getitem__(self, id: str) -> Account:
        if id not in self:
            raise KeyError(id)
        found = self.made.get(id)
        if found is None:
            found = self.made[id] = self._make(id)
        return found

    def revoked(self, id: str) -> bool:
        """Whether the account is one that no longer authorizes the platform."""
        return self._platform.settings.connected > 0 and self._position(id, gone=True) >= 0

    def deauthorize(self, id: str) -> None:
        """The account ends its authorization: a last event, and only refusals from then on."""
        self._tell(self[id], "account.application.deauthorized")
        platform = self._platform.world
        platform.tables["account"].withdraw(self._position(id, gone=False), platform.now())

    def authorize(self, id: str) -> None:
        """The account authorizes the platform again; it is as it was."""
        position = self._position(id, gone=True)
        if position < 0:
            raise ValueError(f"no account {id} that was deauthorized")
        self._platform.world.tables["account"].restore(position)
        self._tell(self[id], "account.application.authorized")

    def _position(self, id: str, *, gone: bool) -> int:
        """Where the account is in the platform's list, -1 if it is not there like that."""
        accounts = self._platform.world.tables["account"]
        position = accounts.position(id)
        return -1 if position is None or accounts.gone(position) != gone else position

    def _tell(self, account: Account, name: str) -> None:
        application = f"ca_{self._platform.id[-14:]}"
        told = {"id": application, "object": "application", "name": "A simulated platform"}
        account.events.add(name, told)

    @cached_property
    def _model(self) -> World:
        """The world that those of all connected accounts are like."""
        return _world(self._settings, self._platform.clock)

    @cached_property
    def _settings(self) -> Settings:
        made = self._platform.settings
        return replace(
            made,
            seed=made.seed + 1,
            scale=made.connected_scale,
            until=made.end(),
            mix=None,
            few=made.connected_few,
            connected=0,
        )

    def _make(self, id: str) -> Account:
        platform = self._platform
        everything = platform.settings.connected_ids == "all"
        # Ids of Stripe's hold a piece of the account's own.
        part = "" if everything else id[-8:]
        made = Account(
            replace(self._settings, nastiness=platform.nastiness),
            id=id,
            clock=platform.clock,
            platform=platform,
            made=self._model.like(part, coherence.CHOSEN_IDS),
        )
        made.meter.limits = self.limits
        made.events.heard.append(partial(platform.webhooks.hear, account=id))
        return made


def _world(made: Settings, clock: Clock) -> World:
    end = made.end()
    return _model(
        Plan(
            seed=made.seed,
            scale=made.scale,
            start=end - int(made.years * 365 * _DAY_S),
            end=end,
            mix=tuple(made.mix.items()) if made.mix is not None else None,
            future_fields=made.future_fields,
            livemode=made.livemode,
            api_version=made.api_version or spec().api_version,
            few=made.few,
            accounts=made.connected,
        )
    ).like("", (), clock=clock)


@lru_cache(maxsize=16)
def _model(plan: Plan) -> World:
    """What accounts with the same plan share; nothing changes in it."""
    return World(spec(), plan, Clock())


@cache
def _event_types() -> frozenset[str]:
    return frozenset(t.name for t in spec().events)


def make_account(settings: Settings) -> Account:
    """The platform account, with its connected accounts as the settings ask for them."""
    return Account(settings)
