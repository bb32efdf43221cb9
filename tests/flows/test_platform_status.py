"""What a platform shows of itself: API, console, metrics and `pinstripe status`."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.flows.harness.command import pinstripe
from tests.flows.harness.platform_service import ID, PLATFORM, PlatformService, platform_service

from pinstripe.store.platforms.stored import revoke_accounts
from pinstripe.store.pool import connect
from pinstripe_simulator.server import running

ROOT = Path(__file__).parents[2]
REASON = "<b>Application access may have been revoked.</b>"


@pytest.fixture
async def here(database: str, tmp_path: Path) -> AsyncIterator[PlatformService]:
    """A platform of 250 accounts: one is revoked, one in trouble; no worker works."""
    async with (
        running(PLATFORM) as sim,
        platform_service(sim, database, tmp_path, works=False) as service,
    ):
        async with connect(database) as pg:
            await pg.execute(
                "INSERT INTO pinstripe.platform_account (platform_id, account_id, livemode)"
                " SELECT $1, 'acct_1Many' || lpad(n::text, 4, '0'), false"
                " FROM generate_series(1, 245) n",
                ID,
            )
            await revoke_accounts(pg, ID, ["acct_1Many0007"], REASON)
            await pg.execute(
                "UPDATE pinstripe.platform_account SET failures = 3, reason = 'Stripe is slow.'"
                " WHERE account_id = 'acct_1Many0008'"
            )
        yield service


async def test_the_api_shows_states_pace_and_the_oldest_look(here: PlatformService) -> None:
    found = (await here.http.get("/api/platforms")).json()
    (platform,) = found["platforms"]
    assert platform["accounts"] == {"active": 249, "revoked": 1, "troubled": 1}
    assert platform["looks_per_s"] > 0
    assert platform["oldest_look_s"] >= 0
    assert platform["served"] is True
    assert platform["addresses"]["wait"].endswith(f"/wait/stripe/{ID}")
    assert found["workers"] == []
    assert found["tasks"]["backfill"] == 5
    assert (await here.http.get(f"/api/platforms/{ID}")).json() == platform | {
        "oldest_look_s": pytest.approx(platform["oldest_look_s"], abs=60),
        "looks_per_s": pytest.approx(platform["looks_per_s"], rel=0.5),
    }
    assert (await here.http.get("/api/platforms/nothing")).status_code == 404


async def test_accounts_come_by_pages_by_search_and_by_state(here: PlatformService) -> None:
    seen: list[str] = []
    after = ""
    while after is not None:
        query = {"limit": "100", "after": after}
        page = (await here.http.get(f"/api/platforms/{ID}/accounts", params=query)).json()
        seen += [a["account_id"] for a in page["accounts"]]
        after = page["next"]
    assert len(seen) == len(set(seen)) == 250
    assert seen == sorted(seen)

    async def only(**query: str) -> list[str]:
        page = await here.http.get(f"/api/platforms/{ID}/accounts", params=query)
        return [a["account_id"] for a in page.json()["accounts"]]

    assert await only(search="Many0123") == ["acct_1Many0123"]
    assert await only(search="%") == []
    assert await only(state="revoked") == ["acct_1Many0007"]
    assert await only(state="troubled") == ["acct_1Many0008"]
    assert len(await only(state="active", limit="1000")) == 249
    assert (await here.http.get(f"/api/platforms/{ID}/accounts?state=x")).status_code == 400


async def test_the_console_has_a_page_of_the_platform(here: PlatformService) -> None:
    start = await here.http.get("/")
    assert (start.status_code, start.headers["location"]) == (303, "/platforms")
    listed = await here.http.get("/platforms")
    assert f'href="/platforms/{ID}"' in listed.text
    assert "No worker runs" in listed.text
    page = await here.http.get(f"/platforms/{ID}")
    assert page.text.count('<th scope="row"') == 50
    assert "Next page" in page.text
    assert "First page" not in page.text
    # Their first copies wait; until then they are polled once a day.
    assert 'badge blue">initial sync<' in page.text
    assert 'badge good">active<' not in page.text
    revoked = await here.http.get(f"/platforms/{ID}?state=revoked&search=Many")
    assert "acct_1Many0007" in revoked.text
    assert REASON not in revoked.text  # Words from elsewhere are text, not markup.
    assert "&lt;b&gt;Application access" in revoked.text
    assert "Next page" not in revoked.text
    assert (await here.http.get("/platforms/nothing")).status_code == 404
    assert here.sim.key not in page.text


async def test_a_platform_without_a_worker_is_not_ready(here: PlatformService) -> None:
    answer = await here.http.get("/readyz")
    assert answer.status_code == 503
    checks = {c["name"]: (c["ok"], c["remedy"]) for c in answer.json()["checks"]}
    assert checks[f"platform:{ID}"] == (False, "Start `pinstripe worker`.")
    await here.vault.pause(ID, paused=True)
    assert (await here.http.get("/readyz")).status_code == 200


async def test_metrics_tell_of_platforms(here: PlatformService) -> None:
    text = (await here.http.get("/metrics")).text
    assert f'pinstripe_platform_accounts{{platform="{ID}",state="active"}} 249.0' in text
    assert f'pinstripe_platform_accounts{{platform="{ID}",state="revoked"}} 1.0' in text
    assert f'pinstripe_platform_oldest_look_seconds{{platform="{ID}"}}' in text
    assert "pinstripe_workers 0.0" in text
    assert 'pinstripe_tasks{task="backfill"} 5.0' in text


async def test_status_shows_the_pace_and_that_nobody_works(here: PlatformService) -> None:
    env = {"DATABASE_URL": here.database}
    done = await pinstripe("status", "--json", env=env)
    (platform,) = json.loads(done.out)["platforms"]
    assert (platform["id"], platform["accounts"]["active"]) == (ID, 249)
    text = (await pinstripe("status", env=env)).out
    assert "249 accounts, 1 of them in trouble; 1 revoked" in text
    assert "polls of event lists a second; the oldest poll was" in text
    assert "NO WORKER RUNS" in text


async def test_a_tenant_gets_a_schema_with_views_of_its_rows(here: PlatformService) -> None:
    one, two, *_ = here.accounts
    (mine, _), (other, _) = await here.make_customer(one), await here.make_customer(two)
    env = {"DATABASE_URL": here.database}
    done = await pinstripe("platform", "views", ID, one, "tenant_1", "--json", env=env)
    assert "customer" in json.loads(done.out)["views"]
    async with connect(here.database) as pg:
        assert [r[0] for r in await pg.fetch("SELECT id FROM tenant_1.customer")] == [mine]
    assert other != mine
    refused = await pinstripe("platform", "views", ID, "acct_1Nobody", "tenant_2", env=env)
    assert (refused.code, "has no account acct_1Nobody" in refused.err) == (2, True)


async def test_the_documented_policies_show_a_tenant_its_own_account_alone(
    here: PlatformService,
) -> None:
    text = (ROOT / "docs/how-to/platforms.md").read_text()
    tenants = text[text.index("## Let tenants") :]
    make, ask = re.findall(r"```sql\n(.*?)```", tenants, re.DOTALL)[:2]
    one, two, *_ = here.accounts
    mine, _ = await here.make_customer(one)
    await here.make_customer(two)
    async with connect(here.database) as pg:
        assert "'acct_1'" in ask
        await pg.execute(make)
        try:
            *before, _ = ask.replace("'acct_1'", f"'{one}'").split("COMMIT;")
            *name, select = before[0].strip().rstrip(";").rsplit(";", 1)
            await pg.execute(name[0])
            assert [row["id"] for row in await pg.fetch(select)] == [mine]
            await pg.execute("COMMIT")
            # A transaction that names no account sees nothing.
            assert await pg.fetch(select) == []
        finally:
            await pg.execute("RESET ROLE; DROP OWNED BY shop_app; DROP ROLE shop_app")
        count = await pg.fetchval(f"SELECT count(*) FROM {ID}.customer")
    assert count == 2  # The owner sees all.
