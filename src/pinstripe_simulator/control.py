"""The control interface: `/_simulator/...`, JSON in and out; Stripe has nothing there.

`POST /_simulator/latency {"fixed_s": 0.1}` calls `Control.latency(fixed_s=0.1)`; every public
method is an address, so tests in the same process and tests over HTTP turn the same knobs. With the header
`Stripe-Account` they are those of a connected account, as `Control.of` gives them.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any

import msgspec

from pinstripe.errors import PinstripeError
from pinstripe_simulator import nastiness
from pinstripe_simulator.account import Account
from pinstripe_simulator.auth import Key
from pinstripe_simulator.events import STRIPE_ITSELF, Cause
from pinstripe_simulator.faults import Fault
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.limits import PRESETS
from pinstripe_simulator.members import Members
from pinstripe_simulator.mutate import Mutator
from pinstripe_simulator.replies import Reply, StripeError
from pinstripe_simulator.table import StripeObject
from pinstripe_simulator.template import pretty

_ADDRESSES = [
    "state",
    "counts",
    "truth",
    "events",
    "latency",
    "fault",
    "clear_faults",
    "limits",
    "reset_counters",
    "key",
    "not_enabled",
    "late_events",
    "api_version",
    "clock",
    "mutate",
    "burst",
    "traffic",
    "delete",
    "edit",
    "members",
    "recreate",
    "pending_update",
    "search_lag",
    "nastiness",
    "webhooks",
    "accounts",
    "authorize",
    "deauthorize",
    "connected_limits",
    "connected_traffic",
]
"""What can be called over HTTP."""


class Control:
    """The knobs of one account."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.mutator = Mutator(account, account.settings.seed)
        self.sets = Members(account)
        self._dice = Random(f"{account.settings.seed}/control")  # noqa: S311 - a dice, not a secret
        self._traffic: asyncio.Task[None] | None = None
        self._of: dict[str, Control] = {}

    def of(self, id: str) -> Control:
        """The knobs of a connected account; KeyError if it is none or has ended its authorization."""
        account = self.account.connected[id]
        known = self._of.get(id)
        if known is None:
            known = self._of[id] = Control(account)
        return known

    # --- reading -----------------------------------------------------------------------------

    def state(self) -> dict[str, object]:
        """Counters, faults, limits, clock."""
        account = self.account
        return {
            "now": account.clock.now(),
            "api_version": account.api_version,
            "faults": [vars(f) for f in account.faults.active()],
            "faults_dealt": account.faults.dealt,
            "limits": vars(account.meter.limits),
            "mutations": self.mutator.done,
            "traffic": self._traffic is not None,
            **account.meter.report(),
            "connected": self._report_connected(),
        }

    def _report_connected(self) -> dict[str, object]:
        """What was counted for connected accounts, each for itself; the rest of a state counts the
        platform as a whole.
        """
        made = self.account.connected.made
        return {
            "asked": len(made),
            "most_per_second": max((a.meter.all.most for a in made.values()), default=0),
            "limited": sum((sum(a.meter.limited.values()) for a in made.values()), 0),
        }

    def counts(self) -> dict[str, int]:
        """Objects per type that exist now."""
        return self.account.world.counts()

    def truth(self, type: str) -> list[StripeObject]:
        """Every object of the type as a retrieve would show it, oldest first."""
        return list(self.account.world.truth(type))

    def events(self) -> int:
        """How many events there are in the log."""
        return self.account.world.tables["event"].total

    # --- the network and the server ----------------------------------------------------------

    def latency(self, fixed_s: float = 0.0, jitter_s: float = 0.0) -> None:
        self.account.latency.fixed_s, self.account.latency.jitter_s = fixed_s, jitter_s

    def fault(self, **fault: Any) -> None:
        """See `faults.Fault`: kind, count, share, path, method, seconds."""
        self.account.faults.add(Fault(**fault))

    def clear_faults(self) -> None:
        self.account.faults.clear()

    def limits(self, preset: str = "", **limits: float) -> None:
        """A preset ("off", "live", "test"), then single values over it."""
        if preset:
            self.account.meter.limits = PRESETS[preset]
        self.account.meter.configure(**limits)

    def connected_limits(self, preset: str = "", **limits: float) -> None:
        """`limits`, of every connected account."""
        connected = self.account.connected
        if preset:
            connected.limits = PRESETS[preset]
        connected.limits = replace(connected.limits, **limits)  # type: ignore[arg-type]
        for account in connected.made.values():
            account.meter.limits = connected.limits

    def reset_counters(self) -> None:
        """Of the account and of those that are connected to it."""
        for account in (self.account, *self.account.connected.made.values()):
            account.meter.reset()

    # --- the account -------------------------------------------------------------------------

    def key(
        self, secret: str, allowed: list[str] | None = None, denied: list[str] | None = None
    ) -> None:
        """Accept a key, restricted to `allowed` permissions or from `denied` ones."""
        only = frozenset(allowed) if allowed is not None else None
        self.account.doors.keys[secret] = Key(secret, only, frozenset(denied or ()))

    def not_enabled(self, products: list[str]) -> None:
        """Products (first word of the path) that the account has not enabled."""
        self.account.doors.not_enabled = set(products)

    def late_events(self, share: float = 0.0, delay_s: float = 5.0) -> None:
        """From now on, this share of the events shows up late."""
        self.account.events.lateness.share = share
        self.account.events.lateness.delay_s = delay_s

    def api_version(self, version: str) -> None:
        """The account's default from now on: of answers without a version, and of events."""
        self.account.api_version = version

    def nastiness(self, preset: str = "", **values: Any) -> dict[str, object]:
        """A preset ("stripe", "calm"), then single values over it (see `nastiness.Nastiness`)."""
        now = nastiness.preset(preset) if preset else self.account.nastiness
        known = nastiness.as_json(now)
        if unknown := values.keys() - known.keys():
            raise ValueError(f"no nastiness named {', '.join(sorted(unknown))}")
        wanted = nastiness.from_json({**known, **values})
        for account in (self.account, *self.account.connected.made.values()):
            account.behave(wanted)
        return nastiness.as_json(wanted)

    def search_lag(self, seconds: int) -> None:
        self.account.search_lag_s = seconds

    def clock(
        self,
        offset_s: float | None = None,
        freeze: bool = False,
        step_s: float = 0.0,
        thaw: bool = False,
    ) -> float:
        """Move Stripe's clock; the time it shows then."""
        clock = self.account.clock
        if offset_s is not None:
            clock.shift(offset_s)
        if freeze:
            clock.freeze()
        if step_s:
            clock.step(step_s)
        if thaw:
            clock.thaw()
        return clock.now()

    def webhooks(self, twice_share: float = 0.0, jitter_s: float = 0.0) -> dict[str, int]:
        """Deliver this badly from now on; what was delivered and given up so far."""
        sender = self.account.webhooks
        sender.delivery.twice_share, sender.delivery.jitter_s = twice_share, jitter_s
        return {"delivered": sender.delivered, "failed": sender.failed}

    # --- the platform ------------------------------------------------------------------------

    def accounts(self) -> list[str]:
        """The ids of the connected accounts that authorize the platform."""
        return list(self.account.connected)

    def deauthorize(self, id: str = "") -> str:
        """A connected account, a random one by default, ends its authorization; its id."""
        gone = id or self._dice.choice(self.accounts())
        self.account.connected.deauthorize(gone)
        return gone

    def authorize(self, id: str) -> str:
        """A connected account that ended its authorization gives it again; its id."""
        self.account.connected.authorize(id)
        return id

    # --- change ------------------------------------------------------------------------------

    async def mutate(self, count: int, per_second: float = 0.0) -> int:
        """Random changes, one after another; how many took effect."""
        return await self.mutator.run(count, per_second)

    def burst(self, count: int) -> int:
        """Random changes at one moment, many in the same second."""
        return self.mutator.burst(count)

    async def traffic(self, per_second: float) -> None:
        """Random changes until told otherwise; 0 stops them."""
        await self.close()
        if per_second:
            self._traffic = asyncio.create_task(self._live(per_second, [self]))

    async def connected_traffic(self, per_second: float, accounts: int = 0) -> None:
        """Random changes until told otherwise, each in any of the connected accounts (of the first
        `accounts` of them); 0 stops them.
        """
        await self.close()
        if per_second:
            busy = [self.of(id) for id in self.accounts()[: accounts or None]]
            self._traffic = asyncio.create_task(self._live(per_second, busy))

    async def _live(self, per_second: float, busy: list[Control]) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            one = self._dice.choice(busy)
            if one.account.id in self.account.connected or one is self:
                one.mutator.one()
            due += 1 / per_second
            await asyncio.sleep(max(0.0, due - loop.time()))

    def delete(self, type: str, id: str = "", silent: bool = False, version: str = "") -> str:
        """Delete an object, a random one by default; its id. `version`: of its event."""
        found = self._pick(type, id)
        with self._events_in(version):
            self._ledger().delete(found, event="" if silent else "deleted")
        return str(found["id"])

    def edit(
        self,
        type: str,
        id: str = "",
        changes: dict[str, Any] | None = None,
        silent: bool = True,
        version: str = "",
    ) -> str:
        """Change an object, without an event by default; its id. `version`: of its event."""
        found = self._pick(type, id)
        made = changes or {"metadata": {"edited": str(self.account.clock.now())}}
        with self._events_in(version):
            self._ledger().change(found, made, event="" if silent else "updated")
        return str(found["id"])

    def recreate(
        self, type: str, id: str = "", changes: dict[str, Any] | None = None, version: str = ""
    ) -> str:
        """Delete an object and make another under its id in the same second, as scripts do to change
        a price; its id. `version`: of the event of the deletion.
        """
        found = self._pick(type, id)
        ledger = self._ledger()
        with self._events_in(version):
            ledger.delete(found)
        kept = {k: v for k, v in found.items() if k not in ("id", "object", "created")}
        ledger.make(type, {**kept, **(changes or {})}, id=str(found["id"]))
        return str(found["id"])

    def members(
        self, owner: str, child: str, id: str = "", add: int = 0, remove: int = 0
    ) -> dict[str, list[str]]:
        """Add to and take out of the set of an object, a random one by default; the ids. A kind of set is
        named by both types, as `subscription` and `subscription_item`.
        """
        sets = self.sets
        kind = sets.kinds[f"{owner}/{child}"]
        key = id or str(self.mutator.deeds.any(owner)["id"])
        position = kind.owner.position(key)
        if position is None:
            raise ValueError(f"no {owner} {key}")
        going = self._dice.sample(there := sets.of(kind, position), min(remove, len(there)))
        removed = [kind.child.id_at(p) for p in going]
        cause = Cause(self.account.request_id())
        added = sets.change(kind, position, add=add, remove=going, cause=cause)
        return {"owner": [key], "added": added, "removed": removed}

    def pending_update(self, id: str = "", changes: dict[str, Any] | None = None) -> str:
        """Give a subscription an update that is not paid for: items as they would be, one of them of
        none that exists (https://docs.stripe.com/billing/subscriptions/pending-updates); its id.
        """
        found = self._pick("subscription", id)
        items = [i | {"quantity": 77, **(changes or {})} for i in found["items"]["data"]]
        items += [i | {"id": f"{i['id']}would"} for i in items[:1]]
        field = next(
            f
            for f in self.account.world.routes.objects["subscription"].fields
            if f.name == "pending_update"
        )
        pending: dict[str, Any] = {f.name: None for f in field.fields}
        pending |= {
            "expires_at": self.account.clock.seconds() + 82_800,
            "subscription_items": items,
        }
        self._ledger().change(found, {"pending_update": pending})
        return str(found["id"])

    @contextmanager
    def _events_in(self, version: str) -> Iterator[None]:
        """Events of the block are rendered in `version`; "" leaves the account's default."""
        usual = self.account.api_version
        self.account.api_version = version or usual
        try:
            yield
        finally:
            self.account.api_version = usual

    def _pick(self, type: str, id: str) -> StripeObject:
        return self._ledger().get(type, id) if id else self.mutator.deeds.any(type)

    def _ledger(self) -> Ledger:
        return Ledger(self.account.world, self.account.events, STRIPE_ITSELF)

    # --- HTTP --------------------------------------------------------------------------------

    async def answer(self, path: str, body: bytes, account: str = "") -> Reply:
        """The method named by the path, with the JSON body as its arguments; of a connected account, if
        one is given.
        """
        name = path.removeprefix("/_simulator").strip("/").replace("-", "_") or "state"
        if name not in _ADDRESSES:
            return _told({"error": f"no /_simulator/{name}", "known": list(_ADDRESSES)}, 404)
        try:
            knobs = self.of(account) if account else self
            call: Callable[..., object | Awaitable[object]] = getattr(knobs, name)
            given = msgspec.json.decode(body) if body else {}
            found = call(**given)
            if inspect.isawaitable(found):
                found = await found
        except (
            TypeError,
            ValueError,
            KeyError,
            StripeError,
            PinstripeError,
            msgspec.DecodeError,
        ) as error:
            return _told({"error": str(error)}, 400)
        return _told({"ok": True, "result": found})

    async def close(self) -> None:
        """Stop whatever runs in the background."""
        for control in self._of.values():
            await control.close()
        if self._traffic is not None:
            self._traffic.cancel()
            await asyncio.gather(self._traffic, return_exceptions=True)
            self._traffic = None


def _told(value: dict[str, object], status: int = 200) -> Reply:
    return Reply(pretty(value) + b"\n", status)
