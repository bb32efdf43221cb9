"""API keys and base URLs: what is accepted, what is refused and how, and that no key is ever shown.

A live key never crosses a network unencrypted, and proxies of the environment are not for this machine.
"""

from __future__ import annotations

import pytest

from pinstripe.client.api_key import ApiKey, checked_base, proxy_for
from pinstripe.errors import Misconfigured

TAIL = "51AbCdEfGhIjKlMnOpQrStUv"


@pytest.mark.parametrize("prefix", ["sk_live_", "sk_test_", "rk_live_", "rk_test_"])
def test_a_key_is_told_apart_by_its_prefix(prefix: str) -> None:
    key = ApiKey.parse(f"  {prefix}{TAIL}\n")
    assert key.kind == ("standard" if prefix.startswith("sk") else "restricted")
    assert key.mode == prefix[3:7]
    assert key.reveal() == prefix + TAIL


@pytest.mark.parametrize("show", [str, repr, "{}".format, "{!r}".format])
def test_a_key_never_shows_more_than_its_last_four_characters(show: object) -> None:
    assert callable(show)
    shown = str(show(ApiKey.parse("rk_test_" + TAIL)))
    assert "rk_test_…StUv" in shown
    assert TAIL[:8] not in shown


def test_of_a_short_key_nothing_is_shown() -> None:
    assert str(ApiKey.parse("sk_test_demo")) == "sk_test_…"


WRONG = {
    "": "empty",
    "   ": "empty",
    "pk_live_" + TAIL: "publishable",
    "whsec_" + TAIL: "signing secret",
    "ek_test_" + TAIL: "ephemeral",
    "sk_org_live_" + TAIL: "organisation",
    "acct_" + TAIL: "account id",
    "Bearer sk_test_" + TAIL: "Bearer",
    "sk_test_51 AbCdEf": "white space",
    "sk_test_51\nAbCdEf": "white space",
    f'"sk_test_{TAIL}"': "quotes",
    "sk_test_...": "does not look like",
    "sk_prod_" + TAIL: "does not look like",
    "SK_TEST_" + TAIL: "does not look like",
    "sk_test_": "does not look like",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_what_is_no_usable_key_is_refused_with_its_own_message_and_hint(
    text: str, message: str
) -> None:
    with pytest.raises(Misconfigured, match=message) as caught:
        ApiKey.parse(text)
    assert caught.value.hint
    assert TAIL not in str(caught.value)


def test_a_base_url_may_have_a_path_and_loses_its_last_slash() -> None:
    key = ApiKey.parse("sk_live_" + TAIL)
    assert checked_base("http://localhost:4242/api.stripe.com/", key) == (
        "http://localhost:4242/api.stripe.com"
    )


@pytest.mark.parametrize(
    "url",
    [
        "api.stripe.com",
        "ftp://api.stripe.com",
        "https://",
        "https://u:p@api.stripe.com",
        "http:///x",
    ],
)
def test_a_base_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        checked_base(url, ApiKey.parse("sk_test_" + TAIL))
    assert "u:p" not in str(caught.value)


def test_a_live_key_never_crosses_the_network_unencrypted() -> None:
    with pytest.raises(Misconfigured, match="unencrypted"):
        checked_base("http://stripe.internal", ApiKey.parse("sk_live_" + TAIL))
    assert checked_base("http://simulator:80", ApiKey.parse("sk_test_" + TAIL))


def test_the_proxy_of_the_environment_is_used_for_others_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example.com:3128")
    monkeypatch.setenv("no_proxy", "internal.example.com")
    assert proxy_for("https://api.stripe.com") == "http://proxy.example.com:3128"
    assert proxy_for("https://internal.example.com") is None
    assert proxy_for("https://localhost:4242") is None
