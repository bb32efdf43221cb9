"""What a key lacks is named by Stripe's own names, with its link; a wrong account is a setting to mend."""

from __future__ import annotations

import json

import pytest
from tests.flows.harness.command import pinstripe
from tests.flows.harness.planting_stripe import planting
from tests.flows.harness.recording_stripe import recording
from tests.flows.harness.serving import served

SECRET = "rk_test_thisisthesecretofatest123"
LINK = "https://dashboard.stripe.com/acct_1/test/apikeys/rk_1QaBcDeFgHiJk/edit"
TODAY = (
    "The provided key 'rk_test_***t123' does not have the required permissions for this endpoint on "
    "account 'acct_1'. Enabling \"Prices Read\" ('plan_read') permissions on this key would allow this "
    f"request to continue. Edit the key: {LINK}."
)
FAST = {"PINSTRIPE_RATE_LIMIT": "none", "PINSTRIPE_ENDPOINT_RATE_LIMIT": "none"}


async def test_check_status_and_api_name_the_permission_its_title_and_the_link(
    database: str,
) -> None:
    async with planting() as stripe:
        stripe.refused["/v1/prices"] = TODAY
        env = {
            **FAST,
            "STRIPE_API_KEY": SECRET,
            "STRIPE_API_BASE": stripe.url,
            "DATABASE_URL": database,
            "PINSTRIPE_TABLES": "price,customer,event",
        }
        async with served(env) as service:
            await service.until("default: following")
            _, answer = await service.get("/api/syncs/default/permissions")
        check = await pinstripe("check", env=env)
        as_json = await pinstripe("check", "--json", env=env)
        status = await pinstripe("status", env=env)
    refused = {r["table"]: r for r in answer["refused"]}["price"]
    assert refused["permission"] == "plan_read"
    assert refused["permission_title"] == "Prices Read"
    assert refused["edit_url"] == LINK
    found = {r["path"]: r for r in json.loads(as_json.out)["key"]["resources"]}["/v1/prices"]
    assert (found["permission"], found["permission_title"]) == ("plan_read", "Prices Read")
    assert found["edit_url"] == LINK
    assert check.code == 4
    for said in (check.text, status.text):
        unwrapped = " ".join(said.split())
        assert "Prices Read (plan_read)" in unwrapped, said
        assert LINK in unwrapped, said


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "account_invalid", "The provided key does not have access to account 'acct_2'."),
        (403, "", "Only Stripe Connect platforms can work with other accounts."),
        (
            400,
            "",
            "You cannot access the connected accounts of your platform's connected accounts.",
        ),
    ],
)
async def test_a_wrong_account_ends_the_command_at_once_and_names_the_setting(
    database: str, status: int, code: str, message: str
) -> None:
    async with recording() as stripe:
        stripe.answer = _refusal(status, code, message)
        env = {**FAST, "STRIPE_API_KEY": SECRET, "STRIPE_API_BASE": stripe.url}
        for words in (("sync", "--once"), ("check",)):
            ended = await pinstripe(
                *words, "--stripe-account=acct_2", env={**env, "DATABASE_URL": database}
            )
            assert ended.code == 2, ended.text
            assert "--stripe-account" in ended.text
            assert message[:30] in ended.text
        assert len(stripe.requests) <= 4


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_that_is_not_allowed_from_this_address_is_a_wrong_key(
    database: str, status: int
) -> None:
    message = "The API key provided does not allow requests from your IP address (203.0.113.7)."
    async with recording() as stripe:
        stripe.answer = _refusal(status, "", message)
        env = {**FAST, "STRIPE_API_KEY": SECRET, "STRIPE_API_BASE": stripe.url}
        for words in (("sync", "--once"), ("check",)):
            ended = await pinstripe(*words, env={**env, "DATABASE_URL": database})
            assert ended.code == 2, ended.text
            assert message in ended.text
            assert "allow list" in ended.text


def _refusal(status: int, code: str, message: str) -> bytes:
    body = json.dumps(
        {"error": {"type": "invalid_request_error", "code": code, "message": message}}
    )
    return (
        f"HTTP/1.1 {status} No\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
