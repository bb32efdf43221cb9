"""What the pages tell a reader to type works, on the demo that the quickstart starts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import IO
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import httpx
import pytest
from tests.flows.harness.snippets import Demo, demo, snippets

PAGES = (
    "quickstart.md",
    "how-to/connect.md",
    "how-to/read-only-access.md",
    "how-to/change-feed.md",
    "how-to/diagram.md",
    "how-to/data-types.md",
    "how-to/proxy.md",
    "how-to/serve.md",
    "how-to/upcoming-invoices.md",
    "how-to/wait.md",
    "how-to/webhooks.md",
    "how-to/after-checkout.md",
    "how-to/recipes.md",
    "how-to/hosted-postgres.md",
    "how-to/restricted-keys.md",
    "how-to/high-availability.md",
    "how-to/monitoring.md",
    "how-to/what-to-do-when.md",
    "how-to/install-with-pip.md",
    "how-to/docker.md",
    "how-to/systemd.md",
    "how-to/kubernetes.md",
    "how-to/from-sequin.md",
    "how-to/from-stripe-sync-engine.md",
)
RUN = [s for page in PAGES for s in snippets(page) if not s.why]
_NODE_HAS = "require.resolve('express'); require.resolve('pg')"
_OPEN = {"status": "open", "payment_status": "unpaid"}


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo on which everything that the pages tell to type has been typed, in their order."""
    with demo(tmp_path_factory.mktemp("demo")) as running:
        running.ask("CREATE DATABASE elsewhere")
        failed = []
        for snippet in RUN:
            ended = running.run(snippet)
            if ended.returncode != 0:
                failed.append(
                    f"{snippet.page}:{snippet.line}\n{snippet.text}{ended.stdout}{ended.stderr}"
                )
        assert failed == [], "\n\n".join(failed)
        # Else it may pay, or end, a session before its page shows it.
        httpx.post(
            f"{running.stripe}/_simulator/traffic", json={"per_second": 0}
        ).raise_for_status()
        yield running


def test_what_a_page_tells_to_type_works(account: Demo) -> None:
    written = "SELECT count(*) FROM stripe.customer WHERE email = 'ada@example.com'"
    assert int(account.ask(written)) > 1


def test_the_pages_have_snippets_that_run() -> None:
    assert {s.language for s in RUN} == {"sh", "sql", "python"}
    assert {s.page for s in RUN} >= {p for p in PAGES[:18] if p != "how-to/serve.md"}


def test_fastapi_shows_a_session_that_no_event_announced(account: Demo) -> None:
    visit = (
        "\nimport sys\n"
        "from fastapi.testclient import TestClient\n"
        "with TestClient(app) as client:\n"
        "    print(client.get('/thanks', params={'session_id': sys.argv[1]}).text)\n"
        "    print(client.get('/thanks', params={'session_id': 'cs_none'}).status_code)\n"
    )
    shown, missing = _run(account, _block(account, "from fastapi") + visit).splitlines()
    assert json.loads(shown).items() >= {**_OPEN, "amount_total": 4200, "currency": "eur"}.items()
    assert missing == "404"


def test_django_shows_a_session_that_no_event_announced(account: Demo) -> None:
    pytest.importorskip("django")
    pytest.importorskip("psycopg")
    parts = urlsplit(account.database)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path[1:],
        "USER": parts.username,
        "HOST": parse_qs(parts.query)["host"][0],
        "PORT": parse_qs(parts.query)["port"][0],
    }
    visit = (
        "\nimport sys\n"
        "from django.urls import path\n"
        "from django.test import Client\n"
        "urlpatterns = [path('thanks', thanks)]\n"
        "print(Client().get('/thanks', {'session_id': sys.argv[1]}).content.decode())\n"
        "print(Client().get('/thanks', {'session_id': 'cs_none'}).status_code)\n"
    )
    settings = (
        "import django\nfrom django.conf import settings\n"
        f"settings.configure(DATABASES={{'default': {database!r}}}, ROOT_URLCONF='__main__',"
        " ALLOWED_HOSTS=['testserver'], SECRET_KEY='x')\ndjango.setup()\n"
    )
    shown, missing = _run(account, settings + _block(account, "from django") + visit).splitlines()
    assert (json.loads(shown), missing) == (_OPEN, "404")


def test_express_shows_a_session_that_no_event_announced(account: Demo) -> None:
    node = shutil.which("node")
    if node is None or subprocess.run([node, "-e", _NODE_HAS], check=False).returncode != 0:
        pytest.skip("needs Node, and the packages express and pg where NODE_PATH finds them")
    parts = urlsplit(account.database)
    postgres = {
        "DATABASE_URL": "",
        "PORT": "0",
        "PGUSER": parts.username or "",
        "PGDATABASE": parts.path[1:],
        "PGHOST": parse_qs(parts.query)["host"][0],
        "PGPORT": parse_qs(parts.query)["port"][0],
    }
    with _running(
        account, [node, "-e", _block(account, "require('express')")], postgres
    ) as printed:
        address = _line(printed, "http")
        with urlopen(f"{address}?session_id={_new_session(account)}", timeout=30) as answer:
            assert json.load(answer) == _OPEN


def test_a_worker_handles_a_change_that_it_was_not_asked_about(account: Demo) -> None:
    code = _block(account, "handled_subscription (id, status)")
    with _running(account, [sys.executable, "-c", code], {}) as printed:
        one, _ = _subscribe(account, account.stripe)
        _line(printed, one)
        address = f"{account.stripe}/v1/subscriptions/{one}"
        httpx.delete(address, auth=(account.key, ""), timeout=30)
        _line(printed, f"{one} canceled")


def test_an_entitlement_is_one_indexed_read(account: Demo) -> None:
    question = next(
        s.text for s in snippets("how-to/recipes.md") if "entitlements_active" in s.text
    )
    plan = account.ask("SET enable_seqscan = off; EXPLAIN " + account.filled_in(question))
    assert "entitlements_active_entitlement_customer_id_idx" in plan


def test_a_foreign_key_outlives_the_customer(account: Demo) -> None:
    customer = account.ask("SELECT customer_id FROM shop_user WHERE email = 'grace@example.com'")
    address = f"{account.gateway}/v1/customers/{customer}"
    httpx.delete(address, auth=(account.key, ""), timeout=30)  # 404 if the demo did so itself
    wait = f"{account.gateway}/wait/stripe/default?object={customer}"
    assert httpx.get(wait, timeout=40).status_code == 200
    assert account.ask(f"SELECT deleted FROM stripe.customer WHERE id = '{customer}'") == "t"
    assert account.ask(f"SELECT count(*) FROM shop_user WHERE customer_id = '{customer}'") == "1"


def test_a_tenant_sees_its_own_rows_and_readers_see_all(account: Demo) -> None:
    one, tenant = _subscribe(account, account.gateway)
    rows = "SELECT id, customer_id FROM stripe.subscription"
    assert account.ask(f"SET ROLE shop_app; {rows}") == "SET"
    as_tenant = f"SET shop.customer = '{tenant}'; SET ROLE shop_app; {rows}"
    assert account.ask(as_tenant).splitlines()[2:] == [f"{one}|{tenant}"]
    as_reader = account.ask(f"SET ROLE pinstripe_reader_pinstripe_stripe; {rows}").splitlines()
    assert f"{one}|{tenant}" in as_reader
    assert len({row.partition("|")[2] for row in as_reader}) > 1


def _subscribe(account: Demo, base: str) -> tuple[str, str]:
    """(subscription, customer), both new, made at Stripe or through the proxy."""

    def create(path: str, fields: dict[str, str]) -> str:
        answer = httpx.post(f"{base}/v1/{path}", auth=(account.key, ""), data=fields, timeout=30)
        answer.raise_for_status()
        return str(answer.json()["id"])

    customer = create("customers", {"email": "tenant@example.com"})
    price = {
        "currency": "eur",
        "unit_amount": "900",
        "recurring[interval]": "month",
        "product_data[name]": "Tea",
    }
    fields = {"customer": customer, "items[0][price]": create("prices", price)}
    return create("subscriptions", fields | {"trial_period_days": "7"}), customer


def _block(account: Demo, mark: str) -> str:
    """The block of the recipes that has `mark` in it, filled in."""
    pages = ("how-to/after-checkout.md", "how-to/recipes.md")
    found = [s.text for page in pages for s in snippets(page) if s.why and mark in s.text]
    assert len(found) == 1
    return account.filled_in(found[0])


def _new_session(account: Demo) -> str:
    """A session made past the proxy; no event announces it, so only waiting brings the row."""
    answer = httpx.post(
        f"{account.stripe}/v1/checkout/sessions",
        auth=(account.key, ""),
        data={
            "mode": "payment",
            "success_url": "https://shop.example.com/",
            "line_items[0][price_data][currency]": "eur",
            "line_items[0][price_data][unit_amount]": "4200",
            "line_items[0][price_data][product_data][name]": "A ball",
            "line_items[0][quantity]": "1",
        },
        timeout=30,
    )
    answer.raise_for_status()
    return str(answer.json()["id"])


def _environment(account: Demo, more: dict[str, str]) -> dict[str, str]:
    return {
        **account.environment(),
        "PINSTRIPE_WAIT_TOKEN": "set-by-the-application",
        **more,
    }


def _run(account: Demo, code: str) -> str:
    """What a Python program prints that is given the id of a new session."""
    ended = subprocess.run(
        [sys.executable, "-c", code, _new_session(account)],
        env=_environment(account, {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@contextmanager
def _running(account: Demo, argv: list[str], env: dict[str, str]) -> Iterator[IO[str]]:
    """What a program prints, until the end of the block; one that prints nothing more is ended."""
    with subprocess.Popen(
        argv, env=_environment(account, env), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        patience = Timer(120, process.kill)
        patience.start()
        try:
            yield process.stdout
        finally:
            patience.cancel()
            process.terminate()
            process.communicate(timeout=30)


def _line(printed: IO[str], start: str) -> str:
    """The next line that begins with `start`."""
    for line in printed:
        if line.startswith(start):
            return line.strip()
    raise AssertionError(f"it ended, and no line began with {start}")
