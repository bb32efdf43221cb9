"""The client over real HTTP, against a server that misbehaves in every known way.

What is sent; which trouble is tried again, how long, and which is not; what each error says and what no
error shows; how lists are followed to their end.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.flows.harness import nasty_server as nasty
from tests.flows.harness.nasty_server import Act, NastyServer

from pinstripe.client import transport
from pinstripe.client.api_key import ApiKey
from pinstripe.client.client import StripeClient, iter_pages, list_at
from pinstripe.client.rate_limit import RateLimiter
from pinstripe.client.response import ListPage
from pinstripe.client.retry import Patience
from pinstripe.client.transport import Timeouts
from pinstripe.errors import (
    BadParameter,
    Drifted,
    NotEnabled,
    NotFound,
    NotPermitted,
    Oversized,
    PinstripeError,
    Refused,
    Unreachable,
    WrongAccount,
    WrongKey,
)

SECRET = "sk_test_51AbCdEfGhIjKlMnOpQrStUv"
SHORT = Timeouts(connect_s=1.0, read_s=0.1, total_s=5.0)
HTML = nasty.raw(200, b"<html>Sign in to the airport wifi</html>", {"Content-Type": "text/html"})


class Naps:
    """Stands in for clock and sleep: notes how long a retry waits, and goes on at once."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self._now = 0.0

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        self._now += seconds

    def budget(self) -> RateLimiter:
        return RateLimiter(
            account_rate=None, endpoint_rate=None, clock=lambda: self._now, sleep=self._pass
        )

    async def _pass(self, seconds: float) -> None:
        self._now += seconds


def client(
    url: str,
    naps: Naps | None = None,
    *,
    attempts: int = 8,
    first: int = 8,
    account: str | None = None,
) -> StripeClient:
    naps = naps or Naps()
    return StripeClient(
        ApiKey.parse(SECRET),
        api_version="2026-10-28.endive",
        base_url=url,
        budget=naps.budget(),
        account=account,
        timeouts=SHORT,
        patience=Patience(attempts=attempts, first_contact=first, limited_attempts=50),
        sleep=naps,
        luck=lambda: 0.5,
    )


@asynccontextmanager
async def talking(
    *acts: Act,
    naps: Naps | None = None,
    attempts: int = 8,
    first: int = 8,
    account: str | None = None,
) -> AsyncIterator[tuple[StripeClient, NastyServer]]:
    async with (
        NastyServer(*acts) as server,
        client(server.url, naps, attempts=attempts, first=first, account=account) as stripe,
    ):
        yield stripe, server


async def test_a_request_carries_key_version_name_and_brackets_as_stripe_takes_them() -> None:
    async with talking(nasty.good()) as (stripe, server):
        params = [("created[gte]", "17"), ("expand[]", "data.customer"), ("q", "a&b c")]
        await stripe.get("/v1/charges", params, endpoint="charges")
    request = server.requests[0]
    assert request.target == "/v1/charges?created[gte]=17&expand[]=data.customer&q=a%26b%20c"
    assert request.headers["stripe-version"] == "2026-10-28.endive"
    assert request.headers["user-agent"].startswith("Pinstripe/")
    assert request.headers["authorization"].startswith("Basic ")
    assert request.headers["accept-encoding"] == "gzip"


async def test_a_quoted_id_reaches_stripe_as_it_was_quoted() -> None:
    async with talking(nasty.good()) as (stripe, server):
        await stripe.get("/v1/products/50%25%20off%2F%C3%A9", endpoint="product")
    assert server.requests[0].target == "/v1/products/50%25%20off%2F%C3%A9"


async def test_a_reply_knows_when_it_was_true_on_stripes_clock() -> None:
    async with talking(nasty.good()) as (stripe, _):
        response = await stripe.get("/v1/charges/ch_1", endpoint="charge")
    assert nasty.DATE_UNIX - 1 < response.not_before <= nasty.DATE_UNIX
    assert response.not_after == nasty.DATE_UNIX + 1
    assert (response.request_id, response.api_version) == ("req_1", "2026-10-28.endive")


async def test_a_packed_and_chunked_body_arrives_whole() -> None:
    async with talking(nasty.good_gzip()) as (stripe, _):
        response = await stripe.get("/v1/charges/ch_1", endpoint="charge")
    assert response.body.startswith(b'{\n  "id": "ch_1"')
    assert response.body.endswith(b"\n}")


TROUBLE: dict[str, Act] = {
    "length": nasty.cut_length(),
    "chunks": nasty.cut_chunked(),
    "gzip cut": nasty.cut_gzip(),
    "gzip damaged": nasty.damaged_gzip(),
    "gzip claimed": nasty.not_gzip(),
    "packed otherwise": nasty.good(Content_Encoding="br"),
    "hang": nasty.hang,
    "hang in body": nasty.hang_in_the_body,
    "close": nasty.close,
    "reset": nasty.reset,
    "nonsense": nasty.nonsense,
    "html": HTML,
    "html 404": nasty.raw(404, b"<html>nginx</html>"),
    "html 503": nasty.raw(503, b"<html>nginx</html>"),
    "json cut": nasty.raw(200, b'{"id": "ch_1", "x": {"a": 1}'),
    "json cut at a line": nasty.raw(200, b'{\n  "id": "ch_1",\n  "x": {\n  }'),
    "json of another": nasty.raw(404, b'{"detail": "not found"}'),
    "empty": nasty.raw(200, b""),
    "not an object": nasty.raw(200, b"[]"),
    "redirect": nasty.raw(302, b"", {"Location": "http://127.0.0.1:1/elsewhere"}),
    "500": nasty.error(500),
    "409": nasty.error(409),
    "lock timeout": nasty.error(429, "lock_timeout"),
    "429": nasty.error(429, "rate_limit", Stripe_Rate_Limited_Reason="endpoint-rate"),
    "429 global": nasty.error(429, Stripe_Rate_Limited_Reason="global-concurrency"),
    "429 html": nasty.raw(429, b"<html>slow down</html>"),
    "400 with advice": nasty.error(400, Stripe_Should_Retry="true"),
}


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
async def test_trouble_that_passes_is_tried_again_and_the_caller_sees_nothing_of_it(
    trouble: Act,
) -> None:
    async with talking(trouble, nasty.good()) as (stripe, server):
        response = await stripe.get("/v1/charges/ch_1", endpoint="charge")
    assert b'"ch_1"' in response.body
    assert len(server.requests) == 2
    assert stripe.requests == {"charge": 2}
    assert stripe.retries == {"charge": 1}


LASTING = {name: act for name, act in TROUBLE.items() if "429" not in name and "lock" not in name}


@pytest.mark.parametrize("trouble", LASTING.values(), ids=LASTING)
async def test_trouble_that_stays_ends_after_the_set_number_of_tries_with_its_reason(
    trouble: Act,
) -> None:
    async with talking(trouble, attempts=3, first=3) as (stripe, server):
        with pytest.raises(Unreachable, match=r"tried 3 times: .+") as caught:
            await stripe.get("/v1/charges/ch_1", endpoint="charge")
    assert len(server.requests) == 3
    assert caught.value.hint
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__dict__)
    assert SECRET[8:] not in told
    assert "Authorization" not in told


async def test_a_dead_kept_connection_is_counted_and_retried_by_us_not_by_the_library() -> None:
    async with talking(nasty.good_then_close, nasty.good()) as (stripe, server):
        await stripe.get("/v1/a", endpoint="a")
        await stripe.get("/v1/a", endpoint="a")
        assert stripe.requests["a"] == len(server.requests) + stripe.retries["a"]


async def test_a_connection_that_dies_under_a_request_shows_in_the_count() -> None:
    async with talking(nasty.good(), nasty.close, nasty.good()) as (stripe, server):
        await stripe.get("/v1/a", endpoint="a")
        await stripe.get("/v1/a", endpoint="a")
    assert stripe.requests["a"] == len(server.requests) == 3
    assert stripe.retries["a"] == 1


async def test_connections_are_kept() -> None:
    async with talking(nasty.good()) as (stripe, server):
        for _ in range(5):
            await stripe.get("/v1/a", endpoint="a")
    assert server.connections == 1


async def test_rate_limits_are_borne_as_long_as_it_takes_and_retry_after_is_kept() -> None:
    naps = Naps()
    limited = nasty.error(429, Stripe_Rate_Limited_Reason="global-rate", Retry_After="7")
    async with talking(*[limited] * 20, nasty.good(), naps=naps) as (stripe, _):
        await stripe.get("/v1/a", endpoint="a")
    assert stripe.rate_limited == {"a": 20}
    assert len(naps.taken) == 20
    assert all(7.0 <= nap <= 7.5 for nap in naps.taken)


async def test_a_retry_after_on_trouble_is_kept_too() -> None:
    naps = Naps()
    busy = nasty.error(503, Retry_After="Thu, 01 Jan 2026 00:00:15 GMT")
    async with talking(busy, nasty.good(), naps=naps) as (stripe, _):
        await stripe.get("/v1/a", endpoint="a")
    assert naps.taken == [5.0]


@pytest.mark.parametrize("status", [400, 409, 429])
async def test_stripes_advice_not_to_retry_a_write_is_taken(status: int) -> None:
    async with talking(nasty.error(status, Stripe_Should_Retry="false")) as (stripe, server):
        with pytest.raises(Refused):
            await stripe.post("/v1/a", endpoint="a", idempotency_key="k")
    assert len(server.requests) == 1


async def test_a_write_that_failed_and_is_not_to_be_retried_is_trouble_and_no_answer() -> None:
    async with talking(nasty.error(500, Stripe_Should_Retry="false")) as (stripe, server):
        with pytest.raises(Unreachable):
            await stripe.post("/v1/a", endpoint="a", idempotency_key="k")
    assert len(server.requests) == 1


async def test_a_read_outlives_a_500_that_is_not_to_be_retried() -> None:
    trouble = nasty.error(500, Stripe_Should_Retry="false")
    async with talking(trouble, trouble, nasty.good()) as (stripe, server):
        await stripe.get("/v1/a", endpoint="a")
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (nasty.error(401, message=f"Invalid API Key provided: {SECRET}"), WrongKey),
        (nasty.error(403, message="Having the 'rak_charge_read' permission ..."), NotPermitted),
        (nasty.error(404, "resource_missing"), NotFound),
        (nasty.error(400, "resource_missing", param="starting_after"), NotFound),
        (nasty.error(400, message="Your account is not set up to use Issuing."), NotEnabled),
        (nasty.error(400, "parameter_unknown", message="x is not available"), BadParameter),
        (nasty.error(402, "card_declined"), Refused),
    ],
)
async def test_stripes_no_is_final_and_names_its_class(
    act: Act, kind: type[PinstripeError]
) -> None:
    async with talking(act) as (stripe, server):
        with pytest.raises(Refused) as caught:
            await stripe.get("/v1/a", endpoint="a")
    assert type(caught.value) is kind
    assert len(server.requests) == 1
    assert caught.value.request_id == "req_1"
    assert SECRET[8:] not in "".join(traceback.format_exception(caught.value))


async def test_a_missing_permission_is_named_in_the_hint() -> None:
    act = nasty.error(403, message="Having the 'rak_charge_read' permission would allow this.")
    async with talking(act) as (stripe, _):
        with pytest.raises(NotPermitted) as caught:
            await stripe.get("/v1/a", endpoint="a")
    assert "rak_charge_read" in caught.value.hint


@pytest.mark.parametrize("trouble", [nasty.close, nasty.error(500), nasty.hang_in_the_body])
async def test_a_write_that_may_have_run_is_not_repeated(trouble: Act) -> None:
    async with talking(trouble, nasty.good()) as (stripe, server):
        with pytest.raises(Unreachable, match="may or may not have been done"):
            await stripe.post("/v1/webhook_endpoints", [("url", "x")], endpoint="webhook")
    assert len(server.requests) == 1


@pytest.mark.parametrize("how", [{"idempotency_key": "k1"}, {"repeatable": True}])
async def test_a_write_that_stripe_can_recognise_is_repeated(how: dict[str, object]) -> None:
    key = str(how["idempotency_key"]) if "idempotency_key" in how else None
    async with talking(nasty.close, nasty.good()) as (stripe, server):
        await stripe.post(
            "/v1/x", [("a[b]", "c d")], endpoint="x", idempotency_key=key, repeatable=key is None
        )
    assert [r.body for r in server.requests] == [b"a[b]=c%20d"] * 2
    assert [r.headers.get("idempotency-key") for r in server.requests] == [key, key]
    assert server.requests[0].headers["content-type"] == "application/x-www-form-urlencoded"


async def test_a_write_held_back_by_a_rate_limit_never_ran_and_is_repeated() -> None:
    async with talking(nasty.error(429, "rate_limit"), nasty.good()) as (stripe, server):
        await stripe.post("/v1/x", endpoint="x")
    assert len(server.requests) == 2


async def test_a_deletion_is_repeated() -> None:
    async with talking(nasty.close, nasty.good()) as (stripe, server):
        await stripe.delete("/v1/webhook_endpoints/we_1", endpoint="webhook")
    assert [r.method for r in server.requests] == ["DELETE", "DELETE"]


async def test_a_wrong_address_is_told_soon_and_by_name() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        naps = Naps()
        async with client(url, naps, first=3) as stripe:
            with pytest.raises(Unreachable, match="refused") as caught:
                await stripe.get("/v1/account", endpoint="account")
    assert url in caught.value.hint
    assert len(naps.taken) == 2


async def test_a_host_that_does_not_exist_is_told_soon() -> None:
    async with client("http://stripe.invalid", first=2) as stripe:
        with pytest.raises(Unreachable, match="cannot be resolved") as caught:
            await stripe.get("/v1/account", endpoint="account")
    assert "http://stripe.invalid" in caught.value.hint


async def test_https_to_a_server_without_tls_is_told_as_such() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await nasty.nonsense(writer)
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, client(f"https://127.0.0.1:{port}", first=2) as stripe:
        with pytest.raises(Unreachable, match="TLS"):
            await stripe.get("/v1/account", endpoint="account")


async def test_429s_end_where_the_caller_sets_an_end() -> None:
    async with talking(nasty.error(429, "rate_limit", "slow down")) as (stripe, server):
        with pytest.raises(Unreachable, match="slow down"):
            await stripe.get("/v1/a", endpoint="a")
    assert len(server.requests) == 50


async def test_a_cancelled_request_frees_its_slot_and_its_connection() -> None:
    asked = asyncio.Event()

    async def hang(writer: asyncio.StreamWriter) -> bool:
        asked.set()
        return await nasty.hang(writer)

    budget = RateLimiter(account_rate=None, endpoint_rate=None, max_concurrency=1)
    async with (
        NastyServer(hang, nasty.good()) as server,
        StripeClient(
            ApiKey.parse(SECRET), api_version="v", base_url=server.url, budget=budget
        ) as stripe,
    ):
        task = asyncio.ensure_future(stripe.get("/v1/a", endpoint="a"))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        response = await stripe.get("/v1/a", endpoint="a")
    assert response.status == 200


async def test_neither_session_nor_error_nor_log_shows_the_key(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with talking(nasty.reset, nasty.error(401, message=f"Bad key {SECRET}")) as (stripe, _):
        with pytest.raises(WrongKey) as caught:
            await stripe.get("/v1/a", endpoint="a")
        shown = [repr(stripe), str(caught.value), repr(caught.value), caught.value.hint]
    shown += capsys.readouterr()
    assert not any(SECRET[8:20] in text for text in shown)


async def test_a_connected_account_is_named_in_the_header() -> None:
    async with talking(nasty.good(), account="acct_9") as (stripe, server):
        await stripe.get("/v1/a", endpoint="a")
    assert server.requests[0].headers["stripe-account"] == "acct_9"


async def test_a_connected_account_that_is_no_platform_lacks_the_list_of_accounts_alone() -> None:
    """Of any other path the same words are about the account that the header names."""
    words = "You cannot access the connected accounts of your platform's connected accounts."
    refused = nasty.error(400, message=words)
    async with talking(refused, refused, account="acct_9") as (stripe, _):
        with pytest.raises(NotEnabled):
            await stripe.get("/v1/accounts", [("limit", "100")], endpoint="accounts")
        with pytest.raises(WrongAccount):
            await stripe.get("/v1/account", endpoint="account")


def page_of(ids: list[str | None], *, more: bool) -> Act:
    data = [{"id": one, "object": "charge"} for one in ids]
    return nasty.good({"object": "list", "data": data, "has_more": more})


async def pages_of(stripe: StripeClient) -> list[ListPage]:
    request = list_at(stripe, "/v1/charges", endpoint="charges")
    return [page async for page in iter_pages(request)]


async def test_a_list_is_followed_to_its_end_by_the_last_id() -> None:
    acts = (page_of(["ch_3", "ch_2"], more=True), page_of(["ch_1"], more=False))
    async with talking(*acts) as (stripe, server):
        found = await pages_of(stripe)
    assert [[o["id"] for o in page.objects] for page in found] == [["ch_3", "ch_2"], ["ch_1"]]
    assert [r.target for r in server.requests] == [
        "/v1/charges?limit=100",
        "/v1/charges?limit=100&starting_after=ch_2",
    ]


PACKED = nasty.raw(200, gzip.compress(bytes(2**22)), {"Content-Encoding": "gzip"})


def huge(size: int) -> Act:
    return nasty.raw(200, b'{"id": "ch_1", "note": "' + b"x" * size + b'"}')


async def test_a_page_that_is_too_large_is_asked_for_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "_MAX_BODY", 10_000)
    acts = (huge(20_000), huge(20_000), page_of(["ch_2"], more=True), page_of(["ch_1"], more=False))
    async with talking(*acts) as (stripe, server):
        found = await pages_of(stripe)
    assert [[o["id"] for o in page.objects] for page in found] == [["ch_2"], ["ch_1"]]
    assert [r.target.partition("?")[2] for r in server.requests] == [
        "limit=100",
        "limit=10",
        "limit=1",
        "limit=100&starting_after=ch_2",
    ]


async def test_a_page_that_fails_only_where_it_is_long_is_asked_for_in_parts() -> None:
    """https://github.com/PostHog/posthog/pull/66457: each full page of subscriptions came cut."""
    acts = (nasty.cut_length(), nasty.error(500), page_of(["ch_2"], more=True))
    async with talking(*acts, page_of(["ch_1"], more=False)) as (stripe, server):
        found = await pages_of(stripe)
    assert [[o["id"] for o in page.objects] for page in found] == [["ch_2"], ["ch_1"]]
    assert [r.target.partition("?")[2] for r in server.requests] == [
        "limit=100",
        "limit=100",
        "limit=50",
        "limit=100&starting_after=ch_2",
    ]


@pytest.mark.parametrize("act", [huge(2**22), PACKED], ids=["plain", "packed"])
async def test_an_object_that_is_too_large_is_said_and_not_requested_again(
    act: Act, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_MAX_BODY", 2**21)
    async with talking(act) as (stripe, server):
        with pytest.raises(Oversized, match="larger"):
            await stripe.get("/v1/charges/ch_1", endpoint="charges")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "act",
    [page_of(["ch_1"], more=True), page_of([], more=True), page_of([None], more=True)],
    ids=["the same page for ever", "an empty page with more", "no id to go on from"],
)
async def test_a_list_that_would_never_end_is_an_error(act: Act) -> None:
    async with talking(act) as (stripe, server):
        with pytest.raises(Drifted):
            await pages_of(stripe)
    assert len(server.requests) <= 2


async def test_an_object_where_a_list_was_expected_is_an_error_not_an_empty_list() -> None:
    async with talking(nasty.good()) as (stripe, _):
        with pytest.raises(Drifted, match="not a list"):
            await pages_of(stripe)
