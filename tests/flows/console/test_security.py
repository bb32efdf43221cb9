"""Who gets in, what another site's page may not do, and what no page shows."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterator
from html import unescape
from html.parser import HTMLParser
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.responses import Response
from starlette.routing import Route
from tests.flows.console.conftest import (
    DATABASE_PASSWORD,
    WAIT_TOKEN,
    WEBHOOK_SECRET,
    Console,
)
from tests.flows.harness.api_service import ADMIN

from pinstripe.console.routes import console_routes
from pinstripe.console.sessions import COOKIE, Sessions, set_cookie
from pinstripe.gateway.http.auth import Auth

MOST_PAGES = 120
_CSRF = re.compile(r'name="csrf" value="([^"]+)"')
_LINK = re.compile(r'(?:href|action)="([^"]*)"')
_FILLED = {"sync": "default", "name": "console.css", "event": "evt_none"}


def paths(method: str) -> Iterator[str]:
    """Every path of the console that takes the method, its parameters filled in."""
    for route in console_routes(Auth()):
        assert isinstance(route, Route)
        if method in (route.methods or ()):
            yield re.sub(r"\{(\w+)(?::\w+)?\}", lambda m: _FILLED.get(m[1], "customer"), route.path)


def token_in(page: str) -> str:
    found = _CSRF.search(page)
    assert found is not None
    return found[1]


class Tags(HTMLParser):
    """Notes what of a page could run."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        inline = tag == "script" and not said.get("src", "").startswith("/static/")
        running = any(n.startswith("on") or n in ("style", "srcdoc") for n in said)
        leads = (said.get(n, "").strip().lower() for n in ("href", "action", "src", "formaction"))
        if inline or tag in ("style", "base", "iframe") or running:
            self.wrong.append(str(self.get_starttag_text()))
        if any(where.startswith(("javascript:", "data:", "vbscript:")) for where in leads):
            self.wrong.append(str(self.get_starttag_text()))


async def log_in(http: httpx.AsyncClient, token: str = ADMIN, **fields: str) -> httpx.Response:
    """The answer to the form, sent as a browser would."""
    form = (await http.get("/login")).text
    return await http.post("/login", data={"token": token, "csrf": token_in(form), **fields})


@pytest.fixture
async def stranger(console: Console) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody without a session, where a token is asked for."""
    async with console.client(locked=True) as http:
        yield http


@pytest.fixture
async def admin(console: Console) -> AsyncIterator[httpx.AsyncClient]:
    async with console.client(locked=True) as http:
        assert (await log_in(http)).status_code == 303
        yield http


@pytest.fixture
async def anyone(console: Console) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody on this machine, where no token is asked for."""
    async with console.client() as http:
        yield http


async def test_without_a_session_there_is_only_the_login(stranger: httpx.AsyncClient) -> None:
    for path in paths("GET"):
        answer = await stranger.get(path)
        if path == "/login" or path.startswith("/static/"):
            assert answer.status_code == 200, path
        else:
            assert answer.status_code == 303, path
            assert answer.headers["location"].startswith("/login"), path
    for path in paths("POST"):
        answer = await stranger.post(path, data={"csrf": "guessed", "token": ADMIN})
        assert answer.status_code in (401, 403) or path == "/logout", path
    streamed = await stranger.get(
        "/syncs/default/events/live", headers={"Accept": "text/event-stream"}
    )
    assert streamed.status_code == 401


async def test_the_right_token_opens_and_leads_to_where_one_wanted_to_go(
    stranger: httpx.AsyncClient,
) -> None:
    wanted = await stranger.get("/syncs/default/events?type=charge.*")
    form = await stranger.get(wanted.headers["location"])
    assert 'value="/syncs/default/events?type=charge.*"' in form.text
    entered = await log_in(stranger, next="/syncs/default/events?type=charge.*")
    assert (entered.status_code, entered.headers["location"]) == (
        303,
        "/syncs/default/events?type=charge.*",
    )
    assert (await stranger.get(entered.headers["location"])).status_code == 200


async def test_a_wrong_token_is_answered_late_and_opens_nothing(
    stranger: httpx.AsyncClient,
) -> None:
    began = time.monotonic()
    answer = await log_in(stranger, "not-the-token")
    assert time.monotonic() - began >= 0.1
    assert answer.status_code == 401
    assert "Wrong admin token." in answer.text
    assert "not-the-token" not in answer.text
    assert (await stranger.get("/")).status_code == 303


async def test_a_session_known_before_the_login_is_worth_nothing_after_it(
    console: Console, stranger: httpx.AsyncClient
) -> None:
    await stranger.get("/login")
    before = stranger.cookies[COOKIE]
    await log_in(stranger)
    after = stranger.cookies[COOKIE]
    assert before != after
    async with console.client(locked=True) as thief:
        thief.cookies.set(COOKIE, before)
        assert (await thief.get("/")).status_code == 303
        # Nor does the service take a name that somebody else has chosen.
        thief.cookies.clear()
        chosen = {"Cookie": f"{COOKIE}=chosen"}
        given = (await thief.get("/login", headers=chosen)).headers["set-cookie"]
        assert given.startswith(f"{COOKIE}=")
        assert "chosen" not in given
        thief.cookies.clear()
        assert (await thief.get("/", headers=chosen)).status_code == 303


async def test_logging_out_ends_the_session_for_good(admin: httpx.AsyncClient) -> None:
    name = admin.cookies[COOKIE]
    page = (await admin.get("/syncs")).text
    assert (await admin.post("/logout", data={"csrf": "guessed"})).status_code == 403
    left = await admin.post("/logout", data={"csrf": token_in(page)})
    assert left.headers["location"] == "/login"
    admin.cookies.clear()
    admin.cookies.set(COOKIE, name)
    assert (await admin.get("/syncs")).status_code == 303


async def test_the_cookie_is_for_this_site_and_for_no_script(stranger: httpx.AsyncClient) -> None:
    words = (await stranger.get("/login")).headers["set-cookie"].lower().split("; ")
    assert {"httponly", "samesite=strict", "path=/"} <= set(words)
    session = Sessions().begin(logged_in=True)
    over_https = Response()
    set_cookie(over_https, session, secure=True)
    assert "secure" in over_https.headers["set-cookie"].lower().split("; ")


@pytest.mark.parametrize("path", sorted(set(paths("POST"))))
async def test_a_form_without_the_sessions_token_is_refused(
    admin: httpx.AsyncClient, path: str
) -> None:
    for form in ({}, {"csrf": ""}, {"csrf": "guessed"}):
        sent = {**form, "typed": "default", "token": ADMIN, "key": "sk_test_x"}
        assert (await admin.post(path, data=sent)).status_code == 403, form


async def test_the_token_of_another_session_is_refused(
    console: Console, admin: httpx.AsyncClient
) -> None:
    async with console.client(locked=True) as other:
        await log_in(other)
        token = token_in((await other.get("/syncs")).text)
    answer = await admin.post("/syncs/default/pause", data={"csrf": token})
    assert answer.status_code == 403


async def test_every_answer_keeps_scripts_frames_and_caches_out(admin: httpx.AsyncClient) -> None:
    for path in paths("GET"):
        async with admin.stream("GET", path) as answer:
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy, path
            assert "frame-ancestors 'none'" in policy, path
            assert "unsafe" not in policy, path
            assert answer.headers["x-content-type-options"] == "nosniff", path
            assert answer.headers["x-frame-options"] == "DENY", path
            assert "access-control-allow-origin" not in answer.headers, path
            if not path.startswith("/static/"):
                assert answer.headers["cache-control"] == "no-store", path
                assert answer.status_code != 500, path


async def test_no_page_holds_a_script_or_a_style_of_its_own(anyone: httpx.AsyncClient) -> None:
    for path in paths("GET"):
        if path.startswith("/static/") or path.endswith("/live"):
            continue
        seen = Tags()
        seen.feed((await anyone.get(path)).text)
        assert seen.wrong == [], path


@pytest.mark.parametrize(
    "wanted", ["//evil.example", "https://evil.example", "/\\evil.example", "/\t/evil.example", ""]
)
async def test_a_login_never_leads_to_another_site(
    stranger: httpx.AsyncClient, wanted: str
) -> None:
    assert (await log_in(stranger, next=wanted)).headers["location"] == "/"
    again = await stranger.get("/login", params={"next": wanted})
    assert (again.status_code, again.headers["location"]) == (303, "/")


async def test_another_sites_page_may_link_here_and_nothing_more(
    console: Console, anyone: httpx.AsyncClient
) -> None:
    crossed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
    link = {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    }
    framed = {**link, "Sec-Fetch-Dest": "iframe"}
    assert (await anyone.get("/syncs", headers=link)).status_code == 200
    assert (await anyone.get("/syncs", headers=crossed)).status_code == 403
    assert (await anyone.get("/syncs", headers=framed)).status_code == 403
    assert (
        await anyone.get("/syncs", headers={"Origin": "http://evil.example"})
    ).status_code == 403
    token = token_in((await anyone.get("/syncs")).text)
    form = {"csrf": token, "typed": "nothing"}
    for headers in (link, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        answer = await anyone.post("/syncs/default/remove", data=form, headers=headers)
        assert answer.status_code == 403, headers
    own = {"Origin": console.url, "Sec-Fetch-Site": "same-origin"}
    taken = await anyone.post("/syncs/default/remove", data=form, headers=own)
    assert taken.status_code == 400  # The form was read: the name was not typed.


async def test_a_name_that_somebody_has_pointed_at_this_machine_is_not_ours(
    console: Console, anyone: httpx.AsyncClient
) -> None:
    port = urlsplit(console.url).port
    for path in paths("GET"):
        if path.startswith("/static/"):
            continue
        answer = await anyone.get(path, headers={"Host": f"evil.example:{port}"})
        assert answer.status_code in (403, 303), path
        if answer.status_code == 303:
            assert path == "/login"


async def crawl(http: httpx.AsyncClient) -> AsyncIterator[tuple[str, str]]:
    """(path, page) of what links and forms lead to, up to a number."""
    waiting, seen = ["/", *paths("GET")], set[str]()
    while waiting and len(seen) < MOST_PAGES:
        path = waiting.pop(0)
        place = urlsplit(path).path
        if path in seen or place.endswith(("/live", "/logout")) or place.startswith("/static"):
            continue
        seen.add(path)
        answer = await http.get(path)
        yield path, answer.text + str(answer.headers)
        links = [unescape(link) for link in _LINK.findall(answer.text)]
        waiting += [link for link in links if link.startswith("/") and "//" not in link[:2]]


async def test_no_page_shows_a_secret(console: Console, admin: httpx.AsyncClient) -> None:
    secrets = (console.key, ADMIN, WAIT_TOKEN, WEBHOOK_SECRET, DATABASE_PASSWORD)
    pages = 0
    async for path, page in crawl(admin):
        pages += 1
        for secret in secrets:
            assert secret not in page, path
    assert pages > 30


async def test_a_refused_form_does_not_repeat_the_key(anyone: httpx.AsyncClient) -> None:
    token = token_in((await anyone.get("/syncs")).text)
    secret = "sk_test_neverseenagain0123456789"
    form = {"csrf": token, "id": "main", "schema": "Not A Schema!", "key": secret}
    answer = await anyone.post("/syncs", data=form)
    assert answer.status_code == 400
    assert "Not A Schema!" in answer.text
    assert secret not in answer.text
