"""The table of settings: who wins, what is refused, and with which words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from pinstripe.config.config import Config, Rate, is_stripe, read_config, stored_config
from pinstripe.config.settings import SETTINGS
from pinstripe.errors import Misconfigured

KNOWN = ("charge", "customer", "event", "issuing_card", "issuing_dispute", "subscription")


def test_without_anything_the_defaults_are_in_force() -> None:
    assert read_config({}, {}) == Config()


def test_a_flag_wins_over_the_environment_and_that_over_the_default() -> None:
    environment = {"PINSTRIPE_SCHEMA": "from_env", "PINSTRIPE_DATA_DIR": "/data"}
    config = read_config({"schema": "from_flag", "data_dir": None}, environment)
    assert config.schema == "from_flag"
    assert config.data_dir == Path("/data")
    assert config.stripe_url == "https://api.stripe.com"


def test_an_empty_variable_counts_as_not_set() -> None:
    config = read_config({}, {"STRIPE_API_KEY": "", "DATABASE_URL": " "})
    assert config.api_key is None
    assert config.database_url is None


def test_every_setting_has_a_variable_a_help_text_and_a_field() -> None:
    assert {s.name for s in SETTINGS} == set(Config.__dataclass_fields__)
    assert len({s.env for s in SETTINGS}) == len(SETTINGS)
    assert all(s.help.endswith((".", "]")) for s in SETTINGS)


def test_no_secret_is_in_the_repr() -> None:
    config = read_config(
        {}, {"STRIPE_API_KEY": "sk_test_verysecretkey", "DATABASE_URL": "postgres://u:pass@h/d"}
    )
    assert "verysecret" not in repr(config)
    assert "pass" not in repr(config)


def test_what_is_stored_has_its_own_settings_and_the_hash_key_of_the_process(
    tmp_path: Path,
) -> None:
    base = read_config({"hash_key": "k" * 43 + "=", "data_dir": str(tmp_path)}, {})
    stored = stored_config({"schema": "shop"}, base=base, url="postgresql://db/billing")
    assert (stored.schema, stored.data_dir) == ("shop", tmp_path)
    assert (stored.hash_key, stored.database_url) == (base.hash_key, "postgresql://db/billing")


def test_what_is_stored_takes_from_the_process_what_it_cannot_have_of_its_own() -> None:
    environment = {
        "PINSTRIPE_REPLICA_LAG": "10",
        "PINSTRIPE_CLOCK_MARGIN": "7",
        "PINSTRIPE_NO_METRICS": "yes",
        "PINSTRIPE_POLL_INTERVAL": "60",
    }
    base = read_config({}, environment)
    stored = stored_config({"schema": "shop"}, base=base, url="postgresql://db/billing")
    assert (stored.replica_lag, stored.clock_margin, stored.no_metrics) == (10.0, 7.0, True)
    assert stored.poll_interval == Config().poll_interval, "this one a sync has of its own"


@pytest.mark.parametrize(("mode", "expected"), [("live", (50.0, 12.5)), ("test", (12.5, 12.5))])
def test_the_default_rates_are_half_of_what_stripe_allows(
    mode: str, expected: tuple[float, float]
) -> None:
    assert Config().rates("live" if mode == "live" else "test") == expected


def test_what_the_user_sets_is_honoured_in_test_mode_too() -> None:
    config = read_config({"rate_limit": "100", "endpoint_rate_limit": "25"}, {})
    assert config.rates("test") == (100.0, 25.0)


@pytest.mark.parametrize("text", ["0", "-1", "101", "nan", "inf", "fast", "1e3"])
def test_a_rate_out_of_range_is_refused_by_name(text: str) -> None:
    with pytest.raises(Misconfigured, match="PINSTRIPE_RATE_LIMIT"):
        read_config({}, {"PINSTRIPE_RATE_LIMIT": text})
    with pytest.raises(Misconfigured, match="--rate-limit"):
        read_config({"rate_limit": text}, {})


def test_an_endpoint_rate_over_25_is_refused() -> None:
    with pytest.raises(Misconfigured, match=r"0\.1 to 25"):
        read_config({"endpoint_rate_limit": "26"}, {})


@pytest.mark.parametrize("name", ["rate_limit", "endpoint_rate_limit"])
def test_no_limit_is_for_simulators_only(name: str) -> None:
    with pytest.raises(Misconfigured, match="simulator"):
        read_config({name: "none"}, {})
    config = read_config({name: "none", "stripe_url": "http://localhost:12111"}, {})
    rates: dict[str, Rate] = {
        "rate_limit": config.rate_limit,
        "endpoint_rate_limit": config.endpoint_rate_limit,
    }
    assert rates[name] == "none"
    assert None in config.rates("test")


def test_a_host_that_only_looks_like_stripes_is_not_stripe() -> None:
    assert is_stripe("https://files.stripe.com")
    assert not is_stripe("https://stripe.com.example.org")
    assert not is_stripe("https://mystripe.com")


@pytest.mark.parametrize(
    "given",
    [
        {"stripe_url": "api.stripe.com"},
        {"stripe_url": "ftp://api.stripe.com"},
        {"stripe_account": "cus_1"},
        {"schema": "pinstripe"},
        {"schema": "pg_catalog"},
        {"schema": "x" * 64},
        {"demo_scale": "0"},
        {"demo_scale": "many"},
        {"log_level": "loud"},
    ],
)
def test_an_unusable_value_is_refused_by_the_name_of_its_flag(given: Mapping[str, str]) -> None:
    (name,) = given
    with pytest.raises(Misconfigured, match="--" + name.replace("_", "-")) as caught:
        read_config(given, {})
    assert caught.value.hint


def test_a_database_url_of_another_kind_is_refused_and_not_repeated() -> None:
    with pytest.raises(Misconfigured, match="DATABASE_URL") as caught:
        read_config({}, {"DATABASE_URL": "mysql://root:hunter2@localhost/db"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", list(KNOWN)),
        ("charge, customer", ["charge", "customer"]),
        ("CHARGE", ["charge"]),
        ("issuing_*", ["issuing_card", "issuing_dispute"]),
        ("-event", [t for t in KNOWN if t != "event"]),
        ("-issuing_*,-event", ["charge", "customer", "subscription"]),
        ("issuing_*,-issuing_card", ["issuing_dispute"]),
    ],
)
def test_tables_are_chosen_by_name_pattern_and_exclusion(words: str, expected: list[str]) -> None:
    assert read_config({"tables": words}, {}).choose_tables(KNOWN) == expected


@pytest.mark.parametrize("word", ["custmer", "-custmer", "customers"])
def test_an_unknown_table_is_answered_with_the_nearest_names(word: str) -> None:
    with pytest.raises(Misconfigured, match="no table") as caught:
        read_config({"tables": word}, {}).choose_tables(KNOWN)
    assert "customer" in caught.value.hint


def test_leaving_every_table_out_is_refused() -> None:
    with pytest.raises(Misconfigured, match="no table"):
        read_config({"tables": "-*"}, {}).choose_tables(KNOWN)


@pytest.mark.parametrize(
    "given",
    [
        {"port": "65536"},
        {"port": "-1"},
        {"port": "http"},
        {"host": "no host"},
        {"public_url": "pinstripe.example.com"},
        {"public_url": "https://user:pw@example.com"},
        {"wait_settle": "-1"},
        {"mirror_patience": "61"},
        {"webhook_tolerance": "0"},
        {"proxy_body_limit": "0"},
    ],
)
def test_an_unusable_setting_of_the_gateway_is_refused_by_name(given: Mapping[str, str]) -> None:
    (name,) = given
    with pytest.raises(Misconfigured, match="--" + name.replace("_", "-")) as caught:
        read_config(given, {})
    assert caught.value.hint


@pytest.mark.parametrize(
    ("variable", "secret"),
    [
        ("PINSTRIPE_ADMIN_TOKEN", "tooshort"),
        ("PINSTRIPE_WAIT_TOKEN", "with spaces in between it"),
        ("PINSTRIPE_WEBHOOK_SECRET", "whsec_good,sk_test_mistaken"),
        ("PINSTRIPE_SECRET_KEY", "c2hvcnQ="),
        ("PINSTRIPE_SECRET_KEY", "not base64 at all"),
    ],
)
def test_a_secret_that_is_no_good_is_refused_and_not_repeated(variable: str, secret: str) -> None:
    with pytest.raises(Misconfigured, match=variable) as caught:
        read_config({}, {variable: secret})
    assert secret not in str(caught.value)
    assert "mistaken" not in str(caught.value)


def test_several_webhook_secrets_and_secret_keys_stand_side_by_side() -> None:
    one, two = "A" * 43 + "=", "B" * 43 + "="
    config = read_config(
        {},
        {
            "PINSTRIPE_WEBHOOK_SECRET": "whsec_new, whsec_old",
            "PINSTRIPE_SECRET_KEY": f"{one},{two}",
        },
    )
    assert config.webhook_secret == ("whsec_new", "whsec_old")
    assert config.secret_key == (one, two)
    assert "whsec_new" not in repr(config)
    assert one not in repr(config)
