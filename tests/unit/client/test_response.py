"""What is read from an answer without asking again: is it whole, when was it true, what does it refuse.

Also ids and query strings on their way into a URL.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from pinstripe.client.api_errors import missing_permission, permission_of, read_error, refusal
from pinstripe.client.api_key import ApiKey
from pinstripe.client.client import encode_params, quote_id
from pinstripe.client.response import Response, is_whole_object
from pinstripe.errors import (
    BadParameter,
    NotEnabled,
    NotExpandable,
    NotFound,
    NotPermitted,
    Refused,
    WrongAccount,
    WrongKey,
)

KEY = ApiKey.parse("sk_test_51AbCdEfGhIjKlMnOpQrStUv")

VALUES: SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    content=st.dictionaries(st.text(max_size=5), VALUES, min_size=1, max_size=4),
    indent=st.sampled_from([None, 0, 1, 2, 4]),
    cut=st.floats(0, 1, exclude_max=True),
)
def test_an_object_is_whole_only_when_all_of_it_is_there(
    content: dict[str, object], indent: int | None, cut: float
) -> None:
    body = json.dumps(content, indent=indent).encode()
    assert is_whole_object(body)
    assert is_whole_object(body + b"\n")
    assert not is_whole_object(body[: int(len(body) * cut)])


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"<html>", b'"x"', b"{}{}", b"\xff\xfe"])
def test_anything_but_one_object_is_not_whole(body: bytes) -> None:
    assert not is_whole_object(body)


SENTENCES = [
    "Your account is not set up to use Issuing. Please visit the dashboard to get started.",
    "Treasury is not enabled for your account.",
    "Your account has not been activated for Financial Connections.",
    "This feature is not available for your account.",
    "Climate orders are not yet available in your country.",
    "You must be enrolled in the preview to use this endpoint.",
    "Your account does not have access to this API.",
    "This endpoint only works on Connect platforms.",
    "You can only create new accounts if you've signed up for Connect.",
    # What ordinary accounts of live mode are told, in the words of Stripe's own sync engine.
    "This endpoint is only available in testmode. Try using your test keys instead.",
    "This endpoint is not in live mode",
    "Your account is not authorized to send Forwarding requests in livemode.",
    "Account not eligible for Climate Orders",
    "Accounts v2 isn't available in test mode. Switch to a sandbox to test.",
    "Unrecognized request URL (GET: /v1/treasury/financial_accounts). (Hint: Have you onboarded?)",
]
AGED = "The event evt_1 is no longer available because it's aged out of our retention policy."
DETACHED = "A source must be attached to a customer to be used as a `payment_method`."
NO_CONTROLS = (
    "You cannot perform this request as you do not have Platform Controls for the Stripe Dashboard on "
    "the account `acct_1`."
)


@pytest.mark.parametrize("message", SENTENCES)
def test_a_product_that_is_not_enabled_is_known_by_its_sentence(message: str) -> None:
    assert type(_refusal(400, message=message)) is NotEnabled


@pytest.mark.parametrize(
    ("status", "code", "message", "kind"),
    [
        (400, "parameter_unknown", "created is not available here", BadParameter),
        (400, "parameter_invalid_empty", "not enabled", BadParameter),
        (400, "", "Invalid integer: abc", Refused),
        (400, "resource_missing", "No such customer: 'cus_1'", NotFound),
        (404, "resource_missing", "No such price: 'p'", NotFound),
        (404, "invoice_upcoming_none", "No upcoming invoices", NotFound),
        (404, "", "Unrecognized request URL (GET: /v1/forwarding/requests).", NotEnabled),
        (401, "", "Invalid API Key provided", WrongKey),
        (403, "", "The API key provided does not allow requests from your IP address.", WrongKey),
        (403, "", "The key does not have access to account 'acct_1'", NotPermitted),
        (400, "", "This property cannot be expanded (data.sources).", NotExpandable),
        (402, "card_declined", "declined", Refused),
        (400, "", AGED, NotFound),
        (404, "", AGED, NotFound),
        (400, "", DETACHED, NotFound),
        (403, "", NO_CONTROLS, NotPermitted),
        (403, "more_permissions_required", "Permission denied.", NotPermitted),
        (403, "", "This feature is not enabled for your account.", NotEnabled),
    ],
)
def test_the_class_of_a_refusal_names_its_remedy(
    status: int, code: str, message: str, kind: type[Refused]
) -> None:
    assert type(_refusal(status, code=code, message=message)) is kind


def test_a_refusal_says_what_an_operator_needs() -> None:
    error = _refusal(400, code="parameter_unknown", message="Received unknown parameter", param="x")
    assert (error.status, error.code, error.param) == (400, "parameter_unknown", "x")
    assert (error.type, error.request_id) == ("invalid_request_error", "req_7")


def test_a_cursor_that_has_aged_out_is_a_lost_cursor() -> None:
    assert _refusal(400, message=AGED).param == "starting_after"
    assert _refusal(404, message=AGED).param == ""


def test_the_missing_permission_is_found_or_not() -> None:
    assert missing_permission("Having the 'rak_tax_rate_read' permission") == "rak_tax_rate_read"
    assert missing_permission("no") is None


HEAD = (
    "The provided key 'rk_test_*********************0000' does not have the required permissions for "
    "this endpoint on account 'acct_1Bugs'. "
)
EDIT = "https://dashboard.stripe.com/acct_1Bugs/test/apikeys/rk_1QaBcDeFgHiJk/edit?add=plan_read"


@pytest.mark.parametrize(
    ("sentence", "slug", "title", "link"),
    [
        ("Having the 'rak_plan_read' permission would allow this.", "rak_plan_read", "", ""),
        (
            "Having the 'rak_plan_read' or 'rak_product_read' permission would allow this.",
            "rak_plan_read, rak_product_read",
            "",
            "",
        ),
        (
            "Enabling \"Prices Read\" ('plan_read') permissions on this key would allow this request to "
            f"continue. Edit it at {EDIT}.",
            "plan_read",
            "Prices Read",
            EDIT,
        ),
        (
            f"Enabling \"Prices Read\" ('plan_read') permissions on this key would allow this.\n({EDIT})",
            "plan_read",
            "Prices Read",
            EDIT,
        ),
        (
            "Enabling \"Prices Read\" ('plan_read') or \"Products Write\" ('product_write') permissions.",
            "plan_read, product_write",
            "Prices Read, Products Write",
            "",
        ),
        ("Enabling “Prices Read” (‘plan_read’) permission", "plan_read", "Prices Read", ""),
        ('Enabling "Prices Read" (plan_read) permissions', "plan_read", "Prices Read", ""),
        ('Enabling "Prices Read" permissions on this key', "", "Prices Read", ""),
        ("Enabling 'plan_read' permissions on this key", "plan_read", "", ""),
        ('Enabling "plan_read" permissions on this key', "plan_read", "", ""),
        ("Enabling the plan_read permission on this key", "plan_read", "", ""),
        (
            "Adding \"Accounts: KYC Basic Read\" ('rak_accounts_kyc_basic_read') permissions",
            "rak_accounts_kyc_basic_read",
            "Accounts: KYC Basic Read",
            "",
        ),
        (
            "Enabling \"Custom permissions Read\" ('v2.core.x:read') permissions on this key",
            "v2.core.x:read",
            "Custom permissions Read",
            "",
        ),
        ("You need 'charge_read' for this.", "charge_read", "", ""),
        ("Ask your administrator.", "", "", ""),
        ("See https://dashboard.stripe.com.evil.example/apikeys", "", "", ""),
    ],
)
@pytest.mark.parametrize("head", ["", HEAD])
def test_both_sentences_of_a_403_name_permission_title_and_link(
    head: str, sentence: str, slug: str, title: str, link: str
) -> None:
    error = _refusal(403, message=head + sentence)
    found = permission_of(error.message)
    assert (found.slug, found.title, found.edit_url) == (slug, title, link)
    for part in filter(None, (slug, title, link)):
        assert part in error.hint


@pytest.mark.parametrize(
    ("status", "code", "message", "account", "kind"),
    [
        (403, "account_invalid", "The provided key does not", "acct_2", WrongAccount),
        (403, "account_invalid", "The provided key does not", None, WrongAccount),
        (403, "", "The key does not have access to account 'acct_2'", "acct_2", WrongAccount),
        (403, "", "Only Stripe Connect platforms can work with other", "acct_2", WrongAccount),
        (403, "", "Only Stripe Connect platforms can work with other", None, NotEnabled),
        (
            400,
            "",
            "You cannot access the connected accounts of your platform's connected accounts.",
            "acct_2",
            WrongAccount,
        ),
        (403, "account_invalid", "... access to account 'acct_3'", "acct_2", NotPermitted),
        (400, "", "acct_2 can only be used with testmode keys.", "acct_2", WrongAccount),
        (403, "", HEAD + "Having the 'rak_x_read' permission", "acct_2", NotPermitted),
    ],
)
def test_a_wrong_account_is_no_poor_key(
    status: int, code: str, message: str, account: str | None, kind: type[Refused]
) -> None:
    error = _refusal(status, code=code, message=message, account=account)
    assert type(error) is kind
    if kind is WrongAccount:
        assert error.exit_code == 2
        assert ("--stripe-account" in error.hint) == (account is not None)


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"error": "x"}', b'{"error": {}}'])
def test_a_body_of_another_shape_is_not_stripes_error(body: bytes) -> None:
    assert read_error(body) is None


def test_an_error_that_repeats_half_an_emoji_is_understood() -> None:
    body = rb"""{"error": {"code": "resource_missing", "message": "No such plan: '\ud83d'"}}"""
    error = read_error(body)
    assert error is not None
    assert error.message == "No such plan: '\ufffd'"


def _refusal(
    status: int, *, code: str = "", message: str, param: str = "", account: str | None = None
) -> Refused:
    fields = {"type": "invalid_request_error", "code": code, "message": message, "param": param}
    error = read_error(json.dumps({"error": fields}).encode())
    assert error is not None
    return refusal(status, error, request_id="req_7", key=KEY, account=account)


def test_without_a_date_the_interval_is_wide_and_on_the_local_clock() -> None:
    response = Response(200, {"date": "yesterday"}, b"{}", 2.0, 5000.0)
    assert (response.not_before, response.not_after) == (4698.0, 5300.0)


def test_with_a_date_the_interval_is_the_time_the_request_took_and_the_second() -> None:
    headers = {"date": "Thu, 01 Jan 1970 00:01:00 GMT"}
    response = Response(200, headers, b"{}", 2.5, 5000.0)
    assert (response.not_before, response.not_after) == (57.5, 61.0)


@pytest.mark.parametrize(
    ("object_id", "quoted"),
    [
        ("prod_1", "prod_1"),
        ("a b", "a%20b"),
        ("a/b", "a%2Fb"),
        ("..", "%2E%2E"),
        ("日", "%E6%97%A5"),
    ],
)
def test_an_id_is_one_segment_of_a_path(object_id: str, quoted: str) -> None:
    assert quote_id(object_id) == quoted


def test_an_empty_id_is_no_path() -> None:
    with pytest.raises(ValueError, match="empty"):
        quote_id("")


def test_brackets_in_names_stay_and_values_are_quoted() -> None:
    assert encode_params([("a[b][]", "[x]&=+")]) == "a[b][]=%5Bx%5D%26%3D%2B"
