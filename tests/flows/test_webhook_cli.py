"""`pinstripe webhook`: the endpoint at Stripe, made once, found again, removed; its secret shown once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.flows.harness.command import Ended, pinstripe

from pinstripe.catalog.model import spec
from pinstripe.client.api_key import ApiKey
from pinstripe.client.client import StripeClient
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.client.webhook_endpoints import (
    WebhookEndpoint,
    check_url,
    create_endpoint,
    delete_endpoint,
    list_endpoints,
)
from pinstripe.config.config import read_config
from pinstripe.encryption import FILE, Encryptor
from pinstripe.errors import Misconfigured, Refused
from pinstripe.gateway.syncs import NewSync
from pinstripe.serving.vault import Vault
from pinstripe.store.pool import connect
from pinstripe.store.syncs import get_stored
from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

URL = "https://hooks.example.com/webhooks/stripe/default"
RESTRICTED = "rk_test_thisisthesecretofatest123"


@pytest.fixture
async def sim() -> AsyncIterator[Running]:
    async with running(Settings(scale=50, mix={"customer": 5})) as found:
        yield found


@pytest.fixture
async def stripe(sim: Running) -> AsyncIterator[StripeClient]:
    async with StripeClient(
        ApiKey.parse(sim.key),
        api_version=spec().api_version,
        budget=RateLimiter(account_rate=None, endpoint_rate=None),
        base_url=sim.url,
    ) as found:
        yield found


async def ours(stripe: StripeClient) -> list[WebhookEndpoint]:
    """Those that a test made; the account begins with some of others."""
    return [e for e in await list_endpoints(stripe) if "hooks.example.com" in e.url]


async def webhook(sim: Running, *words: str, cwd: Path, **env: str) -> Ended:
    given = {"STRIPE_API_KEY": sim.key, "STRIPE_API_BASE": sim.url, **env}
    return await pinstripe("webhook", *words, env=given, cwd=str(cwd))


async def test_an_endpoint_is_for_all_events_in_our_version(stripe: StripeClient) -> None:
    made = await create_endpoint(stripe, URL, sync_id="default")
    assert not made.existed
    assert made.secret.startswith("whsec_")
    assert made.secret not in repr(made)
    (found,) = await ours(stripe)
    assert found == made.endpoint
    assert found.url == URL
    assert found.enabled_events == ("*",)
    assert found.api_version == spec().api_version
    assert found.sync_id == "default"


async def test_an_endpoint_that_is_there_is_found_and_not_made_again(stripe: StripeClient) -> None:
    first = await create_endpoint(stripe, URL, sync_id="default")
    second = await create_endpoint(stripe, URL, sync_id="default")
    assert second.existed
    assert second.endpoint == first.endpoint
    assert second.secret == ""
    assert len(await ours(stripe)) == 1


async def test_an_endpoint_that_is_off_or_lacks_events_is_set_right(stripe: StripeClient) -> None:
    response = await stripe.post(
        "/v1/webhook_endpoints",
        [("url", URL), ("enabled_events[]", "charge.succeeded"), ("metadata[team]", "billing")],
        endpoint="made by hand",
    )
    assert response.status == 200
    (made,) = await ours(stripe)
    await stripe.post(f"/v1/webhook_endpoints/{made.id}", [("disabled", "true")], endpoint="off")
    found = await create_endpoint(stripe, URL, sync_id="default")
    assert found.changed == ("switched on", "gets all events")
    (now,) = await ours(stripe)
    assert now.status == "enabled"
    assert now.enabled_events == ("*",)
    assert now.metadata == {"team": "billing", "pinstripe_sync": "default"}


async def test_one_at_another_address_is_left_alone_and_named(stripe: StripeClient) -> None:
    old = await create_endpoint(stripe, URL, sync_id="default")
    made = await create_endpoint(stripe, URL.replace("hooks.", "new.hooks."), sync_id="default")
    assert not made.existed
    assert made.others == (old.endpoint,)
    assert len(await ours(stripe)) == 2


async def test_an_account_that_is_full_is_told_with_the_remedy(stripe: StripeClient) -> None:
    for number in range(16):
        await create_endpoint(stripe, f"{URL}/{number}", sync_id=f"s{number}")
    with pytest.raises(Refused, match="maximum") as refusal:
        await create_endpoint(stripe, URL, sync_id="default")
    assert "pinstripe webhook delete" in refusal.value.hint


async def test_a_removed_endpoint_is_gone(stripe: StripeClient) -> None:
    made = await create_endpoint(stripe, URL, sync_id="default")
    await delete_endpoint(stripe, made.endpoint.id)
    assert await ours(stripe) == []


@pytest.mark.parametrize(
    ("url", "live"),
    [
        ("hooks.example.com/x", False),
        ("ftp://hooks.example.com", False),
        ("https://user:pw@hooks.example.com", False),
        ("https://hooks.example.com/#x", False),
        ("https://hooks.example.com/a b", False),
        ("http://[::1", False),
        ("http://hooks.example.com/x", True),
    ],
)
def test_an_address_that_cannot_be_is_refused(url: str, live: bool) -> None:
    key = ApiKey.parse(f"sk_{'live' if live else 'test'}_abcdefgh12345")
    with pytest.raises(Misconfigured):
        check_url(url, key)


# --- the command ----------------------------------------------------------------------------------


async def test_the_command_shows_the_secret_once_as_a_setting(sim: Running, tmp_path: Path) -> None:
    public = {"PINSTRIPE_PUBLIC_URL": "https://hooks.example.com"}
    first = await webhook(sim, "create", cwd=tmp_path, **public)
    again = await webhook(sim, "create", cwd=tmp_path, **public)
    listed = await webhook(sim, "list", cwd=tmp_path)
    assert first.code == again.code == listed.code == 0, first.text + again.text + listed.text
    ((endpoint, secret),) = sim.account.webhook_secrets.items()
    assert f"PINSTRIPE_WEBHOOK_SECRET={secret}" in first.out
    assert again.out.startswith(f"Found {endpoint} at {URL}")
    assert secret not in again.text + listed.text
    assert URL in listed.out


async def test_delete_finds_the_endpoint_of_the_sync(
    sim: Running, stripe: StripeClient, tmp_path: Path
) -> None:
    made = await create_endpoint(stripe, URL, sync_id="default")
    ended = await webhook(sim, "delete", "--json", cwd=tmp_path)
    assert json.loads(ended.out) == {"deleted": made.endpoint.id}
    again = await webhook(sim, "delete", cwd=tmp_path)
    assert again.code == 2
    assert "no webhook endpoint" in again.err


async def test_a_key_that_may_not_is_told_the_permission(sim: Running, tmp_path: Path) -> None:
    sim.control.key(RESTRICTED, denied=["webhook_endpoint_write"])
    ended = await webhook(sim, "create", "--url", URL, cwd=tmp_path, STRIPE_API_KEY=RESTRICTED)
    assert ended.code == 4
    assert "(webhook_endpoint_write): https://dashboard.stripe.com/" in ended.err
    assert RESTRICTED not in ended.text


async def test_without_an_address_both_ways_to_give_it_are_named(
    sim: Running, tmp_path: Path
) -> None:
    ended = await webhook(sim, "create", cwd=tmp_path)
    assert ended.code == 2
    assert "--public-url" in ended.err
    assert "--url" in ended.err


async def test_the_secret_of_a_stored_sync_is_kept_encrypted_and_never_shown(
    sim: Running, database: str, tmp_path: Path
) -> None:
    vault = Vault(database, Encryptor((), tmp_path / FILE), read_config({}, {}))
    await vault.add(NewSync("shop", sim.key, stripe_url=sim.url))
    words = ("--sync", "shop", "--data-dir", str(tmp_path), "--database-url", database)
    url = URL.replace("default", "shop")
    ended = await webhook(sim, "create", "--url", url, "--json", *words, cwd=tmp_path)
    assert ended.code == 0, ended.text
    ((_, secret),) = sim.account.webhook_secrets.items()
    told: dict[str, Any] = json.loads(ended.out)
    assert told["secret_stored"] is True
    assert secret not in ended.text
    async with connect(database) as connection:
        stored = await get_stored(connection, "shop")
    assert vault.webhook_secrets_of(stored) == (secret,)


async def test_a_sync_that_is_not_stored_is_said_to_be_unknown(
    sim: Running, database: str, tmp_path: Path
) -> None:
    ended = await webhook(sim, "list", "--sync", "shop", "--database-url", database, cwd=tmp_path)
    assert ended.code == 2
    assert 'no sync "shop"' in ended.err
