"""Who is let in, with and without tokens, and what a browser may do."""

from __future__ import annotations

import base64
from typing import cast

import pytest
from starlette.requests import Request

from pinstripe.client.api_key import is_loopback
from pinstripe.errors import Misconfigured
from pinstripe.gateway.http.auth import Auth, refuse_public
from pinstripe.gateway.http.errors import HTTPError
from pinstripe.gateway.syncs import Named

TOKEN = "a-long-random-admin-token"
WAIT = "a-token-to-wait-with"
SYNC = cast(Named, None)


def request(method: str = "GET", **headers: str) -> Request:
    """`headers` with _ for -; Host is ours unless it is given."""
    told = {"host": "127.0.0.1:8377"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return Request(
        {
            "type": "http",
            "method": method,
            "path": "/api",
            "query_string": b"",
            "headers": [(k.encode(), v.encode("latin-1")) for k, v in told.items()],
        }
    )


class Naps:
    """A sleep that takes no time."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)


async def refused(access: Auth, asked: Request) -> str:
    with pytest.raises(HTTPError) as caught:
        await access.require_admin(asked)
    return caught.value.code


async def test_without_a_token_this_machine_is_let_in_under_its_own_names() -> None:
    access = Auth()
    for host in ("127.0.0.1:8377", "localhost:8377", "[::1]:8377", "LOCALHOST"):
        await access.require_admin(request(host=host))
    await access.require_admin(request("POST", origin="http://127.0.0.1:8377"))


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8377", "", "localhost.evil"]
)
async def test_without_a_token_a_name_that_points_here_is_not_ours(host: str) -> None:
    assert await refused(Auth(), request(host=host)) == "wrong_host"
    assert not Auth().is_admin(request(host=host))


async def test_the_public_address_is_ours() -> None:
    await Auth(public_url="https://pinstripe.example").require_admin(
        request(host="pinstripe.example")
    )


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:3000"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"},
    ],
)
async def test_a_page_of_another_site_may_not_post(headers: dict[str, str]) -> None:
    assert await refused(Auth(), request("POST", **headers)) == "cross_site"


async def test_a_page_of_another_site_may_link_but_neither_fetch_nor_frame() -> None:
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    await Auth().require_admin(request(**link, sec_fetch_dest="document"))
    assert await refused(Auth(), request(**link, sec_fetch_dest="iframe")) == "cross_site"
    fetch = request(sec_fetch_site="cross-site", sec_fetch_mode="cors")
    assert await refused(Auth(), fetch) == "cross_site"


async def test_with_a_token_only_its_bearer_is_let_in() -> None:
    naps = Naps()
    access = Auth(admin_token=TOKEN, sleep=naps)
    await access.require_admin(request(authorization=f"Bearer {TOKEN}", host="anything.example"))
    await access.require_admin(request("POST", authorization=f"bearer  {TOKEN}"))
    assert await refused(access, request()) == "unauthorized"
    assert naps.taken == []
    for wrong in (TOKEN[:-1], TOKEN + "x", "", "é"):
        assert await refused(access, request(authorization=f"Bearer {wrong}")) == "unauthorized"


async def test_wrong_tokens_are_answered_later_and_later_right_ones_at_once() -> None:
    naps, now = Naps(), [0.0]
    access = Auth(admin_token=TOKEN, sleep=naps, clock=lambda: now[0])
    for _ in range(8):
        await refused(access, request(authorization="Bearer wrong"))
    assert naps.taken == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]
    await access.require_admin(request(authorization=f"Bearer {TOKEN}"))
    assert len(naps.taken) == 8
    now[0] = 120.0
    assert await access.accepts("wrong") is False
    assert naps.taken[-1] == 0.1
    assert await access.accepts(TOKEN) is True


async def test_a_session_is_let_in_unless_another_site_uses_it() -> None:
    access = Auth(admin_token=TOKEN)
    access.session = lambda _: True
    await access.require_admin(request("POST", origin="http://127.0.0.1:8377"))
    evil = request("POST", origin="https://evil.example")
    assert await refused(access, evil) == "cross_site"
    assert access.is_admin(evil) is False


async def test_who_waits_shows_the_wait_token_the_admin_token_or_a_key_of_the_account() -> None:
    async def owns(headers: object, _: Named | None) -> bool:
        return b"sk_test_mine" in dict(cast("list[tuple[bytes, bytes]]", headers))[b"authorization"]

    access = Auth(admin_token=TOKEN, wait_token=WAIT, owns=owns, sleep=Naps())
    for token in (WAIT, TOKEN, "sk_test_mine"):
        assert await access.allows_wait(request(authorization=f"Bearer {token}"), SYNC)
    for token in ("sk_test_other", "x"):
        assert not await access.allows_wait(request(authorization=f"Bearer {token}"), SYNC)
    assert not await access.allows_wait(request(), SYNC)
    assert await refused(access, request(authorization=f"Bearer {WAIT}")) == "unauthorized"


async def test_tokens_may_come_as_a_basic_user_name_like_keys() -> None:
    basic = base64.b64encode(f"{WAIT}:".encode()).decode()
    access = Auth(admin_token=TOKEN, wait_token=WAIT, sleep=Naps())
    assert await access.allows_wait(request(authorization=f"Basic {basic}"), SYNC)
    assert not await access.allows_wait(request(authorization="Basic %%%"), SYNC)


async def test_waiting_is_open_only_where_no_token_is_set_at_all() -> None:
    assert await Auth().allows_wait(request(), SYNC)
    assert not await Auth(wait_token=WAIT).allows_wait(request(), SYNC)
    assert not await Auth(admin_token=TOKEN).allows_wait(request(), SYNC)
    with pytest.raises(HTTPError):
        await Auth().allows_wait(request(host="evil.example"), SYNC)


def test_nobody_listens_publicly_without_a_long_token() -> None:
    refuse_public("127.0.0.1", None)
    refuse_public("::1", None)
    refuse_public("0.0.0.0", TOKEN)
    for host, token in (("0.0.0.0", None), ("", None), ("192.168.1.2", ""), ("::", "short")):
        with pytest.raises(Misconfigured):
            refuse_public(host, token)
    assert not is_loopback("127.0.0.1.evil")
