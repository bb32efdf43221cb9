"""The service as a whole: processes that die and are paused, several syncs, an orderly end, no secret."""

from __future__ import annotations

import asyncio
import hmac
import os
import signal
import time
from pathlib import Path

import aiohttp
import asyncpg
from tests.flows.harness.command import pinstripe, started
from tests.flows.harness.serving import LIVE, OTHER, SECRET, Served, env_of, served

from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import Running, running

HOOK = "whsec_ofthistest"


async def test_proxy_wait_webhooks_api_and_console_answer_at_one_port_and_end_in_order(
    database: str, pg: asyncpg.Connection
) -> None:
    async with running(Settings(scale=60, keys=(SECRET,))) as sim:
        env = {**env_of(sim, database), "PINSTRIPE_WEBHOOK_SECRET": HOOK}
        async with served(env) as service:
            await service.until("default: following")
            made, mirrored = await service.make_customer("A new one")
            row = await pg.fetchval("SELECT name FROM stripe.customer WHERE id = $1", made)
            assert (mirrored, row) == ("yes", "A new one")
            await _waits_for_what_went_straight_to_stripe(service, sim, pg)
            await _takes_signed_webhooks_only(service)
            await service.until_ready()
            for path in ("/", "/healthz", "/metrics", "/api/openapi.json"):
                async with service.http.get(service.url + path) as answer:
                    assert (path, answer.status) == (path, 200)
                    assert SECRET not in await answer.text()
            child = (await service.state())["pid"]
            for pid in (child, service.process.pid):
                assert SECRET not in _words_of(pid)
            assert SECRET not in _environment_of(child)
            service.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(15):
                _, err = await service.process.communicate()
        said = service.said + err.decode()
    assert service.process.returncode == 0, said
    assert "Traceback" not in said
    assert SECRET not in said
    assert not _is_alive(child)


async def _waits_for_what_went_straight_to_stripe(
    service: Served, sim: Running, pg: asyncpg.Connection
) -> None:
    headers = {"Authorization": f"Bearer {SECRET}"}
    async with service.http.post(
        f"{sim.url}/v1/customers", data={"name": "Past us"}, headers=headers
    ) as answer:
        made = (await answer.json())["id"]
    status, waited = await service.get("/wait/stripe/default")
    assert (status, waited["ok"]) == (200, True)
    assert await pg.fetchval("SELECT name FROM stripe.customer WHERE id = $1", made) == "Past us"
    status, waited = await service.get(f"/wait/stripe/default?object={made}")
    assert (status, waited["ok"]) == (200, True)


async def _takes_signed_webhooks_only(service: Served) -> None:
    body, at = b'{"object": "event"}', str(int(time.time()))
    signed = hmac.new(HOOK.encode(), f"{at}.".encode() + body, "sha256").hexdigest()
    for signature, wanted in ((signed, 200), ("0" * 64, 400)):
        async with service.http.post(
            f"{service.url}/webhooks/stripe/default",
            data=body,
            headers={"Stripe-Signature": f"t={at},v1={signature}"},
        ) as answer:
            assert answer.status == wanted


async def test_a_process_that_is_killed_comes_back_and_the_proxy_answers_meanwhile(
    database: str,
) -> None:
    async with (
        running(Settings(scale=100, keys=(SECRET,))) as sim,
        served(env_of(sim, database)) as service,
    ):
        await service.until("default: following")
        before = await service.state()
        os.kill(before["pid"], signal.SIGKILL)
        await service.until_state(activity="waiting")
        assert "signal 9" in (await service.state())["reason"]
        assert (await service.make_customer("Meanwhile"))[1] == "yes"
        await service.until("default: following")
        after = await service.state()
    assert after["restarts"] == 1
    assert after["pid"] != before["pid"]
    assert after["reason"] == ""


async def test_when_the_service_is_killed_its_processes_end_too(tmp_path: Path) -> None:
    async with running(Settings(scale=50, keys=(SECRET,))) as sim:
        env = {k: v for k, v in env_of(sim, "").items() if k != "DATABASE_URL"}
        async with served(env, cwd=str(tmp_path)) as service:
            await service.until("default: following")
            child = (await service.state())["pid"]
            cluster = tmp_path / ".pinstripe" / "postgres" / "cluster"
            postgres = int((cluster / "postmaster.pid").read_text().splitlines()[0])
            service.process.kill()
            async with asyncio.timeout(20):
                while _is_alive(child) or _is_alive(postgres):  # noqa: ASYNC110 (not our children)
                    await asyncio.sleep(0.05)


async def test_a_second_account_is_added_paused_resumed_and_removed_while_the_service_runs(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    async with (
        running(Settings(scale=60, keys=(SECRET,))) as sim,
        running(Settings(scale=60, seed=2, keys=(LIVE,), livemode=True)) as live,
    ):
        env = {**env_of(sim, database), "PINSTRIPE_DATA_DIR": str(tmp_path)}
        shell = {
            "DATABASE_URL": database,
            "PINSTRIPE_DATA_DIR": str(tmp_path),
            "STRIPE_API_KEY": LIVE,
            "STRIPE_API_BASE": live.url,
        }
        async with served(env) as service:
            await service.until("default: following")
            added = await pinstripe(
                *("syncs", "add", "shop-eu", "--set", "tables=customer,event"),
                *("--set", "rate_limit=none", "--set", "endpoint_rate_limit=none"),
                env=shell,
            )
            assert added.code == 0, added.text
            assert LIVE not in added.text
            assert "`pinstripe serve` that runs on this database starts it now" in added.out
            await service.until("shop-eu: following")
            assert await pg.fetchval("SELECT count(*) FROM shop_eu.customer") > 0
            await service.until_state("shop-eu", served=True)

            paused = await pinstripe("syncs", "pause", "shop-eu", env=shell)
            assert paused.code == 0, paused.text
            assert (await service.until_state("shop-eu", activity="paused"))["pid"] is None
            resumed = service.http.post(f"{service.url}/api/syncs/shop-eu/resume")
            async with resumed as answer:
                assert answer.status == 200
            await service.until("shop-eu: following")

            removed = await pinstripe("syncs", "remove", "shop-eu", "--drop-tables", env=shell)
            assert removed.code == 0, removed.text
            assert (await service.get("/api/syncs/shop-eu"))[0] == 404
            assert await pg.fetchval("SELECT to_regnamespace('shop_eu')") is None
            assert (await service.state())["activity"] == "following"


async def test_no_key_is_in_the_database_and_the_one_of_a_lost_file_is_told_of(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    async with running(Settings(scale=20, keys=(OTHER,))) as sim:
        env = {
            **env_of(sim, database),
            "STRIPE_API_KEY": OTHER,
            "PINSTRIPE_DATA_DIR": str(tmp_path),
        }
        added = await pinstripe("syncs", "add", "shop", "--paused", env=env)
        assert added.code == 0, added.text
        assert "It is paused; `pinstripe syncs resume shop` starts it." in added.out
        assert "serve" not in added.out
        resumed = await pinstripe("syncs", "resume", "shop", env=env)
        assert resumed.code == 0, resumed.text
        (row,) = await pg.fetch("SELECT t::text FROM pinstripe.stored_sync t")
        assert OTHER not in row[0]
        assert OTHER.encode().hex() not in row[0]
        rekeyed = await pinstripe("syncs", "rekey", env=env)
        assert rekeyed.code == 0, rekeyed.text
        assert (await pg.fetch("SELECT t::text FROM pinstripe.stored_sync t"))[0] != row
        (tmp_path / "secret.key").unlink()
        del env["STRIPE_API_KEY"]
        async with served(env) as service:
            state = await service.until_state("shop", activity="failed")
    assert "secret.key" in state["reason"]
    assert "pinstripe syncs change" in state["remedy"]


async def test_a_key_that_stripe_refuses_is_shown_with_its_remedy_and_stops_nothing_else(
    database: str,
) -> None:
    async with (
        running(Settings(scale=20, keys=(OTHER,))) as sim,
        served(env_of(sim, database)) as service,
    ):
        state = await service.until_state(activity="failed")
        assert (await service.get("/healthz"))[0] == 200
        assert state["remedy"]
        assert SECRET not in str(state)


async def test_without_postgres_the_gateway_passes_requests_through_and_says_so() -> None:
    async with running(Settings(scale=20, keys=(SECRET,))) as sim:
        away = "postgresql://nobody@127.0.0.1:1/none"
        async with served(env_of(sim, away)) as service:
            made, mirrored = await service.make_customer("Kept by Stripe")
            assert made.startswith("cus_")
            assert mirrored in ("no", "later")
            assert (await service.get("/healthz"))[0] == 200
            assert (await service.get("/readyz"))[0] == 503
            assert (await service.until_state(activity="waiting"))["reason"]


async def test_the_gateway_alone_serves_what_another_process_syncs(database: str) -> None:
    async with running(Settings(scale=50, keys=(SECRET,))) as sim:
        env = env_of(sim, database)
        async with (
            served(env, "--gateway-only") as service,
            started("sync", env=env) as syncing,
        ):
            assert syncing.stderr is not None
            await service.until_state(activity="elsewhere", served=True)
            assert (await service.make_customer("Through the gateway"))[1] == "yes"
            syncing.send_signal(signal.SIGTERM)
            await syncing.communicate()


async def test_a_port_that_is_taken_is_an_error_that_names_the_flag(database: str) -> None:
    async with running(Settings(scale=20, keys=(SECRET,))) as sim:
        port = sim.url.rpartition(":")[2]
        ended = await pinstripe("serve", "--port", port, env=env_of(sim, database))
    assert ended.code == 2
    assert port in ended.err
    assert "--port" in ended.err


async def test_listening_publicly_needs_an_admin_token() -> None:
    ended = await pinstripe("serve", "--host", "0.0.0.0", "--port", "0")
    assert ended.code == 2
    assert "PINSTRIPE_ADMIN_TOKEN" in ended.err


async def test_run_serves_too_and_takes_another_port_where_its_own_is_taken(
    tmp_path: Path,
) -> None:
    async with running(Settings(scale=20)) as sim:
        env = {
            "PINSTRIPE_DEMO_SCALE": "50",
            "PINSTRIPE_TABLES": "product,event",
            "PINSTRIPE_PORT": sim.url.rpartition(":")[2],
        }
        async with started("run", env=env, cwd=str(tmp_path)) as process:
            async with asyncio.timeout(60):
                while b"Proxy:" not in (line := await process.stdout.readline()):
                    assert line, "it ended"
                url = line.decode().split("SDK base URL: ")[1].strip().rstrip(")")
                async with aiohttp.ClientSession() as http, http.get(f"{url}/healthz") as answer:
                    assert answer.status == 200
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(20):
                _, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert "is in use" in err.decode()


def _words_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def _environment_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
