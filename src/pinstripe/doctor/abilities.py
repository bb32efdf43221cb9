"""What a sync does beyond reading lists: follow events, preview invoices, manage webhooks.

Whether a key may write webhook endpoints is not tried unasked, though the try changes nothing: Stripe
looks at the permission first, and refuses an endpoint without an address after that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pinstripe.client.key import ApiKey
from pinstripe.doctor.asking import Asker, Said
from pinstripe.doctor.findings import Ability, AbilityName, AbilityState, Resource, ResourceState
from pinstripe.doctor.resources import Tried, resource_in

EVENTS = "/v1/events"
WEBHOOKS = "/v1/webhook_endpoints"
_PREVIEW = "/v1/invoices/create_preview"


@dataclass(frozen=True, slots=True)
class _Lists:
    """What the lists have shown, by path."""

    tried: dict[str, Tried]

    def resource(self, path: str) -> Resource | None:
        found = self.tried.get(path)
        return found.resource if found else None

    def first_id(self, path: str) -> str:
        found = self.tried.get(path)
        first = found.first.get("id") if found and found.first else None
        return first if isinstance(first, str) else ""


async def try_abilities(
    asker: Asker, key: ApiKey, tried: Sequence[Tried], *, writes: bool
) -> tuple[Ability, ...]:
    """All four. With `writes` webhooks are tried with a request that Stripe cannot fulfil."""
    lists = _Lists({t.resource.path: t for t in tried})
    return (
        await _reading(asker, lists, EVENTS, "events"),
        await _previews(asker, lists),
        await _reading(asker, lists, WEBHOOKS, "webhooks_read"),
        await _try_write(asker) if writes else _write_untried(key),
    )


async def _reading(asker: Asker, lists: _Lists, path: str, name: AbilityName) -> Ability:
    known = lists.resource(path)
    if known is None:  # The tables that were chosen do not need this list.
        said = await asker.get(path, [("limit", "1")], endpoint=f"GET {path}")
        known = resource_in("", path, (), said)
    if known.state == "readable":
        return Ability(name, "yes", f"GET {path} was answered")
    return _lacking(name, known)


async def _previews(asker: Asker, lists: _Lists) -> Ability:
    """With a subscription where there is one: Stripe may say that nothing is due, which is a yes."""
    subscription = lists.first_id("/v1/subscriptions")
    params = [("subscription", subscription)] if subscription else []
    said = await asker.post(_PREVIEW, params, endpoint=f"POST {_PREVIEW}")
    of = f"of {subscription}" if subscription else "of nothing, there being no subscription"
    return _judged("previews", said, f"a preview {of}, which changes nothing")


async def _try_write(asker: Asker) -> Ability:
    said = await asker.post(WEBHOOKS, [], endpoint=f"POST {WEBHOOKS}")
    return _judged("webhooks_write", said, "an endpoint without an address, which Stripe refuses")


def _judged(name: AbilityName, said: Said, tried: str) -> Ability:
    """A refusal for the parameters means that the key was let in."""
    if said.state in ("readable", "refused"):
        return Ability(name, "yes", f"asked for {tried}: the key was let in")
    return _lacking(name, resource_in("", "", (), said))


def _lacking(name: AbilityName, known: Resource) -> Ability:
    return Ability(
        name,
        _no(known.state),
        known.message,
        known.permission,
        known.remedy,
        known.permission_title,
        known.edit_url,
    )


def _no(state: ResourceState) -> AbilityState:
    """What broke on the way tells nothing of the key."""
    return "unknown" if state == "failed" else "no"


def _write_untried(key: ApiKey) -> Ability:
    if key.kind == "standard":
        return Ability("webhooks_write", "yes", "not tried: a secret key may do everything")
    return Ability(
        "webhooks_write",
        "unknown",
        "not tried: --try-writes does, with a request that changes nothing",
    )
